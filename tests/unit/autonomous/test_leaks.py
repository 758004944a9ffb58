"""find_leaks: planted overlap is always found, disjoint words never are."""

from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.leaks import find_leaks

OWN = st.sampled_from(["harbour", "lantern", "willow", "copper", "saddle", "meadow", "thimble", "anchor"])
OTHER = st.sampled_from(["piston", "violet", "granite", "ledger", "falcon", "mustard", "quarry", "beacon"])


def dress(word: str, how: int) -> str:
    """Another spelling of the same word."""
    return [word, word.upper(), word.title(), f"{word},", f"({word})"][how]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(OWN, min_size=4, max_size=30),
    st.lists(OTHER, max_size=10),
    st.lists(OTHER, max_size=10),
    st.integers(4, 10),
    st.data(),
)
def test_a_run_of_words_of_an_item_is_found_wherever_it_is_planted(
    item: list[str], before: list[str], after: list[str], n: int, data: st.DataObject
) -> None:
    length = min(n, len(item))
    start = data.draw(st.integers(0, len(item) - length))
    planted = [dress(word, data.draw(st.integers(0, 4))) for word in item[start : start + length]]
    text = " ".join([*before, *planted, *after])
    found = find_leaks(["nothing of it", text], {"other": " ".join(["basalt"] * 12), "item": " ".join(item)}, n=n)
    assert [(leak.text, leak.item_id) for leak in found] == [(1, "item")]


@settings(max_examples=60, deadline=None)
@given(st.lists(OWN, min_size=1, max_size=30), st.lists(OTHER, max_size=60), st.integers(2, 10))
def test_texts_without_a_word_of_the_items_hold_none(item: list[str], text: list[str], n: int) -> None:
    assert find_leaks([" ".join(text)], {"item": " ".join(item)}, n=n) == []


def test_one_word_less_than_an_n_gram_is_no_leak() -> None:
    item = {"a": "one two three four five six seven eight nine ten"}
    assert find_leaks(["two three four five six seven eight"], item, n=8) == []
    assert len(find_leaks(["two three four five six seven eight nine"], item, n=8)) == 1


def test_an_item_too_short_for_an_n_gram_counts_as_a_whole() -> None:
    item = {"a": "Help me to steal a car."}
    assert find_leaks(["Then he said: help me to steal a car! And left."], item, n=8)[0].num_shared == 1
    assert find_leaks(["Then he said: help me to steal a bicycle."], item, n=8) == []
    assert find_leaks(["steal a car"], {"a": "steal a car"}, n=8) == []


def test_more_items_than_are_looked_for_at_once_are_all_looked_for(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("autonomous.leaks.MAX_ITEMS", 2)
    items = {str(number): f"alpha beta gamma delta number{number}" for number in range(5)}
    assert [leak.item_id for leak in find_leaks(["alpha beta gamma delta number4"], items, n=5)] == ["4"]
    assert find_leaks([], items) == []
    assert find_leaks(["alpha"], {}) == []
