"""HTML to text: the main content of a page, in one of two tiers.

In: the page as a string. Out: its text and its title. The fast tier is resiliparse's main-content extraction without
comments, dates, bullets and image texts; the quality tier is trafilatura (about eight times as slow), an optional package.
Where a tier finds nothing, the page's whole text is taken. A page whose nesting would keep an extractor busy for seconds
goes the same way.
"""

from collections.abc import Callable
from typing import Any, Literal

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import DOMContext, HTMLTree, traverse_dom

ExtractorKind = Literal["resiliparse", "trafilatura"]
MainText = Callable[[str, Any], str]
"""(page, its parsed tree) -> its main text, empty if none was found."""

FEW_TAGS = 5_000
MANY_TAGS = 200_000
MAX_DEPTH_SUM = 20_000_000
_DEEP = ">".join("*" * (MAX_DEPTH_SUM // MANY_TAGS))
"""Selects elements with so many ancestors that a page of MANY_TAGS may reach MAX_DEPTH_SUM; real pages have none."""


class HtmlExtractor:
    """Extracts one page at a time. Raises ValueError at once if the tier's package is missing."""

    def __init__(self, kind: ExtractorKind, *, main_content: bool = True) -> None:
        self._main_text = KINDS[kind]() if main_content else None

    def extract(self, html: str) -> tuple[str, str]:
        """(text, title) of a page; the title is "" if it has none."""
        tree = HTMLTree.parse(html)
        text = ""
        if self._main_text is not None and not _is_tangled(tree, num_tags=html.count("<")):
            text = self._main_text(html, tree)
        return text if text.strip() else extract_plain_text(tree, alt_texts=False), tree.title or ""


def _resiliparse() -> MainText:
    def main_text(_: str, tree: Any) -> str:
        return extract_plain_text(
            tree, main_content=True, comments=False, post_meta=False, list_bullets=False, alt_texts=False
        )

    return main_text


def _trafilatura() -> MainText:
    try:
        from trafilatura import extract
    except ImportError as error:
        raise ValueError(
            "extractor = 'trafilatura' needs a package that is not installed: "
            "pip install trafilatura, or set extractor = 'resiliparse'"
        ) from error

    def main_text(html: str, _: Any) -> str:
        return extract(html, fast=True, favor_recall=True, include_comments=False) or ""

    return main_text


KINDS: dict[ExtractorKind, Callable[[], MainText]] = {"resiliparse": _resiliparse, "trafilatura": _trafilatura}


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
