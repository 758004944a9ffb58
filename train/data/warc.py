"""The records of a web archive (WARC 1.0 and 1.1, ISO 28500), plain or gzip, of any byte range, past any damage.

In: a seekable file and a byte range of it. Out, in order: what `convert` makes of each record that begins in the range, and
Rejected with offset and lost bytes for what is no record. Two readers take turns. The fast one is fastwarc's iterator, one
record behind: an item is given out when the record after it was found where a record may begin. Where that fails, and at
the end of every range, because fastwarc ends silently at a cut file, the careful one reads on with zlib, checks each
length and checksum, names what is broken and looks for the next record. A gzip member counts as the start of a record if
its first bytes inflate to "WARC/"; in a plain file a header does if its length leads to another one or to the end.

An archive that one gzip member holds whole cannot be split: the range with its first byte reads all of it. An archive
that lies unpacked in a record of another one is only told from it if the range does not begin inside of that record.
"""

import dataclasses
import logging
import re
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from fastwarc.warc import ArchiveIterator, WarcRecord

from train.data.document import Rejected

T = TypeVar("T")
Convert = Callable[[Any, int, int, int], T | Rejected | None]
"""Makes something of a fastwarc record, the length of its content, its offset in the file, and its offset in what the gzip
member there unpacks to (0 for the first record of a member, and in plain files); None passes it over."""

SCAN_BYTES = 1 << 20
MAX_HEADER_BYTES = 32 << 10
_PIECE_BYTES = 1 << 16  # what fastwarc asks for at a time
_BLOCKS_KEPT = 2
_PROBE_BYTES = 4096
_CAREFUL_STEPS = 3  # the member before a failure, the one it was noticed in, and the one it lay in
_GZIP_MAGIC, _WARC_MAGIC, _RECORD_END = b"\x1f\x8b\x08", b"WARC/", b"\r\n\r\n"
_VERSION = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")

logger = logging.getLogger(__name__)


class DamagedRecord(ValueError):
    """Bytes that are no whole record; the message says what is wrong with them."""


