"""A file that a storage writes or reads: counted and hashed on its way out, its failures said in sentences.

Out: the file under its name when the block ends well, and nothing when it does not; its size and sha256.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from train.data.filesystem import open_atomically
from train.files import DISK_FULL


class UnreadableFile(ValueError):
    """A file that is missing, damaged, or not what it is read as: names the file, what is wrong and the fix."""


class StorageUnreachable(OSError):
    """A storage that does not give a file now: to try again may help, and nothing is known to be wrong with the file."""


class DiskFull(OSError):
    """A file could not be written to its end; nothing is left under its name."""


@dataclass(frozen=True, slots=True)
class FileSummary:
    """A finished file; `num_items` counts rows, or sequences of tokens."""

    path: str
    num_items: int
    size_bytes: int
    sha256: str


class HashedOutput:
    """What is needed of a binary file to write it from the start to the end; counts and hashes what goes through."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: Any) -> int:
        """Bytes-like. Returns how many."""
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self._size_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes so far."""
        return self._size_bytes

    def flush(self) -> None:
        """Nothing to do: the file below is flushed when it is whole."""

    def close(self) -> None:
        """The file below is closed by who opened it."""
        self.closed = True

    def summary(self, path: str, *, num_items: int) -> FileSummary:
        """What was written."""
        return FileSummary(path, num_items, self._size_bytes, self._hash.hexdigest())


@contextlib.contextmanager
def open_hashed(filesystem: pafs.FileSystem, path: str) -> Iterator[HashedOutput]:
    """`open_atomically`, hashed. Raises DiskFull where there is no room."""
    try:
        with open_atomically(filesystem, path) as file:
            yield HashedOutput(file)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        message = (
            f"{path} was not written: the disk is full, or a quota or size limit is reached; free space and run again"
        )
        raise DiskFull(error.errno, message) from error


@contextlib.contextmanager
def explain_reading(path: str, *, kind: str, fix: str) -> Iterator[None]:
    """What goes wrong in this block is an UnreadableFile that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} does not exist: {fix}") from error
    except (OSError, pa.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableFile(f"{path} cannot be read as {kind}, {reason}: {fix}") from error


@contextlib.contextmanager
def reaching(path: str, *, fix: str) -> Iterator[None]:
    """Bytes are fetched in this block: a file that is missing is an UnreadableFile, all else a StorageUnreachable."""
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} does not exist: {fix}") from error
    except OSError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StorageUnreachable(
            f"{path} cannot be read now, {reason}: see that its storage is up, and run again"
        ) from error
