"""Stop strings: nothing of a stop string goes out, and nothing else is lost, however the answer is cut into pieces."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serve.engine_text import StopFilter


@given(
    text=st.text(alphabet="ab.", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3),
)
def test_pieces_give_the_text_up_to_the_first_stop_string(text: str, cuts: list[int], stops: list[str]) -> None:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    stop_filter = StopFilter(tuple(stops))
    sent = "".join(stop_filter.push(text[a:b]) for a, b in itertools.pairwise(bounds))
    sent += stop_filter.finish()
    assert not any(stop in sent for stop in stops)
    assert text.startswith(sent)
    if not any(stop in text for stop in stops):
        assert sent == text
    else:
        assert any(text.startswith(sent + stop) for stop in stops)


def test_a_tail_that_does_not_become_the_stop_string_is_sent() -> None:
    stop_filter = StopFilter(("END",))
    assert stop_filter.push("the E") == "the "
    assert stop_filter.push("ve") == "Eve"