class RecordReader(Generic[T]):
    """Reads ranges of one archive. `max_record_bytes`: a longer record is passed over unread, and `convert` sees its
    header only. `read_ahead_bytes`: how much to ask the file for at a time; more than 64 KiB pays for remote files only."""

    def __init__(
        self,
        file: Any,
        convert: Convert[T],
        *,
        path: str,
        size_bytes: int,
        max_record_bytes: int,
        read_ahead_bytes: int = _PIECE_BYTES,
    ) -> None:
        self._file, self._convert, self._path, self._size = file, convert, path, size_bytes
        self._max_record_bytes, self._read_ahead_bytes = max_record_bytes, read_ahead_bytes
        head = self._read_at(0, 8)
        self._is_gzip = head.startswith(_GZIP_MAGIC) or (path.endswith(".gz") and not head.startswith(_WARC_MAGIC))
        self._magic = _GZIP_MAGIC if self._is_gzip else _WARC_MAGIC
        self._is_packed = False  # several records in one gzip member: fastwarc cannot say where they begin

    def read(self, start: int, stop: int) -> Iterator[T | Rejected]:
        """Each record that begins in [start, stop), once, whatever the ranges are."""
        position = self._find(start, limit=min(stop, self._size) if start else self._size)
        if start == 0 and position > 0:
            yield self._rejected(0, position, "has no web archive record at its start")
        while position < stop and position < self._size:
            num_known = 0
            if not self._is_packed:
                position, num_known = yield from self._read_fast(position, stop)
            for _ in range(_CAREFUL_STEPS):
                if position < stop and position < self._size:
                    position = yield from self._read_carefully(position, num_known=num_known)
                    num_known = 0

    def _read_fast(self, position: int, stop: int) -> Generator[T | Rejected, None, tuple[int, int]]:
        """(the offset where careful reading must go on, the number of records there that were given out)."""
        window: Any = _Window(self._file, position, read_ahead_bytes=self._read_ahead_bytes)
        given, held, item = None, None, None
        try:
            for record in ArchiveIterator(window, parse_http=False, max_header_len=MAX_HEADER_BYTES):
                offset = record.stream_pos
                if held is None:
                    if offset != position:
                        break
                else:
                    if not held < offset < stop or not window.has_at(offset, self._magic):
                        break
                    if item is not None:
                        yield dataclasses.replace(item, lost_bytes=offset - held) if type(item) is Rejected else item
                    given = held
                item, held = self._convert(record, record.content_length, offset, 0), offset
        except (OSError, ValueError, RuntimeError) as error:  # the careful reader finds out what and where it is
            logger.debug("%s: fastwarc gave up after offset %s: %s", self._path, held, error)
        return (position, 0) if given is None else (given, 1)

    def _read_carefully(self, position: int, *, num_known: int) -> Generator[T | Rejected, None, int]:
        """The plain record, or the gzip member with all its records, at `position`; the offset of what comes next.

        `num_known`: how many of them were given out before.
        """
        source = _Member(self, position) if self._is_gzip else _Plain(self, position)
        num_records = 0
        try:
            while num_records == 0 or (self._is_gzip and source.peek(1)):
                inner = source.position
                header, content, length = self._load(source)
                source.pass_end(is_whole=self._is_gzip)
                num_records += 1
                if num_records > num_known:
                    item = self._item(header + content, length, position, inner)
                    if type(item) is Rejected:
                        lost_bytes = source.position - inner if inner else source.offset - position
                        item = dataclasses.replace(item, lost_bytes=lost_bytes)
                    if item is not None:
                        yield item
        except (DamagedRecord, zlib.error, EOFError) as error:
            following = self._find(position + 1)
            yield self._rejected(position, following, _describe(error))
            return following
        if num_records > 1 and not self._is_packed:
            self._is_packed = True
            logger.info(
                "%s: the gzip member at %d holds %d records, which one worker reads alone, and slower; "
                "write one member for each record to read it in parallel", self._path, position, num_records,
            )  # fmt: skip
        end = source.offset
        if end < self._size and not self.is_start(end):
            following = self._find(end)
            yield self._rejected(end, following, self._describe_at(end))
            return following
        return end

    def _load(self, source: "_Source") -> tuple[bytes, bytes, int]:
        """Header, content and its length of the record under the cursor; only the content's start if that is too long."""
        header, length = _split_header(source.peek_header())
        source.take(len(header))
        if length <= self._max_record_bytes:
            return header, source.take(length), length
        content = source.take(min(length, MAX_HEADER_BYTES))
        source.skip(length - len(content))
        return header, content, length

    def _item(self, data: bytes, length: int, offset: int, inner: int) -> T | Rejected | None:
        try:
            return self._convert(WarcRecord.from_bytes(data), length, offset, inner)
        except (OSError, ValueError) as error:
            reason = f"has a record that cannot be parsed ({error})"
            return Rejected(self._path, reason, "nothing to do: it is left out", offset=offset)

    def _find(self, position: int, *, limit: int | None = None) -> int:
        """The offset of the first record at or after `position`; the file's size if there is none before `limit`."""
        limit = self._size if limit is None else limit
        overlap = len(self._magic) - 1
        while position < limit:
            block = self._read_at(position, min(SCAN_BYTES, limit - position + overlap))
            index = block.find(self._magic)
            while index >= 0:
                if self.is_start(position + index):
                    return position + index
                index = block.find(self._magic, index + 1)
            position += max(len(block) - overlap, 1)
        return self._size

    def is_start(self, offset: int) -> bool:
        """Whether a gzip member that begins with a record, or a plain record with its end in place, is at `offset`."""
        if self._is_gzip:
            probe = self._read_at(offset, _PROBE_BYTES)
            try:
                is_warc = zlib.decompressobj(wbits=31).decompress(probe, 64).startswith(_WARC_MAGIC)
            except zlib.error:
                return False
            return is_warc
        try:
            header, length = _split_header(self._read_at(offset, MAX_HEADER_BYTES))
        except DamagedRecord:
            return False
        end = offset + len(header) + length
        return end <= self._size and _is_end(self._read_at(end, _PROBE_BYTES), is_whole=False)

    def _describe_at(self, offset: int) -> str:
        """What is at an offset where a record should begin and none does."""
        found = self._read_at(offset, MAX_HEADER_BYTES)
        if self._is_gzip:
            return (
                "has a damaged gzip member" if found.startswith(_GZIP_MAGIC) else "has bytes between its gzip members"
            )
        try:
            _split_header(found)
        except DamagedRecord as error:
            return str(error)
        return "has a record whose Content-Length is wrong, or that is cut off"

    def _rejected(self, offset: int, end: int, reason: str) -> Rejected:
        fix = "fetch the archive again, or accept the loss: the rest of the file was read"
        if end == self._size and offset == 0:
            reason, fix = "is no web archive: it has no record", "give a WARC or WET file, plain or .gz"
        elif end == self._size:
            fix = "fetch the archive again, or accept the loss: nothing after it could be read"
        return Rejected(self._path, reason, fix, offset=offset, lost_bytes=end - offset)

    def _read_at(self, offset: int, num_bytes: int) -> bytes:
        self._file.seek(min(offset, self._size))
        return bytes(self._file.read(num_bytes))

    def read_at(self, offset: int) -> bytes:
        """The piece of the file at `offset`; empty at its end."""
        return self._read_at(offset, _PIECE_BYTES)


