"""HTML to text: the main content of a page, in one of three tiers.

In: the page as a string. Out: its text and its title. The default tier is our own scanner and block rater (html_scan,
html_blocks). The other two are resiliparse's main-content extraction without comments, dates, bullets and image texts, and
trafilatura (many times as slow), an optional package. Where a tier finds nothing, the page's whole text is taken; a page whose
nesting would keep one of the other two busy for seconds goes the same way.
"""

import html as html_library
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import DOMContext, HTMLTree, traverse_dom

from train.data.html_blocks import join_blocks, select_blocks
from train.data.html_scan import scan_page

ExtractorKind = Literal["blocks", "resiliparse", "trafilatura"]
Extract = Callable[[str, bool], tuple[str, str]]
"""(page, whether to keep its main content only) -> its text and its title, "" if it has none."""
MainText = Callable[[str, Any], str]
"""(page, its tree as resiliparse parses it) -> its main text, empty if none was found."""

FEW_TAGS = 5_000
MANY_TAGS = 200_000
MAX_DEPTH_SUM = 20_000_000
_DEEP = ">".join("*" * (MAX_DEPTH_SUM // MANY_TAGS))
"""Selects elements with so many ancestors that a page of MANY_TAGS may reach MAX_DEPTH_SUM; real pages have none."""


class HtmlExtractor:
    """Extracts one page at a time. Raises ValueError at once if the tier's package is missing."""

    def __init__(self, kind: ExtractorKind, *, main_content: bool = True) -> None:
        self._extract = KINDS[kind]()
        self._main_content = main_content

    def extract(self, html: str) -> tuple[str, str]:
        """(text, title) of a page; the title is "" if it has none."""
        return self._extract(html, self._main_content)


def _blocks() -> Extract:
    def extract(html: str, main_content: bool) -> tuple[str, str]:
        page = scan_page(html)
        if not len(page.blocks):
            page = scan_page(html, shows_hidden=True)
        is_kept = select_blocks(page) if main_content else np.zeros(len(page.blocks), np.bool_)
        if not is_kept.any():
            is_kept[:] = True
        title = html_library.unescape(page.title.decode("utf-8", "replace")) if page.title else ""
        return join_blocks(page, is_kept), " ".join(title.split())

    return extract


def _resiliparse() -> Extract:
    def main_text(_: str, tree: Any) -> str:
        return extract_plain_text(
            tree, main_content=True, comments=False, post_meta=False, list_bullets=False, alt_texts=False
        )

    return _with_tree(main_text)


def _trafilatura() -> Extract:
    try:
        from trafilatura import extract
    except ImportError as error:
        raise ValueError(
            "extractor = 'trafilatura' needs a package that is not installed: "
            "pip install trafilatura, or set extractor = 'blocks'"
        ) from error

    def main_text(html: str, _: Any) -> str:
        return extract(html, fast=True, favor_recall=True, include_comments=False) or ""

    return _with_tree(main_text)


KINDS: dict[ExtractorKind, Callable[[], Extract]] = {
    "blocks": _blocks,
    "resiliparse": _resiliparse,
    "trafilatura": _trafilatura,
}


def _with_tree(main_text: MainText) -> Extract:
    def extract(html: str, main_content: bool) -> tuple[str, str]:
        tree = HTMLTree.parse(html)
        text = main_text(html, tree) if main_content and not _is_tangled(tree, num_tags=html.count("<")) else ""
        return text if text.strip() else extract_plain_text(tree, alt_texts=False), tree.title or ""

    return extract


def _is_tangled(tree: Any, *, num_tags: int) -> bool:
    """Whether main-content extraction, whose time grows with elements times depth, would take more than ~2 seconds.

    20,000 nested elements were measured to take 19 s, 75 ns for each element and ancestor; all text takes .02 s.
    """
    if num_tags <= FEW_TAGS or tree.body is None:
        return False
    if num_tags > MANY_TAGS:
        return True
    if tree.body.query_selector(_DEEP) is None:  # the walk below takes 4 us a node
        return False
    work = 0

    def enter(context: DOMContext) -> None:
        nonlocal work
        work += context.depth

    traverse_dom(tree.body, enter, elements_only=True)
    return work > MAX_DEPTH_SUM
