"""Attributes of a tag: what they say about the element's content.

In: the page's UTF-8 and the place behind an element's name. Out: where the tag ends, flags of html_names of the words in
class, id and role, and traits of this one element.
Source: WHATWG HTML, 13.2.5.32 to 13.2.5.40.
"""

import numpy as np

from train.data.byte_kernels import Bytes, byte_at
from train.data.html_names import IS_BODY, WORD_SEED, Table, extend, look_up
from train.data.html_text import find_byte
from train.data.jit import jit_inner

SELF_CLOSES, HIDES, IS_LINK = 1, 2, 4
"""It ends with "/>"; it is not shown; it has a href."""
_NONE = np.frombuffer(b"display:none", np.uint8)
_INVISIBLE = np.frombuffer(b"visibility:hidden", np.uint8)
_TRUE = np.frombuffer(b"true", np.uint8)
_BODY = np.frombuffer(b"articlebody", np.uint8)


@jit_inner
def read_attributes(data: Bytes, index: int, table: Table) -> tuple[int, int, int]:
    """(where the tag ends, -1 if nowhere; flags of words; traits)."""
    flags, traits, stop = 0, 0, len(data)
    while index < stop:
        byte = data[index]
        if byte == 62:
            return index + 1, flags, traits
        if byte <= 32 or byte == 47:
            traits = traits & ~SELF_CLOSES | (byte == 47)
            index += 1
            continue
        name = index
        index += 1
        while index < stop and data[index] > 32 and data[index] not in (47, 61, 62):
            index += 1
        length = index - name
        first, last = data[name] | 0x20, data[index - 1] | 0x20
        start, end, index = _find_value(data, index, stop)
        traits &= ~SELF_CLOSES
        if first in (97, 99, 104, 105, 114, 115):
            more_flags, more_traits = _read_value(data, start, end, table, first, last, length)
            flags |= more_flags
            traits |= more_traits
    return -1, flags, traits


@jit_inner
def _read_value(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, table: Table, first: int, last: int, length: int
) -> tuple[int, int]:
    """(flags, traits) of a value; its attribute is known by the first and last letter of its name and by its length."""
    is_class = first == 99 and length == 5 and last == 115
    is_id = first == 105 and length == 2 and last == 100
    is_role = first == 114 and length == 4 and last == 101
    if is_class or is_id or is_role:
        return _read_words(data, start, stop, table), 0
    traits = 0
    if first == 115 and length == 5 and last == 101:  # style
        traits = HIDES if _holds(data, start, stop, _NONE) or _holds(data, start, stop, _INVISIBLE) else 0
    elif first == 104 and length == 6 and last == 110:  # hidden
        traits = HIDES
    elif first == 104 and length == 4 and last == 102:  # href
        traits = IS_LINK
    elif first == 97 and length == 11 and last == 110 and _holds(data, start, stop, _TRUE):  # aria-hidden
        traits = HIDES
    elif first == 105 and length == 8 and last == 112 and _holds(data, start, stop, _BODY):  # itemprop
        return IS_BODY, 0
    return 0, traits


@jit_inner
def _find_value(data: Bytes, index: int, stop: int) -> tuple[int, int, int]:
    """(first byte, byte behind the last, where the attribute ends) of the value, if any, behind a name."""
    start = index
    while start < stop and data[start] <= 32:
        start += 1
    if start >= stop or data[start] != 61:
        return index, index, index
    start += 1
    while start < stop and data[start] <= 32:
        start += 1
    if start >= stop:
        return stop, stop, stop
    if data[start] == 34 or data[start] == 39:
        end = find_byte(data, start + 1, stop, data[start])
        return start + 1, end, min(end + 1, stop)
    end = start
    while end < stop and data[end] > 32 and data[end] != 62:
        end += 1
    return start, end, end


@jit_inner
def _read_words(data: Bytes, start: int, stop: int, table: Table) -> int:
    """Flags of the words of a value; they end at other characters than letters, and where a capital follows a small letter."""
    flags, key, length, was_small = 0, WORD_SEED, 0, 0
    for index in range(start, stop):
        byte = byte_at(data, index)
        is_capital = 65 <= byte <= 90
        is_letter = is_capital or 97 <= byte <= 122
        if length and (not is_letter or (is_capital and was_small)):
            if length > 1:
                flags |= look_up(table, key)
            key, length = WORD_SEED, 0
        if is_letter:
            key = extend(key, byte | 0x20)
            length += 1
        was_small = 1 if is_letter and not is_capital else 0
    if length > 1:
        flags |= look_up(table, key)
    return flags


@jit_inner
def _holds(data: Bytes, start: int, stop: int, wanted: Bytes) -> bool:
    """Whether a value holds a text in small letters, whatever its case and its blanks."""
    for first in range(start, stop - len(wanted) + 1):
        if data[first] | 0x20 != wanted[0]:
            continue
        index, place = first, 0
        while index < stop and place < len(wanted):
            if data[index] > 32:
                if data[index] | 0x20 != wanted[place]:
                    break
                place += 1
            elif index - first > 64:
                break
            index += 1
        if place == len(wanted):
            return True
    return False
