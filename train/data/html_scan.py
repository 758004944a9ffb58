"""One pass over a page: its text in a buffer, the blocks that it consists of, and the tree of the elements that are blocks.

In: the page's UTF-8. Out: `Page`. It is tolerant as browsers are: any string is a page, unknown elements are inline, end tags
are implied where the standard implies them. Elements that are not shown are left out. The time is linear: the stack of open
elements is bounded, and no place is searched twice.
Source: WHATWG HTML, 13.2.5 (tokens) and 13.2.6 (tree construction), without active formatting elements and foster parenting.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import Bytes, byte_at
from train.data.html_attributes import SELF_CLOSES, read_attributes
from train.data.html_names import ELEMENT_SEED, KIND, RAW, TITLE, Table, build_table, extend, look_up
from train.data.html_text import (
    HIDDEN,
    IS_XML,
    NUM_BLOCKS,
    NUM_NODES,
    NUM_STATE,
    SHOWS_HIDDEN,
    TITLE_START,
    TITLE_STOP,
    State,
    find_byte,
    write_text,
)
from train.data.html_tree import (
    MAX_DEPTH,
    NUM_BLOCK_COLUMNS,
    NUM_NODE_COLUMNS,
    NUM_STACK_COLUMNS,
    break_line,
    close_element,
    open_element,
)
from train.data.jit import jit, jit_inner

MAX_CHARS = 1 << 28
"""Longer pages are cut: places are 32 bits wide."""
_TABLE, _REFERENCES = build_table()


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was scanned."""

    buffer: npt.NDArray[np.uint8]
    """Text of all blocks, UTF-8, with a gap of two bytes before each."""
    blocks: npt.NDArray[np.int32]
    """[blocks, NUM_BLOCK_COLUMNS], in the order of the page."""
    nodes: npt.NDArray[np.int32]
    """[elements that are blocks, NUM_NODE_COLUMNS]; the first is the root, parents come before children."""
    title: bytes
    """Markup of the title element's text."""


def scan_page(html: str, *, shows_hidden: bool = False) -> Page:
    """Scan a page; never fails. `shows_hidden`: attributes that hide an element, which a script may undo, are passed over."""
    content = html[:MAX_CHARS].encode("utf-8", "replace")
    data = np.frombuffer(content, np.uint8)
    capacity = min(content.count(b"<"), len(content) // 3) + 3
    out = np.empty(len(content) + len(content) // 4 + 2 * capacity + 64, np.uint8)
    blocks = np.empty((capacity, NUM_BLOCK_COLUMNS), np.int32)
    nodes = np.empty((capacity, NUM_NODE_COLUMNS), np.int32)
    state = np.zeros(NUM_STATE, np.int64)
    state[IS_XML], state[SHOWS_HIDDEN] = content[:64].lstrip().startswith(b"<?xml"), shows_hidden
    _scan(data, _TABLE, _REFERENCES, out, blocks, nodes, state)
    return Page(
        out, blocks[: state[NUM_BLOCKS]], nodes[: state[NUM_NODES]], content[state[TITLE_START] : state[TITLE_STOP]]
    )


@jit
def _scan(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, table: Table, references: Bytes, out: Bytes, blocks: Any, nodes: Any, state: State
) -> None:
    stack = np.empty((MAX_DEPTH, NUM_STACK_COLUMNS), np.int64)
    nodes[0, :] = 0
    state[NUM_NODES] = 1
    index, stop = 0, len(data)
    while index < stop:
        name = _find_name(data, index, stop)
        if name > 0:
            index = _read_tag(data, name, table, blocks, nodes, out, stack, state)
        elif name < 0:
            index = _skip_declaration(data, index, stop)
        elif state[HIDDEN] > 0:
            index = find_byte(data, index + 1, stop, 60)
        else:
            index = write_text(data, index, stop, table, references, out, state)
    break_line(3, blocks, out, state)


@jit_inner
def _find_name(data: Bytes, index: int, stop: int) -> int:
    """Where the name of the tag that begins here begins; 0 if text does, -1 if what is left out does, as a comment."""
    if data[index] != 60 or index + 1 >= stop:
        return 0
    following = byte_at(data, index + 1)
    if 97 <= following | 0x20 <= 122:
        return index + 1
    if following == 47:
        is_tag = index + 2 < stop and 97 <= byte_at(data, index + 2) | 0x20 <= 122
        return index + 2 if is_tag else -1
    return -1 if following in (33, 63) else 0


@jit_inner
def _read_name(data: Bytes, index: int) -> tuple[np.uint64, int]:
    """(hash of an element's name in lower case, where it ends)."""
    key = ELEMENT_SEED
    while index < len(data):
        byte = byte_at(data, index)
        if byte <= 32 or byte in (47, 62):
            break
        if 65 <= byte <= 90:
            byte |= 0x20
        key = extend(key, byte)
        index += 1
    return key, index


@jit_inner
def _read_tag(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, name: int, table: Table, blocks: Any, nodes: Any, out: Bytes, stack: Any, state: State
) -> int:
    """A tag, and all of the element if its content is not markup; returns where it stopped."""
    stop = len(data)
    key, index = _read_name(data, name)
    num_bytes = index - name
    index, flags, traits = read_attributes(data, index, table)
    if index < 0:
        return stop
    value = look_up(table, key)
    is_title = value & KIND == TITLE
    if data[name - 1] == 47:
        close_element(key, value, stack, nodes, blocks, out, state)
    elif not (value & RAW or is_title):
        open_element(key, value, flags, traits, stack, nodes, blocks, out, state)
    elif not (traits & SELF_CLOSES and state[IS_XML]):
        end, after = _find_end(data, index, stop, name, num_bytes)
        if is_title and state[TITLE_STOP] == 0 and state[HIDDEN] == 0 and end < stop:
            state[TITLE_START], state[TITLE_STOP] = index, end
        return after
    return index


@jit_inner
def _find_end(data: Bytes, index: int, stop: int, name: int, num_bytes: int) -> tuple[int, int]:
    """(where raw text ends, where the end tag ends) of the element whose name is at `name`."""
    while True:
        index = find_byte(data, index, stop, 60)
        if index + 2 + num_bytes >= stop:
            return stop, stop
        is_end = data[index + 1] == 47
        place = 0
        while is_end and place < num_bytes:
            is_end = data[index + 2 + place] | 0x20 == data[name + place] | 0x20
            place += 1
        if is_end:
            behind = data[index + 2 + num_bytes]
            if behind <= 32 or behind in (47, 62):
                return index, find_byte(data, index + 2 + num_bytes, stop, 62) + 1
        index += 1


@jit_inner
def _skip_declaration(data: Bytes, index: int, stop: int) -> int:
    """Where a comment, a declaration or a processing instruction ends."""
    if index + 3 < stop and data[index + 1] == 33 and data[index + 2] == 45 and data[index + 3] == 45:
        end = index + 2  # its dashes may be those of the end: <!-->
        while True:
            end = find_byte(data, end + 1, stop, 62)
            if end >= stop:
                return stop
            if data[end - 1] == 45 and data[end - 2] == 45:
                return end + 1
            if data[end - 1] == 33 and data[end - 2] == 45 and data[end - 3] == 45 and end - index > 6:
                return end + 1
    return find_byte(data, index + 1, stop, 62) + 1
