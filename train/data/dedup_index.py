"""DedupIndex: what earlier runs and the online stream have seen, on disk, so that a new document is compared with all of it.

In: signed documents with their ids. Out: for a new document the id of a known one that says the same. The index is a folder
of immutable segments (dedup_segment.py), and `index.json`, which names the segments and is replaced atomically: a reader sees
the old state or the new one. A lookup is a binary search per band and segment; small segments are merged so that there are
never many (a log-structured merge tree, O'Neil et al. 1996).
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from train.data.dedup import DedupConfig
from train.data.dedup_edges import SignedDocuments, sign_documents
from train.data.dedup_segment import IndexDamaged, Segment, build_segment, load_segment, write_segment
from train.data.minhash import MinHashConfig
from train.files import sync_path

INDEX_NAME = "index.json"
INDEX_VERSION = 1
MAX_SEGMENTS = 8
KEEP_OLD_S = 30 * 86_400.0
"""A merged segment stays so long for runs that began with it, seconds."""
ADDED_DOCUMENTS = 1 << 18
"""Documents of a run that are sorted in memory at once, about 2 KB each."""

Part = tuple[SignedDocuments, Sequence[str]]
"""Documents and their ids."""


class Match(NamedTuple):
    """A known document that says the same: its id, the estimated similarity, whether the texts are equal."""

    id: str
    similarity: float
    is_exact: bool


class DedupIndex:
    """Known documents in a folder. Writers take turns by a lock; what a reader has opened stays as it was."""

    def __init__(
        self,
        folder: Path,
        config: DedupConfig,
        *,
        segments: Sequence[tuple[str, Segment]] = (),
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
            (name, loaded.get(name) or load_segment(self._folder / name))
            for name in (names if pinned is None else pinned)
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

    def match(self, documents: SignedDocuments) -> tuple[list[Match | None], int]:
        """(for each document the known one that it duplicates, comparisons left out in large buckets).

        An equal text, else the one whose estimated similarity is the highest and at least the threshold: the texts of known
        documents are not here to be compared. Of several equally good ones the first that was added.
        """
        bands = np.stack(documents.bands, axis=1)
        found: list[Match | None] = []
        num_capped = 0
        for row in range(len(documents)):
            match, capped = self._match_one(documents.exact[row], bands[row], documents.signatures[row])
            found.append(match)
            num_capped += capped
        return found, num_capped

    def match_text(self, text: str) -> Match | None:
        """As `match`, for a text of the online stream."""
        return self.match(_sign([text], self._config.minhash))[0][0]

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
            self._add([(documents, ids)])

    def add_texts(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """As `add`, for texts of the online stream."""
        self.add(_sign(texts, self._config.minhash), ids)

    def add_run(self, run: str, parts: Iterable[Part]) -> bool:
        """Remember what a run kept, once: False if the index has this run already."""
        with self._writing():
            if self.has_run(run):
                return False
            self._runs.append(run)
            self._add(parts)
        return True

    def _match_one(
        self, exact: npt.NDArray[np.uint64], bands: npt.NDArray[np.uint64], signature: npt.NDArray[np.uint32]
    ) -> tuple[Match | None, int]:
        best: Match | None = None
        num_capped = 0
        for _, segment in self._segments:
            row, candidates, capped = segment.find(exact, bands)
            if row is not None:
                return Match(segment.id_of(row), 1.0, True), 0
            num_capped += capped
            if not candidates:
                continue
            similarity = np.mean(segment.signatures[candidates] == signature, axis=1)
            place = int(np.argmax(similarity))
            value = float(similarity[place])
            if value >= self._config.threshold and (best is None or value > best.similarity):
                best = Match(segment.id_of(candidates[place]), value, False)
        return best, num_capped

    def _add(self, parts: Iterable[Part]) -> None:
        new = [self._write([build_segment(*part)]) for part in _batched(parts)]
        if len(new) > 1:
            whole = self._write([segment for _, segment in new])
            for name, _ in new:  # in no state: nobody reads them
                shutil.rmtree(self._folder / name)
            new = [whole]
        self._segments += new
        if len(self._segments) > MAX_SEGMENTS:
            self._segments = [self._write([segment for _, segment in self._segments])]
        self._commit()
        self._remove_old()

    def _remove_old(self) -> None:
        """Segments that are in no state any more, once no run can be using them."""
        names = set(self.state)
        for path in self._folder.glob("segment-*"):
            if path.name not in names and time.time() - path.stat().st_mtime > KEEP_OLD_S:
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, segments: Sequence[Segment]) -> tuple[str, Segment]:
        name = f"segment-{uuid.uuid4().hex[:16]}"
        write_segment(self._folder / name, segments)
        return name, load_segment(self._folder / name)

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


def _batched(parts: Iterable[Part]) -> Iterator[Part]:
    """Documents in parts of about ADDED_DOCUMENTS; no empty one."""
    waiting: list[Part] = []
    num_documents = 0
    for part in parts:
        waiting.append(part)
        num_documents += len(part[0])
        if num_documents >= ADDED_DOCUMENTS:
            yield _concatenate(waiting)
            waiting, num_documents = [], 0
    if num_documents:
        yield _concatenate(waiting)


def _concatenate(parts: Sequence[Part]) -> Part:
    documents = [one for one, _ in parts]
    columns = {
        name: np.concatenate([one.column(name) for one in documents])
        for name in ("signatures", "exact", "length", "quality")
    }
    bands = [np.concatenate(band) for band in zip(*(one.bands for one in documents), strict=True)]
    return SignedDocuments(bands=bands, **columns), [name for _, ids in parts for name in ids]
