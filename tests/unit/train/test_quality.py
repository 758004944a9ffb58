"""Quality rules: each reason with its value, all of them at once, C4's edits, the score, the classifier."""

import sys
import types
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data import quality
from train.data.quality import QualityConfig, score_table
from train.data.quality_rules import GopherQualityConfig, GopherRepetitionConfig, Rule, rule_margins
from train.data.schema import DOCUMENT_SCHEMA
from train.data.words import split_words, word_tables

OFF = {"enabled": False}
FILTERS = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
PROSE = (
    "The committee met in the old library and talked for most of the afternoon about the new bridge that engineers have "
    "drawn. Nobody could say how long it would take to build. A farmer asked whether his fields would be flooded with water "
    "each spring. The answer, given with some care, was that the river had always been its own master! What should a town do "
    "with such advice? It waited, and in June the first boats of stone arrived from the quarry upstream."
)


def table_of(*texts: str, **columns: Any) -> pa.Table:
    defaults: dict[str, Any] = {
        "id": "d", "source_id": "s", "title": "", "happened_at": 0.0, "metadata": [], "counts": [], "language": "en",
        "language_score": 1.0, "quality": 0.0, "reasons": [],
    }  # fmt: skip
    values = {name: [value] * len(texts) for name, value in defaults.items()} | {"text": list(texts)} | columns
    return pa.table({name: values[name] for name in DOCUMENT_SCHEMA.names}, schema=DOCUMENT_SCHEMA)


def only(*names: str, **settings_by_filter: dict[str, Any]) -> QualityConfig:
    """A configuration with these filters on and all others off."""
    return QualityConfig(**dict.fromkeys(FILTERS, OFF) | {name: {} for name in names} | settings_by_filter)


def reasons_of(table: pa.Table) -> list[dict[str, float]]:
    return [{reason["rule"]: reason["value"] for reason in row} for row in table["reasons"].to_pylist()]


def judge(text: str, config: QualityConfig) -> dict[str, float]:
    return reasons_of(score_table(table_of(text), config))[0]


@pytest.mark.slow
def test_prose_breaks_no_rule_and_has_a_good_score() -> None:
    table = score_table(table_of(PROSE), QualityConfig())
    assert reasons_of(table) == [{}]
    assert 0.3 < table["quality"][0].as_py() <= 1.0
    assert table["text"].to_pylist() == [PROSE]
    assert table.schema == DOCUMENT_SCHEMA


@pytest.mark.parametrize(
    ("filter_name", "text", "rule", "value"),
    [
        ("gopher_quality", "the cat and the dog of that house", "num_words", 8),
        ("gopher_quality", "of to be a b c " * 20, "mean_word_length", 9 / 6),
        ("gopher_quality", "# word " * 60, "hashes_per_word", 0.5),
        ("gopher_quality", "word... thing " * 60, "ellipses_per_word", 1 / 3),
        ("gopher_quality", "word… thing " * 60, "ellipses_per_word", 1 / 3),
        ("gopher_quality", " • item of the list\n- item of the list\n" * 30, "bullet_lines", 1.0),
        ("gopher_quality", "and so it goes on… \nand so it ends.\n" * 20, "ellipsis_lines", 0.5),
        ("gopher_quality", "1 2 three " * 60, "letter_words", 1 / 3),
        ("gopher_quality", "only strange words here the the " * 20, "stop_words", 1),
        ("gopher_repetition", "same line\n" * 9 + "other", "duplicate_lines", 0.8),
        ("gopher_repetition", "a part\n\nb part\n\na part\n\na part", "duplicate_paragraphs", 0.5),
        ("gopher_repetition", "abcdefghi\nabcdefghi\nx", "duplicate_line_chars", 9 / 21),
        ("gopher_repetition", "abcdefgh\n\nabcdefgh", "duplicate_paragraph_chars", 8 / 18),
        ("gopher_repetition", "go home go home go home", "top_2_gram", 3 * 7 / 23),
        ("gopher_repetition", "one two three four five one two three four five", "duplicate_5_grams", 19 / 47),
        ("gopher_repetition", "", "empty", 1),
        ("fineweb", "no end\nno end either\nnone", "line_ends", 0),
        ("fineweb", "Short.\nShort too.\n" + "A line that is longer than thirty characters.", "short_lines", 2 / 3),
        ("fineweb", "A line comes twice.\nA line comes twice.", "duplicate_line_chars", 0.5),
        ("fineweb", "one\ntwo\nthree\nfour", "new_lines_per_word", 3 / 4),
        ("fineweb", " \n\t\n", "empty", 1),
        ("c4", PROSE + "\nThen lorem ipsum and more.", "lorem_ipsum", 1),
        ("c4", PROSE + "\nif (a) { b; }\nwhile (c) { d; }", "curly_bracket", 2),
        ("c4", "One sentence here. And another one.", "num_sentences", 2),
    ],
)
def test_a_broken_rule_is_a_reason_with_the_measured_value(
    filter_name: str, text: str, rule: str, value: float
) -> None:
    limits = {"fineweb": {"max_short_lines": 0.6}} if rule == "short_lines" else {}
    found = judge(text, only(filter_name, **limits))
    assert found[f"{filter_name}.{rule}"] == pytest.approx(value)


