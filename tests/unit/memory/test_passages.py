import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.passages import split_passages, split_sentences

texts = st.text(alphabet=st.sampled_from("ab Z.?! \n\t\"('e1é"), max_size=400)


@given(texts, st.integers(1, 60))
@example("HEADING\n\n\n" + "word " * 40, 50)
def test_passages_lose_no_text_but_whitespace(text: str, max_chars: int) -> None:
    assert "".join("".join(split_passages(text, max_chars=max_chars)).split()) == "".join(text.split())


@given(texts, st.integers(1, 60))
def test_words_are_never_cut_and_only_a_long_word_exceeds_the_bound(text: str, max_chars: int) -> None:
    passages = split_passages(text, max_chars=max_chars)

    assert [word for passage in passages for word in passage.split()] == text.split()
    assert all(len(passage) <= max_chars or len(passage.split()) == 1 for passage in passages)


def test_a_heading_stays_with_the_paragraph_that_follows_it() -> None:
    passages = split_passages(f"{'x' * 60}.\n\nPressure\n\n{'y' * 60}.", max_chars=75)

    assert passages == [f"{'x' * 60}.", f"Pressure\n\n{'y' * 60}."]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    assert split_passages("The pump runs. The valve is open. Dr. Solen left.", max_chars=20) == [
        "The pump runs.",
        "The valve is open.",
        "Dr. Solen left.",
    ]


def test_abbreviations_initials_and_versions_do_not_end_a_sentence() -> None:
    text = "Dr. J. Solen wrote it, e.g. Python 3.11 notes. They help."

    assert split_sentences(text) == ["Dr. J. Solen wrote it, e.g. Python 3.11 notes.", "They help."]


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chars is 0"):
        split_passages("text", max_chars=0)
