"""Loading: any division of the state from any other, after the hash of every file.

In: a committed checkpoint, and the pieces that this process wants. Out: filled tensors, and the state beside them. Of the
files only what overlaps is read. Before the first tensor is touched everything is checked, on all ranks.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.pretrain.boxes import overlap, slices_of
from train.pretrain.checkpoint_files import (
    CheckpointError,
    CheckpointInfo,
    DamagedFile,
    check_file,
    read_index,
    tensors_name,
)
from train.pretrain.checkpoint_store import CheckpointStore
from train.pretrain.checkpoint_table import SavedTensor, TensorKey, read_table
from train.pretrain.pieces import Box, TensorPiece

Agree = Callable[[str | None], list[str | None]]
"""Gathers a text of every rank, on every rank."""
NAMES_IN_ERROR = 5
"""The other missing tensors are counted."""


@dataclass(frozen=True, slots=True)
class LoadedState:
    """What a checkpoint holds beside tensors."""

    shared: dict[str, Any]
    """State that all ranks have."""
    own: dict[str, Any] | None
    """This rank's alone; None if another number of ranks saved it."""


class CheckpointReader:
    """Reads boxes of logical tensors. Files are mapped into memory when they are first read, until the block ends."""

    def __init__(self, info: CheckpointInfo) -> None:
        """Raises DamagedFile for a table that is missing or altered."""
        self.info = info
        self.tensors = read_table(info)
        """By kind and name."""
        self._files: dict[int, Any] = {}
        self._open_files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()
        self._open_files.close()

    @torch.no_grad()
    def read_into(self, target: Tensor, *, kind: str, name: str, offsets: tuple[int, ...]) -> None:
        """Fill `target` with the box at `offsets`. Raises DamagedFile."""
        wanted: Box = (offsets, tuple(target.shape))
        num_read = 0
        for rank, key, box in self.tensors[kind, name].within(wanted):
            shared = overlap(wanted, box)
            assert shared is not None
            value = self._read(rank, key, slices_of(shared, within=box))
            target[slices_of(shared, within=wanted)].copy_(value)
            num_read += math.prod(shared[1])
        assert num_read == target.numel(), f"a committed checkpoint covers {kind} {name}"

    def _read(self, rank: int, key: str, slices: tuple[slice, ...]) -> Tensor:
        try:
            if rank not in self._files:
                path = self.info.folder / tensors_name(rank)
                self._files[rank] = self._open_files.enter_context(safe_open(path, framework="pt"))
            file = self._files[rank]
            value: Tensor = file.get_slice(key)[slices] if slices else file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise DamagedFile(f"{self.info.folder / tensors_name(rank)} cannot be read ({error})") from error
        return value


def verify(info: CheckpointInfo, *, rank: int = 0, world_size: int = 1) -> None:
    """Read the tensors of each `world_size`-th saved rank, from `rank` on. Raises DamagedFile for an altered file."""
    for saved in range(rank, info.manifest.world_size, world_size):
        check_file(info.folder, info.manifest.files[2 * saved + 1])


def load_pieces(
    info: CheckpointInfo,
    pieces: Iterable[TensorPiece],
    *,
    rank: int,
    world_size: int,
    agree: Agree | None,
) -> LoadedState:
    """Fill every piece, owner or not. `agree`: each rank then hashes its share of the files, and all raise what one meets.

    Raises CheckpointError naming the file or the tensor.
    """
    wanted = [piece for piece in pieces if piece.tensor.numel()]
    problem: str | None = None
    reader: CheckpointReader | None = None
    own: dict[str, Any] | None = None
    try:
        reader = CheckpointReader(info)
        _check_wanted(wanted, reader.tensors)
        if info.manifest.world_size == world_size:
            own = read_index(info, rank).own
        verify(info, rank=rank if agree else 0, world_size=world_size if agree else 1)
    except CheckpointError as error:
        problem = _explain(error, info)
    _raise_any(problem, agree)
    assert reader is not None
    try:
        with reader:
            for piece in wanted:
                reader.read_into(piece.tensor, kind=piece.kind, name=piece.name, offsets=piece.offsets)
    except CheckpointError as error:
        problem = _explain(error, info)
    _raise_any(problem, agree)
    return LoadedState(info.manifest.shared, own)


def _explain(error: CheckpointError, info: CheckpointInfo) -> str:
    advice = f"; {CheckpointStore(info.folder.parent).advice(info.folder)}" if isinstance(error, DamagedFile) else ""
    return f"{error}{advice}"


def _raise_any(problem: str | None, agree: Agree | None) -> None:
    """On all ranks what one of them met, its own first."""
    problems = [problem] if agree is None else agree(problem)
    if found := [text for text in problems if text is not None]:
        raise CheckpointError(problem or found[0])


def _check_wanted(wanted: list[TensorPiece], saved: Mapping[TensorKey, SavedTensor]) -> None:
    keys = {(piece.kind, piece.name) for piece in wanted}
    if missing := sorted(f"{kind} {name}" for kind, name in keys - saved.keys()):
        more = f" and {len(missing) - NAMES_IN_ERROR} more" if len(missing) > NAMES_IN_ERROR else ""
        raise CheckpointError(
            f"the checkpoint lacks {', '.join(missing[:NAMES_IN_ERROR])}{more}; resume with the model and the optimizer that "
            "it was saved with"
        )
    for piece in wanted:
        found = saved[piece.kind, piece.name]
        if found.shape != piece.shape:
            raise CheckpointError(
                f"{piece.kind} {piece.name} has shape {list(found.shape)} in the checkpoint and {list(piece.shape)} here; "
                "resume with the model that it was saved with"
            )
        if found.dtype != piece.tensor.dtype:
            raise CheckpointError(
                f"{piece.kind} {piece.name} is {found.dtype} in the checkpoint and {piece.tensor.dtype} here; resume with the "
                "precision that it was saved with"
            )
