"""Open elements of a page that is scanned: what an opened or closed element does to the stack, the nodes and the blocks.

A node is an element that is a block; a block is a run of text that no such element interrupts. Only elements that matter later
are on the stack: nodes, links, and everything in an element that is not shown.
"""

from typing import Any

import numpy as np

from train.data.byte_kernels import Bytes
from train.data.html_attributes import HIDES, IS_LINK, SELF_CLOSES
from train.data.html_names import (
    ARTICLE,
    ASIDE,
    BREAK,
    BUTTON,
    CAPTION,
    CELL,
    DIV,
    FIGURE,
    FOOTER,
    FOREIGN,
    FORM,
    HEADER,
    HEADING,
    HIDE,
    IN_ARTICLE,
    IN_FIGURE,
    IN_FORM,
    IN_HEADING,
    IN_LIST,
    IN_MAIN,
    IN_P,
    IN_PRE,
    IN_QUOTE,
    IN_TABLE,
    IN_TERM,
    IS_FOOT,
    IS_HEAD,
    IS_NAV,
    IS_PROMO,
    IS_SIDE,
    KIND,
    LEVEL_SHIFT,
    LI,
    LINK,
    LIST,
    MAIN,
    NAV,
    OTHER,
    PRE,
    QUOTE,
    ROOT,
    ROW,
    ROWS,
    SCOPE,
    TABLE,
    TERM,
    VOID,
    P,
)
from train.data.html_text import (
    AFTER_PRE,
    BLOCK,
    COMMAS,
    DEPTH,
    ENDS,
    FOREIGNS,
    GAP,
    HAS_TEXT,
    HIDDEN,
    IN_WORD,
    IS_XML,
    LINK_WORDS,
    LINKS,
    NODE,
    NUM_BLOCKS,
    NUM_NODES,
    NUM_P,
    PRES,
    SEPARATOR,
    SHOWS_HIDDEN,
    SIZE,
    WORDS,
    State,
)
from train.data.jit import jit_inner

MAX_DEPTH = 256
"""Open elements; deeper ones are taken for inline, as browsers do from 512 on."""
NAME, VALUE, NODE_AT, IS_DARK = range(4)
"""Of the stack: hash of the name, value of html_names, node or -1, whether it began not to be shown."""
NUM_STACK_COLUMNS = 4
PARENT, FLAGS, NODE_KIND = range(3)
NUM_NODE_COLUMNS = 3
B_START, B_STOP, B_NODE, B_SEPARATOR, B_WORDS, B_LINK_WORDS, B_COMMAS, B_ENDS = range(8)
"""Place in the buffer, innermost node, what separates it from the block before (see LEVEL_SHIFT), counts."""
NUM_BLOCK_COLUMNS = 8
GAP_BYTES = 2


def _flags_of_kinds() -> Any:
    flags = np.zeros(KIND + 1, np.int64)
    for kind, found in {
        NAV: IS_NAV, ASIDE: IS_SIDE, FOOTER: IS_FOOT, HEADER: IS_HEAD, BUTTON: IS_PROMO, FORM: IN_FORM, LIST: IN_LIST,
        LI: IN_LIST, TABLE: IN_TABLE, CELL: IN_TABLE, FIGURE: IN_FIGURE, CAPTION: IN_FIGURE, QUOTE: IN_QUOTE,
        HEADING: IN_HEADING, MAIN: IN_MAIN, ARTICLE: IN_ARTICLE, PRE: IN_PRE, TERM: IN_TERM, P: IN_P,
    }.items():  # fmt: skip
        flags[kind] = found
    return flags


_KIND_FLAGS = _flags_of_kinds()


