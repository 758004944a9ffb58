"""The main content of a scanned page: which of its blocks, and their text.

In: a Page. Out: text, blocks separated as on the screen. Three steps, all linear: a logistic model rates each block by what
is measured of it and around it; the element whose blocks have the best sum of ratings, weighted by words, is the container;
a second logistic model rates each block again by its first rating, its neighbours', and its place to the container. What
lies in the container between its good blocks stays, unless it is links or is named boilerplate: a manual loses no short line.
The weights were fitted by cluster/fit_html_blocks.py.
Sources: readability.js (a container of the best sum), boilerpipe and jusText (a block's neighbours decide with it).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import Bytes
from train.data.html_features import (
    GAIN_AT,
    LOCAL,
    NUM_SUMS,
    WEIGHT_AT,
    Rows,
    describe_block,
    describe_page,
    inherit_flags,
    sum_words,
)
from train.data.html_names import BOILERPLATE, IN_HEADING, IS_NOTE
from train.data.html_scan import Page
from train.data.html_tree import B_LINK_WORDS, B_NODE, B_SEPARATOR, B_START, B_STOP, B_WORDS, PARENT
from train.data.html_weights import FINAL_WEIGHTS, LOCAL_WEIGHTS
from train.data.jit import jit, jit_inner

FINAL = (
    "one", "rating", "inside", "inside_rating", "rating-1", "rating+1", "rating_above", "before", "behind",
    "inside_before", "inside_behind", "page_words", "page_link_share", "note",
)  # fmt: skip
"""Names of the second model's numbers. `before` and `behind`: the block lies before the first, or behind the last, long and
well rated block of the container; `rating_above`: mean rating within the block's third innermost element."""
MAX_RATING, MAX_GAIN, MAX_WORDS = 4.0, 2.0, 100
"""Limits of a rating as a neighbour and in the container's sum, and of the words that weigh it there."""
SURE_RATING, SURE_WORDS = 1.0, 15
"""Of blocks that are long and well rated if they have more of both."""
MAX_GAP_LINKS = 0.3
"""Share of words in links up to which a block between such blocks is kept whatever its rating, if no class or element says
that it is boilerplate."""
_LOCAL = np.array([LOCAL_WEIGHTS[name] for name in LOCAL])
_FINAL = np.array([FINAL_WEIGHTS[name] for name in FINAL])


def select_blocks(page: Page, *, local: Rows = _LOCAL, final: Rows = _FINAL) -> npt.NDArray[np.bool_]:
    """Which blocks of a page are its main content, by the weights of LOCAL and of FINAL."""
    is_main = np.zeros(len(page.blocks), np.bool_)
    if len(page.blocks):
        _select(page.blocks, page.nodes, local, final, is_main)
    return is_main


def join_blocks(page: Page, is_kept: npt.NDArray[np.bool_]) -> str:
    """The text of some blocks. It is written over the page's buffer, so it can be had once."""
    size = _join(page.buffer, page.blocks, is_kept)
    return str(page.buffer[:size].data, "utf-8", "replace")


def describe_locally(page: Page) -> Rows:
    """The numbers of LOCAL of all blocks: float64 [blocks, LOCAL]."""
    rows = np.zeros((len(page.blocks), len(LOCAL)))
    _describe_locally(page.blocks, page.nodes, rows)
    return rows


def describe_finally(page: Page, ratings: Rows) -> Rows:
    """The numbers of FINAL of all blocks, whose first ratings are known: float64 [blocks, FINAL]."""
    rows = np.zeros((len(page.blocks), len(FINAL)))
    _describe_finally(page.blocks, page.nodes, ratings, rows)
    return rows


@jit_inner
def _prepare(blocks: Any, nodes: Any) -> tuple[Rows, Any, Rows]:
    """(sums of the nodes, their flags, numbers of the page)."""
    sums = np.zeros((len(nodes), NUM_SUMS))
    sum_words(blocks, nodes, sums)
    flags = inherit_flags(nodes, sums)
    return sums, flags, describe_page(blocks, flags, sums)


@jit
def _describe_locally(blocks: Any, nodes: Any, rows: Rows) -> None:
    sums, flags, page = _prepare(blocks, nodes)
    for index in range(len(blocks)):
        describe_block(index, blocks, nodes, flags, sums, page, rows[index])


@jit
def _describe_finally(blocks: Any, nodes: Any, ratings: Rows, rows: Rows) -> None:
    sums, flags, page = _prepare(blocks, nodes)
    is_inside = _find_container(blocks, nodes, ratings, sums)
    first, last = _find_sure(blocks, ratings, is_inside)
    for index in range(len(blocks)):
        _describe_again(index, blocks, nodes, flags, sums, page, ratings, is_inside, first, last, rows[index])


