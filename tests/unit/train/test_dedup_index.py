"""The index of known documents: what it was told is found again, after a restart, a merge and a crash."""

import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.document_tables import documents
from train.data.dedup import DedupConfig, Deduplicator
from train.data.dedup_edges import SignedDocuments
from train.data.dedup_index import INDEX_NAME, MAX_SEGMENTS, DedupIndex, IndexDamaged, Match
from train.data.dedup_segment import (
    MAX_CANDIDATES,
    Segment,
    _ranges,
    build_segment,
    load_segment,
    write_segment,
)
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


@pytest.mark.slow
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
    assert DedupIndex.open(tmp_path, CONFIG).add_run("abc", [(unit, ["a", "b", "c"])])
    assert not DedupIndex.open(tmp_path, CONFIG).add_run("abc", [(unit, ["a", "b", "c"])])
    assert len(DedupIndex.open(tmp_path, CONFIG)) == 3


def arrays_of(segment: Segment) -> list[object]:
    return [(array.dtype, array.tolist()) for array in (getattr(segment, name) for name in Segment.__slots__)]


@given(st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=5), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_merge_in_small_parts_is_the_segment_of_all_documents(numbers: list[list[int]], merged_rows: int) -> None:
    """Few different hashes: buckets of many rows, also of more than are merged at once."""
    parts = [made_up(part) for part in numbers]
    ids = [[f"é{place}-{i}" for i in range(len(part))] for place, part in enumerate(numbers)]
    whole = build_segment(made_up([one for part in numbers for one in part]), [one for part in ids for one in part])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.dedup_segment.MERGED_ROWS", merged_rows)
        patch.setattr("train.data.dedup_segment._COPIED_ITEMS", 3)
        segments = [build_segment(*part) for part in zip(parts, ids, strict=True)]
        write_segment(Path(folder, "merged"), segments)
        found = load_segment(Path(folder, "merged"))
        assert arrays_of(found) == arrays_of(whole)
        ranges = list(_ranges([one.bands[0] for one in segments]))
        sizes = [sum(part.stop - part.start for part in bounds) for bounds in ranges]
        assert max(sizes, default=0) <= max(merged_rows, len(numbers))


def made_up(numbers: list[int]) -> SignedDocuments:
    values = np.array(numbers, np.uint64)
    bands = [values % np.uint64(modulus) for modulus in (1, 4, 13)]
    signatures = np.stack([values, values + np.uint64(1)], axis=1).astype(np.uint32)
    none = np.zeros(len(numbers), np.int64)
    return SignedDocuments(signatures, bands, np.stack([values, values], axis=1), none, none.astype(np.float32))


def test_a_run_of_many_units_is_sorted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(10, 30)
    deduplicator = Deduplicator(CONFIG)
    parts = [(deduplicator.sign(documents(texts[a : a + 5])), [str(a + i) for i in range(5)]) for a in range(0, 30, 5)]
    DedupIndex.open(tmp_path / "one", CONFIG).add_run("abc", iter(parts))
    monkeypatch.setattr("train.data.dedup_index.ADDED_DOCUMENTS", 8)
    DedupIndex.open(tmp_path / "other", CONFIG).add_run("abc", iter(parts))
    states = [DedupIndex.open(tmp_path / name, CONFIG).state for name in ("one", "other")]
    assert [len(state) for state in states] == [1, 1]
    one, other = (
        load_segment(tmp_path / name / state[0]) for name, state in zip(("one", "other"), states, strict=True)
    )
    assert arrays_of(one) == arrays_of(other)
    assert len(list((tmp_path / "other").glob("segment-*"))) == 1


def test_comparisons_that_a_large_bucket_leaves_out_are_counted(tmp_path: Path) -> None:
    texts = [f"one page of many {'!' * number}" for number in range(MAX_CANDIDATES + 44)]
    deduplicator = Deduplicator(CONFIG)
    index = DedupIndex.open(tmp_path, CONFIG)
    index.add(deduplicator.sign(documents(texts)), [str(number) for number in range(len(texts))])
    (match,), num_capped = index.match(deduplicator.sign(documents(["one page of many ?"])))
    assert match == Match("0", 1.0, False)
    assert num_capped == 44 * CONFIG.minhash.num_bands


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
