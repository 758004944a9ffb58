"""Packing: documents to one stream of tokens, and the stream to shards of sequences of equal length.

In: the TokenColumn of each work unit, in the order of the run. A unit's stream is its documents, each followed by the end
token; the run's stream is the units' streams. Sequence i is the stream's tokens [i * L, i * L + L], so that neighbours share a
token: a label is the next input. Shard k holds sequences [k * S, (k + 1) * S). Where they begin and end follows from the token
counts of the units alone, so shards can be written by any number of processes in any order.
An end token behind an end token is fill, no document: documents are not empty.
Sources: GPT-3 (arXiv:2005.14165, 2.2) packs this way; `best_fit_stream` is best-fit-decreasing of Fewer Truncations Improve
Language Modeling (arXiv:2404.10830).
"""

import bisect
import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.tokenizer import TokenColumn

Tokens = npt.NDArray[Any]
"""uint16 or uint32."""

CHUNK_TOKENS = 1 << 20


class Piece(NamedTuple):
    """Tokens [start, stop) of a unit's stream."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: tokens [first_token, last_token] of the run's stream, both included, which lie in these pieces."""

    index: int
    first_token: int
    last_token: int
    num_sequences: int
    num_fill: int
    """End tokens behind the last token, which fill the last sequence: of the run's last shard only."""
    pieces: tuple[Piece, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens without the fill."""
        return self.last_token - self.first_token + 1


@dataclass(frozen=True, slots=True)
class PackingStatistics:
    """What a plan does with the tokens of a run."""

    num_tokens: int
    num_sequences: int
    num_shards: int
    num_fill: int
    num_dropped: int
    """Tokens at the end that are in no sequence."""

    @property
    def fill_share(self) -> float:
        """Of all places of the sequences."""
        return self.num_fill / max(self.num_tokens - self.num_dropped + self.num_fill, 1)


def plan_shards(
    unit_token_counts: Sequence[int],
    *,
    sequence_length: int,
    sequences_per_shard: int,
    tail: Literal["pad", "drop"] = "pad",
) -> list[ShardPlan]:
    """Which tokens go to which shard. `tail`: the run's last tokens, too few for a sequence, are filled up or left out.

    A stream of one token has no label and makes no sequence. Raises ValueError for a negative count or length.
    """
    for name, value in (("sequence_length", sequence_length), ("sequences_per_shard", sequences_per_shard)):
        if value < 1:
            raise ValueError(f"{name} = {value}: give at least 1")
    negative = next((unit for unit, count in enumerate(unit_token_counts) if count < 0), None)
    if negative is not None:
        raise ValueError(f"unit {negative} has {unit_token_counts[negative]} tokens: give 0 or more")
    ends = np.cumsum(np.asarray(unit_token_counts, np.int64)).tolist() or [0]
    num_labels = max(ends[-1] - 1, 0)
    num_sequences = num_labels // sequence_length if tail == "drop" else -(-num_labels // sequence_length)
    plans = []
    for index, first in enumerate(range(0, num_sequences, sequences_per_shard)):
        count = min(sequences_per_shard, num_sequences - first)
        first_token, last_token = first * sequence_length, (first + count) * sequence_length
        num_fill = max(last_token - num_labels, 0)
        pieces = tuple(_pieces(ends, first_token, last_token - num_fill + 1))
        plans.append(ShardPlan(index, first_token, last_token - num_fill, count, num_fill, pieces))
    return plans


def _pieces(ends: Sequence[int], start: int, stop: int) -> Iterator[Piece]:
    """Tokens [start, stop) of the stream by unit. `ends` of the units' streams in the run's."""
    unit = bisect.bisect_right(ends, start)
    while start < stop:
        begin = ends[unit - 1] if unit else 0
        end = min(stop, ends[unit])
        if end > start:
            yield Piece(unit, start - begin, end - begin)
        start, unit = end, unit + 1


def describe_plan(plans: Sequence[ShardPlan], *, num_tokens: int) -> PackingStatistics:
    """Statistics of the plans for a stream of so many tokens."""
    num_used = plans[-1].last_token + 1 if plans else 0
    return PackingStatistics(
        num_tokens=num_tokens,
        num_sequences=sum(plan.num_sequences for plan in plans),
        num_shards=len(plans),
        num_fill=sum(plan.num_fill for plan in plans),
        num_dropped=num_tokens - num_used,
    )


def assemble(plan: ShardPlan, open_unit: Callable[[int], Any], *, chunk_tokens: int = CHUNK_TOKENS) -> Iterator[Tokens]:
    """The shard's tokens, without the fill, in arrays of at most `chunk_tokens`.

    `open_unit` gives a unit's stream as anything that is sliced to an array: an array, a memory map, an HDF5 dataset.
    Raises ValueError naming the unit if its stream is shorter than planned.
    """
    for unit, start, stop in plan.pieces:
        stream = open_unit(unit)
        for first in range(start, stop, chunk_tokens):
            last = min(first + chunk_tokens, stop)
            tokens = np.asarray(stream[first:last])
            if len(tokens) < last - first:
                raise ValueError(
                    f"unit {unit} ends at token {first + len(tokens)}, but shard {plan.index} was planned with its tokens "
                    f"{start} to {stop}: the unit was written anew since; plan the shards again"
                )
            yield tokens


def join_documents(column: TokenColumn, *, end_of_document_id: int) -> Tokens:
    """A unit's stream: its documents in their order, each followed by the end token. Raises ValueError if one holds it."""
    if np.any(column.tokens == end_of_document_id):
        raise ValueError(
            f"a document holds the end token {end_of_document_id} itself, so its end could not be told: choose another token "
            "as end_of_document"
        )
    return np.insert(column.tokens, column.offsets[1:], end_of_document_id)


class Placement(NamedTuple):
    """Tokens [start, stop) of a document, its end token counted as one of them, stand at `place` of the stream."""

    document: int
    start: int
    stop: int
    place: int


def place_best_fit(lengths: Sequence[int], *, sequence_length: int) -> list[Placement]:
    """Documents to sequences so that none is cut that fits into one, by best-fit-decreasing.

    `lengths` with end tokens. A longer document gives whole sequences, and its rest is placed like a document. From the
    longest to the shortest, in their order if equal, each goes where the least room is left that suffices, of equals to the
    one that came to this room first. Then sequences are ordered by their first document, and the documents within by number.
    The result depends on `lengths` alone. Time: n log(sequence_length).
    """
    bins: list[list[tuple[int, int, int]]] = []
    rests = []
    for document, length in enumerate(lengths):
        whole = length - length % sequence_length
        bins += [[(document, start, start + sequence_length)] for start in range(0, whole, sequence_length)]
        if length > whole:
            rests.append((document, whole, length))
    rests.sort(key=lambda item: (item[1] - item[2], item[0]))
    with_room: dict[int, collections.deque[int]] = {}
    rooms: list[int] = []
    """Keys of `with_room`, ascending."""
    for item in rests:
        size = item[2] - item[1]
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            number, room = len(bins), sequence_length
            bins.append([item])
        else:
            room = rooms[at]
            number = with_room[room].popleft()
            bins[number].append(item)
            if not with_room[room]:
                del with_room[room], rooms[at]
        if left := room - size:
            if left not in with_room:
                with_room[left] = collections.deque()
                bisect.insort(rooms, left)
            with_room[left].append(number)
    placements = []
    for number, items in enumerate(sorted(sorted(items) for items in bins)):
        place = number * sequence_length
        for document, start, stop in items:
            placements.append(Placement(document, start, stop, place))
            place += stop - start
    return placements


def best_fit_stream(column: TokenColumn, *, sequence_length: int, end_of_document_id: int) -> tuple[Tokens, int]:
    """(a unit's stream in which documents are arranged by `place_best_fit`, how many of its tokens are fill).

    Its length is a multiple of `sequence_length`, so sequences and documents of all units stay aligned.
    """
    joined = join_documents(column, end_of_document_id=end_of_document_id)
    starts = column.offsets[:-1] + np.arange(len(column))
    placements = place_best_fit((np.diff(column.offsets) + 1).tolist(), sequence_length=sequence_length)
    size = placements[-1].place // sequence_length * sequence_length + sequence_length if placements else 0
    stream = np.full(size, end_of_document_id, column.tokens.dtype)
    for document, start, stop, place in placements:
        stream[place : place + stop - start] = joined[starts[document] + start : starts[document] + stop]
    return stream, size - len(joined)