def test_all_broken_rules_of_all_filters_are_recorded_and_older_reasons_stay() -> None:
    text = "{ # - ... }\n" * 40
    table = table_of(
        text, language=["fr"], language_score=[0.4], reasons=[[{"rule": "licence.unknown", "value": None}]]
    )
    found = reasons_of(score_table(table, QualityConfig(min_quality=0.1)))[0]
    assert {
        "licence.unknown", "language.allowed", "language.min_score", "gopher_repetition.duplicate_lines",
        "gopher_repetition.top_2_gram", "gopher_repetition.duplicate_10_grams", "gopher_quality.num_words",
        "gopher_quality.hashes_per_word", "gopher_quality.stop_words", "c4.curly_bracket", "fineweb.line_ends",
        "fineweb.duplicate_line_chars", "quality.min_quality",
    } <= set(found)  # fmt: skip
    assert found["language.min_score"] == pytest.approx(0.4)


def test_a_switched_off_rule_is_no_reason() -> None:
    config = only(gopher_repetition={"max_duplicate_lines": None, "max_duplicate_line_chars": None})
    assert not {"gopher_repetition.duplicate_lines", "gopher_repetition.duplicate_line_chars"} & set(
        judge("a\n" * 50, config)
    )
    assert judge("x", QualityConfig(**dict.fromkeys(FILTERS, OFF))) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "I don't know, e.g. why (see below).",
            ["I", "do", "n't", "know", ",", "e.g.", "why", "(", "see", "below", ")", "."],
        ),
        ("well-known U.S. 10km :-) a--b", ["well", "-", "known", "U.S.", "10", "km", ":-)", "a", "--", "b"]),
        ("see http://a.bc/d?e=f, x.y@z.org!", ["see", "http://a.bc/d?e=f", ",", "x.y@z.org", "!"]),
        ("über größe — 中文。", ["über", "größe", "—", "中文", "。"]),
        ("f(8)=8)", ["f(8)=8", ")"]),
        ("  \n\t", []),
    ],
)
def test_words_are_divided_as_spacy_divides_them(text: str, words: list[str]) -> None:
    assert split_words(text, word_tables()) == words


def test_c4_drops_lines_and_counts_them() -> None:
    lines = [
        "  The first line is kept as it is. ", "Too short.", "", "Enable JavaScript to see this page.",
        "We use cookies, and our Privacy Policy says so.", f"A word of {'x' * 1001} characters.",
        "A fact.[1] Another[citation needed] one [edit] follows. And a third! Really? Yes, it is so.",
    ]  # fmt: skip
    table = score_table(table_of("\n".join(lines), counts=[[("EMAIL", 2)]]), only("c4"))
    assert table["text"].to_pylist() == [
        "The first line is kept as it is.\nA fact. Another one  follows. And a third! Really? Yes, it is so."
    ]
    assert table["counts"].to_pylist() == [[("EMAIL", 2), ("c4_lines_dropped", 4)]]
    assert reasons_of(table) == [{}]


def test_a_document_that_c4_drops_keeps_its_text() -> None:
    text = PROSE + "\nno\nfunction f() { return 1; }"
    table = score_table(table_of(text), only("c4"))
    assert table["text"].to_pylist() == [text]
    assert table["counts"].to_pylist() == [[]]
    assert set(reasons_of(table)[0]) == {"c4.curly_bracket"}


