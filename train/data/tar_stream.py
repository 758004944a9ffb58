"""Tar members from a stream that is read once, plain or packed by gzip, bzip2 or xz.

In: a binary file and limits. Out: headers of members in the order of the archive; the content of the last one may be read
before the next is asked for. Every size is counted while bytes come out, and headers are read into bounded memory, which
Python's own tarfile does not do.
Sources: POSIX pax interchange format and GNU tar's extensions; header blocks are decoded by tarfile.TarInfo.
"""

import bz2
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from train.data.archive_member import Damaged, Member

MAX_HEADER_BYTES = 1 << 20
"""Of a long name or a pax header; real ones have a few hundred bytes."""
MAX_DICTIONARY_BYTES = 256 << 20
"""Memory that an xz stream may ask for; `xz -9` asks for 65 MB."""
FREE_BYTES = 1 << 20
"""What may come out before the ratio to what went in counts: an archive of small files may begin very compressible."""

_BLOCK = 512
_CHUNK_BYTES = 64 << 10
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]{1,200})=")
_SKIPPED_TYPES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE)


class _Decoder(Protocol):
    eof: bool
    unused_data: bytes
    needs_input: bool

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflater:
    """A gzip member with the interface of bz2's and lzma's decompressors."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


def _decoder(kind: str) -> Any:
    if kind == "gzip":
        return _Inflater()
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)


MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00"}
"""First bytes by packing."""


class Unpacked:
    """The bytes of a file, decompressed, forward only. `num_bytes` came out so far, `offset` is how far the file was read."""

    def __init__(self, file: Any, *, kind: str, max_total_bytes: int, max_ratio: float) -> None:
        self._file = file
        self._kind = kind
        self._decoder: _Decoder | None = _decoder(kind) if kind else None
        self._max_total_bytes = max_total_bytes
        self._max_ratio = max_ratio
        self._rest = b""
        self.num_bytes = 0
        self.offset = 0

    def read(self, size_bytes: int) -> bytes:
        """Exactly so many bytes, fewer at the end only. Raises Damaged for broken data and where a limit is passed."""
        parts, missing = [], size_bytes
        while missing > 0:
            block = self._rest or self._next_block()
            if not block:
                break
            parts.append(block[:missing])
            self._rest = block[missing:]
            missing -= len(parts[-1])
        data = b"".join(parts)
        self.num_bytes += len(data)
        return data

    def skip(self, size_bytes: int) -> None:
        """Pass over so many bytes. Raises Damaged if there are fewer."""
        while size_bytes > 0:
            size = len(self.read(min(size_bytes, _CHUNK_BYTES)))
            if not size:
                raise Damaged("ends in the middle of a member", offset=self.offset)
            size_bytes -= size

    def _next_block(self) -> bytes:
        block = self._decompress() if self._kind else self._load()
        total = self.num_bytes + len(block)
        if total > self._max_total_bytes:
            raise Damaged(f"unpacks to more than max_total_bytes = {self._max_total_bytes:,}", offset=self.offset)
        if total > FREE_BYTES + self._max_ratio * self.offset:
            raise Damaged(
                f"unpacks to more than max_ratio = {self._max_ratio:g} times its size, as a zip bomb does",
                offset=self.offset,
            )
        return block

    def _load(self) -> bytes:
        data = bytes(self._file.read(_CHUNK_BYTES))
        self.offset += len(data)
        return data

    def _decompress(self) -> bytes:
        """The next bytes that come out; empty at the end. Further members of a packed file follow the first."""
        decoder = self._decoder
        while decoder is not None:
            is_cut = False
            if decoder.eof:
                data = self._after_member(decoder.unused_data)
                decoder = self._decoder = _decoder(self._kind) if data else None
                if decoder is None:
                    break
            else:
                data = self._load() if decoder.needs_input else b""
                is_cut = decoder.needs_input and not data
            try:
                block = decoder.decompress(data, _CHUNK_BYTES)
            except (
                zlib.error,
                lzma.LZMAError,
                OSError,
                EOFError,
            ) as error:  # OSError is bz2's: the file is not read here
                raise Damaged(f"has damaged {self._kind} data ({error})", offset=self.offset) from error
            if block:
                return block
            if is_cut:
                raise Damaged(f"ends in the middle of its {self._kind} data", offset=self.offset)
        return b""

    def _after_member(self, rest: bytes) -> bytes:
        """What follows a member, padding left out; empty if it is not another one."""
        while not (rest := rest.lstrip(b"\x00")) or len(rest) < len(MAGIC[self._kind]):
            more = self._load()
            if not more:
                return b""
            rest += more
        return rest if rest.startswith(MAGIC[self._kind]) else b""


def is_tar_header(block: bytes) -> bool:
    """Whether this is the first block of a tar: a header with a valid checksum."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_members(stream: Unpacked) -> Iterator[Member]:
    """Headers in order; raises Damaged where the archive cannot be read on, also if its end mark is missing."""
    fields: dict[str, str] = {}
    while True:
        offset = stream.offset
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            raise Damaged(
                "ends without an end mark: it was cut" if not block else "ends in the middle of a header",
                offset=stream.offset,
            )
        if not block.strip(b"\x00"):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Damaged(f"has a damaged header ({error})", offset=stream.offset) from error
        if info.size < 0:
            raise Damaged("has a header with a negative size", offset=stream.offset)
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, *_SKIPPED_TYPES):
            fields |= _extended(stream, info)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(stream, block)
        member = _member(info, fields, stream=stream, offset=offset)
        fields = {}
        has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        end = stream.num_bytes + (-(-member.size_bytes // _BLOCK) * _BLOCK if has_content else 0)
        yield member
        stream.skip(end - stream.num_bytes)


def _member(info: tarfile.TarInfo, fields: dict[str, str], *, stream: Unpacked, offset: int) -> Member:
    problem = ""
    if info.issym() or info.islnk():
        problem = "is a link"
    elif info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in fields):
        problem = "is a sparse file"
    elif not info.isreg() and not info.isdir():
        problem = "is no regular file but a pipe, a device or of an unknown type"
    size, time = fields.get("size", ""), fields.get("mtime", "")
    size_bytes = int(size) if re.fullmatch(r"[0-9]{1,19}", size) else info.size

    def read() -> bytes:
        data = stream.read(size_bytes)
        if len(data) < size_bytes:
            raise Damaged("ends in the middle of a member", offset=stream.offset)
        return data

    return Member(
        name=fields.get("path", info.name),
        size_bytes=size_bytes,
        modified_at=float(time) if re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{1,20})?", time) else float(info.mtime),
        is_folder=info.isdir(),
        problem=problem,
        offset=offset,
        read=read,
    )


