"""Members of a zip file, by its directory; of a damaged one, by the headers that stand before each member.

In: a seekable binary file and limits. Out: members sorted by name, or, where the directory cannot be read, in the order of the
file and then Damaged. The directory is measured before it is loaded, and no member unpacks to more than its limit.
Source: PKWARE APPNOTE.TXT 6.3; zip bombs, Fifield, USENIX WOOT 2019.
"""

import calendar
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial

from train.data.archive_member import BadMember, Damaged, Member

FREE_BYTES = 1 << 20
"""A smaller member may have any ratio."""
MAX_ENTRY_BYTES = 1024
"""Of an entry of the directory, on average; a name and its dates have some 100."""

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_IS_ENCRYPTED, _HAS_SIZES_BEHIND, _IS_UTF8 = 1, 8, 0x800
_DECODE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip
"""What zipfile raises for bad input. OSError is bz2's; a failing disk is told apart by the caller."""
ENCRYPTED = "is encrypted, and no password is known"


def zip_members(
    file: io.BufferedReader, *, max_members: int, max_member_bytes: int, max_ratio: float
) -> Iterator[Member]:
    """Raises Damaged at once if there are too many members, and after the last readable one if the directory is damaged."""
    size_bytes = file.seek(0, io.SEEK_END)
    try:
        num_entries, directory_bytes = _measure_directory(file, size_bytes=size_bytes)
        if num_entries > max_members:
            raise Damaged(f"has {num_entries:,} members, above max_members = {max_members:,}", offset=0)
        if directory_bytes > MAX_ENTRY_BYTES * (num_entries + 64):
            raise Damaged(f"has a directory of {directory_bytes:,} bytes for {num_entries:,} members", offset=0)
        archive = zipfile.ZipFile(file)
    except _DECODE_ERRORS as error:
        if isinstance(error, Damaged):
            raise
        yield from _members_by_headers(file, max_member_bytes=max_member_bytes)
        return
    if len(archive.filelist) > max_members:
        raise Damaged(f"has {len(archive.filelist):,} members, above max_members = {max_members:,}", offset=0)
    for info in sorted(archive.filelist, key=lambda info: info.filename):
        yield _member(archive, info, max_member_bytes=max_member_bytes, max_ratio=max_ratio)


def _measure_directory(file: io.BufferedReader, *, size_bytes: int) -> tuple[int, int]:
    """(number of entries, bytes of the directory) as the end record says. Raises BadZipFile if there is none."""
    start = max(0, size_bytes - _END.size - (1 << 16))
    file.seek(start)
    tail = file.read()
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) < position + _END.size:
        raise zipfile.BadZipFile("no end record")
    _, _, _, _, num_entries, directory_bytes, _, _ = _END.unpack_from(tail, position)
    before = position - _LOCATOR_64.size
    if before >= 0 and tail.startswith(b"PK\x06\x07", before):
        file.seek(_LOCATOR_64.unpack_from(tail, before)[2])
        record = _END_64.unpack(file.read(_END_64.size))
        num_entries, directory_bytes = record[7], record[8]
    return num_entries, directory_bytes


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, max_member_bytes: int, max_ratio: float) -> Member:
    problem = ""
    if info.flag_bits & _IS_ENCRYPTED:
        problem = ENCRYPTED
    elif stat.S_ISLNK(mode := info.external_attr >> 16):
        problem = "is a link"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is no regular file but a pipe, a device or of an unknown type"
    elif info.file_size > FREE_BYTES and info.file_size > max_ratio * max(info.compress_size, 1):
        problem = f"unpacks to more than max_ratio = {max_ratio:g} times its size, as a zip bomb does"

    def read() -> bytes:
        try:
            with archive.open(info) as content:
                data = content.read(max_member_bytes + 1)
        except _DECODE_ERRORS as error:
            raise BadMember(f"is damaged ({error})") from error
        if len(data) != info.file_size:
            raise BadMember(f"has {len(data):,} bytes where the directory says {info.file_size:,}")
        return data

    return Member(
        info.filename, info.file_size, _seconds(info.date_time), info.is_dir(), problem, info.header_offset, read
    )


def _members_by_headers(file: io.BufferedReader, *, max_member_bytes: int) -> Iterator[Member]:
    """What stands before the damage, one header and member after another."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
            raise Damaged("has no readable directory: it was cut or damaged", offset=position)
        _, _, flags, method, time, date, crc, packed_bytes, size_bytes, name_bytes, extra_bytes = _LOCAL.unpack(head)
        raw_name = file.read(name_bytes)
        file.seek(extra_bytes, io.SEEK_CUR)
        content, problem = b"", ""
        if flags & _IS_ENCRYPTED or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = ENCRYPTED if flags & _IS_ENCRYPTED else f"is packed by method {method}, which is not salvaged"
            file.seek(packed_bytes, io.SEEK_CUR)
        elif size_bytes > max_member_bytes:
            file.seek(packed_bytes, io.SEEK_CUR)
        elif flags & _HAS_SIZES_BEHIND and method == zipfile.ZIP_STORED:
            raise Damaged("has no readable directory, and a member without a size", offset=position)
        elif method == zipfile.ZIP_STORED:
            content = file.read(size_bytes)
            if len(content) < size_bytes:
                raise Damaged("has no readable directory and ends in the middle of a member", offset=position)
        else:
            content = _inflate(file, max_bytes=max_member_bytes, offset=position)
        if flags & _HAS_SIZES_BEHIND:
            size_bytes, crc = (
                len(content),
                zlib.crc32(content),
            )  # the inflated end was found; the sums behind are not needed
            _skip_sizes(file)
        if not problem and size_bytes <= max_member_bytes and (len(content), zlib.crc32(content)) != (size_bytes, crc):
            problem = "is damaged (its checksum differs)"
        name = raw_name.decode("utf-8" if flags & _IS_UTF8 else "cp437", "replace")
        when = (1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, time << 1 & 62)
        yield Member(name, size_bytes, _seconds(when), name.endswith("/"), problem, position, partial(bytes, content))
        position = file.tell()


def _inflate(file: io.BufferedReader, *, max_bytes: int, offset: int) -> bytes:
    """One deflated member; the file then stands behind it."""
    inflate = zlib.decompressobj(-15)
    parts: list[bytes] = []
    num_bytes = 0
    try:
        while not inflate.eof:
            data = inflate.unconsumed_tail or file.read(1 << 16)
            parts.append(inflate.decompress(data, max_bytes + 1 - num_bytes))
            num_bytes += len(parts[-1])
            if num_bytes > max_bytes or (not data and not parts[-1]):
                what = "ends in the middle of a member" if not data else "has a member above max_member_bytes"
                raise Damaged(f"has no readable directory and {what}", offset=offset)
    except zlib.error as error:
        raise Damaged(f"has no readable directory, and a member is damaged ({error})", offset=offset) from error
    file.seek(-len(inflate.unused_data), io.SEEK_CUR)
    return b"".join(parts)


def _skip_sizes(file: io.BufferedReader) -> None:
    """Checksum and sizes behind a member: 12 bytes, of big members 20, with or without a signature of 4."""
    start = file.tell()
    data = file.read(28)
    for length in (12, 16, 20, 24):
        if data[length : length + 2] == b"PK":
            file.seek(start + length)
            return
    file.seek(start + 12)


def _seconds(when: tuple[int, int, int, int, int, int]) -> float:
    """Since the epoch. Zip says no time zone: UTC is taken, alike on every machine."""
    year, month, day, hour, minute, second = when
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return 0.0
    return float(calendar.timegm((year, month, day, hour, minute, second)))
