"""One rank's tensors on their way to a file: planned, staged in host memory, written and hashed.

In: the pieces that this rank saves. Staged, they are the data part of a safetensors file, byte for byte, so that writing it
is one pass over memory. Source of the format: github.com/safetensors/safetensors (8 bytes of length, a JSON header, data
without gaps; the widest types first, so that all are aligned).
"""

import errno
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.cuda._pin_memory_utils as pinning  # torch's own stager takes it: pin_memory() would round up to a power of two
from jaxtyping import UInt8
from torch import Tensor

from train.files import DISK_FULL
from train.pretrain.checkpoint_files import DTYPES, CheckpointError, FileEntry, PieceEntry, piece_key
from train.pretrain.pieces import TensorPiece

Bytes = UInt8[Tensor, " bytes"]
CHUNK_BYTES = 1 << 24
"""Hashed and written at once."""
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What a rank writes, in the order of the file."""

    entries: tuple[PieceEntry, ...]
    tensors: list[Tensor]
    """Emptied when they are staged: no weight is kept alive by a save."""
    starts: tuple[int, ...]
    """Of each in the data."""
    data_bytes: int
    header: bytes

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return len(self.header) + self.data_bytes


def plan_write(pieces: Iterable[TensorPiece]) -> WritePlan:
    """The file of the pieces that this process owns; empty ones are left away.

    Raises ValueError for a piece that is there twice, does not fit its tensor, or is of a dtype that files cannot hold.
    """
    owned = [(_entry_of(piece), piece.tensor.detach()) for piece in pieces if piece.is_owner and piece.tensor.numel()]
    owned.sort(key=lambda one: (-one[1].element_size(), one[0].key))
    keys = [entry.key for entry, _ in owned]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"pieces hold {twice} twice; give each piece that this process owns once")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, place = [], 0
    for entry, tensor in owned:
        starts.append(place)
        place += tensor.numel() * tensor.element_size()
        header[entry.key] = {"dtype": entry.dtype, "shape": entry.extent, "data_offsets": (starts[-1], place)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    entries, tensors = tuple(entry for entry, _ in owned), [tensor for _, tensor in owned]
    return WritePlan(entries, tensors, tuple(starts), place, len(text).to_bytes(8, "little") + text)


def _entry_of(piece: TensorPiece) -> PieceEntry:
    dtype, extent = NAME_OF_DTYPE.get(piece.tensor.dtype), tuple(piece.tensor.shape)
    if dtype is None:
        raise ValueError(
            f"{piece.kind} {piece.name} is {piece.tensor.dtype}, which a checkpoint cannot hold; use one of "
            f"{', '.join(str(one) for one in NAME_OF_DTYPE)}"
        )
    if not len(extent) == len(piece.offsets) == len(piece.shape):
        raise ValueError(
            f"{piece.kind} {piece.name}: extent {list(extent)}, offsets {list(piece.offsets)} and shape "
            f"{list(piece.shape)} differ in their number of dimensions; make them equal"
        )
    return PieceEntry(
        key=piece_key(piece.kind, piece.name, piece.offsets),
        kind=piece.kind,
        name=piece.name,
        shape=piece.shape,
        offsets=piece.offsets,
        extent=extent,
        dtype=dtype,
    )


class HostBuffer:
    """Memory that is taken once and used by one save after another; page-locked for the copies of a GPU."""

    def __init__(self) -> None:
        self._memory: Bytes = torch.empty(0, dtype=torch.uint8)
        self._is_pinned = False

    def take(self, size_bytes: int, *, is_pinned: bool) -> Bytes:
        """`size_bytes` of it. What was taken before is overwritten."""
        if self._memory.numel() < size_bytes or (is_pinned and not self._is_pinned):
            self._memory = torch.empty(0, dtype=torch.uint8)  # gives the old one back first
            self._memory = torch.empty(size_bytes, dtype=torch.uint8)
            self._is_pinned = is_pinned
            if is_pinned and size_bytes:
                pinning.pin_memory(self._memory.data_ptr(), size_bytes)
                weakref.finalize(self._memory, pinning.unpin_memory, self._memory.data_ptr())
        return self._memory[:size_bytes]


@torch.no_grad()
def stage(plan: WritePlan, buffer: HostBuffer, *, ready: torch.cuda.Event | None) -> Bytes:
    """The data of the file in host memory. `ready`: what the GPU has to reach before its tensors are read."""
    device = next((tensor.device for tensor in plan.tensors if tensor.is_cuda), None)
    if ready is None or device is None:
        data = buffer.take(plan.data_bytes, is_pinned=False)
        _copy(plan, data)
    else:
        with torch.cuda.device(
            device
        ):  # a thread begins with the first one, and page-locking would open a context there
            data = buffer.take(plan.data_bytes, is_pinned=True)
            stream = torch.cuda.Stream(device)
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                _copy(plan, data)
            stream.synchronize()
    plan.tensors.clear()
    return data


def _copy(plan: WritePlan, data: Bytes) -> None:
    for tensor, start in zip(plan.tensors, plan.starts, strict=True):
        target = data[start : start + tensor.numel() * tensor.element_size()]
        target.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)


def write_tensors(path: Path, plan: WritePlan, data: Bytes, *, free_bytes: Callable[[Path], int]) -> FileEntry:
    """Write and fsync. Raises OSError; of no room with what is needed and what is free, before a byte is written."""
    free = free_bytes(path.parent)
    if free < plan.size_bytes:
        raise OSError(errno.ENOSPC, f"{plan.size_bytes} bytes are needed and {free} are free", str(path))
    digest = hashlib.sha256(plan.header)
    view = data.numpy().data
    with path.open("xb") as file:
        file.write(plan.header)
        for start in range(0, plan.data_bytes, CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(name=path.name, size_bytes=plan.size_bytes, sha256=digest.hexdigest())


def explain(error: BaseException, *, path: Path, free_bytes: Callable[[Path], int]) -> CheckpointError:
    """What a failed save means, and what to do about it."""
    if isinstance(error, CheckpointError):
        return error
    if not isinstance(error, OSError):
        return CheckpointError(
            f"{path} was not written ({type(error).__name__}: {error}); the last committed checkpoint is untouched"
        )
    where = error.filename or path
    if error.errno in DISK_FULL:
        there = next(folder for folder in path.parents if folder.exists())
        return CheckpointError(
            f"{where} was not written: no room ({error.strerror}; {free_bytes(there)} bytes are free there now, or a "
            "quota or size limit is reached). Free space or lower keep_last; the last committed checkpoint is untouched"
        )
    return CheckpointError(
        f"{where} was not written ({error.strerror}); check the folder, the last commit is untouched"
    )
