"""The table of a checkpoint: which rank saved which box of which logical tensor.

In: the indices of all ranks, when a checkpoint is committed. Out: one file of numbers, which whoever loads reads instead of
every rank's index: a thousand ranks would otherwise open a million files. NumPy's format, compressed, without pickle.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from train.pretrain.checkpoint_files import (
    DTYPES,
    TABLE_NAME,
    CheckpointInfo,
    FileEntry,
    PieceEntry,
    piece_key,
    read_file,
    write_durably,
)
from train.pretrain.pieces import Box

TensorKey = tuple[str, str]
"""Kind and name."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A logical tensor of a checkpoint, and its pieces."""

    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    ranks: Int64[np.ndarray, " pieces"]
    """That saved each piece."""
    starts: Int64[np.ndarray, "pieces dims"]
    extents: Int64[np.ndarray, "pieces dims"]

    def within(self, box: Box) -> Iterator[tuple[int, str, Box]]:
        """(rank, key in its file, box) of each piece that holds some of `box`."""
        start, extent = (np.asarray(part, np.int64) for part in box)
        holds = (self.starts < start + extent) & (start < self.starts + self.extents)
        for row in np.flatnonzero(holds.all(axis=1)):
            offsets = tuple(self.starts[row].tolist())
            yield (
                int(self.ranks[row]),
                piece_key(self.kind, self.name, offsets),
                (offsets, tuple(self.extents[row].tolist())),
            )


def write_table(folder: Path, tensors: Mapping[TensorKey, Sequence[tuple[int, PieceEntry]]]) -> FileEntry:
    """Of each tensor: the rank and the entry of each of its pieces."""
    header, rows = [], [np.empty(0, np.int64)]
    for (kind, name), pieces in tensors.items():
        first = pieces[0][1]
        header.append({"kind": kind, "name": name, "shape": first.shape, "dtype": first.dtype, "pieces": len(pieces)})
        rows.append(np.array([[rank, *entry.offsets, *entry.extent] for rank, entry in pieces], np.int64).ravel())
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(buffer, header=text, rows=np.concatenate(rows))
    return write_durably(folder / TABLE_NAME, buffer.getvalue())


def read_table(info: CheckpointInfo) -> dict[TensorKey, SavedTensor]:
    """Checked against the manifest. Raises DamagedFile."""
    data = read_file(info.folder, info.manifest.files[-1])
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header, numbers = json.loads(arrays["header"].tobytes()), arrays["rows"]
    found: dict[TensorKey, SavedTensor] = {}
    place = 0
    for one in header:
        dims, count = len(one["shape"]), one["pieces"]
        rows = numbers[place : place + count * (1 + 2 * dims)].reshape(count, 1 + 2 * dims)
        place += rows.size
        found[one["kind"], one["name"]] = SavedTensor(
            one["kind"], one["name"], tuple(one["shape"]), DTYPES[one["dtype"]],
            ranks=rows[:, 0], starts=rows[:, 1 : 1 + dims], extents=rows[:, 1 + dims :],
        )  # fmt: skip
    return found
