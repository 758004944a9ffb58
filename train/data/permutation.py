"""A seeded permutation of 0 .. size - 1 that is computed instead of stored: any place, at any time, without memory.

In: places. Out: what stands at them. An unbalanced Feistel network over the least power of two that holds `size`, applied
again while it leads outside (cycle walking; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). The round
function, and every other random number of the loader, is the finalizer of splitmix64 (Steele, Lea and Flood, 2014).

Numba's cache of a kernel does not see that a kernel of another file changed: whoever changes one here empties __pycache__.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.data.jit import jit

Integers = npt.NDArray[np.int64]

NUM_ROUNDS = 6
MIN_BITS = 6
"""Below it the two halves have too few bits to mix; the walk then is longer."""

_ONE = np.uint64(1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


@jit
def mix(value: np.uint64) -> np.uint64:
    """64 bits that look random, the same for the same value; one to one."""
    value = (value ^ (value >> _SHIFT_1)) * _FACTOR_1
    value = (value ^ (value >> _SHIFT_2)) * _FACTOR_2
    return value ^ (value >> _SHIFT_3)


@jit
def derive_key(key: np.uint64, purpose: np.uint64) -> np.uint64:
    """Another key: independent streams from one seed, by purpose, source, epoch or counter."""
    return mix(mix(key + _GOLDEN) ^ (purpose * _GOLDEN + _ONE))


@jit
def permuted(place: np.uint64, size: np.uint64, key: np.uint64) -> np.uint64:
    """What the permutation of 0 .. size - 1 of this key has at `place`, which is below `size`."""
    bits = np.uint64(MIN_BITS)
    while (_ONE << bits) < size:
        bits += _ONE
    low_bits = bits >> _ONE
    low_mask = (_ONE << low_bits) - _ONE
    high_mask = (_ONE << (bits - low_bits)) - _ONE
    value = place
    while True:
        high, low = value >> low_bits, value & low_mask
        for number in range(0, NUM_ROUNDS, 2):
            high ^= mix((low ^ key) + np.uint64(number) * _GOLDEN) & high_mask
            low ^= mix((high ^ key) + np.uint64(number + 1) * _GOLDEN) & low_mask
        value = (high << low_bits) | low
        if value < size:
            return value


@jit
def permuted_in_runs(place: np.uint64, size: np.uint64, run: np.uint64, key: np.uint64) -> np.uint64:
    """The same, where whole runs of `run` neighbours change places and stay in order within.

    What is left over at the end of 0 .. size - 1 is a shorter run, put at a place of its own.
    """
    if run == _ONE:
        return permuted(place, size, key)
    num_runs = size // run
    rest = size - num_runs * run
    rest_start = (derive_key(key, rest) % (num_runs + _ONE)) * run
    if place >= rest_start:
        if place < rest_start + rest:
            return num_runs * run + (place - rest_start)
        place -= rest
    return permuted(place // run, num_runs, key) * run + place % run


@jit
def _permute(places: Integers, size: np.uint64, run: np.uint64, seed: np.uint64, out: Integers) -> None:
    key = derive_key(seed, np.uint64(0))
    for i in range(places.size):
        out[i] = np.int64(permuted_in_runs(np.uint64(places[i]), size, run, key))


@dataclass(frozen=True, slots=True)
class Permutation:
    """The permutation of 0 .. size - 1 that a seed names; `run` > 1 moves runs of that many neighbours together."""

    size: int
    seed: int
    run: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.run < 1:
            raise ValueError(f"permutation of size = {self.size} in runs of {self.run}: give at least 1 for both")

    def __call__(self, places: Integers) -> Integers:
        """What stands at each of these places. Raises ValueError for a place outside of 0 .. size - 1."""
        places = np.ascontiguousarray(places, np.int64)
        if places.size and (places.min() < 0 or places.max() >= self.size):
            raise ValueError(f"a place outside of 0 .. {self.size - 1}: there are {self.size}")
        out = np.empty(places.shape, np.int64)
        _permute(places.ravel(), np.uint64(self.size), np.uint64(self.run), np.uint64(self.seed), out.ravel())
        return out
