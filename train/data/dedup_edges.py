"""Pairs of documents that are, or may be, the same: found without comparing all with all.

In: the signed documents of all units. Out: Edges, one row per pair, in order. Exact duplicates share a 128-bit hash; near
duplicates share the hash of a band. Every job here is independent of the others and of how many run at once, needs memory for
one partition of the hashes, and gives the same edges every time.

A bucket (documents with one band hash) is not compared pair by pair: each document is compared with the bucket's leaders, and
becomes a leader itself if none of them is its duplicate. So boilerplate buckets stay linear in their size.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from train.data.jit import jit
from train.data.minhash import MinHashConfig, Signatures, hash_bands, hash_texts, sign

MAX_LEADERS = 32
"""Documents of a bucket that a new one is compared with; what goes beyond is counted."""
ROW = np.dtype([("low", np.uint64), ("high", np.uint64), ("number", np.int64)])
"""A hash of up to 128 bits and the number of what it is of."""

BAND = "band_"
"""Before the number of a band in the name of its column."""

Numbers = npt.NDArray[np.int64]
"""Documents, numbered through all units in order."""


class SignedUnit(Protocol):
    """What deduplication knows of one unit's documents, read when it is asked for.

    Columns: signatures [docs, permutations], exact [docs, 2], band_0 and so on, length (characters) and quality [docs].
    """

    def __len__(self) -> int: ...

    def column(self, name: str) -> npt.NDArray[Any]:
        """All rows of a column."""

    def rows(self, name: str, rows: Numbers) -> npt.NDArray[Any]:
        """These rows of a column, which must be in ascending order."""


@dataclass(frozen=True, slots=True)
class SignedDocuments:
    """A SignedUnit in memory. Shapes are those of its columns."""

    signatures: Signatures
    bands: Sequence[npt.NDArray[np.uint64]]
    exact: npt.NDArray[np.uint64]
    length: npt.NDArray[np.int64]
    quality: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.exact)

    def column(self, name: str) -> npt.NDArray[Any]:
        """See SignedUnit."""
        found: npt.NDArray[Any] = (
            self.bands[int(name.removeprefix(BAND))] if name.startswith(BAND) else getattr(self, name)
        )
        return found

    def rows(self, name: str, rows: Numbers) -> npt.NDArray[Any]:
        """See SignedUnit."""
        return self.column(name)[rows]

    def select(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "SignedDocuments":
        """These documents alone."""
        bands = [band[rows] for band in self.bands]
        return SignedDocuments(self.signatures[rows], bands, self.exact[rows], self.length[rows], self.quality[rows])


@dataclass(frozen=True, slots=True)
class Edges:
    """Pairs first < second with their (estimated) Jaccard similarity. `num_capped`: comparisons that were not made."""

    first: Numbers
    second: Numbers
    similarity: npt.NDArray[np.float32]
    num_capped: int = 0

    def __len__(self) -> int:
        return len(self.first)


def sign_documents(
    texts: pa.ChunkedArray, config: MinHashConfig, *, quality: npt.NDArray[np.float32]
) -> SignedDocuments:
    """What deduplication knows of these texts. Without a word a text has nothing to be similar by: its bands are those of
    its exact hash."""
    signatures = sign(texts, config)
    exact = hash_texts(texts)
    bands = hash_bands(signatures, config)
    (empty,) = sign(pa.chunked_array([pa.array([""], pa.large_string())]), config)
    is_empty = (signatures == empty).all(axis=1)
    bands[is_empty] = exact[is_empty, :1]
    length = np.asarray(pc.utf8_length(texts).to_numpy(), np.int64)
    return SignedDocuments(signatures, list(np.ascontiguousarray(bands.T)), exact, length, quality)


def unit_starts(units: Sequence[SignedUnit]) -> Numbers:
    """The number of each unit's first document, and at the end the number of documents."""
    return np.concatenate([[0], np.cumsum([len(unit) for unit in units], dtype=np.int64)]).astype(np.int64)


