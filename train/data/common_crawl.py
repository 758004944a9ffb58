"""CommonCrawlProcessor: the pages of web archives as raw documents.

In: a WARC or WET file, plain or gzip, and a byte range of it. Out: a RawDocument for each page in it that was fetched with
success and is HTML or text, and Rejected for what is damaged, too long or cannot be decoded. HTTP's chunks and content
encodings are undone as warcio does it: a body that is not encoded as its header says stays as it is. The charset of the
header goes into the media type, where the cleaner finds it. Documents keep their ids however the file is split.
Source: the WARC standard (ISO 28500:2017) and Common Crawl's use of it.
"""

import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs
from fastwarc.stream_io import BrotliReader, ZstdReader
from fastwarc.warc import WarcHeader, WarcRecordType
from pydantic import BaseModel, ConfigDict, Field

from train.data.document import RawDocument, Rejected
from train.data.warc import RecordReader

LOCAL_READ_BYTES, REMOTE_READ_BYTES = 1 << 16, 4 << 20
_VAGUE_TYPES = frozenset({"", "application/octet-stream", "unknown/unknown"})
_RESPONSE, _CONVERSION = WarcRecordType.response, WarcRecordType.conversion
_HTML_START = re.compile(
    rb"\s{0,512}(?:<!--.{0,512}?-->\s{0,64})?<(?:!doctype\s+html|html|head|body)[\s>]", re.I | re.S
)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,512})?\r\n")
_PIECE_BYTES = 1 << 16


class CommonCrawlConfig(BaseModel):
    """Which records of a web archive become documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statuses: tuple[int, ...] = (200,)
    """HTTP status codes of pages to keep."""
    media_types: tuple[str, ...] = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown")
    """Types of pages to keep, without parameters. A page of unknown type is kept if it begins as HTML does."""
    max_record_bytes: int = Field(16 << 20, gt=0)
    """Longest record, in bytes as stored and again after decoding; a longer one is named and never held in memory."""
    keep_truncated: bool = True
    """Keep pages that the crawler cut (WARC-Truncated; Common Crawl cuts at 1 MiB); their metadata says `truncated`."""


class CommonCrawlProcessor:
    """Reads ranges of web archives. `counts`, its own or one that it adds to: `pages` given out, `truncated` ones among them,
    and responses passed over by why (`status`, `media_type`, `empty`, `not_http`, `cut` by the crawler)."""

    def __init__(self, config: CommonCrawlConfig, *, counts: Counter[str] | None = None) -> None:
        self._config = config
        self.counts: Counter[str] = Counter() if counts is None else counts

    def read(
        self, filesystem: pafs.FileSystem, path: str, *, source_id: str, start: int = 0, stop: int | None = None
    ) -> Iterator[RawDocument | Rejected]:
        """The pages whose records begin in bytes [start, stop) of the file; all without a range.

        Raises OSError if the file cannot be opened or read.
        """
        with filesystem.open_input_file(path) as file:
            size_bytes = file.size()
            if size_bytes == 0:
                if start == 0:
                    yield Rejected(path, "is empty", "fetch the archive again, or leave it out", offset=0)
                return
            records = RecordReader[RawDocument | str](
                file,
                _Converter(self._config, path=path, source_id=source_id).convert,
                path=path,
                size_bytes=size_bytes,
                max_record_bytes=self._config.max_record_bytes,
                read_ahead_bytes=LOCAL_READ_BYTES if _is_local(filesystem) else REMOTE_READ_BYTES,
            )
            for item in records.read(start, size_bytes if stop is None else stop):
                if isinstance(item, RawDocument):
                    self.counts["pages"] += 1
                    if "truncated" in item.metadata:
                        self.counts["truncated"] += 1
                    yield item
                elif isinstance(item, Rejected):
                    yield item
                else:
                    self.counts[item] += 1


class _Converter:
    """fastwarc's record to a document; a str says why a response is none; None for the other kinds of records."""

    def __init__(self, config: CommonCrawlConfig, *, path: str, source_id: str) -> None:
        self._config, self._path, self._source_id = config, path, source_id
        self._media_types, self._max_bytes = config.media_types, config.max_record_bytes
        self._hash = hashlib.sha256(f"{source_id}\x00{path}#".encode("utf-8", "surrogateescape"))

    def convert(self, record: Any, length: int, offset: int, inner: int) -> RawDocument | Rejected | str | None:
        kind = record.record_type
        if kind is not _RESPONSE and kind is not _CONVERSION:
            return None
        page = self._page(record, length) if kind is _RESPONSE else self._text(record, length)
        if isinstance(page, str):
            return page
        media_type, content = page
        if len(content) > self._max_bytes or length > self._max_bytes:
            reason = f"has a record of {length:,} bytes, above max_record_bytes, or that unpacks to more"
            fix = f"set max_record_bytes of the source, {self._max_bytes:,} now, higher, or accept the loss"
            return Rejected(self._path, reason, fix, offset=offset)
        return self._document(record, offset, inner, media_type, content) if content else "empty"

    def _document(self, record: Any, offset: int, inner: int, media_type: str, content: bytes) -> RawDocument | str:
        headers = record.headers
        place = f"{offset}+{inner}" if inner else str(offset)
        identity = self._hash.copy()  # document_id of "path#place", at a third of its time: it counts at this rate
        identity.update(place.encode())
        url = headers.get(WarcHeader.WARC_TARGET_URI) or ""
        metadata = {"path": self._path, "offset": place, "url": url}
        if WarcHeader.WARC_TRUNCATED in headers:
            if not self._config.keep_truncated:
                return "cut"
            metadata["truncated"] = headers.get(WarcHeader.WARC_TRUNCATED)
        return RawDocument(
            id=identity.hexdigest()[:32],
            source_id=self._source_id,
            title="" if "html" in media_type else url,  # a page brings its own
            content=content,
            media_type=media_type,
            happened_at=_timestamp(headers.get(WarcHeader.WARC_DATE)),
            metadata=metadata,
        )

    def _text(self, record: Any, length: int) -> tuple[str, bytes]:
        return "text/plain; charset=utf-8", record.reader.read() if length <= self._max_bytes else b""

    def _page(self, record: Any, length: int) -> tuple[str, bytes] | str:
        """(media type with the header's charset, body unless it is too long) of a response, or why it is not wanted."""
        if not record.is_http:
            return "not_http"
        record.parse_http()
        http = record.http_headers
        if http.status_code not in self._config.statuses:
            return "status"
        media_type = record.http_content_type or ""
        if media_type not in self._media_types:
            media_type = media_type.lower()
            if media_type not in self._media_types and media_type not in _VAGUE_TYPES:
                return "media_type"
        content = record.reader.read() if length <= self._max_bytes else b""
        if b"-encoding" in b" ".join(http.keys_bytes()).lower():  # a look-up of each name takes ten times as long
            content = _decode_body(content, http, max_bytes=self._max_bytes)
        if media_type in _VAGUE_TYPES and content:
            if not _HTML_START.match(content.removeprefix(b"\xef\xbb\xbf")):
                return "media_type"
            media_type = "text/html"
        charset = record.http_charset
        return f"{media_type}; charset={charset}" if charset else media_type, content


