"""The one global stream of sequences that training reads: which source, and the how-manyeth sequence taken from it.

In: a seed, the sources' weights, the size of a reservoir. Out: references, `source << 48 | draw`, where draw counts what was
taken from the source; which row of the source that is, a permutation per pass says (loader.py). Ranks and data do not
come in: the stream is the same for any number of them. Its whole state is a position and the reservoir.

Mixing is in blocks: after any whole number n of them each source was taken within one of its exact share of n * block_size
places, by a closed form, so that nothing has to be counted. Within a block the order is shuffled. A reservoir follows:
a random one of its references leaves and the next of the stream takes the slot. Random numbers: counters through splitmix64.
"""

import base64
import binascii
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from train.data.jit import jit
from train.data.permutation import derive_key

Integers = npt.NDArray[np.int64]

DRAW_BITS = 48
SHARE_BITS = 30
"""A share is a whole number of 2^-30."""
MIN_BLOCK_BITS, MAX_BLOCK_BITS = 8, 20
MAX_SOURCES = 1 << 14
_SKIP = 1 << 16

_SHUFFLE, _RESERVOIR = np.uint64(1), np.uint64(2)
_DRAW_MASK = (1 << DRAW_BITS) - 1


@jit
def _fill_block(block: int, shares: npt.NDArray[np.uint64], key: np.uint64, out: Integers) -> None:
    """References of block number `block`. `shares`: 0, then the running sum of the sources' shares, to 2^30.

    Before block b, source s was taken edge(s + 1) - edge(s) times, where edge(i) = floor(shares[i] * b * size / 2^30). That
    never falls, since a block holds the smallest share once or more on average.
    """
    size_bits = np.uint64(0)
    while (1 << size_bits) < out.size:
        size_bits += np.uint64(1)
    shift = np.uint64(SHARE_BITS) - size_bits
    num_sources = shares.size - 1
    draws = np.empty(num_sources, np.int64)
    start = 0
    for source in range(num_sources):
        below = np.int64((shares[source] * np.uint64(block)) >> shift)
        above = np.int64((shares[source + 1] * np.uint64(block)) >> shift)
        draws[source] = above - below
        next_below = np.int64((shares[source] * np.uint64(block + 1)) >> shift)
        next_above = np.int64((shares[source + 1] * np.uint64(block + 1)) >> shift)
        stop = start + (next_above - next_below) - draws[source]
        out[start:stop] = source
        start = stop
    block_key = derive_key(derive_key(key, _SHUFFLE), np.uint64(block))
    for last in range(out.size - 1, 0, -1):
        other = np.int64(derive_key(block_key, np.uint64(last)) % np.uint64(last + 1))
        out[last], out[other] = out[other], out[last]
    for i in range(out.size):
        source = out[i]
        out[i] = (source << DRAW_BITS) | draws[source]
        draws[source] += 1


@jit
def _emit(
    out: Integers,
    position: int,
    reservoir: Integers,
    mixture: tuple[npt.NDArray[np.uint64], np.uint64],
    opened: tuple[Integers, int],
) -> int:
    """Fill `out` with what leaves the reservoir from `position` on.

    `mixture`: shares and key. `opened`: references of a block, and its number; returns the number of the block that is there
    at the end.
    """
    shares, key = mixture
    block_references, block = opened
    slots_key = derive_key(key, _RESERVOIR)
    for i in range(out.size):
        taken = position + i + reservoir.size
        if taken // block_references.size != block:
            block = taken // block_references.size
            _fill_block(block, shares, key, block_references)
        slot = np.int64(derive_key(slots_key, np.uint64(position + i)) % np.uint64(reservoir.size))
        out[i] = reservoir[slot]
        reservoir[slot] = block_references[taken % block_references.size]
    return block


