"""DataCleaner: a raw document to clean Unicode text.

In: RawDocument (bytes or str). Out: CleanDocument, whose text is NFC, has "\n" line ends, no control characters and no
personal data, with counts of what was done. Order: decode, HTML to text, line ends, mojibake, NFC, control characters,
personal data. Personal data goes before anything is written, because indexes and reports would keep it too.
Sources: resiliparse (HTML), ftfy (mojibake, only on lines that a cheap pattern flags), the WHATWG charset prescan.
"""

import codecs
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

import ftfy
from pydantic import BaseModel, ConfigDict
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import DOMContext, HTMLTree, traverse_dom

from train.data.document import RawDocument, describe_binary
from train.data.pii import PII_KINDS, mask_sensitive

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED_CHARSET = re.compile(rb"charset\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_-]{2,20})")
_TRUSTED_CHARSET = re.compile(r"iso-8859-\d+|windows-125\d|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gbk?|gb2312|gb18030|big5")
_MOJIBAKE = re.compile("[\u00c2\u00c3\u00e2\u00f0\u00d0\u00d1\u00e3\u00ef\ufffd\u0080-\u009f]")
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]")
_LINE_END = re.compile("\r\n?|[\v\f\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WINDOWS_GAPS = {byte: chr(byte) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_CP1252 = "".join(bytes([byte]).decode("cp1252", "ignore") or _WINDOWS_GAPS[byte] for byte in range(256))


FEW_TAGS = 5_000
MANY_TAGS = 200_000
MAX_DEPTH_SUM = 20_000_000


class NotText(ValueError):
    """The content is binary or has no text."""


class CleanConfig(BaseModel):
    """What the cleaner does beyond decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    main_content: bool = True
    """HTML: keep the main content only (F1 .934 on labelled pages against .653 for all text), unless that is empty."""
    fix_mojibake: bool = True
    """Repair text that was decoded with the wrong charset, such as "Ã©" for "é"."""
    mask_pii: bool = True
    """Replace personal data and keys by placeholders such as <EMAIL>."""


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """Clean text. `counts`: placeholders by kind (EMAIL, ...), and decoded_latin1, invalid_bytes, mojibake_lines,
    control_characters where they are not zero. `happened_at` in seconds since the epoch."""

    id: str
    source_id: str
    title: str
    text: str
    metadata: Mapping[str, str]
    happened_at: float
    counts: dict[str, int] = field(default_factory=dict)


class DataCleaner:
    """Cleans one document at a time; holds no state between documents."""

    def __init__(self, config: CleanConfig) -> None:
        self._config = config

    def clean(self, raw: RawDocument) -> CleanDocument:
        """Raises NotText if the content is binary, empty, or nothing but markup."""
        counts: dict[str, int] = {}
        is_html = raw.media_type is not None and raw.media_type.split(";")[0].strip().lower() in _HTML_TYPES
        if isinstance(raw.content, bytes):
            binary = describe_binary(raw.content)
            if binary is not None:
                raise NotText(f"the document {binary}")
            text = _decode(raw.content, is_html=is_html, counts=counts)
        else:
            text = _without_surrogates(raw.content, counts=counts)
        title = raw.title
        if is_html:
            text, page_title = self._extract(text)
            if page_title and title in ("", raw.metadata.get("path")):
                title = page_title
        text = self._clean_text(text, counts=counts).strip()
        if not text:
            raise NotText("the document is empty" if not is_html else "the page has no text")
        return CleanDocument(
            id=raw.id,
            source_id=raw.source_id,
            title=" ".join(self._clean_text(_without_surrogates(title, counts={}), counts={}).split()),
            text=text,
            metadata=raw.metadata,
            happened_at=raw.happened_at,
            counts=counts,
        )

    def _extract(self, html: str) -> tuple[str, str]:
        tree = HTMLTree.parse(html)
        text = ""
        if self._config.main_content and not _is_tangled(tree, num_tags=html.count("<")):
            text = extract_plain_text(
                tree, main_content=True, comments=False, post_meta=False, list_bullets=False, alt_texts=False
            )
        return text if text.strip() else extract_plain_text(tree, alt_texts=False), tree.title or ""

    def _clean_text(self, text: str, *, counts: dict[str, int]) -> str:
        text = _LINE_END.sub("\n", text)
        if self._config.fix_mojibake and _MOJIBAKE.search(text):
            text = _fix_mojibake(text, counts=counts)
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
        text = _ANSI.sub("", text.replace("\x85", "\n"))
        num_chars = len(text)
        text = _CONTROL.sub("", text)
        if len(text) < num_chars:
            counts["control_characters"] = num_chars - len(text)
        if self._config.mask_pii:
            text, kinds = mask_sensitive(text, kinds=PII_KINDS)
            counts.update(kinds)
        return text


_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


def _decode(content: bytes, *, is_html: bool, counts: dict[str, int]) -> str:
    """By byte order mark, else UTF-8, else the page's declared charset, else Windows-1252 (latin-1 and more).

    Damaged UTF-8, with more valid characters beyond ASCII than invalid bytes, stays UTF-8: its bad bytes become U+FFFD.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            text = content[len(mark) :].decode(encoding, "replace")
            _count_replaced(text, counts=counts)
            return text
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        repaired = content.decode("utf-8", "replace")
    num_invalid = repaired.count("\ufffd")
    counts["invalid_bytes"] = num_invalid
    declared = _DECLARED_CHARSET.search(content, 0, 2048) if is_html else None
    charset = declared[1].decode().lower() if declared else ""
    if _TRUSTED_CHARSET.fullmatch(charset):
        return content.decode(charset, "replace")
    num_valid = sum(map(len, re.findall("[\x80-\ufffc\U00010000-\U0010ffff]+", repaired)))
    if num_valid > num_invalid:
        return repaired
    counts["decoded_latin1"] = 1
    return content.decode("latin-1").translate(_FROM_LATIN1)


_FROM_LATIN1 = {code: character for code, character in enumerate(_CP1252) if chr(code) != character}


def _is_tangled(tree: HTMLTree, *, num_tags: int) -> bool:
    """Whether main-content extraction, whose time grows with elements times depth, would take more than ~2 seconds.

    20,000 nested elements were measured to take 19 s, 75 ns for each element and ancestor; all text takes .02 s.
    """
    if num_tags <= FEW_TAGS or tree.body is None:
        return False
    if num_tags > MANY_TAGS:
        return True
    work = 0

    def enter(context: DOMContext) -> None:
        nonlocal work
        work += context.depth

    traverse_dom(tree.body, enter, elements_only=True)
    return work > MAX_DEPTH_SUM


def _count_replaced(text: str, *, counts: dict[str, int]) -> None:
    if num_invalid := text.count("\ufffd"):
        counts["invalid_bytes"] = num_invalid


def _without_surrogates(text: str, *, counts: dict[str, int]) -> str:
    """JSON may carry lone surrogates, which no encoder writes: they become U+FFFD, pairs become their character."""
    if not _SURROGATE.search(text):
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    _count_replaced(text, counts=counts)
    return text


def _fix_mojibake(text: str, *, counts: dict[str, int]) -> str:
    lines = text.split("\n")
    num_fixed = 0
    for index, line in enumerate(lines):
        if _MOJIBAKE.search(line):
            fixed = str(ftfy.fix_encoding(line))
            num_fixed += fixed != line
            lines[index] = fixed
    if num_fixed:
        counts["mojibake_lines"] = num_fixed
    return "\n".join(lines)
