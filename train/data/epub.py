"""An EPUB as raw documents.

In: an open zip file with META-INF/container.xml, a package document and a spine. Out: the XHTML of the spine in its order, as
one RawDocument or one per chapter (media type text/html, so DataCleaner takes the text out), or Rejected: no EPUB, damaged,
protected, or above a limit. Nothing is written to disk, and only members that the book itself lists are opened.

Bounds on a hostile file: members are inflated piece by piece and stopped at the limit, whatever size they declare; the
directory's size is checked before it is read; XML entities are refused (defusedxml).
Source: EPUB 3.3 (W3C), Open Container Format.
"""

import codecs
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from train.data.document import RawDocument, Rejected, document_id
from train.data.lines import WatchedFile
from train.data.readers import BadContent, describe_limit
from train.data.source_config import SourceConfig

MAX_MEMBERS = 20_000
MAX_DIRECTORY_BYTES = 8 << 20
"""A directory entry has some 100 bytes on disk and 1,000 in memory."""
MAX_XML_BYTES = 4 << 20
"""Package document, container and encryption list."""
READ_BYTES = 1 << 16

_END = b"PK\x05\x06"
_END_BYTES = 22
_LOCATOR_64 = b"PK\x06\x07"
_LOCATOR_64_BYTES = 20
_MAX_COMMENT_BYTES = 1 << 16
_CHAPTER_TYPES = frozenset({"application/xhtml+xml", "text/html", "text/x-oeb1-document"})
_FONT_ALGORITHMS = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})
"""They only hide embedded fonts."""
_BODY = re.compile(rb"<body\b[^>]*>", re.IGNORECASE)
_BODY_END = re.compile(rb"</body\s*>", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""<\?xml[^>]{0,200}?encoding=["']([A-Za-z0-9._-]{1,40})["']""")
_CHARSET = re.compile(
    r"utf-?16(?:le|be)?|iso-8859-\d+|windows-125\d|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gbk|gb2312|gb18030|big5",
    re.IGNORECASE,
)
"""Encodings that are believed; some that Python knows, such as punycode, take quadratic time."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    OSError,
    ValueError,
)
"""What zipfile raises for damaged members: RuntimeError for a password, NotImplementedError for a rare compression."""
_DAMAGED_FIX = "fetch the book again"


@dataclass(frozen=True, slots=True)
class _Package:
    """A book's package document: names of the chapters' members in the order of the spine."""

    chapters: list[str]
    title: str
    metadata: dict[str, str] = field(default_factory=dict)


def read_epub(
    file: Any, path: str, *, watched: WatchedFile, source: SourceConfig, happened_at: float
) -> Iterator[RawDocument | Rejected]:
    """`file` is `watched`, buffered. Raises OSError if the disk or network fails, nothing because of the content."""
    try:
        _check_directory(file)
        archive = zipfile.ZipFile(file)
        package = _read_package(archive)
        _check_rights(archive, package)
    except _BROKEN as error:
        yield _reject(path, error, watched=watched)
        return
    whole: list[bytes] = []
    num_bytes = 0
    for index, name in enumerate(package.chapters):
        left = source.max_document_bytes - num_bytes
        try:
            page = _as_utf8(_read_member(archive, name, max_bytes=left))
        except _TooLarge:
            reason, fix = describe_limit(source.max_document_bytes + 1, source=source)
            if source.book.document == "book":
                fix += ', or set book.document = "chapter"'
                yield Rejected(path, reason.replace("has", "has at least"), fix, offset=index)
                return
            yield Rejected(path, f"chapter {name!r} {reason.replace('has', 'has at least')}", fix, offset=index)
            continue
        except KeyError:
            reason = "leads out of the archive" if name.startswith(("../", "/")) else "is not in the archive"
            yield Rejected(path, f"chapter {name!r} of its spine {reason}", _DAMAGED_FIX, offset=index)
            continue
        except _BROKEN as error:
            yield _reject(path, error, watched=watched, what=f"chapter {name!r} ", offset=index)
            continue
        if source.book.document == "chapter":
            yield _document(page, path, index=index, package=package, source=source, happened_at=happened_at)
        else:
            whole.append(_body(page))
            num_bytes += len(page)
    if whole:
        page = b"<html><body>\n" + b"\n".join(whole) + b"\n</body></html>"
        yield _document(page, path, index=0, package=package, source=source, happened_at=happened_at)


class _TooLarge(Exception):
    """A member above its limit."""


def _document(
    page: bytes, path: str, *, index: int, package: _Package, source: SourceConfig, happened_at: float
) -> RawDocument:
    is_book = source.book.document == "book"
    metadata = {"path": path, "offset": str(index), **package.metadata}
    if not is_book:
        metadata |= {"chapter": package.chapters[index], "book": package.title}
    return RawDocument(
        id=document_id(source.name, relative_path=f"{path}#{index}"),
        source_id=source.name,
        title=(package.title or path) if is_book else path,  # the cleaner replaces a path by the page's own title
        content=page,
        media_type="text/html",
        happened_at=happened_at,
        metadata=metadata,
    )


def _check_directory(file: Any) -> None:
    """Refuse a directory that would not fit in memory, before zipfile reads it."""
    size = file.seek(0, 2)
    tail_bytes = min(size, _MAX_COMMENT_BYTES + _END_BYTES + _LOCATOR_64_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    end = tail.rfind(_END)
    if end < 0 or end + _END_BYTES > len(tail):
        raise BadContent("is no zip file, or was cut short", fix=_DAMAGED_FIX)
    num_members, directory_bytes = struct.unpack_from("<HL", tail, end + 10)
    is_64 = tail[max(end - _LOCATOR_64_BYTES, 0) : end].startswith(_LOCATOR_64)
    if is_64 or num_members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        fix = "unpack it and give its pages as a source of kind text"
        raise BadContent(f"has more than {MAX_MEMBERS:,} members, as no book has", fix=fix)


def _read_package(archive: zipfile.ZipFile) -> _Package:
    try:
        container = _read_xml(archive, "META-INF/container.xml")
    except KeyError as error:
        raise BadContent("is a zip file but no EPUB: it has no META-INF/container.xml", fix=_DAMAGED_FIX) from error
    root = next((item.get("full-path", "") for item in _all(container, "rootfile")), "")
    try:
        package = _read_xml(archive, root)
    except KeyError as error:
        raise BadContent(f"names the package document {root!r}, which it does not have", fix=_DAMAGED_FIX) from error
    items = {item.get("id", ""): item for item in _all(package, "item")}
    folder = posixpath.dirname(root)
    chapters = []
    for reference in _all(package, "itemref"):
        item = items.get(reference.get("idref", ""))
        if item is None or item.get("media-type") not in _CHAPTER_TYPES:
            continue
        if "nav" not in (item.get("properties") or "").split():
            href = unquote(item.get("href", "").partition("#")[0])
            chapters.append(posixpath.normpath(posixpath.join(folder, href)))
    if not chapters:
        raise BadContent("has no page of text in its spine", fix="leave it out: its pages are images or empty")
    metadata = {"author": "creator", "declared_language": "language", "rights": "rights"}
    texts = {key: _text(package, name) for key, name in metadata.items()}
    return _Package(chapters, _text(package, "title"), {key: text for key, text in texts.items() if text})


def _check_rights(archive: zipfile.ZipFile, package: _Package) -> None:
    """Raises BadContent if the text of the book is encrypted."""
    chapters = set(package.chapters)
    names = set(archive.namelist())
    if "META-INF/encryption.xml" in names:
        for data in _all(_read_xml(archive, "META-INF/encryption.xml"), "EncryptedData"):
            algorithm = next((item.get("Algorithm", "") for item in _all(data, "EncryptionMethod")), "")
            uris = {unquote(item.get("URI", "")) for item in _all(data, "CipherReference")}
            if algorithm not in _FONT_ALGORITHMS and (hidden := sorted(uris & chapters)):
                raise BadContent(
                    f"is protected: META-INF/encryption.xml says that {hidden[0]!r} is encrypted by {algorithm}",
                    fix="give a copy without digital rights management",
                )
    locked = [name for name in package.chapters if name in names and archive.getinfo(name).flag_bits & 1]
    if locked:
        raise BadContent(
            f"is protected by a password ({locked[0]!r} is encrypted)", fix="give a copy without a password"
        )


def _read_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int) -> bytes:
    """Raises _TooLarge when the limit is passed, before more is inflated; KeyError if there is no such member."""
    parts = []
    with archive.open(name) as member:
        while data := member.read(READ_BYTES):
            max_bytes -= len(data)
            if max_bytes < 0:
                raise _TooLarge
            parts.append(data)
    return b"".join(parts)


def _read_xml(archive: zipfile.ZipFile, name: str) -> Element:
    """Raises KeyError if there is no such member."""
    try:
        data = _read_member(archive, name, max_bytes=MAX_XML_BYTES)
    except _TooLarge as error:
        raise BadContent(
            f"has {name!r} with more than {MAX_XML_BYTES:,} bytes, as no book has", fix=_DAMAGED_FIX
        ) from error
    try:
        root: Element = fromstring(data)
    except (ParseError, DefusedXmlException, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise BadContent(f"has {name!r}, which is no XML ({error})", fix=_DAMAGED_FIX) from error
    return root


def _all(root: Element, name: str) -> Iterator[Element]:
    """Elements of this local name: books get their namespaces wrong."""
    return (item for item in root.iter() if isinstance(item.tag, str) and item.tag.rpartition("}")[2] == name)


def _text(root: Element, name: str) -> str:
    return " ".join(next(("".join(item.itertext()) for item in _all(root, name)), "").split())[:300]


def _as_utf8(page: bytes) -> bytes:
    """The page in UTF-8, which is what a page without a byte order mark or declaration is in."""
    for mark, encoding in _MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace").encode()
    declared = _XML_ENCODING.match(page)
    charset = declared[1].decode("ascii") if declared else ""
    if not _CHARSET.fullmatch(charset):
        return page
    try:
        return page.decode(charset).encode()
    except (LookupError, UnicodeDecodeError):
        return page


def _body(page: bytes) -> bytes:
    """What stands in the page's body, all of the page if it has none."""
    begin = _BODY.search(page)
    if begin is None:
        return page
    end = _BODY_END.search(page, begin.end())
    return page[begin.end() : end.start() if end else len(page)]


def _reject(
    path: str, error: Exception, *, watched: WatchedFile, what: str = "", offset: int | None = None
) -> Rejected:
    if watched.error is not None:
        raise watched.error from error
    if isinstance(error, BadContent):
        return Rejected(path, f"{what}{error}", error.fix, offset=offset)
    text = " ".join(str(error).split()) or type(error).__name__
    return Rejected(path, f"{what}cannot be read as EPUB ({text})", _DAMAGED_FIX, offset=offset)
