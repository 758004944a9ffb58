"""Documents that hold evaluation items are found whatever stands around them; others are not."""

import gzip
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data.decontaminate import (
    Contamination,
    DecontaminationConfig,
    count_matches,
    mark_contaminated,
    read_items,
)
from train.data.schema import DOCUMENT_SCHEMA
from train.data.stored_file import UnreadableFile

CONFIG = DecontaminationConfig()
LOCAL = pafs.LocalFileSystem()
QUESTION = "A farmer has 17 sheep, and all but nine of them run away; how many sheep does the farmer have left?"
SHORT = "What is the capital city of the northern province?"
CODE = '''from typing import List


def has_close_elements(numbers: List[float], threshold: float) -> bool:
    """ Check if in given list of numbers, are any two numbers closer to each other than
    given threshold.
    >>> has_close_elements([1.0, 2.0, 3.0], 0.5)
    False
    """
    for idx, elem in enumerate(numbers):
        for idx2, elem2 in enumerate(numbers):
            if idx != idx2 and abs(elem - elem2) < threshold:
                return True
    return False
'''
"""In the way of HumanEval."""
CHINESE = "小明有三个苹果，他给了小红一个，又买了五个，请问他现在一共有几个苹果？"


def _table(texts: list[str]) -> pa.Table:
    rows = [
        {
            "id": str(index), "source_id": "s", "title": "", "text": text, "happened_at": 0.0, "metadata": [], "counts": [],
            "language": "", "language_score": 0.0, "quality": 0.0,
            "reasons": [] if index else [{"rule": "old", "value": 1.0}],
        }
        for index, text in enumerate(texts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def _hits(
    texts: list[str], sets: dict[str, Iterable[str]], config: DecontaminationConfig = CONFIG
) -> list[dict[str, float]]:
    marked = mark_contaminated(_table(texts), Contamination.build(sets, config), config)
    reasons = [[one for one in row if one["rule"] != "old"] for row in marked["reasons"].to_pylist()]
    return [{one["rule"].removeprefix("decontamination."): one["value"] for one in row} for row in reasons]


def _words(text: str) -> list[str]:
    """What a word is, said by a regular expression."""
    return re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|(?:(?![\u3040-\u30ff\u4e00-\u9fff])[^\W_])+", text.lower())


def _oracle(text: str, items: list[str], config: DecontaminationConfig) -> int:
    """Counts n-grams as tuples of words."""
    words, size = _words(text), config.ngram_words
    wanted = set()
    for item in map(_words, items):
        if len(item) >= config.min_item_words:
            length = min(len(item), size)
            wanted |= {tuple(item[first : first + length]) for first in range(len(item) - length + 1)}
    return sum(
        tuple(words[first : first + length]) in wanted
        for length in {len(one) for one in wanted}
        for first in range(len(words) - length + 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("item", [QUESTION, CODE, CHINESE, SHORT])
def test_a_planted_item_is_found_whatever_stands_around_it(item: str) -> None:
    prose = list(topics.values())
    text = f"{prose[0]}\nAnswer this: {item} (the end)\n{prose[1]}"
    (found,) = _hits([text], {"exam": [item]})
    assert found == {"exam": max(len(_words(item)) - 12, 1)}


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\n"),
        "*" + QUESTION.replace(",", " --").replace(";", " …") + "*",
        "“" + QUESTION.replace("sheep", "_sheep_") + "”",
        QUESTION.replace("farmer has", "miller owns", 1),
        QUESTION.rsplit(" ", 3)[0] + " keep for the winter",
    ],
)
def test_edits_of_case_and_punctuation_or_outside_of_an_ngram_do_not_hide_it(copy: str) -> None:
    assert "exam" in _hits([f"Yesterday I read: {copy} and laughed."], {"exam": [QUESTION]})[0]


@pytest.mark.parametrize("item", [QUESTION, CODE])
def test_a_word_changed_in_every_ngram_is_no_match(item: str) -> None:
    words = _words(item)
    words[6::12] = ["zebra"] * len(words[6::12])
    assert _hits([" ".join(words)], {"exam": [item]}) == [{}]


def test_clean_text_is_not_flagged() -> None:
    items = [QUESTION, CODE, CHINESE, SHORT]
    texts = list(topics.values())
    assert _hits(texts, {"exam": items}) == [{}] * len(texts)


def test_a_short_item_counts_as_a_whole_and_a_tiny_one_not_at_all() -> None:
    sets = {"exam": [SHORT, "Who wrote Hamlet?"]}
    assert _hits([f"Q: {SHORT} A: none."], sets) == [{"exam": 1}]
    assert (
        _hits([SHORT.replace("What", "Which"), SHORT.rpartition(" ")[0], "Who wrote Hamlet? " * 20], sets) == [{}] * 3
    )
    built = Contamination.build(sets, CONFIG)
    assert (built.num_items, built.num_skipped) == ((2,), (1,))


def test_a_reason_is_appended_for_each_set_and_says_how_many() -> None:
    table = _table([QUESTION, "nothing here", f"{SHORT} {QUESTION}"])
    built = Contamination.build({"b": [QUESTION], "a": [SHORT, QUESTION]}, CONFIG)
    num = float(len(_words(QUESTION)) - 12)
    assert mark_contaminated(table, built, CONFIG)["reasons"].to_pylist() == [
        [
            {"rule": "old", "value": 1.0},
            {"rule": "decontamination.a", "value": num},
            {"rule": "decontamination.b", "value": num},
        ],
        [],
        [{"rule": "decontamination.a", "value": num + 1}, {"rule": "decontamination.b", "value": num}],
    ]


def test_fewer_matches_than_asked_for_are_let_through() -> None:
    config = DecontaminationConfig(min_matches=3)
    words = QUESTION.split()
    assert _hits([" ".join(words[:14]), " ".join(words[:15])], {"exam": [QUESTION]}, config) == [{}, {"exam": 3.0}]


vocabulary = st.sampled_from(["a", "B", "c1", "é", "É", "да", "Да", "ǅ", "中", "の", "x", "42"])
separators = st.sampled_from([" ", ", ", "\n", "_", "。", " “", "— ", "…", "\u00a0", "·", "\u3000", "، ", "😀"])
texts = st.lists(st.tuples(vocabulary, separators), max_size=40).map(lambda pairs: "".join(a + b for a, b in pairs))


@given(text=texts, items=st.lists(texts, max_size=5), size=st.integers(2, 5), least=st.integers(1, 5))
def test_counts_are_those_of_a_search_by_words(text: str, items: list[str], size: int, least: int) -> None:
    config = DecontaminationConfig(ngram_words=size, min_item_words=min(least, size))
    built = Contamination.build({"exam": items}, config)
    column = pa.chunked_array([pa.array(["before", text, text[::-1]], pa.large_string())]).slice(1)
    found = count_matches(column, built)[:, 0].tolist()
    assert found == [_oracle(text, items, config), _oracle(text[::-1], items, config)]


@given(sets=st.dictionaries(st.sampled_from("abcd"), st.lists(texts, max_size=4), min_size=1), seed=st.integers(0, 9))
def test_the_order_of_sets_and_items_does_not_matter(sets: dict[str, list[str]], seed: int) -> None:
    config = DecontaminationConfig(ngram_words=3, min_item_words=1)
    draw = random.Random(seed)
    names = draw.sample(sorted(sets), len(sets))
    first = Contamination.build(sets, config)
    second = Contamination.build({name: draw.sample(sets[name], len(sets[name])) for name in names}, config)
    assert (first.set_names, first.num_items, first.num_skipped) == (
        second.set_names,
        second.num_items,
        second.num_skipped,
    )
    assert all(np.array_equal(first.columns[name], second.columns[name]) for name in first.columns)


def test_letters_and_marks_of_all_scripts_make_words_as_unicode_says() -> None:
    config = DecontaminationConfig(ngram_words=2, min_item_words=2)
    for word, other in (
        ("ĞÜNEŞ", "ğüneş"),
        ("ΆΛΦΑ", "άλφα"),
        ("TIẾNG", "tiếng"),
        ("हिन्दी", "हिन्दी"),
        ("ԲԱՐԵՎ", "բարեվ"),
    ):
        assert _hits([f"x {other}, x"], {"s": [f"x {word}"]}, config) == [{"s": 1.0}]
    assert _hits(["हि न्दी x"], {"s": ["हिन्दी x"]}, config) == [{}]


def test_a_saved_file_is_the_same_twice_and_finds_the_same(tmp_path: Path) -> None:
    built = Contamination.build({"b": [QUESTION, CODE], "a": [SHORT]}, CONFIG)
    for name in ("one", "two"):
        built.save(LOCAL, str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = Contamination.load(LOCAL, str(tmp_path / "one"))
    assert (loaded.config, loaded.set_names, loaded.num_items) == (built.config, built.set_names, built.num_items)
    column = pa.chunked_array([pa.array([QUESTION + CODE, SHORT, "clean"], pa.large_string())])
    assert count_matches(column, loaded).tolist() == count_matches(column, built).tolist()


def test_no_items_find_nothing(tmp_path: Path) -> None:
    Contamination.build({"empty": []}, CONFIG).save(LOCAL, str(tmp_path / "x"))
    loaded = Contamination.load(LOCAL, str(tmp_path / "x"))
    assert mark_contaminated(_table([QUESTION]), loaded, CONFIG) == _table([QUESTION])
    assert mark_contaminated(_table([]), loaded, CONFIG).num_rows == 0


def test_a_file_that_cannot_be_used_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "sets.arrow"
    with pytest.raises(UnreadableFile, match=r"sets.arrow does not exist: build it anew"):
        Contamination.load(LOCAL, str(path))
    path.write_bytes(b"no arrow file")
    with pytest.raises(UnreadableFile, match="cannot be read as hashes"):
        Contamination.load(LOCAL, str(path))
    for metadata, message in (
        ({}, "holds no hashes"),
        ({"contamination": '{"version": 9}'}, "version 9, this program reads 1"),
    ):
        table = pa.table({"hash": pa.array([1], pa.uint64())}).replace_schema_metadata(metadata)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UnreadableFile, match=message):
            Contamination.load(LOCAL, str(path))


def test_sets_that_were_hashed_otherwise_are_refused() -> None:
    built = Contamination.build({"exam": [QUESTION]}, CONFIG)
    with pytest.raises(ValueError, match="ngram_words = 8, but the evaluation sets were hashed with 13"):
        mark_contaminated(_table(["x"]), built, DecontaminationConfig(ngram_words=8))


def test_items_longer_than_an_ngram_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="min_item_words = 20 is above ngram_words = 13"):
        DecontaminationConfig(min_item_words=20)


def _write(path: Path, rows: list[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "SET.JSONL"])
def test_jsonl_gives_the_named_fields(tmp_path: Path, name: str) -> None:
    rows = [
        {"prompt": "p1", "answer": {"text": ["a", "b"]}},
        {"prompt": "p2 \ud800", "answer": {"text": "c"}, "more": 1},
    ]
    found = list(read_items(str(_write(tmp_path / name, rows)), fields=["prompt", "answer.text"]))
    assert found == ["p1", "a", "b", "p2 \ud800", "c"]
    assert Contamination.build({"s": found}, CONFIG).num_items == (5,)


def test_plain_text_gives_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "set.txt").write_text("\ufeffone\n\n  \ntwo words\r\n", encoding="utf-8")
    assert [item.strip() for item in read_items(str(tmp_path / "set.txt"))] == ["one", "two words"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is no JSON"),
        (b'{"text": "a"}\n\n[1]\n', "line 3 is a JSON list"),
        (b'{"question": "a"}\n', r"line 1 has no text in the field 'text' but NoneType \(its fields: question\)"),
        (b'{"text": ["a", 3]}\n', "line 1 has no text in the field 'text' but list"),
        (b'{"text": "a"}\n"\xff\xfe"\n', "line 2 is not UTF-8"),
        (b"PK\x03\x04\x00\x00", "is binary"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"set.jsonl,? {message}"):
        list(read_items(str(path)))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"gone.jsonl does not exist"):
        list(read_items(str(tmp_path / "gone.jsonl")))
    path = _write(tmp_path / "set.jsonl.gz", [{"text": str(random.Random(0).random())} for _ in range(5000)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\x00" * 99 + data[len(data) // 2 + 99 :])
    with pytest.raises(UnreadableFile, match=r"set.jsonl.gz, (behind )?line \d+"):
        list(read_items(str(path)))