class _Window:
    """The file as fastwarc reads it. Keeps the latest blocks, to see whether a record begins where fastwarc says: it
    unpacks ahead of the record that it gives out, the further the longer the record is."""

    def __init__(self, file: Any, position: int, *, read_ahead_bytes: int) -> None:
        file.seek(position)
        self._file, self._read_ahead_bytes = file, read_ahead_bytes
        self._block, self._start, self._cursor = b"", position, 0
        self._before: deque[bytes] = deque(maxlen=_BLOCKS_KEPT)

    def read(self, size: int) -> bytes:
        if self._cursor == len(self._block):
            self._before.appendleft(self._block)
            self._start, self._cursor = self._start + len(self._block), 0
            self._block = self._file.read(self._read_ahead_bytes)
        piece = self._block[self._cursor : self._cursor + size]  # no copy if it is the whole block
        self._cursor += len(piece)
        return piece

    def tell(self) -> int:
        return self._start + self._cursor

    def has_at(self, offset: int, magic: bytes) -> bool:
        index = offset - self._start
        if index >= 0:
            return self._block.startswith(magic, index)
        after = self._block
        for block in self._before:
            index += len(block)
            if index >= 0:
                return (block[index : index + len(magic)] + after[: len(magic)]).startswith(magic)
            after = block
        here = self._file.tell()
        self._file.seek(offset)
        found = self._file.read(len(magic))
        self._file.seek(here)
        return bool(found == magic)


