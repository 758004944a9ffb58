"""Every token of a run is in the shards once and in its place, whichever way the run was cut into units and shards."""

import itertools
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.packing import (
    ShardPlan,
    assemble,
    best_fit_stream,
    describe_plan,
    join_documents,
    place_best_fit,
    plan_shards,
)
from train.data.tokenizer import TokenColumn

END = 0
documents = st.lists(st.integers(1, 60_000), min_size=1, max_size=30)
units = st.lists(st.lists(documents, max_size=6), max_size=5)


def _column(texts: Sequence[Sequence[int]]) -> TokenColumn:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return TokenColumn(np.array([token for text in texts for token in text], np.uint16), offsets)


def _streams(units: list[list[list[int]]]) -> list[Any]:
    return [join_documents(_column(unit), end_of_document_id=END) for unit in units]


def _split_documents(stream: Any) -> list[Any]:
    """What `join_documents` was given, without empty documents, end tokens and fill."""
    pieces = np.split(stream, np.flatnonzero(stream == END) + 1)
    return [piece for piece in (one[one != END] for one in pieces) if len(piece)]


def _shard(plan: ShardPlan, streams: list[Any]) -> Any:
    return np.concatenate(
        [*assemble(plan, streams.__getitem__, chunk_tokens=7), np.full(plan.num_fill, END, np.uint16)]
    )


@given(units=units, length=st.integers(1, 20), per_shard=st.integers(1, 4))
def test_unpacking_gives_the_documents_back(units: list[list[list[int]]], length: int, per_shard: int) -> None:
    streams = _streams(units)
    plans = plan_shards([len(stream) for stream in streams], sequence_length=length, sequences_per_shard=per_shard)
    shards = [_shard(plan, streams) for plan in plans]
    stream = np.concatenate(
        [*(shard[:-1] for shard in shards), *(shard[-1:] for shard in shards[-1:]), np.zeros(0, np.uint16)]
    )
    found = _split_documents(stream)
    assert [one.tolist() for one in found] == [document for unit in units for document in unit]


@given(units=units, length=st.integers(1, 20), per_shard=st.integers(1, 4), tail=st.sampled_from(["pad", "drop"]))
def test_a_shard_is_its_window_of_the_stream(
    units: list[list[list[int]]], length: int, per_shard: int, tail: Any
) -> None:
    streams = _streams(units)
    stream = np.concatenate([*streams, np.zeros(0, np.uint16)])
    counts = [len(one) for one in streams]
    plans = plan_shards(counts, sequence_length=length, sequences_per_shard=per_shard, tail=tail)
    filled = np.concatenate([stream, np.full(length, END, np.uint16)])
    for index, plan in enumerate(plans):
        assert (plan.index, plan.first_token) == (index, index * per_shard * length)
        assert np.array_equal(_shard(plan, streams), filled[plan.first_token :][: plan.num_sequences * length + 1])
        assert sum(stop - start for _, start, stop in plan.pieces) == plan.num_tokens
        assert plan.num_sequences == per_shard or plan is plans[-1]
        assert plan.num_fill == 0 or (tail == "pad" and plan is plans[-1] and plan.num_fill < length)
    about = describe_plan(plans, num_tokens=len(stream))
    assert about.num_dropped <= (length if tail == "drop" else 1)
    assert about.num_sequences * length + (1 if plans else 0) == about.num_tokens - about.num_dropped + about.num_fill


@given(units=units, cut=st.integers(0, 20), length=st.integers(1, 20))
def test_the_shards_do_not_depend_on_how_documents_are_cut_into_units(
    units: list[list[list[int]]], cut: int, length: int
) -> None:
    every = [document for unit in units for document in unit]
    other = [every[:cut], [], every[cut:]]
    shards = []
    for division in (units, other):
        streams = _streams(division)
        plans = plan_shards([len(one) for one in streams], sequence_length=length, sequences_per_shard=2)
        shards.append([_shard(plan, streams).tolist() for plan in plans])
    assert shards[0] == shards[1]