class Mixture:
    """Shares of sources. Raises ValueError for weights that are not above 0, or too small to be met."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights` in any unit: they are divided by their sum."""
        if not 1 <= len(weights) <= MAX_SOURCES:
            raise ValueError(f"{len(weights)} sources: give at least one and at most {MAX_SOURCES:,}")
        for index, weight in enumerate(weights):
            if not 0 < weight < float("inf"):
                raise ValueError(f"sources[{index}].weight = {weight}: give a number above 0, or leave the source out")
        largest = max(weights)
        sums = list(itertools.accumulate((weight / largest for weight in weights), initial=0.0))
        self.shares = np.array([round(one / sums[-1] * (1 << SHARE_BITS)) for one in sums], np.uint64)
        self.parts = tuple(int(part) for part in np.diff(self.shares))
        """Share of each source in 2^-30."""
        smallest = min(self.parts)
        if smallest << MAX_BLOCK_BITS < 1 << SHARE_BITS:
            index = self.parts.index(smallest)
            raise ValueError(
                f"sources[{index}].weight = {weights[index]} is below a millionth of all weights: raise it, or "
                "leave the source out"
            )
        self.block_size = max(1 << MIN_BLOCK_BITS, 1 << (-(-(1 << SHARE_BITS) // smallest) - 1).bit_length())
        """Places among which the smallest share comes once or more on average; a power of two."""

    def draws_before(self, block: int) -> Integers:
        """How often each source was taken before this block."""
        edges = [int(share) * block * self.block_size >> SHARE_BITS for share in self.shares]
        return np.diff(np.array(edges, np.int64))

    def block(self, block: int, *, seed: int) -> Integers:
        """The references of a block, in order."""
        out = np.empty(self.block_size, np.int64)
        _fill_block(block, self.shares, np.uint64(seed), out)
        return out


def sources_of(references: Integers) -> Integers:
    """The source of each reference."""
    return references >> DRAW_BITS


def draws_of(references: Integers) -> Integers:
    """The draw of each reference: the how-manyeth, from 0, taken from its source."""
    return references & _DRAW_MASK


class SequenceStream:
    """The stream from a position on. Not for two threads at once."""

    def __init__(self, mixture: Mixture, *, seed: int, reservoir_size: int) -> None:
        """At position 0, with the first references in the reservoir; 1 slot means no reservoir."""
        self.mixture = mixture
        self.seed = seed
        self.position = 0
        """References that have left."""
        self._block = -1
        self._references = np.empty(mixture.block_size, np.int64)
        first = [mixture.block(block, seed=seed) for block in range(-(-reservoir_size // mixture.block_size))]
        self._reservoir = np.concatenate(first)[:reservoir_size].copy()

    def take(self, count: int) -> Integers:
        """The next references."""
        out = np.empty(count, np.int64)
        mixing = (self.mixture.shares, np.uint64(self.seed))
        self._block = _emit(out, self.position, self._reservoir, mixing, (self._references, self._block))
        self.position += count
        return out

    def skip(self, count: int) -> None:
        """Go on without them, in constant memory."""
        for start in range(0, count, _SKIP):
            self.take(min(_SKIP, count - start))

    def num_taken(self) -> Integers:
        """How many references of each source have left."""
        size, num_sources = self.mixture.block_size, len(self.mixture.parts)
        block, rest = divmod(self.position + self._reservoir.size, size)
        begun = sources_of(self.mixture.block(block, seed=self.seed)[:rest])
        entered = self.mixture.draws_before(block) + np.bincount(begun, minlength=num_sources)
        counts: Integers = entered - np.bincount(sources_of(self._reservoir), minlength=num_sources)
        return counts

    def copy(self) -> Self:
        """Another one at the same position."""
        twin = type(self)(self.mixture, seed=self.seed, reservoir_size=1)
        twin.position, twin._reservoir = self.position, self._reservoir.copy()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """{"position", "reservoir"} for JSON: of the same size at any position of any amount of data."""
        packed = zlib.compress(self._reservoir.astype("<i8").tobytes(), 6)
        return {"position": self.position, "reservoir": base64.b64encode(packed).decode("ascii")}

    @classmethod
    def restore(cls, mixture: Mixture, *, seed: int, reservoir_size: int, state: Mapping[str, Any]) -> Self:
        """The stream that gave this state. Raises ValueError if it is none of a stream like this."""
        position, packed = state.get("position"), state.get("reservoir")
        if not isinstance(position, int) or position < 0 or not isinstance(packed, str):
            raise ValueError(
                f"the state has position = {position!r} and a reservoir of {type(packed)}: take another state"
            )
        try:
            data = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), 8 * reservoir_size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"the reservoir of the state is damaged ({error}): take another state") from error
        reservoir = np.frombuffer(data[: len(data) // 8 * 8], "<i8").astype(np.int64)
        has_all = len(data) == 8 * reservoir_size
        if not has_all or reservoir.min() < 0 or sources_of(reservoir).max() >= len(mixture.parts):
            raise ValueError(f"the reservoir of the state is not of {reservoir_size} references: take another state")
        stream = cls(mixture, seed=seed, reservoir_size=1)
        stream.position, stream._reservoir = position, reservoir
        return stream