class _Source:
    """A cursor over the bytes of records. `position`: bytes passed; `offset`: where in the file the cursor is."""

    def __init__(self, archive: RecordReader[Any], offset: int) -> None:
        self._archive = archive
        self._file_offset = offset
        self._buffer = b""
        self.position = 0

    @property
    def offset(self) -> int:
        return self._file_offset

    def _next_piece(self) -> bytes:
        raise NotImplementedError

    def _go_on(self) -> bool:
        """Whether the record may go on in another gzip member, which `peek` then reads."""
        return False

    def peek(self, num_bytes: int) -> bytes:
        """The next bytes, without passing them; fewer at the end of the file or of the gzip member."""
        while len(self._buffer) < num_bytes and (piece := self._next_piece()):
            self._buffer += piece
        return self._buffer[:num_bytes]

    def peek_header(self) -> bytes:
        """At least the next record's header."""
        while not _HEADER_END.search(found := self.peek(MAX_HEADER_BYTES)) and len(found) < MAX_HEADER_BYTES:
            if not self._go_on():
                break
        return found

    def take(self, num_bytes: int) -> bytes:
        """Exactly so many bytes. Raises DamagedRecord if there are fewer."""
        pieces = []
        num_missing = num_bytes
        while num_missing:
            if not self.peek(1) and not self._go_on():
                raise DamagedRecord(f"has a record that ends {num_missing:,} bytes before its Content-Length")
            piece, self._buffer = self._buffer[:num_missing], self._buffer[num_missing:]
            num_missing -= len(piece)
            pieces.append(piece)
        self.position += num_bytes
        return b"".join(pieces)

    def skip(self, num_bytes: int) -> None:
        """Pass so many bytes without holding them."""
        while num_bytes:
            step = min(num_bytes, _PIECE_BYTES)
            self.take(step)
            num_bytes -= step

    def pass_end(self, *, is_whole: bool) -> None:
        """Pass the line ends after a record's content. Raises DamagedRecord if there is more content."""
        while len(self.peek(len(_RECORD_END))) < len(_RECORD_END) and self._go_on():
            pass
        found = self.peek(_PROBE_BYTES)
        if not _is_end(found, is_whole=is_whole):
            raise DamagedRecord("has a record with more bytes than its Content-Length says")
        self.take(len(found) - len(found.lstrip(b"\r\n")))
        self.peek(1)  # at the end of a gzip member this checks its checksum


class _Plain(_Source):
    @property
    def offset(self) -> int:
        return self._file_offset - len(self._buffer)

    def _next_piece(self) -> bytes:
        piece = self._archive.read_at(self._file_offset)
        self._file_offset += len(piece)
        return piece


class _Member(_Source):
    """The content of a gzip member; a record that it does not end may go on in the next, if that begins with none."""

    def __init__(self, archive: RecordReader[Any], offset: int) -> None:
        super().__init__(archive, offset)
        self._inflater = zlib.decompressobj(wbits=31)
        self._input = b""

    def _next_piece(self) -> bytes:
        while not self._inflater.eof:
            if not self._input:
                self._input = self._archive.read_at(self._file_offset)
                if not self._input:
                    raise EOFError
            piece = self._inflater.decompress(self._input, _PIECE_BYTES)
            rest = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            self._file_offset += len(self._input) - len(rest)
            self._input = rest
            if piece:
                return piece
        return b""

    def _go_on(self) -> bool:
        self._input = self._archive.read_at(self._file_offset)
        is_next = self._input.startswith(_GZIP_MAGIC) and not self._archive.is_start(self._file_offset)
        if is_next:
            self._inflater = zlib.decompressobj(wbits=31)
        return is_next


def _is_end(after: bytes, *, is_whole: bool) -> bool:
    """Whether a record's content ends before these bytes. `is_whole`: nothing but records is beside it."""
    rest = after.lstrip(b"\r\n")
    return _WARC_MAGIC.startswith(rest[: len(_WARC_MAGIC)]) or (not is_whole and after.startswith(_RECORD_END))


def _split_header(data: bytes) -> tuple[bytes, int]:
    """(the header at the start of `data`, its Content-Length)."""
    if not _VERSION.match(data):
        raise DamagedRecord("has bytes that are no record where one should begin")
    end = _HEADER_END.search(data)
    if end is None:
        raise DamagedRecord(f"has a record header without an end in {len(data):,} bytes")
    length = _CONTENT_LENGTH.search(data, 0, end.end())
    if length is None:
        raise DamagedRecord("has a record without a Content-Length")
    return data[: end.end()], int(length[1])


def _describe(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "is cut off inside of a gzip member"
    return str(error) if isinstance(error, DamagedRecord) else f"has a damaged gzip member ({error})"
