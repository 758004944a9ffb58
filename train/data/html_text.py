"""Text of a page into a buffer: white space collapsed as a browser does, character references resolved, words counted.

In: the page's UTF-8 and the place of a text in it. Out: UTF-8 in the buffer and the counts of the block that is being written,
all in a State. Of CJK and Thai, which put no spaces, a character counts as a word.
Source: WHATWG HTML, 13.2.5.72 to 13.2.5.80 (character references); the parity is with Python's html.unescape.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import Bytes, byte_at
from train.data.html_names import (
    AMPERSAND,
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
from train.data.jit import jit_inner

State = npt.NDArray[Any]
"""int64: the counters and places below."""
SIZE, BLOCK, GAP, HAS_TEXT, IN_WORD, SEPARATOR, NODE, NUM_NODES, NUM_BLOCKS, DEPTH, HIDDEN, LINKS, PRES, NUM_P = range(
    14
)
"""Bytes written; where the block begins; a space is due; the block shows anything; within a word; see LEVEL_SHIFT; the
innermost element that is a block; counts; open elements, of them hidden, links, pre and p."""
WORDS, LINK_WORDS, COMMAS, ENDS, TITLE_START, TITLE_STOP, IS_XML, AFTER_PRE, FOREIGNS, SHOWS_HIDDEN = range(14, 24)
"""Counts of the block: words, those in links, commas, ends of sentences; the title's place in the page; whether the page
begins as XML; whether a new line would be the first of a pre; open svg;
whether elements are shown though their attributes hide them."""
NUM_STATE = 24
NOTHING, BLANK, LETTER, SYLLABLE, SIGN, MARK, PAUSE, STOP = range(8)
"""What a character is: not visible, white space that collapses, of a word, a word, within a word as well as between words,
between words, comma, end of a sentence."""
MAX_NAME = 32
"""Bytes of the longest name of a reference, with its semicolon."""
MAX_LEGACY_NAME = 6
"""Bytes of the longest name that needs no semicolon."""


@jit_inner
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


@jit_inner
def write_text(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, index: int, stop: int, table: Table, references: Bytes, out: Bytes, state: State
) -> int:
    """Write text up to the next "<", of which the first byte may be one; returns where it stopped."""
    size, gap, is_inside, has_text = state[SIZE], state[GAP], state[IN_WORD], state[HAS_TEXT]
    is_pre, first, words = state[PRES] > 0, index, 0
    while index < stop:
        found = BYTE_CLASSES[data[index]]
        if found == SPACE_BYTE:
            if is_pre:
                size = _write_space(data, index, stop, out, size, state)
            else:
                gap = 1
            is_inside = 0
            index += 1
            continue
        if found == OPEN_BYTE and index > first:
            break
        at = size + (gap & has_text & (out[size - 1] != 10))
        if found == IS_WORD_BYTE:
            out[at] = data[index]
            index, after, shown = index + 1, at + 1, LETTER
        elif found == AMPERSAND:
            index, after, shown = write_reference(data, index, stop, table, references, out, at, is_pre)
        else:
            index, after, shown = _copy_character(data, index, stop, out, at)
        if after > at:
            if at > size:
                out[size] = 32
            size, gap = after, 0
            state[AFTER_PRE] = 0
        gap |= shown == BLANK
        has_text |= shown > BLANK
        words += (shown == SYLLABLE) | ((shown == LETTER) & (1 - is_inside))
        is_inside = (shown == LETTER) | ((shown == SIGN) & is_inside)
        if shown >= PAUSE:
            state[COMMAS if shown == PAUSE else ENDS] += 1
    state[SIZE], state[GAP], state[IN_WORD], state[HAS_TEXT] = size, gap, is_inside, has_text
    state[WORDS] += words
    if state[LINKS] > 0:
        state[LINK_WORDS] += words
    return index


@jit_inner
def _write_space(data: Bytes, index: int, stop: int, out: Bytes, size: int, state: State) -> int:  # noqa: PLR0917 - compiled code is called by position
    """White space within pre: as it is, but for carriage returns and a new line at its beginning."""
    byte = data[index]
    is_first, state[AFTER_PRE] = state[AFTER_PRE], 0
    if byte == 13:
        if index + 1 < stop and data[index + 1] == 10:
            state[AFTER_PRE] = is_first
            return size
        byte = np.uint8(10)
    if byte == 10 and is_first:
        return size
    out[size] = byte
    return size + 1


@jit_inner
def _copy_character(data: Bytes, index: int, stop: int, out: Bytes, size: int) -> tuple[int, int, int]:
    """A character that is no letter of ASCII; (where it ends, bytes in the buffer, what it is)."""
    byte = byte_at(data, index)
    found = BYTE_CLASSES[byte]
    if found == NUL_BYTE and byte == 0:
        return index + 1, size, NOTHING
    width = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
    width = min(width, stop - index)
    for offset in range(width):
        out[size + offset] = data[index + offset]
    if found == COMMA:
        return index + 1, size + 1, PAUSE
    if found == FULL_STOP:
        following = data[index + 1] if index + 1 < stop else 32
        is_end = following <= 34 or following == 60 or following >= 0x80
        return index + 1, size + 1, STOP if is_end else MARK
    if width == 1:
        return index + 1, size + 1, SIGN
    second, third = byte_at(data, index + 1), byte_at(data, index + 2) if width > 2 else 0
    return index + width, size + width, _kind_of(byte, second, third)


@jit_inner
def _kind_of(first: int, second: int, third: int) -> int:
    """What a character beyond ASCII is, by its first bytes."""
    if first in (0xC2, 0xE2):
        is_blank = second == 0xA0 if first == 0xC2 else second == 0x80 and 0x8B <= third <= 0x8F
        return NOTHING if is_blank else LETTER if first == 0xE2 and second > 0x81 else SIGN
    if first == 0xE3 and second == 0x80:  # ideographic space and punctuation
        return NOTHING if third == 0x80 else PAUSE if third == 0x81 else STOP if third == 0x82 else MARK
    if first == 0xEF and second == 0xBC:  # full width
        return PAUSE if third == 0x8C else STOP if third in (0x81, 0x9F) else MARK
    if 0xE3 <= first <= 0xE9 or (first == 0xE0 and 0xB8 <= second <= 0xBB) or (first == 0xE1 and second <= 0x82):
        return SYLLABLE
    return LETTER


@jit_inner
def write_reference(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, index: int, stop: int, table: Table, references: Bytes, out: Bytes, size: int, is_pre: bool
) -> tuple[int, int, int]:
    """What an ampersand begins; (where it ends, bytes in the buffer, what it is)."""
    if index + 1 < stop and data[index + 1] == 35:
        code, after = _read_number(data, index + 2, stop)
        if code >= 0:
            written = write_code(code, out, size)
        else:
            out[size], after, written = 38, index + 1, size + 1
    else:
        after, value = _read_name(data, index, stop, table)
        start, num_bytes = value >> 8, value & 0xFF
        if value == 0:
            out[size], num_bytes = 38, 1
        for offset in range(num_bytes if value else 0):
            out[size + offset] = references[start + offset]
        written = size + num_bytes
    if written == size:
        return after, size, NOTHING
    first = byte_at(out, size)
    if BYTE_CLASSES[first] == SPACE_BYTE:
        return (after, written, NOTHING) if is_pre else (after, size, BLANK)
    if first < 0x80:
        return after, written, LETTER if BYTE_CLASSES[first] == IS_WORD_BYTE else SIGN
    third = byte_at(out, size + 2) if written > size + 2 else 0
    return after, written, _kind_of(first, byte_at(out, size + 1), third)


@jit_inner
def _read_name(data: Bytes, index: int, stop: int, table: Table) -> tuple[int, int]:
    """(where it ends, value in the table) of the named reference at an ampersand; the ampersand alone and 0 if it is none."""
    key, place = REFERENCE_SEED, index + 1
    limit = min(stop, index + MAX_NAME)
    while place < limit and BYTE_CLASSES[data[place]] == IS_WORD_BYTE:
        key = extend(key, data[place])
        place += 1
    if place < stop and data[place] == 59:
        value = look_up(table, extend(key, 59))
        if value:
            return place + 1, value
    limit = min(place, index + 1 + MAX_LEGACY_NAME)
    key, value, after = REFERENCE_SEED, 0, index + 1
    for place in range(index + 1, limit):
        key = extend(key, data[place])
        found = look_up(table, key)
        if found:
            value, after = found, place + 1
    return after, value


@jit_inner
def _read_number(data: Bytes, index: int, stop: int) -> tuple[int, int]:
    """(code point, where it ends) behind "&#"; -1 if it is no reference, 0 if it stands for nothing."""
    base = 10
    if index < stop and (data[index] | 0x20) == 120:
        base = 16
        index += 1
    first, code = index, 0
    while index < stop:
        digit = byte_at(data, index) - 48
        if base == 16 and (digit < 0 or digit > 9):
            digit = (byte_at(data, index) | 0x20) - 87
            if digit < 10:
                break
        if digit < 0 or digit >= base:
            break
        code = code * base + digit if code < 0x110000 else code
        index += 1
    if index == first:
        return -1, index
    if index < stop and data[index] == 59:
        index += 1
    return _shown_code(code), index


_WINDOWS = np.array(
    [ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)) for byte in range(0x80, 0xA0)], np.int64
)


@jit_inner
def _shown_code(code: int) -> int:
    """The code point that a number stands for; 0 for characters that are none."""
    if code == 0 or 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
        return 0xFFFD
    if 0x80 <= code < 0xA0:
        return int(_WINDOWS[code - 0x80])
    if code < 9 or code == 11 or 14 <= code < 32 or code == 127 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return 0
    return code


@jit_inner
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
