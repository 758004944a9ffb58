"""Lines of a big file, one at a time, in bounded memory.

In: a file of any pyarrow filesystem, plain or compressed (.gz, .zst), and a range of its bytes. Out: lines with the offset
at which they begin; a line belongs to the range in which it begins, so ranges that tile the file give each line once. A
line above the limit is passed over without being held. Damage in a compressed stream raises Damaged; a disk or network
that fails raises its OSError, because a unit that lost data to it must be run again.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from train.data.source_config import COMPRESSIONS

READ_BYTES = 1 << 20
DECODED_BYTES = 1 << 16
"""Read from a decompressor at once; what is lost before the place of a damage is less than this."""

MAX_EXPANSION = 200
"""Text shrinks 3 to 50 times; gzip can reach 1,032 and Zstandard 10,000 with a made-up file."""
FREE_BYTES = 16 << 20
"""Decompressed bytes below which no expansion is suspicious."""


class Damaged(ValueError):
    """A compressed stream that cannot be read further, or that expands like a decompression bomb.

    `lost_bytes` of the file, compressed, lie behind the place; the decoder reads ahead, so a little less than was lost.
    """

    def __init__(self, message: str, *, lost_bytes: int) -> None:
        super().__init__(message)
        self.lost_bytes = lost_bytes


class Line(NamedTuple):
    """`data` without its line end; None if it is longer than the limit. `size_bytes` with its line end."""

    offset: int
    data: bytes | None
    size_bytes: int


class WatchedFile(io.RawIOBase):
    """A file whose own errors can be told from those of what decodes it: `error` is the last failure of the file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    @property
    def size_bytes(self) -> int:
        return int(self._file.size())

    @property
    def unread_bytes(self) -> int:
        return self.size_bytes - self.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._file.readinto(buffer))
        except OSError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


class _Decoded(io.RawIOBase):
    """The decompressed bytes of a stream."""

    def __init__(self, file: WatchedFile, *, codec: str) -> None:
        self._file = file
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            num_bytes = int(self._stream.readinto(buffer))
        except (OSError, pa.ArrowInvalid) as error:
            if self._file.error is not None:
                raise self._file.error from error
            raise Damaged(f"is damaged: {error}", lost_bytes=self._file.unread_bytes) from error
        self._num_bytes += num_bytes
        if self._num_bytes > FREE_BYTES and self._num_bytes > MAX_EXPANSION * self._file.tell():
            message = f"expands more than {MAX_EXPANSION} times, as a decompression bomb does"
            raise Damaged(message, lost_bytes=self._file.unread_bytes)
        return num_bytes

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()


def open_bytes(filesystem: pafs.FileSystem, path: str) -> io.BufferedReader:
    """The file's content, decompressed if its suffix says so."""
    file = WatchedFile(filesystem.open_input_file(path))
    codec = compression_of(path)
    if codec is None:
        return io.BufferedReader(file, READ_BYTES)
    return io.BufferedReader(_Decoded(file, codec=codec), DECODED_BYTES)


def compression_of(path: str) -> str | None:
    """pyarrow's name of the codec that the suffix stands for, or None for a plain file."""
    return next((codec for suffix, codec in COMPRESSIONS.items() if path.lower().endswith(suffix)), None)


def read_lines(
    file: io.BufferedReader, *, start: int = 0, stop: int | None = None, max_bytes: int
) -> Iterator[Line | Damaged]:
    """Lines that begin in [start, stop). A Damaged comes last, in place of what cannot be read."""
    offset = start
    try:
        if start > 0:
            file.seek(start - 1)
            offset += _skip_line(file, limit=None if stop is None else stop - start + 1) - 1
        while stop is None or offset < stop:
            data = file.readline(max_bytes + 1)
            if not data:
                return
            if data.endswith(b"\n"):
                yield Line(offset, data[:-1], len(data))
                offset += len(data)
            elif len(data) <= max_bytes:
                yield Line(offset, data, len(data))
                return
            else:
                size_bytes = len(data)
                del data
                size_bytes += _skip_line(file)
                yield Line(offset, None, size_bytes)
                offset += size_bytes
    except Damaged as damage:
        yield damage


def _skip_line(file: io.BufferedReader, *, limit: int | None = None) -> int:
    """Number of bytes up to the end of this line, its line end included; past the limit it is not looked for."""
    num_bytes = 0
    while (limit is None or num_bytes < limit) and (data := file.readline(READ_BYTES)):
        num_bytes += len(data)
        if data.endswith(b"\n"):
            break
    return num_bytes
