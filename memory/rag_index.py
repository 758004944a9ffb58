"""RAGIndex: unit vectors in a flat faiss index, by integer id, with a file that can always be thrown away.

Flat is exact, takes deletions and filters, and answers in 11 ms at 100,000 x 384 on one thread. The file is one JSON
header line (version, identity, last_seq, checksum) and faiss's own bytes; it is replaced atomically. Whoever owns the
truth rebuilds the index when `load` raises IndexProblem. Thread-safe.
Source: faiss IndexIDMap2 over IndexFlatIP (github.com/facebookresearch/faiss/wiki).
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FILE_VERSION = 1
_REBUILD_ROWS = 4096

Vectors = NDArray[np.float32]
"""[n, dimension], rows of unit length."""


class IndexProblem(ValueError):
    """The index file is missing, damaged, or of another store: rebuild it from the truth."""


def check_vectors(vectors: Vectors, *, dimension: int, source: str) -> Vectors:
    """Float32 rows scaled to unit length. Raises ValueError for a wrong shape, NaN, infinity or a zero row."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(
            f"embedding from {source} has shape {vectors.shape}, the store holds vectors of {dimension}: use the "
            "embedder that the store was opened with, or open the store with the new one, which embeds everything again"
        )
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    is_bad = ~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))
    if is_bad.any():
        raise ValueError(
            f"embedding from {source} is NaN, infinite or zero in row {int(np.argmax(is_bad))} of {len(vectors)}: "
            "nothing was stored; check the embedder's weights and precision"
        )
    return np.asarray(vectors / norms, dtype=np.float32)


def encode_vector(vector: NDArray[np.float32]) -> bytes:
    """A unit vector as float16 bytes: 2 x dimension."""
    return vector.astype("<f2").tobytes()


def decode_vectors(blobs: Sequence[bytes], *, dimension: int) -> Vectors:
    """Stored bytes back to unit float32 rows [n, dimension]."""
    rows = np.frombuffer(b"".join(blobs), dtype="<f2").reshape(len(blobs), dimension).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class RAGIndex:
    """Vectors by id. `identity` names the store and the embedder; `last_seq` is the newest id the index has seen."""

    def __init__(self, dimension: int, *, identity: str, num_threads: int = 1) -> None:
        faiss.omp_set_num_threads(num_threads)
        self.dimension = dimension
        self.identity = identity
        self.last_seq = 0
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._ids: set[int] = set()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, dimension: int, identity: str) -> "RAGIndex":
        """Read a saved index. Raises IndexProblem when it is missing, damaged, or not of this store and embedder."""
        if not path.exists():
            raise IndexProblem(f"index file {path} is missing")
        header_line, _, payload = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(header_line)
            version, digest = header["version"], header["sha256"]
            found_identity, last_seq = header["identity"], int(header["last_seq"])
        except (ValueError, KeyError, TypeError) as error:
            raise IndexProblem(f"index file {path} has a damaged header") from error
        if version != FILE_VERSION:
            raise IndexProblem(f"index file {path} has version {version}, this program writes {FILE_VERSION}")
        if found_identity != identity:
            raise IndexProblem(f"index file {path} belongs to {found_identity!r}, this store is {identity!r}")
        if hashlib.sha256(payload).hexdigest() != digest:  # before faiss parses it: faiss may crash on damaged bytes
            raise IndexProblem(f"index file {path} is damaged: its checksum differs")
        index = cls(dimension, identity=identity)
        index._index = faiss.deserialize_index(np.frombuffer(payload, dtype=np.uint8))
        index._ids = set(faiss.vector_to_array(index._index.id_map).tolist())
        index.last_seq = last_seq
        return index

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        dimension: int,
        identity: str,
        wanted: Set[int],
        read_vectors: Callable[[Sequence[int]], Vectors],
    ) -> "RAGIndex":
        """An index of exactly the ids in `wanted`: the saved one brought up to date, or a new one if it is unusable.

        `read_vectors` gives the stored rows of ascending ids. What had to be repaired is logged and saved.
        """
        try:
            index = cls.load(path, dimension=dimension, identity=identity)
        except IndexProblem as problem:
            if wanted:
                logger.warning("rebuilding the vector index from %d stored vectors: %s", len(wanted), problem)
            index = cls(dimension, identity=identity)
        missing = sorted(wanted - index._ids)
        stale = index._ids - wanted
        if missing or stale:
            if index._ids:
                logger.warning("vector index was behind: adding %d, removing %d vectors", len(missing), len(stale))
            index.remove(stale)
            for start in range(0, len(missing), _REBUILD_ROWS):
                ids = missing[start : start + _REBUILD_ROWS]
                index.add(ids, vectors=read_vectors(ids))
            index.save(path)
        return index

    @property
    def ids(self) -> frozenset[int]:
        """The ids that are in the index now."""
        with self._lock:
            return frozenset(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[int], *, vectors: Vectors) -> None:
        """Add rows; an id that is there already gets the new vector."""
        vectors = check_vectors(vectors, dimension=self.dimension, source="the caller")
        if len(ids) != len(vectors):
            raise ValueError(f"ids has {len(ids)} entries and vectors {len(vectors)}: give one id per row")
        if not ids:
            return
        with self._lock:
            self._remove(self._ids.intersection(ids))
            self._index.add_with_ids(vectors, np.asarray(ids, dtype=np.int64))
            self._ids.update(ids)
            self.last_seq = max(self.last_seq, *ids)

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the ids that are there; their number is returned."""
        with self._lock:
            return self._remove(self._ids.intersection(ids))

    def search(self, query: NDArray[np.float32], *, k: int, only: Collection[int] | None = None) -> dict[int, float]:
        """The k nearest ids and their cosines, best first. `query` is one unit vector; `only` restricts the ids."""
        with self._lock:
            num_found = min(k, len(self._ids))
            if num_found == 0 or (only is not None and not only):
                return {}
            cosines, ids = self._index.search(query.reshape(1, -1), num_found, params=_only(only))
        found = zip(ids[0].tolist(), cosines[0].tolist(), strict=True)
        return {key: min(1.0, max(-1.0, cosine)) for key, cosine in found if key != -1}

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """The stored rows of these ids, in their order."""
        with self._lock:
            rows = [self._index.reconstruct(int(key)) for key in ids]
        return np.asarray(rows, dtype=np.float32).reshape(len(ids), self.dimension)

    def save(self, path: Path) -> None:
        """Replace the file atomically: written beside it, synced, renamed."""
        with self._lock:
            payload = faiss.serialize_index(self._index).tobytes()
            last_seq = self.last_seq
        header = {
            "version": FILE_VERSION,
            "identity": self.identity,
            "last_seq": last_seq,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _remove(self, ids: set[int]) -> int:
        if not ids:
            return 0
        self._index.remove_ids(np.fromiter(ids, dtype=np.int64, count=len(ids)))
        self._ids -= ids
        return len(ids)


def _only(ids: Collection[int] | None) -> object | None:
    if ids is None:
        return None
    build: Any = faiss.SearchParameters  # its keyword arguments are added at run time
    selector: object = build(sel=faiss.IDSelectorBatch(np.fromiter(ids, dtype=np.int64, count=len(ids))))
    return selector
