"""ContinualCheckpoints: the state of a ContinualTrainer on disk, as committed checkpoints of train.pretrain.

In: a trainer, after any step. Out: a new trainer in exactly that state, also behind a kill in the midst of a save. Model,
optimizer and place are saved once, what methods keep by each rank: a run goes on with as many ranks as it had.
"""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.continual.trainer import ContinualTrainer
from train.pretrain.checkpoint import CheckpointConfig, CheckpointManager
from train.pretrain.checkpoint_files import CheckpointInfo
from train.pretrain.pieces import TensorPiece

OWN = ("methods", "random")
"""Of a trainer's state, what each rank has for itself."""
TENSOR, PAIRS = "__tensor__", "__pairs__"
"""Keys of what JSON does not have: tensors, and dicts whose keys are no texts."""


class ContinualCheckpoints:
    """A folder of checkpoints of one run. All ranks of the trainer's group call the same methods."""

    def __init__(self, folder: Path, trainer: ContinualTrainer) -> None:
        """Takes the folder over: an earlier process of the run that still lives can commit nothing there any more."""
        self.trainer = trainer
        group = trainer.learner.group
        self._rank, num_ranks = (0, 1) if group is None else (group.rank(), group.size())
        attempt = [uuid.uuid4().hex[:12]]
        if group is not None:
            dist.broadcast_object_list(attempt, group=group, group_src=0)
        self._manager = CheckpointManager(
            folder,
            config=CheckpointConfig(keep_last=1),
            rank=self._rank,
            world_size=num_ranks,
            attempt=attempt[0],
        )
        if self._rank == 0:
            self._manager.begin_attempt()

    def save(self, step: int, extra: Mapping[str, Any]) -> None:
        """Return when the trainer's state is on disk, and `extra`, JSON that all ranks have. Raises CheckpointError."""
        state = self.trainer.state_dict()
        pieces: list[TensorPiece] = []
        own = self._describe({name: state.pop(name) for name in OWN}, f"rank-{self._rank}", pieces)
        shared = self._describe(state, "shared", pieces)
        self._manager.save_blocking(step, pieces, shared={"trainer": shared, "extra": dict(extra)}, own=own)
        self.trainer.saved()

    def extra(self) -> dict[str, Any] | None:
        """Of the checkpoint that was committed last; None if there is none. Raises CheckpointError."""
        info = self._latest()
        return None if info is None else dict(info.manifest.shared["extra"])

    def load(self) -> None:
        """Put the trainer, a new one, into the state that was committed last, which there has to be.

        Raises CheckpointError for damaged files, ValueError for a state of another number of ranks, and what
        ContinualTrainer.load_state_dict raises; on all ranks what one of them meets.
        """
        info, learner = self._latest(), self.trainer.learner
        if info is None:
            raise ValueError(f"{self._manager.store.folder} holds no checkpoint: save one first")
        if info.manifest.world_size != self._manager.world_size:
            raise ValueError(
                f"{info.folder} was saved by {info.manifest.world_size} ranks, and there are {self._manager.world_size}: "
                "go on with as many, each of which has samples of its own"
            )
        pieces: list[TensorPiece] = []
        state = self._build(info.manifest.shared["trainer"], "shared", pieces)

        def read() -> None:
            own = self._manager.load(info, []).own  # JSON alone: it tells which tensors there are
            assert own is not None
            state.update(self._build(own, f"rank-{self._rank}", pieces))
            self._manager.load(info, pieces)
            self.trainer.load_state_dict(state)

        learner.together(read)

    def _latest(self) -> CheckpointInfo | None:
        """The same on all ranks."""
        group = self.trainer.learner.group
        if group is None:
            return self._manager.latest()
        names: list[str | None] = [None]
        if self._rank == 0:
            info = self._manager.latest()
            names = [None if info is None else info.name]
        dist.broadcast_object_list(names, group=group, group_src=0)
        return None if names[0] is None else self._manager.await_name(names[0])

    def _describe(self, state: Mapping[str, Any], kind: str, pieces: list[TensorPiece]) -> dict[str, Any]:
        """As JSON; its tensors are added to `pieces`."""

        def add(tensor: Tensor) -> dict[str, Any]:
            name = str(len(pieces))
            is_owner = kind != "shared" or self._rank == 0
            pieces.append(_piece(kind, name, tensor, is_owner=is_owner))
            return {TENSOR: name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}

        described: dict[str, Any] = _to_json(state, add)
        return described

    def _build(self, described: Mapping[str, Any], kind: str, pieces: list[TensorPiece]) -> dict[str, Any]:
        """The state that was described, with empty tensors that are added to `pieces` as well."""

        def build(one: Mapping[str, Any]) -> Tensor:
            tensor = torch.empty(one["shape"], dtype=getattr(torch, one["dtype"]))
            pieces.append(_piece(kind, one[TENSOR], tensor, is_owner=False))
            return tensor

        state: dict[str, Any] = _from_json(described, build)
        return state


def _piece(kind: str, name: str, tensor: Tensor, *, is_owner: bool) -> TensorPiece:
    shape = tuple(tensor.shape)
    return TensorPiece(kind, name, shape, (0,) * len(shape), tensor, is_owner)


def _to_json(value: Any, add: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return add(value)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _to_json(one, add) for key, one in value.items()}
        return {PAIRS: [[key, _to_json(one, add)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_json(one, add) for one in value]
    return value


def _from_json(value: Any, build: Callable[[Mapping[str, Any]], Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(one, build) for one in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return build(value)
    if PAIRS in value:
        return {key: _from_json(one, build) for key, one in value[PAIRS]}
    return {key: _from_json(one, build) for key, one in value.items()}