def _is_local(filesystem: pafs.FileSystem) -> bool:
    base = filesystem.base_fs if isinstance(filesystem, pafs.SubTreeFileSystem) else filesystem
    return isinstance(base, pafs.LocalFileSystem)


def _timestamp(date: str | None) -> float:
    """Seconds since the epoch of a WARC-Date, which is in UTC; 0 if it is none."""
    try:
        moment = datetime.fromisoformat(date or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return 0.0


def _decode_body(body: bytes, headers: Any, *, max_bytes: int) -> bytes:
    """The body without HTTP's chunks and content encodings, at most `max_bytes` + 1 of it."""
    if (headers.get("Transfer-Encoding") or "").strip().lower() == "chunked":
        body = _join_chunks(body)
    for encoding in reversed((headers.get("Content-Encoding") or "").split(",")):
        body = _decode(body, encoding.strip().lower(), max_bytes=max_bytes)
    return body


def _join_chunks(body: bytes) -> bytes:
    """RFC 9112, section 7.1. What is not chunked, from the first byte or from a later one on, stays as it is."""
    chunks = []
    position = 0
    while size := _CHUNK_SIZE.match(body, position):
        end = size.end() + int(size[1], 16)
        if body[end : end + 2] not in (b"\r\n", b""):
            break
        chunks.append(body[size.end() : end])
        position = end + 2
        if end == size.end():  # the last chunk; trailers follow
            return b"".join(chunks)
    return b"".join((*chunks, body[position:]))


def _decode(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """At most `max_bytes` + 1 of the decoded body, or what of it could be decoded, or the body if that is nothing."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        # zlib's own header or none at all: both are served as "deflate"
        windows = (31,) if encoding != "deflate" else (15, -15)
        return next((found for wbits in windows if (found := _inflate(body, wbits, max_bytes=max_bytes))), body)
    if encoding not in ("br", "zstd"):
        return body
    reader = (BrotliReader if encoding == "br" else ZstdReader)(io.BytesIO(body))
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        while num_bytes <= max_bytes and (piece := reader.read(_PIECE_BYTES)):
            pieces.append(piece)
            num_bytes += len(piece)
    except OSError:
        pass  # damaged from here on
    return b"".join(pieces) or body


def _inflate(body: bytes, wbits: int, *, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits=wbits)
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        while num_bytes <= max_bytes and (piece := inflater.decompress(body, _PIECE_BYTES)):
            pieces.append(piece)
            num_bytes += len(piece)
            body = inflater.unconsumed_tail
    except zlib.error:
        pass  # damaged from here on
    return b"".join(pieces)
