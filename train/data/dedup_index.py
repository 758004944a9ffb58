"""DedupIndex: what earlier runs and the online stream have seen, on disk, so that a new document is compared with all of it.

In: signed documents with their ids. Out: for a new document the id of a known one that says the same. The index is a folder
of immutable segments, each a set of sorted arrays that are memory-mapped, and `index.json`, which names the segments and is
replaced atomically: a reader sees the old state or the new one. A lookup is a binary search per band and segment; small
segments are merged so that there are never many (a log-structured merge tree, O'Neil et al. 1996).
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from train.data.dedup import DedupConfig
from train.data.dedup_edges import SignedDocuments, sign_documents
from train.data.minhash import MinHashConfig
from train.files import sync_path

INDEX_NAME = "index.json"
INDEX_VERSION = 1
MAX_SEGMENTS = 8
KEEP_OLD_S = 30 * 86_400.0
"""A merged segment stays so long for runs that began with it, seconds."""
MAX_CANDIDATES = 256
"""Documents of a bucket that are compared with a new one."""
_ARRAYS = ("exact", "exact_row", "bands", "band_row", "signatures", "id_bytes", "id_starts")


class IndexDamaged(ValueError):
    """The folder is no index, another version's or another shape's, or one of its files is missing."""


class Match(NamedTuple):
    """A known document that says the same: its id, the estimated similarity, whether the texts are equal."""

    id: str
    similarity: float
    is_exact: bool


@dataclass(frozen=True, slots=True)
class _Segment:
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

    def find(self, exact: npt.NDArray[np.uint64], bands: npt.NDArray[np.uint64]) -> tuple[int | None, list[int]]:
        """(row of an equal text, rows that share a band), each of a few at most."""
        low, high = _equal_range(self.exact[:, 0], exact[0])
        for place in range(low, high):
            if self.exact[place, 1] == exact[1]:
                return int(self.exact_row[place]), []
        rows: set[int] = set()
        for band, value in enumerate(bands):
            low, high = _equal_range(self.bands[band], value)
            rows.update(self.band_row[band, low : min(high, low + MAX_CANDIDATES)].tolist())
        return None, sorted(rows)


class DedupIndex:
    """Known documents in a folder. Writers take turns by a lock; what a reader has opened stays as it was."""

    def __init__(
        self,
        folder: Path,
        config: DedupConfig,
        *,
        segments: Sequence[tuple[str, _Segment]] = (),
        runs: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._config = config
        self._segments = list(segments)
        self._runs = list(runs)

    @classmethod
    def open(cls, folder: Path, config: DedupConfig, *, pinned: Sequence[str] | None = None) -> "DedupIndex":
        """Open, or begin with nothing; with `pinned`, exactly these segments.

        Raises IndexDamaged; ValueError if it was made with other signatures.
        """
        folder = Path(folder)
        index = cls(folder, config)
        index._reload(pinned)
        return index

    def _reload(self, pinned: Sequence[str] | None = None) -> None:
        path = self._folder / INDEX_NAME
        names, self._runs = [], []
        if path.exists():
            try:
                state = json.loads(path.read_text("utf-8"))
                version, names, self._runs = state["version"], list(state["segments"]), list(state["runs"])
                known = MinHashConfig(**state["minhash"])
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise IndexDamaged(
                    f"{path} is no index of documents ({error}): remove the folder to begin anew"
                ) from error
            if version != INDEX_VERSION:
                raise IndexDamaged(
                    f"{path} has version {version}, this program reads {INDEX_VERSION}: build the index again"
                )
            if known != self._config.minhash:
                raise ValueError(
                    f"{path} was built with minhash = {known}, the configuration has {self._config.minhash}: use the same, or "
                    "another folder"
                )
        loaded = dict(self._segments)
        self._segments = [
            (name, loaded.get(name) or _load(self._folder / name)) for name in (names if pinned is None else pinned)
        ]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The newest state, and nobody else writes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._reload()
            yield

    def __len__(self) -> int:
        return sum(len(segment) for _, segment in self._segments)

    def match(self, documents: SignedDocuments) -> list[Match | None]:
        """For each document the known one that it duplicates: an equal text, else the most similar one above the threshold.

        Of several equally good ones the first that was added.
        """
        bands = np.stack(documents.bands, axis=1)
        return [
            self._match_one(documents.exact[row], bands[row], documents.signatures[row])
            for row in range(len(documents))
        ]

    def match_text(self, text: str) -> Match | None:
        """As `match`, for a text of the online stream."""
        return self.match(_sign([text], self._config.minhash))[0]

    @property
    def state(self) -> list[str]:
        """Names of the segments: what a run that goes on must find unchanged."""
        return [name for name, _ in self._segments]

    def has_run(self, run: str) -> bool:
        """Whether `add_run` was called for it."""
        return run in self._runs

    def add(self, documents: SignedDocuments, ids: Sequence[str]) -> None:
        """Remember documents; durable when it returns."""
        with self._writing():
            self._add_segment(_build(documents, ids))

    def add_texts(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """As `add`, for texts of the online stream."""
        self.add(_sign(texts, self._config.minhash), ids)

    def add_run(self, run: str, documents: Sequence[SignedDocuments], ids: Sequence[Sequence[str]]) -> bool:
        """Remember what a run kept, once: False if the index has this run already."""
        with self._writing():
            if self.has_run(run):
                return False
            self._runs.append(run)
            self._add_segment(_join([_build(part, names) for part, names in zip(documents, ids, strict=True)]))
        return True

    def _match_one(
        self, exact: npt.NDArray[np.uint64], bands: npt.NDArray[np.uint64], signature: npt.NDArray[np.uint32]
    ) -> Match | None:
        best: Match | None = None
        for _, segment in self._segments:
            row, candidates = segment.find(exact, bands)
            if row is not None:
                return Match(segment.id_of(row), 1.0, True)
            if not candidates:
                continue
            similarity = np.mean(segment.signatures[candidates] == signature, axis=1)
            place = int(np.argmax(similarity))
            value = float(similarity[place])
            if value >= self._config.threshold and (best is None or value > best.similarity):
                best = Match(segment.id_of(candidates[place]), value, False)
        return best

    def _add_segment(self, segment: _Segment | None) -> None:
        if segment is not None and len(segment):
            self._segments.append(self._write(segment))
        if len(self._segments) > MAX_SEGMENTS:
            joined = _join([part for _, part in self._segments])
            assert joined is not None
            self._segments = [self._write(joined)]
        self._commit()
        self._remove_old()

    def _remove_old(self) -> None:
        """Segments that are in no state any more, once no run can be using them."""
        names = set(self.state)
        for path in self._folder.glob("segment-*"):
            if path.name not in names and time.time() - path.stat().st_mtime > KEEP_OLD_S:
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, segment: _Segment) -> tuple[str, _Segment]:
        name = f"segment-{uuid.uuid4().hex[:16]}"
        folder = self._folder / name
        partial = self._folder / f".{name}.partial"
        partial.mkdir(parents=True)
        for array in _ARRAYS:
            np.save(partial / f"{array}.npy", getattr(segment, array))
            sync_path(partial / f"{array}.npy")
        os.replace(partial, folder)
        sync_path(self._folder)
        return name, _load(folder)

    def _commit(self) -> None:
        state: dict[str, Any] = {
            "version": INDEX_VERSION,
            "minhash": self._config.minhash.model_dump(),
            "segments": [name for name, _ in self._segments],
            "runs": self._runs,
        }
        partial = self._folder / f".{INDEX_NAME}.partial"
        partial.write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        sync_path(partial)
        os.replace(partial, self._folder / INDEX_NAME)
        sync_path(self._folder)


def _sign(texts: Sequence[str], config: MinHashConfig) -> SignedDocuments:
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    return sign_documents(column, config, quality=np.zeros(len(texts), np.float32))


def _build(documents: SignedDocuments, ids: Sequence[str]) -> _Segment:
    if len(ids) != len(documents):
        raise ValueError(f"ids: {len(ids)} for {len(documents)} documents; give one for each")
    names = [name.encode() for name in ids]
    starts = np.concatenate([[0], np.cumsum([len(name) for name in names], dtype=np.int64)]).astype(np.int64)
    exact_row = np.lexsort((documents.exact[:, 1], documents.exact[:, 0]))
    bands = np.stack(documents.bands)
    band_row = np.argsort(bands, axis=1, kind="stable")
    return _Segment(
        exact=documents.exact[exact_row],
        exact_row=exact_row,
        bands=np.take_along_axis(bands, band_row, axis=1),
        band_row=band_row,
        signatures=documents.signatures,
        id_bytes=np.frombuffer(b"".join(names), np.uint8),
        id_starts=starts,
    )


def _join(segments: Sequence[_Segment]) -> _Segment | None:
    """One segment of several, rows in their order; None of none."""
    if not segments:
        return None
    exact, bands = [], []
    for segment in segments:  # back to the order of rows
        exact.append(segment.exact[np.argsort(segment.exact_row)])
        bands.append(np.take_along_axis(segment.bands, np.argsort(segment.band_row, axis=1), axis=1))
    ids = [segment.id_of(row) for segment in segments for row in range(len(segment))]
    signatures = np.concatenate([segment.signatures for segment in segments])
    none = np.zeros(len(ids), np.int64)
    documents = SignedDocuments(
        signatures, list(np.concatenate(bands, axis=1)), np.concatenate(exact), none, none.astype(np.float32)
    )
    return _build(documents, ids)


def _load(folder: Path) -> _Segment:
    try:
        return _Segment(**{name: _map(folder / f"{name}.npy") for name in _ARRAYS})
    except (OSError, ValueError) as error:
        raise IndexDamaged(f"segment {folder} cannot be read ({error}): restore it, or remove the index") from error


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _equal_range(values: npt.NDArray[np.uint64], value: np.uint64) -> tuple[int, int]:
    low = int(np.searchsorted(values, value, side="left"))
    return low, int(np.searchsorted(values, value, side="right"))