@jit_inner
def break_line(level: int, blocks: Any, out: Bytes, state: State) -> None:
    """End the block, if it shows anything; the next one is separated by `level` at least."""
    size, first = state[SIZE], state[BLOCK]
    state[GAP], state[IN_WORD] = 0, 0
    if not state[HAS_TEXT]:
        state[SIZE] = first
        state[SEPARATOR] = max(state[SEPARATOR], level)
        return
    while size > first and (out[size - 1] == 10 or out[size - 1] == 32):
        size -= 1
    num = state[NUM_BLOCKS]
    blocks[num, B_START], blocks[num, B_STOP], blocks[num, B_NODE] = first, size, state[NODE]
    blocks[num, B_SEPARATOR], blocks[num, B_WORDS] = state[SEPARATOR], state[WORDS]
    blocks[num, B_LINK_WORDS], blocks[num, B_COMMAS], blocks[num, B_ENDS] = (
        state[LINK_WORDS],
        state[COMMAS],
        state[ENDS],
    )
    state[NUM_BLOCKS] = num + 1
    state[SIZE], state[BLOCK], state[SEPARATOR] = size + GAP_BYTES, size + GAP_BYTES, level
    state[WORDS], state[LINK_WORDS], state[COMMAS], state[ENDS], state[HAS_TEXT] = 0, 0, 0, 0, 0


@jit_inner
def open_element(  # noqa: PLR0917 - compiled code is called by position
    key: np.uint64,
    value: int,
    flags: int,
    traits: int,
    stack: Any,
    nodes: Any,
    blocks: Any,
    out: Bytes,
    state: State,
) -> None:
    """A start tag."""
    kind, level = value & KIND, value >> LEVEL_SHIFT & 3
    if state[HIDDEN] == 0 and kind == BREAK:
        if state[HAS_TEXT] and out[state[SIZE] - 1] == 10 and not state[PRES]:
            break_line(3, blocks, out, state)
        elif state[HAS_TEXT]:
            out[state[SIZE]] = 10
            state[SIZE] += 1
            state[GAP], state[IN_WORD] = 0, 0
        return
    if level:
        _pop_to(_depth_of(kind, stack, state), stack, nodes, blocks, out, state)
    if kind == LINK and state[LINKS]:
        close_element(key, value, stack, nodes, blocks, out, state)
    if level and state[HIDDEN] == 0:
        break_line(level, blocks, out, state)
    is_dark = (traits & HIDES and not state[SHOWS_HIDDEN] and kind not in (MAIN, ARTICLE)) or value & HIDE
    is_kept = level or is_dark or state[HIDDEN] or (kind == LINK and traits & IS_LINK)
    is_bodiless = state[IS_XML] or kind == LINK or value & FOREIGN or state[FOREIGNS]
    is_empty = value & VOID or (traits & SELF_CLOSES and is_bodiless)
    depth = state[DEPTH]
    if is_empty or kind == ROOT or not is_kept or depth == MAX_DEPTH:
        return
    node = -1
    if level and not is_dark and state[HIDDEN] == 0:
        node = state[NUM_NODES]
        nodes[node, PARENT], nodes[node, FLAGS], nodes[node, NODE_KIND] = state[NODE], flags | _KIND_FLAGS[kind], kind
        state[NUM_NODES], state[NODE] = node + 1, node
    stack[depth, NAME], stack[depth, VALUE], stack[depth, NODE_AT], stack[depth, IS_DARK] = (
        np.int64(key),
        value,
        node,
        is_dark != 0,
    )
    state[DEPTH] = depth + 1
    state[HIDDEN] += is_dark != 0
    state[LINKS] += kind == LINK
    state[NUM_P] += kind == P
    state[FOREIGNS] += value & FOREIGN != 0
    if kind == PRE:
        state[PRES] += 1
        state[AFTER_PRE] = 1


@jit_inner
def _pop_to(  # noqa: PLR0917 - compiled code is called by position
    depth: int, stack: Any, nodes: Any, blocks: Any, out: Bytes, state: State
) -> None:
    """Close all elements from this place of the stack on."""
    while state[DEPTH] > depth:
        top = state[DEPTH] - 1
        value = stack[top, VALUE]
        kind = value & KIND
        state[DEPTH] = top
        state[HIDDEN] -= stack[top, IS_DARK]
        state[LINKS] -= kind == LINK
        state[NUM_P] -= kind == P
        state[PRES] -= kind == PRE
        state[FOREIGNS] -= value & FOREIGN != 0
        node = stack[top, NODE_AT]
        if node >= 0:
            break_line(value >> LEVEL_SHIFT & 3, blocks, out, state)
            state[NODE] = nodes[node, PARENT]


