"""Segment: sorted arrays of many documents on disk, memory-mapped; a search in it reads a few pages.

In: signed documents with their ids, or several segments. Out: a folder of `.npy` files. Segments are merged in parts of the
same ranges of hashes, so the merge of any number of documents needs the memory of MERGED_ROWS of them.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.dedup_edges import Numbers, SignedDocuments
from train.files import sync_path

MAX_CANDIDATES = 256
"""Documents of a bucket that are compared with a new one; what goes beyond is counted."""
MERGED_ROWS = 1 << 20
"""Rows that a merge sorts at once: about 100 bytes each."""
_COPIED_ITEMS = 1 << 16


class IndexDamaged(ValueError):
    """The folder is no index, another version's or another shape's, or one of its files is missing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Sorted arrays of one batch of documents.

    Shapes: exact [docs, 2] in order, exact_row [docs]; bands [bands, docs], each in order, band_row [bands, docs];
    signatures [docs, permutations]; the id of row i is id_bytes[id_starts[i] : id_starts[i + 1]].
    """

    exact: npt.NDArray[np.uint64]
    exact_row: npt.NDArray[np.int64]
    bands: npt.NDArray[np.uint64]
    band_row: npt.NDArray[np.int64]
    signatures: npt.NDArray[np.uint32]
    id_bytes: npt.NDArray[np.uint8]
    id_starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.signatures)

    def id_of(self, row: int) -> str:
        return self.id_bytes[self.id_starts[row] : self.id_starts[row + 1]].tobytes().decode()

    def find(self, exact: npt.NDArray[np.uint64], bands: npt.NDArray[np.uint64]) -> tuple[int | None, list[int], int]:
        """(row of an equal text, else rows that share a band, a few at most, and how many beyond them were left out)."""
        low, high = _equal_range(self.exact[:, 0], exact[0])
        for place in range(low, high):
            if self.exact[place, 1] == exact[1]:
                return int(self.exact_row[place]), [], 0
        rows: set[int] = set()
        num_capped = 0
        for band, value in enumerate(bands):
            low, high = _equal_range(self.bands[band], value)
            last = min(high, low + MAX_CANDIDATES)
            rows.update(self.band_row[band, low:last].tolist())
            num_capped += high - last
        return None, sorted(rows), num_capped


_ARRAYS = tuple(Segment.__dataclass_fields__)


def build_segment(documents: SignedDocuments, ids: Sequence[str]) -> Segment:
    """A segment in memory. Raises ValueError if there is not one id for each document."""
    if len(ids) != len(documents):
        raise ValueError(f"ids: {len(ids)} for {len(documents)} documents; give one for each")
    names = [name.encode() for name in ids]
    starts = np.concatenate([[0], np.cumsum([len(name) for name in names], dtype=np.int64)]).astype(np.int64)
    exact_row = np.lexsort((documents.exact[:, 1], documents.exact[:, 0]))
    bands = np.stack(documents.bands)
    band_row = np.argsort(bands, axis=1, kind="stable")
    return Segment(
        exact=documents.exact[exact_row],
        exact_row=exact_row,
        bands=np.take_along_axis(bands, band_row, axis=1),
        band_row=band_row,
        signatures=documents.signatures,
        id_bytes=np.frombuffer(b"".join(names), np.uint8),
        id_starts=starts,
    )


def load_segment(folder: Path) -> Segment:
    """Raises IndexDamaged."""
    try:
        return Segment(**{name: _map(folder / f"{name}.npy") for name in _ARRAYS})
    except (OSError, ValueError) as error:
        raise IndexDamaged(f"segment {folder} cannot be read ({error}): restore it, or remove the index") from error


def write_segment(folder: Path, segments: Sequence[Segment]) -> None:
    """One segment of several, at least one: rows in their order, and of equal hashes the first row first.

    The folder appears whole.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    num_rows, num_bands = sum(len(one) for one in segments), len(segments[0].bands)
    firsts = np.cumsum([0, *(len(one) for one in segments)]).tolist()
    hashes = [one.exact for one in segments]
    with _array(partial, "exact", hashes[0], (num_rows, 2)) as exact, _rows(partial, "exact_row", (num_rows,)) as rows:
        for bounds in _ranges([one[:, 0] for one in hashes]):
            found, numbers = _cut(hashes, [one.exact_row for one in segments], bounds, firsts)
            order = np.lexsort((found[:, 1], found[:, 0]))
            exact.write(found[order].tobytes())
            rows.write(numbers[order].tobytes())
    shape = (num_bands, num_rows)
    with _array(partial, "bands", segments[0].bands, shape) as bands, _rows(partial, "band_row", shape) as rows:
        for band in range(num_bands):
            keys = [one.bands[band] for one in segments]
            for bounds in _ranges(keys):
                found, numbers = _cut(keys, [one.band_row[band] for one in segments], bounds, firsts)
                order = np.argsort(found, kind="stable")
                bands.write(found[order].tobytes())
                rows.write(numbers[order].tobytes())
    signatures = [one.signatures for one in segments]
    _copy(partial, "signatures", signatures, (num_rows, signatures[0].shape[1]))
    sizes = [len(one.id_bytes) for one in segments]
    _copy(partial, "id_bytes", [one.id_bytes for one in segments], (sum(sizes),))
    with _rows(partial, "id_starts", (num_rows + 1,)) as file:
        file.write(np.zeros(1, np.int64).tobytes())
        for segment, first in zip(segments, np.cumsum([0, *sizes]).tolist(), strict=False):
            for place in range(1, len(segment) + 1, _COPIED_ITEMS):
                file.write((segment.id_starts[place : place + _COPIED_ITEMS] + first).tobytes())
    os.replace(partial, folder)
    sync_path(folder.parent)


