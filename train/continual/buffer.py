"""ReplayBuffer: samples of earlier tasks, a uniform draw from all that were offered, in memory or on disk.

In: batches with an `id` per sample. Out: batches of drawn samples. Which samples stay is ExperienceReplay's law: repeated
offers change nothing, and shards merge into what one stream would have kept. A sample's tensors lie in one row of an array per
field; with a folder the arrays are files that are mapped into memory, so that a buffer may be larger than that.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.continual.replay import ExperienceReplay
from train.continual.rows import Batch

ID = "id"
"""Field of a batch: Int[batch], unique over all tasks."""


class ReplayBuffer:
    """At most `capacity` samples with the same fields and shapes. Not thread-safe: one owner."""

    def __init__(self, capacity: int, *, seed: int, folder: Path | None = None) -> None:
        """`folder`: of the mapped files, which are written anew; None: memory."""
        self.index: ExperienceReplay[int] = ExperienceReplay(capacity, seed=seed)
        """Id -> row of the arrays."""
        self.folder = folder
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, number: int) -> bool:
        return str(number) in self.index

    @property
    def size_bytes(self) -> int:
        """Of the arrays, whether in memory or on disk."""
        return sum(array.nbytes for array in self._arrays.values())

    def add(self, batch: Batch) -> None:
        """Offer samples. Raises ValueError for fields or shapes other than those of the samples before."""
        fields = {name: value.detach().cpu() for name, value in batch.items()}
        self._make_room(fields)
        for place, number in enumerate(fields[ID].tolist()):
            name = str(number)
            row = self._free[-1] if self._free else len(self.index)
            pushed_out = self.index.offer(name, row)
            if pushed_out is None:
                continue
            if self._free:
                self._free.pop()
            self._free.extend(pushed_out)
            for field, value in fields.items():
                self._arrays[field][row] = value[place].numpy()

    def ids(self) -> list[int]:
        """Of every sample, by falling key: an order that does not depend on that of arrival."""
        return [int(name) for name in self.index.items()]

    def take(self, ids: Sequence[int]) -> Batch:
        """Samples in the order of their ids. Raises KeyError for one that is not there."""
        rows = np.asarray([self.index[str(number)] for number in ids], np.int64)
        return {
            name: torch.from_numpy(np.asarray(array[rows])).to(self._dtypes[name])
            for name, array in self._arrays.items()
        }

    def forget(self, ids: list[int]) -> int:
        """Drop samples; returns how many were there."""
        kept = self.index.items()
        names = [str(number) for number in ids if str(number) in kept]
        self._free += [kept[name] for name in names]
        return self.index.forget(names)

    def merge(self, other: "ReplayBuffer") -> "ReplayBuffer":
        """The buffer of both streams, in memory. Raises ValueError for another capacity or seed."""
        kept = self.index.merge(other.index)
        merged = ReplayBuffer(kept.capacity, seed=kept.seed)
        for one in (self, other):
            if len(one):
                merged.add(one.take(one.ids()))
        merged.index.exclude(kept)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Samples and what decides about those to come."""
        return {"index": json.dumps(self.index.state()), "samples": self.take(self.ids()) if len(self) else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into an empty buffer of the same capacity and seed. Raises ValueError for another one."""
        saved: ExperienceReplay[int] = ExperienceReplay.from_state(json.loads(state["index"]))
        if (saved.capacity, saved.seed) != (self.index.capacity, self.index.seed):
            raise ValueError(
                f"the saved buffer has capacity {saved.capacity} and seed {saved.seed}, this one {self.index.capacity} and "
                f"{self.index.seed}: build it with those"
            )
        self.index, self._free = ExperienceReplay(saved.capacity, seed=saved.seed), []
        if state["samples"]:
            self.add(dict(state["samples"]))
        self.index.exclude(saved)

    def _make_room(self, fields: Batch) -> None:
        if ID not in fields:
            raise ValueError(
                f"a batch for replay needs a field {ID!r}, one number per sample; it has {', '.join(fields)}"
            )
        shapes = {name: tuple(value.shape[1:]) for name, value in fields.items()}
        if not self._arrays:
            self._dtypes = {name: value.dtype for name, value in fields.items()}
            for name, value in fields.items():
                self._arrays[name] = self._allocate(name, (self.index.capacity + 1, *shapes[name]), value)
        known = {name: array.shape[1:] for name, array in self._arrays.items()}
        if shapes != known:
            raise ValueError(f"the batch has fields {shapes}, the buffer holds samples of {known}: give the same ones")

    def _allocate(self, name: str, shape: tuple[int, ...], value: torch.Tensor) -> np.ndarray[Any, Any]:
        dtype = value[:0].numpy().dtype
        if self.folder is None:
            return np.empty(shape, dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        return np.memmap(self.folder / f"{name}.array", dtype, "w+", shape=shape)
