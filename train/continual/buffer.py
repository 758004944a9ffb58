"""ReplayBuffer: samples of earlier tasks, a uniform draw from all that were offered, in memory or on disk.

In: batches with an `id` per sample. Out: batches of drawn samples. Which samples stay is ExperienceReplay's law: repeated
offers change nothing, and shards merge into what one stream would have kept. A sample's tensors lie in one row of a tensor per
field; with a folder these are files that are mapped into memory, so that a buffer may be larger than that.
"""

import json
import math
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.continual.replay import ExperienceReplay
from train.continual.rows import Batch
from train.files import sync_path

ID = "id"
"""Field of a batch: Int[batch], unique over all tasks."""
TOKEN_NAME = "buffer"
"""File that says whose files lie beside it."""
MERGED_SAMPLES = 1024
"""Copied at once."""


class ReplayBuffer:
    """At most `capacity` samples with the same fields and shapes. Not thread-safe: one owner."""

    def __init__(self, capacity: int, *, seed: int, folder: Path | None = None) -> None:
        """`folder`: of the mapped files, of this buffer alone; None: memory."""
        self.index: ExperienceReplay[int] = ExperienceReplay(capacity, seed=seed)
        """Id -> row."""
        self.folder = folder
        self._rows: dict[str, Tensor] = {}
        """Of each field a row per sample, and free ones."""
        self._num_used = 0
        """Rows from which on none ever held a sample."""
        self._free: list[int] = []
        """Of those before, rows that may be written."""
        self._left: list[list[int]] = []
        """On disk: for each state since the last one that is known to be saved, rows of it that hold no sample now."""
        self._token = ""
        """On disk: whose files these are."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, number: int) -> bool:
        return str(number) in self.index

    def check(self, batch: Batch, *, first: Batch, to_come: Collection[str] = ()) -> None:
        """Raises ValueError for samples that it could not hold: with fields or shapes other than those before (`first`: the
        first ones that are about to be offered), or with the id of another sample. `to_come`: fields that are added later."""
        fields = {name: value.detach().cpu() for name, value in batch.items()}
        known = {name: held for name, held in self._rows.items() if name not in to_come}
        _check_fields(fields, known or first)
        places = [place for place, number in enumerate(fields[ID].tolist()) if number in self]
        known = self.take(fields[ID][places].tolist()) if places else {}
        for row, place in enumerate(places):
            for name, value in fields.items():
                if not torch.equal(known[name][row], value[place]):
                    raise ValueError(
                        f"sample {int(fields[ID][place])} has another {name!r} than the sample of that id which was kept: "
                        "ids have to be unique over all tasks"
                    )

    def add(self, batch: Batch) -> None:
        """Offer samples. Raises ValueError for fields or shapes other than those of the samples before."""
        fields = {name: value.detach().cpu() for name, value in batch.items()}
        _check_fields(fields, self._rows or fields)
        self._make_room(fields)
        written: dict[int, int] = {}
        for place, number in enumerate(fields[ID].tolist()):
            row = self._free[-1] if self._free else self._num_used
            pushed_out = self.index.offer(str(number), row)
            if pushed_out is None:
                continue
            if self._free:
                self._free.pop()
            else:
                self._num_used += 1
            self._release(pushed_out)
            written[row] = place
        rows, places = torch.tensor(list(written.keys())), list(written.values())
        for name, value in fields.items():
            if places:
                self._rows[name][rows] = value[places]

    def ids(self) -> list[int]:
        """Of every sample, by falling key: an order that does not depend on that of arrival."""
        return [int(name) for name in self.index.items()]

    def take(self, ids: Sequence[int]) -> Batch:
        """Copies of samples in the order of their ids. Raises KeyError for one that is not there."""
        rows = torch.tensor([self.index[str(number)] for number in ids], dtype=torch.int64)
        return {name: held[rows] for name, held in self._rows.items()}

    def merge(self, other: "ReplayBuffer") -> "ReplayBuffer":
        """The buffer of both streams, in memory. Raises ValueError for another capacity or seed."""
        kept = self.index.merge(other.index)
        merged = ReplayBuffer(kept.capacity, seed=kept.seed)
        for one in (self, other):
            ids = one.ids()
            for begin in range(0, len(ids), MERGED_SAMPLES):
                merged.add(one.take(ids[begin : begin + MERGED_SAMPLES]))
        merged.index.exclude(kept)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Samples and what decides about those to come. With a folder the samples stay in its files, on disk when this
        returns; their rows are not written again before a later state is told to be `saved`."""
        index = json.dumps(self.index.state())
        if self.folder is None:
            return {"index": index, "samples": self.take(self.ids()) if len(self) else {}}
        if self._rows:
            sync_path(*(self._file(name) for name in self._rows), self.folder / TOKEN_NAME, self.folder)
        self._left.append([])
        fields = {name: [str(held.dtype).removeprefix("torch."), list(held.shape)] for name, held in self._rows.items()}
        return {"index": index, "fields": fields, "num_used": self._num_used, "token": self._token}

    def saved(self) -> None:
        """The last `state_dict` is on disk: no earlier one will be loaded."""
        if self._left:
            *earlier, last = self._left
            self._free += [row for rows in earlier for row in rows]
            self._left = [last]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into an empty buffer of the same capacity and seed. Raises ValueError for another one, and where the files of a
        buffer on disk are not those of the state."""
        saved: ExperienceReplay[int] = ExperienceReplay.from_state(json.loads(state["index"]))
        if (saved.capacity, saved.seed) != (self.index.capacity, self.index.seed):
            raise ValueError(
                f"the saved buffer has capacity {saved.capacity} and seed {saved.seed}, this one {self.index.capacity} and "
                f"{self.index.seed}: build it with those"
            )
        if "fields" in state:
            self._map_again(state["fields"], token=state["token"])
            self.index, self._num_used = saved, state["num_used"]
            self._free = sorted(set(range(self._num_used)) - set(saved.items().values()), reverse=True)
            self._left = [[]]
            return
        self.index = ExperienceReplay(saved.capacity, seed=saved.seed)
        if state["samples"]:
            self.add(dict(state["samples"]))
        self.index.exclude(saved)

    def _map_again(self, fields: Mapping[str, Any], *, token: str) -> None:
        if self.folder is None:
            raise ValueError("the saved buffer lies on disk: build it with its folder")
        path = self.folder / TOKEN_NAME
        if fields and (not path.is_file() or path.read_text("utf-8") != token):
            raise ValueError(
                f"{self.folder} does not hold the files of the saved buffer: give the folder that it was saved with"
            )
        self._token = token
        for name, (dtype_name, shape) in fields.items():
            dtype: torch.dtype = getattr(torch, dtype_name)
            file, size_bytes = self._file(name), math.prod(shape) * dtype.itemsize
            found = file.stat().st_size if file.exists() else 0
            if found < size_bytes:
                raise ValueError(
                    f"{file} has {found} bytes, the saved buffer {size_bytes}: put the file back that belongs to the state"
                )
            self._rows[name] = self._allocate(name, tuple(shape), dtype)

    def _release(self, rows: Sequence[int]) -> None:
        (self._left[-1] if self._left else self._free).extend(rows)

    def _make_room(self, fields: Batch) -> None:
        """For the rows that these samples may need. Raises OSError where the disk has none."""
        have, most = len(next(iter(self._rows.values()))) if self._rows else 0, self.index.capacity + 1
        if self.folder is None:
            count = most
        else:
            needed = self._num_used + len(fields[ID])
            count = have if have >= needed else max(needed, min(2 * have, most))
            if not self._token:
                self._token = uuid.uuid4().hex
                (self.folder / TOKEN_NAME).write_text(self._token, "utf-8")
        if count > have:
            rows = {
                name: self._allocate(name, (count, *value.shape[1:]), value.dtype) for name, value in fields.items()
            }
            self._rows = rows

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """With a folder what its file holds already is there."""
        if self.folder is None:
            return torch.empty(shape, dtype=dtype)
        path, size_bytes = self._file(name), math.prod(shape) * dtype.itemsize
        with path.open("ab") as file:  # here: from_file overwrites the first byte of a file that it makes larger
            if size_bytes and path.stat().st_size < size_bytes:
                os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk is an error here, a signal at a write
        return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.array"


def check_id(batch: Batch) -> None:
    """Raises ValueError for a batch whose samples have no ids."""
    if ID not in batch:
        raise ValueError(f"a batch for replay needs a field {ID!r}, one number per sample; it has {', '.join(batch)}")


def _check_fields(found: Batch, known: Batch) -> None:
    """Raises ValueError where rows of these have not the same fields, shapes and types."""
    check_id(found)
    formats = [{name: (value.dtype, tuple(value.shape[1:])) for name, value in one.items()} for one in (found, known)]
    for name in formats[0] | formats[1]:
        ours, theirs = (one.get(name) for one in formats)
        if ours != theirs:
            raise ValueError(
                f"field {name!r} of a batch is {_told(ours)}, that of the samples before {_told(theirs)}: give the same "
                "fields and shapes in every batch and task"
            )


def _told(field: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if field is None else f"{field[0]} of shape {list(field[1])}"
