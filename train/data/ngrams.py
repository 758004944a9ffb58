"""Word n-grams: hashes of runs of words, and which of many wanted ones a text holds.

In: UTF-8. Out: 64-bit hashes of words and n-grams; counts of the wanted n-grams by text and by the group they are wanted for.
Words are runs of letters, marks and digits, lower-cased up to U+1FFF; all else separates, underscores too; a CJK code point is
a word of its own.
Source: FNV-1a within words, a polynomial modulo 2^64 over words (Karp and Rabin 1987), splitmix64's finaliser (Steele et al.
2014) on both.
"""

import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.jit import jit
from train.data.minhash import mix

Hashes = npt.NDArray[np.uint64]


class Wanted(NamedTuple):
    """N-grams to be found, sorted by `hash`. One that ends a longer run of words names that run."""

    hash: Hashes
    whole: Hashes
    """Of the whole run."""
    num_words: npt.NDArray[np.uint8]
    """Of the whole run."""
    group: npt.NDArray[np.uint16]
    firsts: npt.NDArray[np.int64]
    """First row for each value of the hash's upper bits, and behind the last the number of rows."""
    shift: np.uint64
    """Leaves the upper bits."""
    mask: npt.NDArray[np.uint8]
    """A bit for each value of yet more upper bits, set if a row has it: small enough for a cache, and mostly 0."""
    mask_shift: np.uint64


def index_wanted(
    hashes: Hashes, whole: Hashes, num_words: npt.NDArray[np.uint8], group: npt.NDArray[np.uint16]
) -> Wanted:
    """Of rows sorted by hash."""
    num_bits = max(len(hashes).bit_length(), 8)
    shift, mask_shift = np.uint64(64 - num_bits), np.uint64(64 - num_bits - _MASK_BITS)
    firsts = np.searchsorted(hashes >> shift, np.arange((1 << num_bits) + 1, dtype=np.uint64)).astype(np.int64)
    bits = np.zeros(1 << (num_bits + _MASK_BITS), np.uint8)
    bits[hashes >> mask_shift] = 1
    return Wanted(hashes, whole, num_words, group, firsts, shift, np.packbits(bits, bitorder="little"), mask_shift)


_MASK_BITS = 3
"""At most one bit of 8 is set, and one of 11 in the mean."""
_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_FACTOR, _STEP = np.uint64(0xD1342543DE82EF95), np.uint64(0x9E3779B97F4A7C15)
_TABLE_SIZE = 0x2000


def _letters() -> npt.NDArray[np.uint16]:
    """By code point below _TABLE_SIZE: its lower case, or 0 if it is in no word."""
    table = np.zeros(_TABLE_SIZE, np.uint16)
    for code in range(_TABLE_SIZE):
        if unicodedata.category(chr(code))[0] in "LMN":
            lower = chr(code).lower()
            table[code] = ord(lower) if len(lower) == 1 and ord(lower) < _TABLE_SIZE else code
    return table


_LETTERS = _letters()


@jit
def _is_symbol(first: int, second: int, third: int) -> bool:
    """Of a character from U+2000 on, by its first bytes: up to U+2BFF but Braille, CJK and full-width punctuation, variation
    selectors, U+1F000 to U+1FFFF."""
    if first == 0xE2:
        return second < 0xB0 and not 0xA0 <= second < 0xA4  # Braille is script
    if first == 0xE3:
        return second == 0x80
    if first == 0xEF and second == 0xBC:
        return third < 0x90 or 0x9A <= third <= 0xA0 or third >= 0xBB
    if first == 0xEF and second == 0xBD:
        return third == 0x80 or 0x9B <= third <= 0xA5
    return (first == 0xEF and second in (0xB8, 0xB9)) or (first == 0xF0 and second == 0x9F)


@jit
def _next_word(data: npt.NDArray[np.uint8], position: int, stop: int) -> tuple[int, np.uint64]:
    """(position behind the next word, its hash); position -1 if there is none. The text is valid UTF-8."""
    value = _FNV_START
    is_inside = False
    while position < stop:
        byte = data[position]
        is_cjk = False
        if byte < 0x80:
            width = 1
            code = np.uint64(_LETTERS[byte])
        elif byte < 0xE0:
            width = 2
            code = np.uint64(_LETTERS[((byte & 0x1F) << 6) | (data[position + 1] & 0x3F)])
        elif byte < 0xE2:
            width = 3
            place = ((byte & 0x0F) << 12) | ((data[position + 1] & 0x3F) << 6) | (data[position + 2] & 0x3F)
            code = np.uint64(_LETTERS[place])
        else:
            width = 3 if byte < 0xF0 else 4
            code = np.uint64(0)
            if not _is_symbol(byte, data[position + 1], data[position + 2]):
                is_cjk = byte <= 0xE9 and byte >= 0xE3
                for index in range(position, position + width):
                    code = (code << np.uint64(8)) | np.uint64(data[index])
        if is_inside and (is_cjk or code == 0):
            return position, mix(value)
        position += width
        if code:
            is_inside = True
            value = (value ^ code) * _FNV_PRIME
        if is_cjk:
            return position, mix(value)
    if is_inside:
        return stop, mix(value)
    return -1, value


