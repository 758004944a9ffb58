"""Text and Markdown files as raw documents: a file, a piece of a big file, or a line each.

In: a file system, a path in it and a range of its bytes. Out: RawDocument, or Rejected with the offset. Charsets are left to
DataCleaner: content goes on as the bytes that the file has. A file above `max_document_bytes` is cut in a grid of cells of
half that size: a piece runs from the first paragraph (else line) that begins in a cell to the first that begins in a later
one. So pieces, and their ids, depend on the file and the limit alone, never on how it was divided into work units.
"""

import io
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from train.data.document import BINARY_FIX, MEDIA_TYPES, RawDocument, Rejected, describe_binary, document_id
from train.data.lines import Damaged, compression_of, open_bytes, read_lines
from train.data.source_config import SourceConfig

DAMAGED_FIX = "fetch or compress the file again; what came before the damage was read"
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


class BadContent(ValueError):
    """Content that makes no document: `str()` is the reason, `fix` what to do."""

    def __init__(self, reason: str, *, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


def read_text(
    filesystem: pafs.FileSystem, path: str, *, source: SourceConfig, start: int = 0, stop: int | None = None
) -> Iterator[RawDocument | Rejected]:
    """Documents that begin in bytes [start, stop) of a text file; `start` of a file that is cut is a multiple of its cell."""
    make = _Maker(filesystem, path, source=source)
    limit = source.max_document_bytes
    with open_bytes(filesystem, path) as file:
        if source.document == "line":
            yield from _read_lines(file, make, start=start, stop=stop, max_bytes=limit)
        elif compression_of(path) is not None or make.size_bytes <= limit:
            yield _read_whole(file, make, max_bytes=limit)
        elif source.oversize == "split":
            yield from _read_pieces(file, make, start=start, stop=stop, max_bytes=limit)
        else:
            yield Rejected(path, *describe_limit(make.size_bytes, source=source), lost_bytes=make.size_bytes)


def cell_bytes(source: SourceConfig) -> int:
    """Width of the grid on which a big text file is cut."""
    return source.max_document_bytes // 2


def describe_limit(size_bytes: int, *, source: SourceConfig) -> tuple[str, str]:
    """Reason and fix for a document above the source's limit, the same words wherever it is noticed."""
    reason = f"has {size_bytes:,} bytes, above max_document_bytes = {source.max_document_bytes:,}"
    fix = f"set max_document_bytes of source {source.name!r} to at least {size_bytes}, or cut the document"
    if source.kind == "text" and source.document == "file" and source.oversize == "reject":
        fix += ' (oversize = "split" cuts between paragraphs)'
    return reason, fix


def file_time(filesystem: pafs.FileSystem, path: str) -> float:
    """Time of the last change in seconds since the epoch; 0 where the store does not tell."""
    return (filesystem.get_file_info(path).mtime_ns or 0) / 1e9


class _Maker:
    """Documents of one file: what they have in common."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, *, source: SourceConfig) -> None:
        info = filesystem.get_file_info(path)
        self.size_bytes = info.size or 0
        self._path = path
        self._source = source
        self._happened_at = (info.mtime_ns or 0) / 1e9
        bare = PurePosixPath(path).with_suffix("") if compression_of(path) else PurePosixPath(path)
        self._media_type = source.media_type or MEDIA_TYPES.get(bare.suffix.lower(), "text/plain")

    def document(self, content: bytes, *, offset: int) -> RawDocument | Rejected:
        binary = describe_binary(content)
        if binary is not None:
            return self.rejected((binary, BINARY_FIX), offset=offset, lost_bytes=len(content))
        return RawDocument(
            id=document_id(self._source.name, relative_path=f"{self._path}#{offset}"),
            source_id=self._source.name,
            title=self._path,
            content=content,
            media_type=self._media_type,
            happened_at=self._happened_at,
            metadata={"path": self._path, "offset": str(offset)},
        )

    def rejected(self, problem: tuple[str, str], *, offset: int, lost_bytes: int) -> Rejected:
        return Rejected(self._path, *problem, offset=offset, lost_bytes=lost_bytes)

    def too_long(self, size_bytes: int, *, offset: int, what: str) -> Rejected:
        reason, fix = describe_limit(size_bytes, source=self._source)
        return self.rejected((f"has a {what} that {reason}", fix), offset=offset, lost_bytes=size_bytes)


def _read_whole(file: io.BufferedReader, make: _Maker, *, max_bytes: int) -> RawDocument | Rejected:
    try:
        content = file.read(max_bytes + 1)
    except Damaged as damage:
        return make.rejected((str(damage), "fetch or compress the file again"), offset=0, lost_bytes=make.size_bytes)
    if len(content) > max_bytes:
        return make.too_long(len(content), offset=0, what="decompressed text")
    if not content.strip():
        return make.rejected(("is empty", "nothing to do, or write its text"), offset=0, lost_bytes=len(content))
    return make.document(content, offset=0)


def _read_lines(
    file: io.BufferedReader, make: _Maker, *, start: int, stop: int | None, max_bytes: int
) -> Iterator[RawDocument | Rejected]:
    offset = start
    for line in read_lines(file, start=start, stop=stop, max_bytes=max_bytes):
        if isinstance(line, Damaged):
            yield make.rejected((str(line), DAMAGED_FIX), offset=offset, lost_bytes=line.lost_bytes)
            return
        offset = line.offset + line.size_bytes
        if line.data is None:
            yield make.too_long(line.size_bytes, offset=line.offset, what="line")
        elif line.data.strip():
            yield make.document(line.data.rstrip(b"\r"), offset=line.offset)


def _read_pieces(
    file: io.BufferedReader, make: _Maker, *, start: int, stop: int | None, max_bytes: int
) -> Iterator[RawDocument | Rejected]:
    """Pieces whose cell lies in [start, stop). At most two cells are held, so a piece has at most `max_bytes`."""
    size, cell = make.size_bytes, max_bytes // 2
    if file.peek(4)[:4].startswith(WIDE_MARKS):
        problem = ("is UTF-16 or UTF-32 and above max_document_bytes, so it cannot be cut", "convert it to UTF-8")
        if start == 0:
            yield make.rejected(problem, offset=0, lost_bytes=size)
        return
    for corner in range(start, size if stop is None else min(stop, size), cell):
        file.seek(corner)
        window = file.read(2 * cell)
        begin = 0 if corner == 0 else _boundary(window, 0, cell)
        if begin is None:
            continue  # no line begins here: the cell before has accounted for these bytes
        end = len(window) if corner + cell >= size else _boundary(window, cell, 2 * cell)
        overlong = None
        if end is None and corner + len(window) >= size:
            end = len(window)
        elif end is None:
            end = max(window.rfind(b"\n", begin, cell) + 1, begin)
            overlong = corner + end
        piece = window[begin:end]
        if piece.strip():
            yield make.document(piece, offset=corner + begin)
        if overlong is not None:
            next_begin = _next_begin(file, corner + 2 * cell, size=size, cell=cell)
            yield make.too_long(next_begin - overlong, offset=overlong, what="line")


def _boundary(window: bytes, low: int, high: int) -> int | None:
    """Where a paragraph begins in window[low:high], else where a line does, else None."""
    if blank := _BLANK_LINE.search(window, low, high):
        return blank.end()
    newline = window.find(b"\n", low, high)
    return None if newline < 0 else newline + 1


def _next_begin(file: io.BufferedReader, corner: int, *, size: int, cell: int) -> int:
    """Where the first piece at or after a corner begins; the file's size if there is none."""
    while corner < size:
        file.seek(corner)
        begin = _boundary(file.read(cell), 0, cell)
        if begin is not None:
            return corner + begin
        corner += cell
    return size