@jit_inner
def _end_of_svg(depth: int, stack: Any) -> int:
    """The depth of the svg around, if it holds no foreignObject: blocks are no part of svg."""
    for place in range(depth - 1, -1, -1):
        if stack[place, VALUE] & SCOPE:
            return place if stack[place, VALUE] & FOREIGN else depth
    return depth


@jit_inner
def _end_of_rows(kind: int, depth: int, stack: Any) -> int:
    """The depth of the cell, row or rows that a cell, row or rows end."""
    end = depth
    for place in range(depth - 1, -1, -1):
        found = stack[place, VALUE] & KIND
        if found == TABLE or (stack[place, VALUE] & SCOPE and found not in (CELL, CAPTION)):
            break
        if found in (CELL, CAPTION) or (found == ROW and kind != CELL) or (found == ROWS and kind == ROWS):
            end = place
    return end


@jit_inner
def _end_of_item(kind: int, depth: int, stack: Any) -> int:
    """The depth of the item that an item of the same list ends."""
    for place in range(depth - 1, -1, -1):
        found = stack[place, VALUE] & KIND
        if found == kind:
            return place
        if stack[place, VALUE] >> LEVEL_SHIFT & 3 and found not in (P, DIV):
            break
    return depth


@jit_inner
def _end_of_p(depth: int, stack: Any) -> int:
    """The depth of the p that a block ends."""
    for place in range(depth - 1, -1, -1):
        if stack[place, VALUE] & KIND == P:
            return place
        if stack[place, VALUE] & SCOPE:
            break
    return depth


@jit_inner
def _depth_of(kind: int, stack: Any, state: State) -> int:
    """The depth to which a block's start tag ends open elements: a p, the row before, the list item before."""
    depth = state[DEPTH]
    if state[FOREIGNS]:
        depth = _end_of_svg(depth, stack)
    if kind in (CELL, ROW, ROWS):
        depth = _end_of_rows(kind, depth, stack)
    elif kind in (LI, TERM):
        depth = _end_of_item(kind, depth, stack)
    elif kind == HEADING and depth and stack[depth - 1, VALUE] & KIND == HEADING:
        depth -= 1
    return _end_of_p(depth, stack) if state[NUM_P] and kind != BUTTON else depth


@jit_inner
def close_element(  # noqa: PLR0917 - compiled code is called by position
    key: np.uint64, value: int, stack: Any, nodes: Any, blocks: Any, out: Bytes, state: State
) -> None:
    """An end tag; it does nothing where no such element is open."""
    kind, level = value & KIND, value >> LEVEL_SHIFT & 3
    if not level and kind != LINK and not state[HIDDEN]:
        return
    is_row = kind in (ROW, ROWS, TABLE)
    for place in range(state[DEPTH] - 1, -1, -1):
        found = stack[place, VALUE]
        if stack[place, NAME] == np.int64(key) or (kind == HEADING and found & KIND == HEADING):
            if kind == LINK and place < state[DEPTH] - 1:
                stack[place, NAME], stack[place, VALUE] = 0, OTHER  # what it holds stays open
                state[LINKS] -= 1
                state[HIDDEN] -= stack[place, IS_DARK]
                stack[place, IS_DARK] = 0
            else:
                _pop_to(place, stack, nodes, blocks, out, state)
            return
        if kind == LINK:
            continue
        is_block = level or value & HIDE
        is_border = found & SCOPE != 0 if is_block else found >> LEVEL_SHIFT & 3 != 0
        if is_border and not (is_row and found & KIND != TABLE):
            return
        if kind == LI and found & KIND == LIST:
            return
    if kind == P and not state[HIDDEN]:
        break_line(level, blocks, out, state)
