"""The index of known documents: what it was told is found again, after a restart, a merge and a crash."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.document_tables import documents
from train.data.dedup import DedupConfig, Deduplicator
from train.data.dedup_index import INDEX_NAME, MAX_SEGMENTS, DedupIndex, IndexDamaged, Match
from train.data.minhash import MinHashConfig

CONFIG = DedupConfig()
VOCABULARY = [f"word{number}" for number in range(2000)]


def texts_of(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(VOCABULARY, k=200)) for _ in range(count)]


def test_equal_and_similar_texts_are_found_and_others_are_not(tmp_path: Path) -> None:
    texts = texts_of(1, 50)
    index = DedupIndex.open(tmp_path, CONFIG)
    index.add_texts([f"id-{i}" for i in range(50)], texts)
    assert index.match_text(texts[7]) == Match("id-7", 1.0, True)
    similar = index.match_text(texts[9] + " and a little more")
    assert similar is not None
    assert (similar.id, similar.is_exact) == ("id-9", False)
    assert similar.similarity > 0.9
    assert index.match_text(texts_of(2, 1)[0]) is None


def test_everything_added_is_found_after_reopening_and_merging(tmp_path: Path) -> None:
    texts = texts_of(3, 4 * MAX_SEGMENTS)
    for number, text in enumerate(texts):
        DedupIndex.open(tmp_path, CONFIG).add_texts([f"é-{number}"], [text])
    index = DedupIndex.open(tmp_path, CONFIG)
    assert len(index) == len(texts)
    assert [match.id for text in texts if (match := index.match_text(text))] == [f"é-{i}" for i in range(len(texts))]
    assert len(index.state) <= MAX_SEGMENTS


def test_a_run_is_added_once(tmp_path: Path) -> None:
    unit = Deduplicator(CONFIG).sign(documents(texts_of(4, 3)))
    assert DedupIndex.open(tmp_path, CONFIG).add_run("abc", [unit], [["a", "b", "c"]])
    assert not DedupIndex.open(tmp_path, CONFIG).add_run("abc", [unit], [["a", "b", "c"]])
    assert len(DedupIndex.open(tmp_path, CONFIG)) == 3


def test_a_crash_before_the_commit_leaves_the_old_state(tmp_path: Path) -> None:
    index = DedupIndex.open(tmp_path, CONFIG)
    index.add_texts(["a"], texts_of(5, 1))
    before = (tmp_path / INDEX_NAME).read_bytes()
    index.add_texts(["b"], texts_of(6, 1))
    (tmp_path / INDEX_NAME).write_bytes(before)  # as if the process had died between the segment and its commit
    reopened = DedupIndex.open(tmp_path, CONFIG)
    assert len(reopened) == 1
    reopened.add_texts(["b"], texts_of(6, 1))
    assert DedupIndex.open(tmp_path, CONFIG).match_text(texts_of(6, 1)[0]) == Match("b", 1.0, True)


def test_damage_is_named_with_its_fix(tmp_path: Path) -> None:
    index = DedupIndex.open(tmp_path, CONFIG)
    index.add_texts(["a"], texts_of(5, 1))
    with pytest.raises(ValueError, match="was built with minhash"):
        DedupIndex.open(tmp_path, DedupConfig(minhash=MinHashConfig(num_bands=8)))
    state = json.loads((tmp_path / INDEX_NAME).read_text())
    (tmp_path / INDEX_NAME).write_text(json.dumps(state | {"version": 99}))
    with pytest.raises(IndexDamaged, match="version 99"):
        DedupIndex.open(tmp_path, CONFIG)
    (tmp_path / INDEX_NAME).write_text(json.dumps(state))
    shutil.rmtree(tmp_path / state["segments"][0])
    with pytest.raises(IndexDamaged, match="cannot be read"):
        DedupIndex.open(tmp_path, CONFIG)
    (tmp_path / INDEX_NAME).write_text("[]")
    with pytest.raises(IndexDamaged, match="is no index"):
        DedupIndex.open(tmp_path, CONFIG)


def test_two_writers_that_were_open_at_once_lose_nothing(tmp_path: Path) -> None:
    one, other = DedupIndex.open(tmp_path, CONFIG), DedupIndex.open(tmp_path, CONFIG)
    texts = texts_of(8, 2 * MAX_SEGMENTS + 2)
    for number, text in enumerate(texts):
        (one, other)[number % 2].add_texts([str(number)], [text])
    index = DedupIndex.open(tmp_path, CONFIG)
    assert [match.id for text in texts if (match := index.match_text(text))] == [str(i) for i in range(len(texts))]


def test_a_reader_pins_what_it_began_with(tmp_path: Path) -> None:
    texts = texts_of(9, MAX_SEGMENTS + 3)
    index = DedupIndex.open(tmp_path, CONFIG)
    index.add_texts(["0"], texts[:1])
    pins = index.state
    for number, text in enumerate(texts[1:], start=1):  # merges the first segment away
        index.add_texts([str(number)], [text])
    pinned = DedupIndex.open(tmp_path, CONFIG, pinned=pins)
    assert pinned.match_text(texts[0]) == Match("0", 1.0, True)
    assert pinned.match_text(texts[1]) is None
