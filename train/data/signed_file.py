"""SignedFile: what deduplication knows of one unit's documents, in the run's folder.

In: the name of a file that `write_signed` wrote. Out: a column of it, or some rows of one. Nothing stays open or in memory
between two calls: a phase holds the part that it asked for, on every file system.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.dedup_edges import BAND, Numbers, SignedDocuments
from train.data.run_folder import RunFolder
from train.data.stored_file import FileSummary

ROWS_PER_BATCH = 4096
"""Signatures that are read for a single one: 2 MiB of them."""
_COLUMNS = ("signatures", "exact", "length", "quality")


class SignedFile:
    """A SignedUnit in a file."""

    def __init__(self, folder: RunFolder, name: str, *, num_documents: int) -> None:
        self._folder, self._name, self._num_documents = folder, name, num_documents

    def __len__(self) -> int:
        return self._num_documents

    def column(self, name: str) -> npt.NDArray[Any]:
        """See SignedUnit."""
        return self._folder.read_arrays(self._name, name)[name]

    def rows(self, name: str, rows: Numbers) -> npt.NDArray[Any]:
        """See SignedUnit."""
        return self._folder.read_rows(self._name, name, rows, rows_per_batch=ROWS_PER_BATCH)

    def load(self) -> SignedDocuments:
        """All of it."""
        arrays = self._folder.read_arrays(self._name)
        bands = [arrays[f"{BAND}{band}"] for band in range(len(arrays) - len(_COLUMNS))]
        return SignedDocuments(bands=bands, **{name: arrays[name] for name in _COLUMNS})


def write_signed(folder: RunFolder, name: str, parts: Sequence[SignedDocuments]) -> FileSummary:
    """The documents of one unit, in order; at least one part, which may be empty."""
    names = [*_COLUMNS, *(f"{BAND}{band}" for band in range(len(parts[0].bands)))]
    columns = {one: np.concatenate([part.column(one) for part in parts]) for one in names}
    return folder.write_arrays(name, columns, rows_per_batch=ROWS_PER_BATCH)