def _extended(stream: Unpacked, info: tarfile.TarInfo) -> dict[str, str]:
    """Fields that replace those of the next header: a pax header's, or GNU's long name."""
    if info.size > MAX_HEADER_BYTES:
        raise Damaged(
            f"has an extended header of {info.size:,} bytes, above {MAX_HEADER_BYTES:,}", offset=stream.offset
        )
    size = -(-info.size // _BLOCK) * _BLOCK
    data = stream.read(size)
    if len(data) < size:
        raise Damaged("ends in the middle of a header", offset=stream.offset)
    data = data[: info.size]
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\x00").decode("utf-8", "surrogateescape")}
    return _pax_fields(data, offset=stream.offset) if info.type == tarfile.XHDTYPE else {}


def _pax_fields(data: bytes, *, offset: int) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n", where the length counts the record itself."""
    fields = {}
    position = 0
    while (record := _PAX_RECORD.match(data, position)) is not None:
        end = position + int(record[1])
        if not record.end() <= end - 1 < len(data):
            raise Damaged("has a damaged pax header", offset=offset)
        key = record[2].decode("utf-8", "surrogateescape")
        fields[key] = data[record.end() : end - 1].decode("utf-8", "surrogateescape")
        position = end
    return fields


def _skip_sparse_map(stream: Unpacked, block: bytes) -> None:
    """GNU's old sparse format continues its map in further blocks."""
    is_extended = bool(block[482])
    while is_extended:
        more = stream.read(_BLOCK)
        if len(more) < _BLOCK:
            raise Damaged("ends in the middle of a header", offset=stream.offset)
        is_extended = bool(more[504])