@given(lengths=st.lists(st.integers(1, 70), max_size=60), length=st.integers(1, 24))
def test_best_fit_places_every_token_once_and_cuts_no_document_that_fits(lengths: list[int], length: int) -> None:
    placements = place_best_fit(lengths, sequence_length=length)
    taken: list[int] = []
    parts: dict[int, list[tuple[int, int]]] = {}
    for document, start, stop, place in placements:
        assert place // length == (place + stop - start - 1) // length, "a part lies across two sequences"
        taken += range(place, place + stop - start)
        parts.setdefault(document, []).append((start, stop))
    assert len(set(taken)) == len(taken) == sum(lengths)
    for document, size in enumerate(lengths):
        ends = sorted(parts[document])
        assert len(ends) == -(-size // length)
        assert [position for part in ends for position in range(*part)] == list(range(size))


@given(texts=st.lists(documents, max_size=20), length=st.integers(2, 16))
def test_a_best_fit_stream_holds_the_documents_of_the_column(texts: list[list[int]], length: int) -> None:
    stream, num_fill = best_fit_stream(_column(texts), sequence_length=length, end_of_document_id=END)
    assert len(stream) % length == 0
    assert num_fill == len(stream) - sum(len(text) + 1 for text in texts)
    whole = [text for text in texts if len(text) < length]
    found = [tuple(one.tolist()) for row in stream.reshape(-1, length) for one in _split_documents(row)]
    assert not {tuple(text) for text in whole} - set(found)
    assert sorted(token for one in found for token in one) == sorted(token for text in texts for token in text)


def test_best_fit_of_equal_lengths_is_the_same_every_time_and_keeps_their_order() -> None:
    lengths = [3, 5, 3, 5, 3, 8, 1]
    placements = place_best_fit(lengths, sequence_length=8)
    assert placements == place_best_fit(list(lengths), sequence_length=8)
    assert [one.document for one in placements] == [0, 1, 2, 3, 4, 6, 5]
    assert [one.place for one in placements] == [0, 3, 8, 11, 16, 19, 24]


def test_best_fit_cuts_few_real_documents_for_little_fill() -> None:
    texts = [list(text.encode()[:40_000]) for text in topics.values()]
    column = _column([[token + 1 for token in text] for text in texts])
    length = 4096
    stream, num_fill = best_fit_stream(column, sequence_length=length, end_of_document_id=END)
    num_long = sum(len(text) >= length for text in texts)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    num_cut_before = sum(a // length != (b - 1) // length for a, b in itertools.pairwise(starts))
    assert 0 < num_long < num_cut_before
    assert num_fill / len(stream) < 0.02


def test_a_document_with_the_end_token_is_refused() -> None:
    with pytest.raises(ValueError, match="a document holds the end token 0"):
        join_documents(_column([[1, END, 2]]), end_of_document_id=END)


def test_a_unit_that_is_shorter_than_planned_is_named() -> None:
    plans = plan_shards([40, 60], sequence_length=10, sequences_per_shard=3)
    streams = [np.ones(40, np.uint16), np.ones(50, np.uint16)]
    with pytest.raises(ValueError, match=r"unit 1 ends at token 50, but shard 2 .* plan the shards again"):
        [list(assemble(plan, streams.__getitem__)) for plan in plans]


def test_a_stream_without_a_label_makes_no_sequence() -> None:
    for counts in ([], [0], [1], [0, 1, 0]):
        assert plan_shards(counts, sequence_length=4, sequences_per_shard=2) == []
    assert describe_plan([], num_tokens=1).num_dropped == 1


@pytest.mark.parametrize(
    ("counts", "length", "per_shard", "message"),
    [([1, -2], 4, 2, "unit 1 has -2"), ([1], 0, 2, "sequence_length = 0"), ([1], 4, 0, "sequences_per_shard = 0")],
)
def test_impossible_plans_are_refused(counts: list[int], length: int, per_shard: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_shards(counts, sequence_length=length, sequences_per_shard=per_shard)


def test_a_long_run_is_read_in_chunks_of_bounded_size() -> None:
    plans = plan_shards([10_000_000], sequence_length=1000, sequences_per_shard=10_000)
    stream = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint16), (10_000_000,), (0,))
    chunks = [len(chunk) for chunk in assemble(plans[0], lambda unit: stream, chunk_tokens=1 << 16)]
    assert max(chunks) == 1 << 16
    assert sum(chunks) == plans[0].num_tokens == 10_000_000