def find_exact(units: Sequence[SignedUnit], *, memory_bytes: int) -> Edges:
    """The first document of each text, paired with each later one of the same text."""

    starts = unit_starts(units)
    hashes = (unit.column("exact") for unit in units)
    parts = (make_rows(exact[:, 0], exact[:, 1], first=first) for exact, first in zip(hashes, starts, strict=False))
    found = []
    for runs in sorted_runs(parts, num_rows=int(starts[-1]), memory_bytes=memory_bytes):
        first = np.repeat(runs.number[runs.starts[:-1]], np.diff(runs.starts))
        is_later = first != runs.number
        found.append(Edges(first[is_later], runs.number[is_later], np.ones(int(is_later.sum()), np.float32)))
    return merge_edges(found)


def find_candidates(
    units: Sequence[SignedUnit],
    band: int,
    *,
    least: float,
    threshold: float,
    skip: Numbers,
    memory_bytes: int,
    signature_bytes: int,
) -> Edges:
    """Pairs that share this band's hash and whose estimated similarity is at least `least`.

    `skip`: documents, in order, that take no part, because they are exact copies of another. A document whose similarity with
    every leader is below `threshold` becomes a leader. Signatures of `signature_bytes` each, half of `memory_bytes` at once.
    """
    starts = unit_starts(units)
    limits = np.array([least, threshold], np.float32)

    def parts() -> Iterator[npt.NDArray[np.void]]:
        for unit, first in zip(units, starts.tolist(), strict=False):
            rows = make_rows(unit.column(f"{BAND}{band}"), None, first=first)
            low, high = np.searchsorted(skip, [first, first + len(rows)])
            yield np.delete(rows, skip[low:high] - first)

    found = []
    for runs in sorted_runs(parts(), num_rows=int(starts[-1]), memory_bytes=memory_bytes):
        leaders = np.zeros(0, np.int64)
        for part in cut_runs(runs, num_documents=max(1, memory_bytes // (2 * signature_bytes))):
            documents = np.unique(np.concatenate([leaders, part.number]))
            signatures = gather(units, documents, starts, "signatures")
            known, places = np.searchsorted(documents, leaders), np.searchsorted(documents, part.number)
            pairs, similarity, known, num_capped = _match_leaders(signatures, places, part.starts, known, limits)
            found.append(Edges(documents[pairs[:, 0]], documents[pairs[:, 1]], similarity, num_capped))
            leaders = documents[known] if part.goes_on else leaders[:0]
    return merge_edges(found)


def gather(units: Sequence[SignedUnit], documents: Numbers, starts: Numbers, name: str) -> npt.NDArray[Any]:
    """The rows of one column for these documents, at least one, which must be in ascending order."""
    bounds = np.searchsorted(documents, starts)
    parts = (
        units[unit].rows(name, documents[bounds[unit] : bounds[unit + 1]] - starts[unit])
        for unit in np.flatnonzero(np.diff(bounds)).tolist()
    )
    first = next(parts)
    found = np.empty((len(documents), *first.shape[1:]), first.dtype)
    found[: len(first)] = first
    place = len(first)
    for part in parts:
        found[place : place + len(part)] = part
        place += len(part)
    return found


def merge_edges(found: Sequence[Edges]) -> Edges:
    """All edges once, ordered by first and second document. Of equal pairs the similarity is the same everywhere."""
    if not found:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    first, second = (np.concatenate([getattr(edges, name) for edges in found]) for name in ("first", "second"))
    similarity = np.concatenate([edges.similarity for edges in found])
    order = np.lexsort((second, first))
    first, second, similarity = first[order], second[order], similarity[order]
    is_new = np.ones(len(first), np.bool_)
    is_new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Edges(first[is_new], second[is_new], similarity[is_new], sum(edges.num_capped for edges in found))


@dataclass(frozen=True, slots=True)
class Runs:
    """Numbers that share a hash with another, run after run; run i is number[starts[i] : starts[i + 1]], ascending.
    `goes_on`: the last run has more numbers, which come next."""

    number: Numbers
    starts: Numbers
    goes_on: bool = False


def cut_runs(runs: Runs, *, num_documents: int) -> Iterator[Runs]:
    """The same runs in parts of at most so many numbers; a cut may go through a run."""
    for first in range(0, len(runs.number), num_documents):
        last = min(first + num_documents, len(runs.number))
        low, high = np.searchsorted(runs.starts, [first + 1, last])
        starts = np.concatenate([[first], runs.starts[low:high], [last]]) - first
        yield Runs(runs.number[first:last], starts, bool(runs.starts[high] != last))


def make_rows(low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64] | None, *, first: int) -> npt.NDArray[np.void]:
    """ROWs of these hashes, numbered from `first`; `high` is None for hashes of 64 bits."""
    rows = np.zeros(len(low), ROW)
    rows["low"] = low
    if high is not None:
        rows["high"] = high
    rows["number"] = np.arange(first, first + len(rows))
    return rows


def sorted_runs(parts: Iterable[npt.NDArray[np.void]], *, num_rows: int, memory_bytes: int) -> Iterator[Runs]:
    """Runs of equal hashes among ROWs, one partition of the hashes at a time. What does not fit waits in temporary files.

    `num_rows`: about how many there are.
    """
    # Sorting needs the rows, their order and a copy.
    num_partitions = max(1, math.ceil(3 * ROW.itemsize * num_rows / memory_bytes))
    if num_partitions == 1:
        yield _runs_of(np.concatenate([np.zeros(0, ROW), *parts]))
        return
    with tempfile.TemporaryDirectory(prefix="dedup-") as folder:
        for rows in parts:
            partition = rows["low"] % np.uint64(num_partitions)
            for part in np.unique(partition):
                _append(Path(folder) / f"{part}.bin", rows[partition == part])
        for path in sorted(Path(folder).iterdir(), key=lambda path: int(path.stem)):
            runs = _runs_of(np.fromfile(path, ROW))
            path.unlink()
            yield runs


def _append(path: Path, rows: npt.NDArray[np.void]) -> None:
    try:
        with open(path, "ab") as file:
            file.write(rows.tobytes())
    except OSError as error:
        fix = "free space for temporary files, or point TMPDIR elsewhere"
        raise OSError(error.errno, f"hashes could not be written to {path} ({error.strerror}): {fix}") from error


def _runs_of(rows: npt.NDArray[np.void]) -> Runs:
    order = np.lexsort((rows["number"], rows["high"], rows["low"]))
    low, high, number = (rows[name][order] for name in ("low", "high", "number"))
    is_new = np.ones(len(rows) + 1, np.bool_)
    is_new[1:-1] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    sizes = np.diff(np.flatnonzero(is_new))
    in_run = np.repeat(sizes > 1, sizes)
    starts = np.concatenate([[0], np.cumsum(sizes[sizes > 1])])
    return Runs(number[in_run].astype(np.int64), starts.astype(np.int64))


@jit
def _match_leaders(
    signatures: Signatures, places: Numbers, starts: Numbers, known: Numbers, limits: npt.NDArray[np.float32]
) -> tuple[Numbers, npt.NDArray[np.float32], Numbers, int]:
    """(pairs of rows of `signatures`, their estimated similarity, the last run's leaders, comparisons left out).

    known: rows that are leaders of the first run already. limits: least, threshold.
    """
    least, threshold = limits
    size = max(16, len(places))
    pairs = np.empty((size, 2), np.int64)
    similarity = np.empty(size, np.float32)
    leaders = np.empty(MAX_LEADERS, np.int64)
    num_pairs, num_capped = 0, 0
    width = signatures.shape[1]
    num_leaders = len(known)
    leaders[:num_leaders] = known
    for run in range(len(starts) - 1):
        if run > 0:
            num_leaders = 0
        for position in range(starts[run], starts[run + 1]):
            document = places[position]
            best = np.float32(0)
            for index in range(num_leaders):
                equal = 0
                for place in range(width):
                    equal += signatures[leaders[index], place] == signatures[document, place]
                found = np.float32(equal / width)
                best = max(best, found)
                if found >= least:
                    if num_pairs == len(pairs):
                        pairs = np.concatenate((pairs, np.empty_like(pairs)))
                        similarity = np.concatenate((similarity, np.empty_like(similarity)))
                    pairs[num_pairs, 0], pairs[num_pairs, 1] = leaders[index], document
                    similarity[num_pairs] = found
                    num_pairs += 1
            if best < threshold:
                if num_leaders < MAX_LEADERS:
                    leaders[num_leaders] = document
                    num_leaders += 1
                else:
                    num_capped += 1
    return pairs[:num_pairs], similarity[:num_pairs], leaders[:num_leaders], num_capped