def test_terminal_punctuation_is_a_rule_only_if_asked_for() -> None:
    text = PROSE + "\na line that has no end\nAnother one that trails off..."
    assert score_table(table_of(text), only("c4"))["text"].to_pylist() == [text]
    assert score_table(table_of(text), only(c4={"terminal_punctuation": True}))["text"].to_pylist() == [PROSE]


def test_fineweb_judges_what_c4_left() -> None:
    menu = "\n".join(["Home page"] * 40)
    text = f"{PROSE}\n{menu}"
    assert "fineweb.duplicate_line_chars" in judge(text, only("fineweb"))
    assert judge(text, only("c4", "fineweb")) == {}


def test_a_language_that_is_not_known_breaks_no_language_rule() -> None:
    table = table_of(PROSE, PROSE, PROSE, language=["", "de", "en"], language_score=[0.0, 0.9, 0.65])
    assert [set(row) for row in reasons_of(score_table(table, only("language")))] == [
        set(), {"language.allowed"}, {"language.min_score"},
    ]  # fmt: skip


def test_an_empty_table_stays_as_it_is() -> None:
    table = table_of()
    assert score_table(table, QualityConfig()).equals(table)


def test_a_slice_and_a_chunked_table_give_the_same_as_a_plain_one() -> None:
    texts = [PROSE, "a " * 80, "", "中文。" * 50, PROSE[:200]]
    whole = score_table(table_of(*texts), QualityConfig())
    pieces = pa.concat_tables([table_of(*texts[:2]), table_of(*texts[2:])])
    assert score_table(pieces, QualityConfig()).to_pylist() == whole.to_pylist()
    assert score_table(table_of(*texts).slice(2, 2), QualityConfig()).to_pylist() == whole.slice(2, 2).to_pylist()


def test_the_words_of_a_large_document_are_counted_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [PROSE, "a.b c-d " * 50, "{} ()" * 40, ""]
    plain = score_table(table_of(*texts), QualityConfig())
    monkeypatch.setattr(quality, "LARGE_BYTES", 1)
    assert score_table(table_of(*texts), QualityConfig()).equals(plain)


@pytest.mark.parametrize(
    "text",
    ["w" * 200_000, "word " * 40_000, ":)" * 50_000, "a@b." * 50_000, "(" * 100_000, "." * 100_000, "😀" * 30_000,
     "中文。" * 30_000, "\n" * 100_000, "a-b" * 50_000, "\u2028" * 10_000, "a" + "\u0301" * 50_000],
    ids=["word", "line", "joined", "hosts", "prefixes", "dots", "emoji", "cjk", "new lines", "infixes", "separators", "marks"],
)  # fmt: skip
def test_large_and_odd_texts_are_judged(text: str) -> None:
    assert reasons_of(score_table(table_of(text), QualityConfig()))[0]


PIECES = ["the", "of", "a.", "(x)", "don't", " ", "\n", "\n\n", "…", "é", "中", "-", "8)", "{", "b,", ":"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=80).map("".join) | st.text(max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_document_is_judged_alike_alone_and_among_others(texts: list[str]) -> None:
    together = score_table(table_of(*texts), QualityConfig())
    alone = [score_table(table_of(text), QualityConfig()).to_pylist()[0] for text in texts]
    assert together.to_pylist() == alone
    assert all(0.0 <= row["quality"] <= 1.0 and (row["quality"] == 0.0 or not row["reasons"]) for row in alone)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_words_are_the_text_without_white_space(text: str) -> None:
    words = split_words(text, word_tables())
    assert "".join(words) == "".join(text.split())
    assert all(words)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "cc", "d-", "e"]), max_size=40), st.sampled_from([" ", "\n"]))
