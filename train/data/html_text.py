"""Text of a page into a buffer: white space collapsed as a browser does, character references resolved, words counted.

In: the page's UTF-8 and the place of a text in it. Out: UTF-8 in the buffer and the counts of the block that is being written,
all in a State. Of CJK and Thai, which put no spaces, a character counts as a word.
Source: WHATWG HTML, 13.2.5.72 to 13.2.5.80 (character references); the parity is with Python's html.unescape.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import Bytes
from train.data.html_names import (
    AMPERSAND,
    BEYOND,
    BYTE_CLASSES,
    COMMA,
    FULL_STOP,
    IS_WORD_BYTE,
    NUL_BYTE,
    OPEN_BYTE,
    REFERENCE_SEED,
    SPACE_BYTE,
    Table,
    extend,
    look_up,
)
from train.data.jit import jit

State = npt.NDArray[Any]
"""int64: the counters and places below."""
SIZE, BLOCK, GAP, HAS_TEXT, IN_WORD, SEPARATOR, NODE, NUM_NODES, NUM_BLOCKS, DEPTH, HIDDEN, LINKS, PRES, NUM_P = range(
    14
)
"""Bytes written; where the block begins; a space is due; the block shows anything; within a word; see LEVEL_SHIFT; the
innermost element that is a block; counts; open elements, of them hidden, links, pre and p."""
WORDS, LINK_WORDS, COMMAS, ENDS, TITLE_START, TITLE_STOP, IS_XML, AFTER_PRE, FOREIGNS = range(14, 23)
"""Counts of the block: words, those in links, commas, ends of sentences; the title's place in the page; whether the page
begins as XML; whether a new line would be the first of a pre; open svg."""
NUM_STATE = 23
MAX_NAME = 32
"""Bytes of the longest name of a reference, with its semicolon."""
MAX_LEGACY_NAME = 6
"""Bytes of the longest name that needs no semicolon."""


@jit
def find_byte(data: Bytes, start: int, stop: int, byte: int) -> int:
    """The first place of a byte from `start`, or `stop`."""
    wanted = np.uint8(byte)
    while start + 32 <= stop:
        has_it = 0
        for index in range(np.uintp(start), np.uintp(start + 32)):
            has_it |= data[index] == wanted
        if has_it:
            break
        start += 32
    for index in range(np.uintp(start), np.uintp(stop)):
        if data[index] == wanted:
            return int(np.int64(index))
    return stop


@jit
def write_text(data: Bytes, index: int, stop: int, table: Table, references: Bytes, out: Bytes, state: State) -> int:
    """Write text up to the next "<", of which the first byte may be one; returns where it stopped."""
    size, gap, is_inside, has_text = state[SIZE], state[GAP], state[IN_WORD], state[HAS_TEXT]
    is_pre, first = state[PRES] > 0, index
    words, commas, ends = 0, 0, 0
    while index < stop:
        byte = data[index]
        found = BYTE_CLASSES[byte]
        if found == SPACE_BYTE:
            index += 1
            is_inside = 0
            if not is_pre:
                gap = 1
                continue
            if byte == 13:
                if index < stop and data[index] == 10:
                    continue
                byte = np.uint8(10)
            if byte != 10 or not state[AFTER_PRE]:
                out[size] = byte
                size += 1
            state[AFTER_PRE] = 0
            continue
        if found == OPEN_BYTE and index > first:
            break
        if found == NUL_BYTE and byte == 0:
            index += 1
            continue
        if gap:
            if has_text and out[size - 1] != 10:
                out[size] = 32
                size += 1
            gap = 0
        if found == IS_WORD_BYTE:
            words += 1 - is_inside
            is_inside = 1
        elif found == AMPERSAND:
            before = size
            index, size, is_space = write_reference(data, index, stop, table, references, out, size, is_pre)
            if is_space:
                gap, is_inside = 1, 0
            elif size == before + 2 and out[before] == 0xC2 and out[before + 1] == 0xA0:
                is_inside = 0
            elif size > before:
                has_text = 1
                if out[before] >= 0x80 or BYTE_CLASSES[out[before]] == IS_WORD_BYTE:
                    words += 1 - is_inside
                    is_inside = 1
            continue
        elif found == BEYOND:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            width = min(width, stop - index)
            second = np.int64(data[index + 1]) if width > 1 else 0
            third = np.int64(data[index + 2]) if width > 2 else 0
            for offset in range(width):
                out[size + offset] = data[index + offset]
            size += width
            index += width
            if byte == 0xC2 and second == 0xA0:
                is_inside = 0
                continue
            has_text = 1
            if byte == 0xE3 and second == 0x80:  # ideographic punctuation
                commas += third == 0x81
                ends += third == 0x82
                is_inside = 0
            elif byte == 0xEF and second == 0xBC:  # full width
                commas += third == 0x8C
                ends += (third == 0x81) | (third == 0x9F)
                is_inside = 0
            elif byte == 0xE2 and second <= 0x81:  # general punctuation
                ends += (second == 0x80) & (third == 0xA6)
            elif 0xE3 <= byte <= 0xE9 or (byte == 0xE0 and 0xB8 <= second <= 0xBB) or (byte == 0xE1 and second <= 0x82):
                words += 1
                is_inside = 0
            else:
                words += 1 - is_inside
                is_inside = 1
            continue
        elif found == COMMA:
            commas += 1
        elif found == FULL_STOP:
            ends += index + 1 >= stop or data[index + 1] <= 34 or data[index + 1] == 60 or data[index + 1] >= 0x80
            is_inside = 0
        out[size] = byte
        size += 1
        index += 1
        has_text = 1
    state[SIZE], state[GAP], state[IN_WORD], state[HAS_TEXT] = size, gap, is_inside, has_text
    if has_text:
        state[AFTER_PRE] = 0
    state[WORDS] += words
    state[COMMAS] += commas
    state[ENDS] += ends
    if state[LINKS] > 0:
        state[LINK_WORDS] += words
    return index


@jit
def write_reference(
    data: Bytes, index: int, stop: int, table: Table, references: Bytes, out: Bytes, size: int, is_pre: bool
) -> tuple[int, int, bool]:
    """What an ampersand begins; (where it ends, bytes in the buffer, whether it is white space that collapses)."""
    if index + 1 < stop and data[index + 1] == 35:
        code, after = _read_number(data, index + 2, stop)
        if code == -1:
            out[size] = 38
            return index + 1, size + 1, False
        if not is_pre and (code == 32 or 9 <= code <= 13):
            return after, size, True
        return after, write_code(code, out, size), False
    key, place, value, after = REFERENCE_SEED, index + 1, 0, index + 1
    limit = min(stop, index + MAX_NAME)
    while place < limit and BYTE_CLASSES[data[place]] == IS_WORD_BYTE:
        key = extend(key, data[place])
        place += 1
        if place - index <= MAX_LEGACY_NAME + 1:
            found = look_up(table, key)
            if found:
                value, after = found, place
    if place < stop and data[place] == 59:
        found = look_up(table, extend(key, 59))
        if found:
            value, after = found, place + 1
    if value == 0:
        out[size] = 38
        return index + 1, size + 1, False
    start, num_bytes = value >> 8, value & 0xFF
    if not is_pre and num_bytes == 1 and references[start] <= 32:
        return after, size, True
    for offset in range(num_bytes):
        out[size + offset] = references[start + offset]
    return after, size + num_bytes, False


@jit
def _read_number(data: Bytes, index: int, stop: int) -> tuple[int, int]:
    """(code point, where it ends) behind "&#"; -1 if it is no reference, 0 if it stands for nothing."""
    base = 10
    if index < stop and (data[index] | 0x20) == 120:
        base = 16
        index += 1
    first, code = index, 0
    while index < stop:
        digit = np.int64(data[index]) - 48
        if base == 16 and (digit < 0 or digit > 9):
            digit = np.int64(data[index] | 0x20) - 87
            if digit < 10:
                break
        if digit < 0 or digit >= base:
            break
        code = min(code * base + digit, 0x110000)
        index += 1
    if index == first:
        return -1, index
    if index < stop and data[index] == 59:
        index += 1
    return _shown_code(code), index


_WINDOWS = np.array(
    [ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)) for byte in range(0x80, 0xA0)], np.int64
)


@jit
def _shown_code(code: int) -> int:
    """The code point that a number stands for; 0 for characters that are none."""
    if code == 0 or 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
        return 0xFFFD
    if 0x80 <= code < 0xA0:
        return int(_WINDOWS[code - 0x80])
    if code < 9 or code == 11 or 14 <= code < 32 or code == 127 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return 0
    return code


@jit
def write_code(code: int, out: Bytes, size: int) -> int:
    """A code point in UTF-8; nothing for 0. Returns the bytes in the buffer."""
    if code == 0:
        return size
    if code < 0x80:
        out[size] = code
        return size + 1
    if code < 0x800:
        out[size] = 0xC0 | code >> 6
        out[size + 1] = 0x80 | (code & 63)
        return size + 2
    if code < 0x10000:
        out[size] = 0xE0 | code >> 12
        out[size + 1] = 0x80 | (code >> 6 & 63)
        out[size + 2] = 0x80 | (code & 63)
        return size + 3
    out[size] = 0xF0 | code >> 18
    out[size + 1] = 0x80 | (code >> 12 & 63)
    out[size + 2] = 0x80 | (code >> 6 & 63)
    out[size + 3] = 0x80 | (code & 63)
    return size + 4