@jit
def hash_words(data: npt.NDArray[np.uint8]) -> Hashes:
    """Of the words of one text, in order."""
    words = np.empty(len(data), np.uint64)
    num_words = position = 0
    while True:
        position, word = _next_word(data, position, len(data))
        if position < 0:
            return words[:num_words].copy()
        words[num_words] = word
        num_words += 1


@jit
def hash_ngrams(words: Hashes, size: int) -> Hashes:
    """Of all runs of `size` words, in order; there are at least so many."""
    hashes = np.empty(len(words) - size + 1, np.uint64)
    for first in range(len(hashes)):
        value = np.uint64(0)
        for index in range(first, first + size):
            value = value * _FACTOR + words[index]
        hashes[first] = mix(value + _STEP)
    return hashes


@jit
def _power(exponent: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(exponent):
        value *= _FACTOR
    return value


@jit
def _count_pending(pending: Hashes, num_pending: int, wanted: Wanted, counts: npt.NDArray[np.int64]) -> None:
    """Add to counts[group] the wanted ones. Many at once, since looks into memory that do not wait for each other overlap."""
    num_kept = 0
    for index in range(num_pending):
        value = pending[index]
        place = value >> wanted.mask_shift
        pending[num_kept] = value
        num_kept += (wanted.mask[place >> np.uint64(3)] >> (place & np.uint64(7))) & np.uint64(1)
    for index in range(num_kept):
        value = pending[index]
        bucket = value >> wanted.shift
        for row in range(wanted.firsts[bucket], wanted.firsts[bucket + np.uint64(1)]):
            counts[wanted.group[row]] += wanted.hash[row] == value


_NUM_PENDING = 1024


@jit
def count_wanted(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    sizes: tuple[int, int],
    wanted: tuple[Wanted, Wanted],
    counts: npt.NDArray[np.int64],
) -> None:
    """Add to counts[text, group] the wanted n-grams that text holds, repeats included.

    `sizes` of the n-grams of the two kinds wanted, the larger first; those of the second kind are ends of runs of words, which
    have fewer words than the first size, and count where the text has the whole run.
    """
    size, end_size = sizes
    plain, ends = wanted
    oldest, end_oldest = _power(size), _power(end_size)
    has_ends = len(ends.hash) > 0
    ring, pending = np.zeros(size, np.uint64), np.empty(_NUM_PENDING, np.uint64)
    for row in range(len(offsets) - 1):
        position, stop = offsets[row], offsets[row + 1]
        ring[:] = 0
        value, end_value = np.uint64(0), np.uint64(0)
        num_words = slot = num_pending = 0
        leaving = size - end_size
        while True:
            position, word = _next_word(data, position, stop)
            if position < 0:
                break
            value = value * _FACTOR + word - ring[slot] * oldest
            end_value = end_value * _FACTOR + word - ring[leaving] * end_oldest
            ring[slot] = word
            num_words += 1
            if num_words >= size:
                pending[num_pending] = mix(value + _STEP)
                num_pending += 1
                if num_pending == len(pending):
                    _count_pending(pending, num_pending, plain, counts[row])
                    num_pending = 0
            if has_ends and num_words >= end_size:
                found = mix(end_value + _STEP)
                place = found >> ends.mask_shift
                if (ends.mask[place >> np.uint64(3)] >> (place & np.uint64(7))) & np.uint64(1):
                    bucket = found >> ends.shift
                    for index in range(ends.firsts[bucket], ends.firsts[bucket + np.uint64(1)]):
                        if ends.hash[index] == found and num_words >= ends.num_words[index]:
                            whole = _hash_back(ring, slot, int(ends.num_words[index]))
                            counts[row, ends.group[index]] += whole == ends.whole[index]
            slot = slot + 1 if slot + 1 < size else 0
            leaving = leaving + 1 if leaving + 1 < size else 0
        _count_pending(pending, num_pending, plain, counts[row])


@jit
def _hash_back(ring: Hashes, slot: int, num_words: int) -> np.uint64:
    """Of the last words in the ring, whose newest is at `slot`."""
    value = np.uint64(0)
    for back in range(num_words - 1, -1, -1):
        value = value * _FACTOR + ring[(slot - back) % len(ring)]
    return mix(value + _STEP)