def test_repeated_n_grams_are_those_of_a_plain_count(words: list[str], between: str) -> None:
    text = between.join(words)
    found = judge(
        text, only(gopher_repetition=dict.fromkeys(GopherRepetitionConfig.model_fields, 0.0) | {"enabled": True})
    )
    for n in (2, 3, 4):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        top = Counter(grams).most_common(1)
        assert found.get(f"gopher_repetition.top_{n}_gram", 0.0) == pytest.approx(
            len(top[0][0]) * top[0][1] / len(text) if top else 0.0
        )
    for n in range(5, 11):
        seen, repeated, i = set(), 0, 0
        while i <= len(words) - n:
            gram = "".join(words[i : i + n])
            repeated += len(gram) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        assert found.get(f"gopher_repetition.duplicate_{n}_grams", 0.0) == pytest.approx(repeated / max(len(text), 1))


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_fineweb_alone_decides_as_it_does_where_all_words_are_counted(text: str) -> None:
    alone = score_table(table_of(text), only("fineweb"))
    weak = dict.fromkeys(GopherQualityConfig.model_fields, None) | {"enabled": True, "stop_words": ()}
    counted = score_table(table_of(text), only("fineweb", gopher_quality=weak))
    assert alone["reasons"].to_pylist() == counted["reasons"].to_pylist()
    assert alone["quality"].to_pylist() == counted["quality"].to_pylist()


@settings(deadline=None)
@given(
    st.sampled_from([{"least": 0.3}, {"least": 2.0}, {"most": 0.2}, {"most": 7.0}]), st.floats(0, 20), st.floats(0, 20)
)
def test_a_margin_grows_with_the_distance_from_its_threshold(
    limits: dict[str, float], one: float, other: float
) -> None:
    for is_fraction in (False, limits.get("least", 2.0) < 1):
        rule = Rule("r", 0, limits.get("least"), limits.get("most"), is_fraction)
        low, high = rule_margins(np.array([[min(one, other)], [max(one, other)]]), [rule])[:, 0]
        assert (low >= high) if "most" in limits else (low <= high)
        assert rule_margins(np.array([[next(iter(limits.values()))]]), [rule])[0, 0] == 0.0
        assert 0.0 <= min(low, high) <= max(low, high) <= 1.0


def test_a_broken_rule_makes_the_quality_zero_and_a_nearer_threshold_makes_it_less() -> None:
    qualities = [
        score_table(table_of(PROSE), only(gopher_quality={"min_words": least}))["quality"][0].as_py()
        for least in (1, 50, 60, 500)
    ]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[2] < qualities[0]
    assert qualities[3] == 0.0


def _module(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = types.ModuleType("quality_classifiers")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "quality_classifiers", module)


def test_a_classifier_gives_the_quality_and_min_quality_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    _module(
        monkeypatch, by_length=lambda table: np.array([min(len(text) / 10, 1.0) for text in table["text"].to_pylist()])
    )
    config = QualityConfig(**dict.fromkeys(FILTERS, OFF), classifier="quality_classifiers:by_length", min_quality=0.5)
    table = score_table(table_of("abc", "abcdefgh"), config)
    assert table["quality"].to_pylist() == pytest.approx([0.3, 0.8])
    assert reasons_of(table) == [{"quality.min_quality": pytest.approx(0.3)}, {}]


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("no_such_module_here:f", None, "cannot be imported"),
        ("quality_classifiers:missing", None, "has no callable 'missing'"),
        ("quality_classifiers:f", [0.5], r"shape \(1,\) for 2 rows"),
        ("quality_classifiers:f", [0.5, 1.5], r"returned 1.5; its numbers have to lie in \[0, 1\]"),
        ("quality_classifiers:f", [0.5, float("nan")], "returned nan"),
    ],
)
def test_a_classifier_that_cannot_work_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, answer: list[float] | None, message: str
) -> None:
    _module(monkeypatch, f=lambda table: np.array(answer))
    with pytest.raises(ValueError, match=message):
        score_table(table_of("a", "b"), QualityConfig(classifier=name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gopher_quality": {"min_words": 100, "max_words": 10}}, "min_words = 100 is above max_words = 10"),
        ({"gopher_quality": {"stop_words": ["a" * 65]}}, "at most 200 words"),
        ({"gopher_quality": {"min_word": 1}}, "Extra inputs"),
        ({"classifier": "module without a colon"}, "String should match"),
        ({"min_quality": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QualityConfig.model_validate(values)


def test_scoring_changes_no_other_columns() -> None:
    table = table_of(PROSE, "x")
    scored = score_table(table, QualityConfig())
    for name in ("id", "source_id", "title", "happened_at", "metadata", "language", "language_score"):
        assert scored[name].equals(table[name])
