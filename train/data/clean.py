"""DataCleaner: a raw document to clean Unicode text.

In: RawDocument (bytes or str). Out: CleanDocument, whose text is NFC, has "\n" line ends, no control characters and no
personal data, with counts of what was done. Order: decode, HTML to text, line ends, mojibake, NFC, control characters,
personal data. Personal data goes before anything is written, because indexes and reports would keep it too.
Sources: html.py (HTML), ftfy (mojibake, only on lines that a cheap pattern flags), the WHATWG charset prescan.
"""

import codecs
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import ftfy
from pydantic import BaseModel, ConfigDict
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from train.data.document import RawDocument, describe_binary
from train.data.html import ExtractorKind, HtmlExtractor
from train.data.pii import PII_KINDS, mask_sensitive_all

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED_CHARSET = re.compile(rb"charset\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_-]{2,20})")
_HEADER_CHARSET = re.compile(r";\s{0,8}charset\s{0,8}=\s{0,8}[\"']?([\w.:-]{2,40})", re.ASCII | re.IGNORECASE)
_WIDER = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "iso8859-11": "cp874"}
"""Python's names of what browsers decode these with."""
_GUESSED = frozenset(
    "cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 koi8-r koi8-u iso8859-2 iso8859-5 iso8859-7 iso8859-8 iso8859-11".split()
    + "cp866 shift_jis euc_jp gbk gb18030 big5 euc_kr".split()
)
"""What a guess is taken for: other answers of the detector are mostly wrong, or are Windows-1252."""
_MOJIBAKE = re.compile("[\u00c2\u00c3\u00e2\u00f0\u00d0\u00d1\u00e3\u00ef\ufffd\u0080-\u009f]")
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]")
_LINE_END = re.compile("\r\n?|[\v\f\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]+")
_ASCII_CONTROLS = bytes(sorted({*range(0x20), 0x7F} - set(b"\t\n")))
"""Line ends but "\n", and what `_CONTROL` and `_ANSI` take out."""
_C1_BYTES, _MOJIBAKE_BYTES = re.compile(rb"\xc2[\x80-\x9f]"), re.compile(rb"\xc3[\x82\x83\x90\x91\xa2\xa3\xaf\xb0]")
_OTHER_CONTROLS = (b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xef\xbb\xbf")
"""Controls beyond ASCII, in UTF-8, beside C1."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_WINDOWS_GAPS = {byte: chr(byte) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_CP1252 = "".join(bytes([byte]).decode("cp1252", "ignore") or _WINDOWS_GAPS[byte] for byte in range(256))

MIN_GUESS_BYTES = 32
"""Fewer bytes beyond ASCII are no ground for a guess of the charset."""
CLEARLY_UTF8 = 8
"""Valid characters beyond ASCII per invalid byte from which a text is UTF-8 whatever it says."""


class NotText(ValueError):
    """The content is binary or has no text."""


class CleanConfig(BaseModel):
    """What the cleaner does beyond decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    main_content: bool = True
    """HTML: keep the main content only, unless that is empty."""
    extractor: ExtractorKind = "blocks"
    """HTML: which extractor finds the main content: our own, "resiliparse", or "trafilatura" (pip install trafilatura)."""
    fix_mojibake: bool = True
    """Repair text that was decoded with the wrong charset, such as "Ã©" for "é"."""
    mask_pii: bool = True
    """Replace personal data and keys by placeholders such as <EMAIL>."""


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """Clean text. `counts`: placeholders by kind (EMAIL, ...), and decoded_latin1, decoded_guess, invalid_bytes,
    mojibake_lines, control_characters where they are not zero. `happened_at` in seconds since the epoch."""

    id: str
    source_id: str
    title: str
    text: str
    metadata: Mapping[str, str]
    happened_at: float
    counts: dict[str, int] = field(default_factory=dict)


class DataCleaner:
    """Cleans one document at a time; holds no state between documents."""

    def __init__(self, config: CleanConfig, *, kinds: frozenset[str] = PII_KINDS) -> None:
        """`kinds`: what `mask_pii` masks. The stream leaves access tokens in place, for its safety screen to see them."""
        self._config = config
        self._kinds = kinds
        self._html = HtmlExtractor(config.extractor, main_content=config.main_content)

    def clean(self, raw: RawDocument) -> CleanDocument:
        """Raises NotText if the content is binary, empty, or nothing but markup."""
        (found,) = self.clean_all([raw])
        if isinstance(found, NotText):
            raise found
        return found

    def clean_all(self, documents: Sequence[RawDocument]) -> list[CleanDocument | NotText]:
        """`clean` of each; many at once take less time."""
        found: list[CleanDocument | NotText] = []
        for raw in documents:
            try:
                found.append(self._clean_one(raw))
            except NotText as error:
                found.append(error)
        clean = [one for one in found if isinstance(one, CleanDocument)]
        if self._config.mask_pii:
            masked = iter(mask_sensitive_all([one.text for one in clean], kinds=self._kinds))
            titles = iter(mask_sensitive_all([one.title for one in clean], kinds=self._kinds))
            for index, one in enumerate(found):
                if isinstance(one, CleanDocument):
                    text, counts = next(masked)
                    title, _ = next(titles)
                    found[index] = replace(one, text=text, title=title, counts=one.counts | counts)
        return found

    def _clean_one(self, raw: RawDocument) -> CleanDocument:
        """All but personal data."""
        counts: dict[str, int] = {}
        is_html = raw.media_type is not None and raw.media_type.split(";")[0].strip().lower() in _HTML_TYPES
        if isinstance(raw.content, bytes):
            binary = describe_binary(raw.content)
            if binary is not None:
                raise NotText(f"the document {binary}")
            charset = _HEADER_CHARSET.search(raw.media_type or "")
            text = decode(raw.content, is_html=is_html, charset=charset[1] if charset else "", counts=counts)
        else:
            text = _without_surrogates(raw.content, counts=counts)
        title = raw.title
        if is_html:
            text, page_title = self._html.extract(text)
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

    def _clean_text(self, text: str, *, counts: dict[str, int]) -> str:
        data = text.encode()  # what is looked for among bytes takes a tenth of the time
        is_ascii = text.isascii()
        if not is_ascii:
            if self._config.fix_mojibake and _has_mojibake(data):
                text = _fix_mojibake(_LINE_END.sub("\n", text), counts=counts)
            text = unicodedata.normalize("NFC", text)
            data = text.encode()
        has_controls = len(data.translate(None, _ASCII_CONTROLS)) < len(data)
        if not has_controls and (is_ascii or not _has_other_controls(data)):
            return text
        text = _ANSI.sub("", _LINE_END.sub("\n", text).replace("\x85", "\n"))
        num_chars = len(text)
        text = _CONTROL.sub("", text)
        if len(text) < num_chars:
            counts["control_characters"] = num_chars - len(text)
        return text


def _has_mojibake(data: bytes) -> bool:
    """Whether a character of `_MOJIBAKE` is in this UTF-8."""
    return bool(_C1_BYTES.search(data) or _MOJIBAKE_BYTES.search(data)) or b"\xef\xbf\xbd" in data


def _has_other_controls(data: bytes) -> bool:
    return bool(_C1_BYTES.search(data)) or any(control in data for control in _OTHER_CONTROLS)


_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


def decode(content: bytes, *, is_html: bool, counts: dict[str, int], charset: str = "") -> str:
    """By byte order mark, else UTF-8, else the charset of the header (`charset`) or of the page, else a guess, else
    Windows-1252 (latin-1 and more).

    Damaged UTF-8, with more valid characters beyond ASCII than invalid bytes, stays UTF-8: its bad bytes become U+FFFD.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            text = content[len(mark) :].decode(encoding, "replace")
            _count_replaced(text, counts=counts)
            return text
    if b"\x1b$" in content and map_encoding_to_html5(charset, fallback_utf8=False) == "iso2022_jp":
        return content.decode("iso2022_jp", "replace")  # its bytes are ASCII
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        repaired = content.decode("utf-8", "replace")
    declared = _DECLARED_CHARSET.search(content, 0, 2048) if is_html else None
    return _decode_legacy(content, repaired, labels=(charset, declared[1].decode() if declared else ""), counts=counts)


def _decode_legacy(content: bytes, repaired: str, *, labels: tuple[str, ...], counts: dict[str, int]) -> str:
    """What is not valid UTF-8. `repaired`: the content as UTF-8, with U+FFFD for its bad bytes; `labels`: charsets that
    it is said to have."""
    counts["invalid_bytes"] = num_invalid = repaired.count("\ufffd")
    num_valid = sum(map(len, re.findall("[\x80-\ufffc\U00010000-\U0010ffff]+", repaired)))
    if num_valid > CLEARLY_UTF8 * num_invalid:
        return repaired
    for label in filter(None, labels):
        encoding = map_encoding_to_html5(label, fallback_utf8=False)
        if encoding and not encoding.startswith("utf"):
            return _decode_as(content, encoding)
    if num_valid > num_invalid:
        return repaired
    if num_invalid >= MIN_GUESS_BYTES and (guess := detect_encoding(content)) in _GUESSED:
        text = _decode_as(content, guess)
        if text.count("\ufffd") * 100 <= num_invalid:
            counts["decoded_guess"] = 1
            return text
    counts["decoded_latin1"] = 1
    return _decode_as(content, "cp1252")


def _decode_as(content: bytes, encoding: str) -> str:
    if encoding == "cp1252":
        return content.decode("latin-1").translate(_FROM_LATIN1)
    return content.decode(_WIDER.get(encoding, encoding), "replace")


_FROM_LATIN1 = {code: character for code, character in enumerate(_CP1252) if chr(code) != character}


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
