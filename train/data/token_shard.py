"""The file format of a token shard: what its header says, and its bytes around the tokens.

A shard is an HDF5 file (format of version 1.10) with one contiguous, uncompressed dataset `tokens`, so that sequence i is
tokens[i * L : i * L + L + 1] at a known offset of the file, and the HDF5 library is needed for the header alone. Sequences
share one token, since a label is the next input. Behind token `num_tokens` the last sequence is filled with the end token.
Nothing in a shard depends on the time or the machine. Source: HDF5 File Format Specification 3.0.
"""

import io
from dataclasses import asdict, dataclass, fields
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs

from train.data.stored_file import UnreadableFile, explain_reading

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

SHARD_VERSION = 1
SHARD_SUFFIX = ".h5"
SHARD_FIX = "give a token shard, or pack its tokens again"
_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """What all shards of a run have in common. Raises ValueError for what cannot be."""

    sequence_length: int
    """Tokens of a sequence, without the one that is shared with the next."""
    vocab_size: int
    end_of_document_id: int
    """The last token of each document."""
    tokenizer_sha256: str

    def __post_init__(self) -> None:
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length = {self.sequence_length}: give at least 1")
        if not 0 < self.vocab_size <= 1 << 32:
            raise ValueError(f"vocab_size = {self.vocab_size}: give 1 to 2^32")
        if not 0 <= self.end_of_document_id < self.vocab_size:
            raise ValueError(
                f"end_of_document_id = {self.end_of_document_id} is no token of a vocabulary of {self.vocab_size}; give the "
                "id of the tokenizer's end token"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian; two bytes where the vocabulary allows."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True, slots=True)
class TokenShard:
    """A shard's header. Sequences are tokens[i * L : i * L + L + 1]; what is beyond `num_tokens` is filled up."""

    path: str
    format: TokenFormat
    num_sequences: int
    num_tokens: int
    offset: int
    """Of the first token, bytes from the start of the file."""

    @property
    def num_stored(self) -> int:
        """Tokens in the file, with the fill."""
        return self.num_sequences * self.format.sequence_length + 1


def read_header(filesystem: pafs.FileSystem, path: str) -> TokenShard:
    """The header of the shard at `path`. Raises UnreadableFile for a missing, damaged or foreign file."""
    with (
        explain_reading(path, kind="HDF5", fix=SHARD_FIX),
        filesystem.open_input_file(path) as file,
        h5py.File(file, "r") as shard,
    ):
        return _check_header(path, shard.get("tokens"), size_bytes=file.size())


def _check_header(path: str, dataset: Any, *, size_bytes: int) -> TokenShard:
    attributes = dict(dataset.attrs) if isinstance(dataset, h5py.Dataset) else {}
    version = attributes.get("format_version")
    if version is None:
        raise UnreadableFile(
            f"{path} is HDF5 but no token shard (no dataset `tokens` with a format_version): {SHARD_FIX}"
        )
    if version != SHARD_VERSION:
        raise UnreadableFile(
            f"{path} is a token shard of format_version {version}, this program reads {SHARD_VERSION}: use the program that "
            "wrote it, or pack the tokens again"
        )
    try:
        values = {one.name: attributes[one.name] for one in fields(TokenFormat)}
        values = {name: value.decode() if isinstance(value, bytes) else int(value) for name, value in values.items()}
        counts = (int(attributes["num_sequences"]), int(attributes["num_tokens"]))
        shard = TokenShard(path, TokenFormat(**values), *counts, offset=dataset.id.get_offset() or 0)
    except (KeyError, ValueError) as error:
        raise UnreadableFile(f"{path} has a damaged header ({error}): {SHARD_FIX}") from error
    stop = shard.offset + shard.num_stored * shard.format.dtype.itemsize
    is_whole = dataset.shape == (shard.num_stored,) and dataset.dtype == shard.format.dtype and shard.offset > 0
    is_whole &= shard.offset % shard.format.dtype.itemsize == 0  # else a kernel would read across elements
    if not is_whole or dataset.chunks is not None or stop > size_bytes:
        raise UnreadableFile(
            f"{path} holds {dataset.shape} tokens of {dataset.dtype}, its header says {shard.num_sequences} sequences of "
            f"{shard.format.sequence_length}: {SHARD_FIX}"
        )
    return shard


class _SparseFile(io.RawIOBase):
    """Where the HDF5 library writes a file of which only the parts around the tokens are kept."""

    def __init__(self) -> None:
        self.size = self._place = 0
        self.parts: dict[int, bytes] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self.size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        self.parts[self._place] = bytes(data)
        self._place += len(data)
        self.size = max(self.size, self._place)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._place if size is None else size
        return self.size

    def bytes_between(self, start: int, stop: int) -> bytes:
        out = bytearray(stop - start)
        for place, part in self.parts.items():
            if start <= place < stop:
                out[place - start : place - start + len(part)] = part
        return bytes(out)


def build_frame(token_format: TokenFormat, *, num_sequences: int, num_tokens: int) -> tuple[bytes, bytes]:
    """What stands before and after the tokens of a shard."""
    file = _SparseFile()
    num_stored = num_sequences * token_format.sequence_length + 1
    with h5py.File(
        file, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=_ALIGNMENT_BYTES
    ) as shard:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        space, kind = h5py.h5s.create_simple((num_stored,)), h5py.h5t.py_create(token_format.dtype)
        dataset = h5py.Dataset(h5py.h5d.create(shard.id, b"tokens", kind, space, creation))
        attributes = {"format_version": SHARD_VERSION, "num_sequences": num_sequences, "num_tokens": num_tokens}
        for name, value in (attributes | asdict(token_format)).items():
            dataset.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)
        start = dataset.id.get_offset()
    stop = start + num_stored * token_format.dtype.itemsize
    return file.bytes_between(0, start), file.bytes_between(stop, file.size)