@jit
def _select(blocks: Any, nodes: Any, local: Rows, final: Rows, is_main: Any) -> None:
    sums, flags, page = _prepare(blocks, nodes)
    row, ratings = np.zeros(len(local)), np.zeros(len(blocks))
    for index in range(len(blocks)):
        describe_block(index, blocks, nodes, flags, sums, page, row)
        for place in range(len(local)):
            ratings[index] += local[place] * row[place]
    is_inside = _find_container(blocks, nodes, ratings, sums)
    first, last = _find_sure(blocks, ratings, is_inside)
    for index in range(len(blocks)):
        _describe_again(index, blocks, nodes, flags, sums, page, ratings, is_inside, first, last, row)
        rating = 0.0
        for place in range(len(final)):
            rating += final[place] * row[place]
        is_gap = first <= index <= last and is_inside[blocks[index, B_NODE]]
        is_plain = not flags[blocks[index, B_NODE]] & BOILERPLATE
        is_plain &= blocks[index, B_LINK_WORDS] <= MAX_GAP_LINKS * blocks[index, B_WORDS]
        is_main[index] = rating > 0.0 or (is_gap and is_plain)
    index = len(blocks) - 1
    while index >= 0 and (not is_main[index] or flags[blocks[index, B_NODE]] & IN_HEADING):
        is_main[index] = False  # a heading that no content follows
        index -= 1


@jit_inner
def _find_container(blocks: Any, nodes: Any, ratings: Rows, sums: Rows) -> Any:
    """Which nodes lie in the node of the best sum; the sums of ratings are written beside those of words."""
    for index in range(len(blocks)):
        words = min(blocks[index, B_WORDS], MAX_WORDS)
        rating = ratings[index]
        sums[blocks[index, B_NODE], GAIN_AT] += words * min(max(rating, -MAX_GAIN), MAX_GAIN)
        sums[blocks[index, B_NODE], WEIGHT_AT] += words + 1
    for node in range(len(nodes) - 1, 0, -1):
        sums[nodes[node, PARENT], GAIN_AT] += sums[node, GAIN_AT]
        sums[nodes[node, PARENT], WEIGHT_AT] += sums[node, WEIGHT_AT]
    best = 0
    for node in range(1, len(nodes)):
        if sums[node, GAIN_AT] > sums[best, GAIN_AT]:
            best = node
    is_inside = np.zeros(len(nodes), np.bool_)
    is_inside[best] = True
    for node in range(best + 1, len(nodes)):
        is_inside[node] = is_inside[nodes[node, PARENT]]
    return is_inside


@jit_inner
def _find_sure(blocks: Any, ratings: Rows, is_inside: Any) -> tuple[int, int]:
    """(first, last) long and well rated block of the container; all blocks if there is none."""
    first, last = -1, -1
    for index in range(len(blocks)):
        if is_inside[blocks[index, B_NODE]] and ratings[index] > SURE_RATING and blocks[index, B_WORDS] > SURE_WORDS:
            first = index if first < 0 else first
            last = index
    return (first, last) if first >= 0 else (0, len(blocks))


@jit_inner
def _describe_again(  # noqa: PLR0917 - compiled code is called by position
    index: int, blocks: Any, nodes: Any, flags: Any, sums: Rows, page: Rows, ratings: Rows, is_inside: Any, first: int,
    last: int, row: Rows,
) -> None:  # fmt: skip
    """The numbers of FINAL of one block into `row`."""
    node = blocks[index, B_NODE]
    above = nodes[nodes[node, PARENT], PARENT]
    inside = 1.0 if is_inside[node] else 0.0
    rating = min(max(ratings[index], -MAX_RATING), MAX_RATING)
    row[0], row[1], row[2], row[3] = 1.0, rating, inside, inside * rating
    row[4], row[5] = -MAX_RATING, -MAX_RATING
    if index > 0:
        row[4] = min(max(ratings[index - 1], -MAX_RATING), MAX_RATING)
    if index + 1 < len(blocks):
        row[5] = min(max(ratings[index + 1], -MAX_RATING), MAX_RATING)
    row[6] = sums[above, GAIN_AT] / max(1.0, sums[above, WEIGHT_AT])
    row[7], row[8] = (1.0 if index < first else 0.0), (1.0 if index > last else 0.0)
    row[9], row[10] = row[7] * inside, row[8] * inside
    row[11], row[12] = page[0], page[1]
    row[13] = 1.0 if flags[node] & IS_NOTE else 0.0


@jit
def _join(buffer: Bytes, blocks: Any, is_kept: Any) -> int:
    """Move the blocks that are kept to the front of the buffer, with what separates them; returns its bytes.

    Nothing is overwritten before it is read: a separator is no longer than the gap before each block.
    """
    size, separator = 0, 0
    for index in range(len(blocks)):
        separator = max(separator, blocks[index, B_SEPARATOR])
        if not is_kept[index]:
            continue
        if size:
            buffer[size] = 9 if separator == 1 else 10
            size += 1
            if separator == 3:
                buffer[size] = 10
                size += 1
        separator = 0
        for place in range(blocks[index, B_START], blocks[index, B_STOP]):
            buffer[size] = buffer[place]
            size += 1
    return size