def _ranges(keys: Sequence[npt.NDArray[np.uint64]]) -> Iterator[list[slice]]:
    """Slices of several ascending arrays that together hold a range of keys, at most MERGED_ROWS rows; in ascending order.

    A key of more rows comes in several such parts, array by array.
    """
    step = max(1, MERGED_ROWS // len(keys))
    starts = [0] * len(keys)
    while any(start < len(one) for start, one in zip(starts, keys, strict=True)):
        limits = [one[start + step] for start, one in zip(starts, keys, strict=True) if start + step < len(one)]
        stops = [len(one) if not limits else int(np.searchsorted(one, min(limits))) for one in keys]
        if stops != starts:
            yield [slice(*bounds) for bounds in zip(starts, stops, strict=True)]
            starts = stops
            continue
        for number, one in enumerate(keys):
            stop = int(np.searchsorted(one, min(limits), side="right"))
            for first in range(starts[number], stop, MERGED_ROWS):
                part = [slice(0, 0)] * len(keys)
                part[number] = slice(first, min(first + MERGED_ROWS, stop))
                yield part
            starts[number] = stop


def _cut(
    hashes: Sequence[npt.NDArray[np.uint64]],
    rows: Sequence[npt.NDArray[np.int64]],
    bounds: Sequence[slice],
    firsts: Sequence[int],
) -> tuple[npt.NDArray[np.uint64], Numbers]:
    """(hashes, rows of the whole) of these slices, segment after segment."""
    found = np.concatenate([one[part] for one, part in zip(hashes, bounds, strict=True)])
    numbers = [one[part] + first for one, part, first in zip(rows, bounds, firsts, strict=False)]
    return found, np.concatenate(numbers)


@contextlib.contextmanager
def _array(folder: Path, name: str, like: npt.NDArray[Any], shape: tuple[int, ...]) -> Iterator[Any]:
    """A file that gets an array's bytes in order; what np.save would write."""
    path = folder / f"{name}.npy"
    with open(path, "wb") as file:
        header = {"descr": like.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        yield file
    sync_path(path)


def _rows(folder: Path, name: str, shape: tuple[int, ...]) -> contextlib.AbstractContextManager[Any]:
    return _array(folder, name, np.zeros(0, np.int64), shape)


def _copy(folder: Path, name: str, arrays: Sequence[npt.NDArray[Any]], shape: tuple[int, ...]) -> None:
    with _array(folder, name, arrays[0], shape) as file:
        for one in arrays:
            for first in range(0, len(one), _COPIED_ITEMS):
                file.write(np.ascontiguousarray(one[first : first + _COPIED_ITEMS]).tobytes())


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _equal_range(values: npt.NDArray[np.uint64], value: np.uint64) -> tuple[int, int]:
    low = int(np.searchsorted(values, value, side="left"))
    return low, int(np.searchsorted(values, value, side="right"))
