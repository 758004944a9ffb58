"""What is measured of a page's blocks to tell its main content from the rest.

In: blocks and nodes of html_scan. Out: one row of numbers per block. A node's words of boilerplate ("sidebar") count only
where the node holds a small part of the page's text: the layout of a page with a sidebar bears that name too.
Sources: Kohlschuetter et al., Boilerplate Detection using Shallow Text Features, 2010 (words and link density of a block and
its neighbours); Vogels et al., Web2Text, 2018 (the same of parents); the class words are those of readability.js and our own.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.html_names import (
    BOILERPLATE,
    IN_ARTICLE,
    IN_FORM,
    IN_HEADING,
    IN_LIST,
    IN_MAIN,
    IN_P,
    IN_PRE,
    IN_TABLE,
    IS_BODY,
    IS_COMMENT,
    IS_CONTENT,
    IS_FOOT,
    IS_HEAD,
    IS_LISTING,
    IS_META,
    IS_NAV,
    IS_NOTE,
    IS_PROMO,
    IS_RELATED,
    IS_SHARE,
    IS_SIDE,
)
from train.data.html_tree import B_COMMAS, B_ENDS, B_LINK_WORDS, B_NODE, B_WORDS, FLAGS, PARENT
from train.data.jit import jit_inner

Rows = npt.NDArray[Any]
"""float64."""
MAX_SHARE = 0.3
"""Of the page's words outside of links: a node with more is not boilerplate, whatever its class says."""
PAGE = ("page_words", "page_link_share", "page_boilerplate_share", "page_has_content", "page_blocks")
"""Numbers of a whole page: short, plain pages keep more. Words and blocks are logarithms."""
_FLAGS = {
    "nav": IS_NAV, "side": IS_SIDE, "foot": IS_FOOT, "head": IS_HEAD, "comment": IS_COMMENT, "share": IS_SHARE,
    "related": IS_RELATED, "promo": IS_PROMO, "meta": IS_META, "note": IS_NOTE, "listing": IS_LISTING,
    "content": IS_CONTENT, "body": IS_BODY, "list": IN_LIST, "table": IN_TABLE, "form": IN_FORM, "heading": IN_HEADING,
    "main": IN_MAIN, "article": IN_ARTICLE, "pre": IN_PRE, "p": IN_P,
}  # fmt: skip
_COUNTS = ("one", "words", "link_share", "ends", "commas")
_AROUND = ("words-1", "links-1", "words+1", "links+1", "words-2", "links-2", "words+2", "links+2")
_ABOVE = ("parent_words", "parent_links", "above_words", "above_links")
LOCAL = (*_COUNTS, *_FLAGS, *_AROUND, *_ABOVE, *PAGE)
"""Names of a row's numbers: of the block, of the elements around it, of the two blocks before and behind, of the two innermost
elements, of the page. Counts are logarithms of 1 + count, and those of neighbours and elements leave words in links out."""
_BITS = np.array(list(_FLAGS.values()), np.int64)
_NUM_COUNTS, _NUM_BITS = len(_COUNTS), len(_FLAGS)
WORDS_AT, LINK_WORDS_AT, GAIN_AT, WEIGHT_AT = range(4)
"""Columns of sums over a node's blocks, with those of its descendants."""
NUM_SUMS = 4


_LOGARITHMS = np.log1p(np.arange(1024))


@jit_inner
def _log(count: float) -> float:
    """Logarithm of 1 + count of a whole number."""
    return float(_LOGARITHMS[int(count)] if count < 1024 else np.log1p(count))


@jit_inner
def sum_words(blocks: Any, nodes: Any, sums: Rows) -> None:
    """Words of every node into `sums`, which holds zeros."""
    for index in range(len(blocks)):
        node = blocks[index, B_NODE]
        sums[node, WORDS_AT] += blocks[index, B_WORDS]
        sums[node, LINK_WORDS_AT] += blocks[index, B_LINK_WORDS]
    for node in range(len(nodes) - 1, 0, -1):
        sums[nodes[node, PARENT], WORDS_AT] += sums[node, WORDS_AT]
        sums[nodes[node, PARENT], LINK_WORDS_AT] += sums[node, LINK_WORDS_AT]


@jit_inner
def inherit_flags(nodes: Any, sums: Rows) -> Any:
    """Flags of every node with those of its ancestors, int64."""
    flags = np.zeros(len(nodes), np.int64)
    limit = MAX_SHARE * (sums[0, WORDS_AT] - sums[0, LINK_WORDS_AT])
    for node in range(1, len(nodes)):
        own = np.int64(nodes[node, FLAGS])
        if sums[node, WORDS_AT] - sums[node, LINK_WORDS_AT] > limit:
            own &= ~BOILERPLATE
        flags[node] = flags[nodes[node, PARENT]] | own
    return flags


@jit_inner
def describe_page(blocks: Any, flags: Any, sums: Rows) -> Rows:
    """The numbers of PAGE."""
    words, links = sums[0, WORDS_AT], sums[0, LINK_WORDS_AT]
    boilerplate, has_content = 0.0, 0.0
    for index in range(len(blocks)):
        found = flags[blocks[index, B_NODE]]
        if found & BOILERPLATE:
            boilerplate += blocks[index, B_WORDS]
        if found & (IS_CONTENT | IS_BODY | IN_MAIN | IN_ARTICLE):
            has_content = 1.0
    whole = max(1.0, words)
    return np.array([np.log1p(words - links), links / whole, boilerplate / whole, has_content, np.log1p(len(blocks))])


@jit_inner
def describe_block(index: int, blocks: Any, nodes: Any, flags: Any, sums: Rows, page: Rows, row: Rows) -> None:  # noqa: PLR0917 - compiled code is called by position
    """The numbers of LOCAL of one block into `row`."""
    node = blocks[index, B_NODE]
    words = blocks[index, B_WORDS]
    row[0], row[1], row[2] = 1.0, _log(words), blocks[index, B_LINK_WORDS] / max(1, words)
    row[3], row[4] = _log(blocks[index, B_ENDS]), _log(blocks[index, B_COMMAS])
    place = _NUM_COUNTS
    for bit in _BITS:
        row[place] = 1.0 if flags[node] & bit else 0.0
        place += 1
    for distance in (-1, 1, -2, 2):
        other = index + distance
        row[place], row[place + 1] = 0.0, 0.0
        if 0 <= other < len(blocks):
            row[place] = _log(blocks[other, B_WORDS] - blocks[other, B_LINK_WORDS])
            row[place + 1] = blocks[other, B_LINK_WORDS] / max(1, blocks[other, B_WORDS])
        place += 2
    for element in (node, nodes[node, PARENT]):
        row[place] = _log(sums[element, WORDS_AT] - sums[element, LINK_WORDS_AT])
        row[place + 1] = sums[element, LINK_WORDS_AT] / max(1.0, sums[element, WORDS_AT])
        place += 2
    for number in page:
        row[place] = number
        place += 1
