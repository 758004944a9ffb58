"""Looking through UTF-8: characters, white space, line ends, hashes.

In: an array of bytes and a range in it, valid UTF-8. Loops that the compiler is to widen run over `np.uintp`: of a signed
index numba asks at every step whether it counts from the end, which stops the compiler (measured: 2 to 6 times slower).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.jit import jit, jit_inner
from train.data.word_rules import SPACE

Bytes = npt.NDArray[Any]
"""uint8. Elements of unsigned arrays are combined with constants only: uint64 and int64 together make a float in numba."""
Classes = npt.NDArray[Any]
"""uint32 by code point: the bits of word_rules."""
MULTIPLIER = 0x1E3779B97F4A7C15
"""Of hashes, mod 2^64; odd."""
_BLOCK = 16
_SHIFTS = tuple(np.uint64(8 * place) for place in range(8))


@jit
def byte_at(data: Bytes, index: int) -> int:
    """A byte as a signed integer, which signed integers may meet."""
    return int(np.int64(data[index]))


@jit
def decode(data: Bytes, index: int, stop: int) -> tuple[int, int]:
    """(code point, bytes) of the character that begins at a byte; never reads beyond `stop`."""
    first = data[index] & 0xFF
    if first < 0x80:
        return first, 1
    width = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if index + width > stop:
        return 0xFFFD, stop - index
    code = first & (0x3F >> (width - 1))
    for offset in range(1, width):
        code = code << 6 | (data[index + offset] & 0x3F)
    return min(code, 0x10FFFF), width


@jit
def last_character(data: Bytes, start: int, stop: int) -> int:
    """The first byte of the last character."""
    first = stop - 1
    while first > start and data[first] & 0xC0 == 0x80:
        first -= 1
    return first


@jit
def skip_space(data: Bytes, start: int, stop: int, classes: Classes) -> int:
    """The first byte from `start` that is no white space, or `stop`."""
    while start < stop:
        code, width = decode(data, start, stop)
        if not classes[code] & SPACE:
            break
        start += width
    return start


@jit
def skip_black(data: Bytes, start: int, stop: int, classes: Classes) -> int:
    """The first byte of white space from `start`, or `stop`."""
    while start < stop:
        code, width = decode(data, start, stop)
        if classes[code] & SPACE:
            break
        start += width
    return start


@jit
def skip_space_back(data: Bytes, start: int, stop: int, classes: Classes) -> int:
    """The byte behind the last one that is no white space, or `start`."""
    while stop > start:
        first = last_character(data, start, stop)
        code, _ = decode(data, first, stop)
        if not classes[code] & SPACE:
            break
        stop = first
    return stop


@jit
def next_break(data: Bytes, start: int, stop: int) -> int:
    """The first new line from `start`, or `stop`."""
    while start + _BLOCK <= stop:
        has_break = 0
        for index in range(np.uintp(start), np.uintp(start + _BLOCK)):
            has_break |= data[index] == 10
        if has_break:
            break
        start += _BLOCK
    for index in range(np.uintp(start), np.uintp(stop)):
        if data[index] == 10:
            return int(np.int64(index))
    return stop


@jit
def next_line_end(data: Bytes, start: int, stop: int) -> tuple[int, int]:
    """(first byte, bytes) of the next line end of those that str.splitlines knows; (stop, 0) if there is none."""
    while start < stop:
        while start + _BLOCK <= stop:
            is_candidate = 0
            for index in range(np.uintp(start), np.uintp(start + _BLOCK)):
                byte = data[index]
                is_candidate |= ((byte < 32) & (byte > 9)) | (byte == 0xC2) | (byte == 0xE2)
            if is_candidate:
                break
            start += _BLOCK
        for index in range(start, min(start + _BLOCK, stop)):
            width = _line_end_width(data, index, stop)
            if width:
                return index, width
        start += _BLOCK
    return stop, 0


@jit
def _line_end_width(data: Bytes, index: int, stop: int) -> int:
    byte = data[index]
    if byte == 13:
        return 2 if index + 1 < stop and data[index + 1] == 10 else 1
    if 10 <= byte <= 12 or 28 <= byte <= 30:
        return 1
    if byte == 0xC2 and index + 1 < stop and data[index + 1] == 0x85:
        return 2
    if byte == 0xE2 and index + 2 < stop and data[index + 1] == 0x80:
        return 3 if data[index + 2] in (0xA8, 0xA9) else 0
    return 0


@jit
def count_chars(data: Bytes, start: int, stop: int) -> int:
    """Characters: bytes that continue none."""
    num = 0
    for index in range(np.uintp(start), np.uintp(stop)):
        num += data[index] & 0xC0 != 0x80
    return num


@jit
def count_byte(data: Bytes, start: int, stop: int, byte: int) -> int:
    """How often a byte occurs."""
    num = 0
    wanted = np.uint8(byte)
    for index in range(np.uintp(start), np.uintp(stop)):
        num += data[index] == wanted
    return num


@jit
def count_triples(data: Bytes, start: int, stop: int, triple: tuple[int, int, int]) -> int:
    """How often three bytes follow each other; they may overlap."""
    num = 0
    first, second, third = np.uint8(triple[0]), np.uint8(triple[1]), np.uint8(triple[2])
    for index in range(np.uintp(start), np.uintp(max(stop - 2, start))):
        is_begun = (data[index] == first) & (data[index + np.uintp(1)] == second)
        num += is_begun & (data[index + np.uintp(2)] == third)
    return num


@jit
def count_pieces(data: Bytes, start: int, stop: int) -> int:
    """Pieces between ASCII white space (and control characters, of which clean text has none)."""
    num = 1 if start < stop and data[start] > 32 else 0
    for index in range(np.uintp(start + 1), np.uintp(stop)):
        num += (data[index] > 32) & (data[index - np.uintp(1)] <= 32)
    return num


@jit_inner
def times(first: int, second: int) -> int:
    """The product mod 2^64. A plain signed one that overflows is undefined, and the compiler may take it as impossible."""
    return int(np.int64(np.uint64(first) * np.uint64(second)))


@jit_inner
def hash_further(key: int, byte: int) -> int:
    """The polynomial hash of a text, one byte longer."""
    return int(np.int64(np.uint64(key) * np.uint64(MULTIPLIER) + np.uint64(byte) + np.uint64(1)))


@jit_inner
def hash_between(before: int, after: int, scale: int) -> int:
    """The polynomial hash of the end of a text, from the hashes of the text `before` it and up to its end (`after`); `scale`
    is MULTIPLIER to the number of its bytes."""
    return int(np.int64(np.uint64(after) - np.uint64(before) * np.uint64(scale)))


@jit
def hash_bytes(data: Bytes, start: int, stop: int) -> int:
    """64-bit hash, eight bytes at a time."""
    key: int = stop - start
    whole = start + (stop - start) // 8 * 8
    for index in range(np.uintp(start), np.uintp(whole), np.uintp(8)):
        eight = np.uint64(data[index])
        eight |= np.uint64(data[index + np.uintp(1)]) << _SHIFTS[1]
        eight |= np.uint64(data[index + np.uintp(2)]) << _SHIFTS[2]
        eight |= np.uint64(data[index + np.uintp(3)]) << _SHIFTS[3]
        eight |= np.uint64(data[index + np.uintp(4)]) << _SHIFTS[4]
        eight |= np.uint64(data[index + np.uintp(5)]) << _SHIFTS[5]
        eight |= np.uint64(data[index + np.uintp(6)]) << _SHIFTS[6]
        eight |= np.uint64(data[index + np.uintp(7)]) << _SHIFTS[7]
        key = times(key ^ int(np.int64(eight)), MULTIPLIER)
        key ^= key >> 29
    rest = 0
    for index in range(whole, stop):
        rest = rest << 8 | (data[index] & 0xFF)
    key = times(key ^ rest, MULTIPLIER)
    return key ^ key >> 29
