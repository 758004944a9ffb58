"""RAGIndex: unit vectors in faiss, by integer id, with a file that can always be thrown away.

Up to `ivf_above` vectors the index is flat: exact, 11 ms at 100,000 x 384 on one thread. Above, an inverted file of
float16 vectors looks at as many lists as a measured recall needs. (HNSW takes 70 times as long to build and cannot
delete.) A removed vector is a tombstone until `purge`. The file is one JSON header line (version, identity, last_seq,
checksum), the ids and faiss's own bytes; it is replaced atomically. Whoever owns the truth rebuilds the index when
`load` raises IndexProblem. Thread-safe.
Source: faiss IndexFlatIP, IndexIVFScalarQuantizer and IDSelectorBitmap (github.com/facebookresearch/faiss/wiki).
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

FILE_VERSION = 2
MAX_DEAD_SHARE = 0.1
"""Of the slots: with more tombstones the index is purged."""
REGROWTH = 4
"""An inverted file is trained anew when it holds so many times the vectors of its training."""
_MIN_DEAD = 1000
_REBUILD_ROWS = 4096
_TRAINING_ROWS_PER_LIST = 40
_TUNING_QUERIES = 200
_TUNING_K = 10
_SELECTIVE = 0.02

Vectors = NDArray[np.float32]
"""[n, dimension], rows of unit length."""
Seqs = NDArray[np.int64]
Mask = NDArray[np.bool_]
Allowed = Callable[[Seqs], Mask]
"""Which of these ids may be found."""


class IndexConfig(BaseModel):
    """When the index stops being exact, and how good it has to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ivf_above: int = Field(100_000, ge=1)
    """More vectors than this are held in an inverted file."""
    min_recall: float = Field(0.97, gt=0, le=1)
    """Recall@10 on its own vectors that the number of visited lists is chosen for."""


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
    """Vectors by id. `identity` names the store and the embedder; `last_seq` is the newest id the index has seen.

    faiss numbers its vectors by *slots*; `_seqs` maps a slot to its id, and a slot that is not alive is a tombstone.
    """

    def __init__(
        self, dimension: int, *, identity: str, config: IndexConfig | None = None, num_threads: int = 1
    ) -> None:
        faiss.omp_set_num_threads(num_threads)
        self.dimension = dimension
        self.identity = identity
        self.config = config or IndexConfig()
        self.last_seq = 0
        self._index: Any = faiss.IndexFlatIP(dimension)
        self._num_trained = 0  # vectors that an inverted file was trained for; 0: flat
        self._seqs: Seqs = np.empty(0, dtype=np.int64)
        self._is_alive: Mask = np.empty(0, dtype=np.bool_)
        self._slots: dict[int, int] = {}
        self._num_purges = 0
        self.version = 0
        """Grows whenever the ids that `allowed` is asked for are others."""
        self._lock = threading.RLock()

    # -- file

    @classmethod
    def load(cls, path: Path, *, dimension: int, identity: str, config: IndexConfig | None = None) -> "RAGIndex":
        """Read a saved index. Raises IndexProblem when it is missing, damaged, or not of this store and embedder."""
        if not path.exists():
            raise IndexProblem(f"index file {path} is missing")
        header_line, _, payload = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(header_line)
            version, digest = header["version"], header["sha256"]
            found_identity, last_seq, num_ids = header["identity"], int(header["last_seq"]), int(header["num_ids"])
            num_trained = int(header["num_trained"])
        except (ValueError, KeyError, TypeError) as error:
            raise IndexProblem(f"index file {path} has a damaged header") from error
        if version != FILE_VERSION:
            raise IndexProblem(f"index file {path} has version {version}, this program writes {FILE_VERSION}")
        if found_identity != identity:
            raise IndexProblem(f"index file {path} belongs to {found_identity!r}, this store is {identity!r}")
        if hashlib.sha256(payload).hexdigest() != digest:  # before faiss parses it: faiss may crash on damaged bytes
            raise IndexProblem(f"index file {path} is damaged: its checksum differs")
        index = cls(dimension, identity=identity, config=config)
        index._index = faiss.deserialize_index(np.frombuffer(payload, dtype=np.uint8, offset=8 * num_ids))
        index._num_trained = num_trained
        index._seqs = np.frombuffer(payload, dtype="<i8", count=num_ids).astype(np.int64)
        index._is_alive = np.ones(num_ids, dtype=np.bool_)
        index._slots = {seq: slot for slot, seq in enumerate(index._seqs.tolist())}
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
        config: IndexConfig | None = None,
    ) -> "RAGIndex":
        """An index of exactly the ids in `wanted`: the saved one brought up to date, or a new one if it is unusable.

        `read_vectors` gives the stored rows of ascending ids. What had to be repaired is logged and saved.
        """
        try:
            index = cls.load(path, dimension=dimension, identity=identity, config=config)
        except IndexProblem as problem:
            if wanted:
                logger.warning("rebuilding the vector index from %d stored vectors: %s", len(wanted), problem)
            index = cls(dimension, identity=identity, config=config)
        missing = sorted(wanted - index._slots.keys())
        stale = index._slots.keys() - wanted
        if missing or stale:
            if index._slots:
                logger.warning("vector index was behind: adding %d, removing %d vectors", len(missing), len(stale))
            index.remove(stale)
            for start in range(0, len(missing), _REBUILD_ROWS):
                ids = missing[start : start + _REBUILD_ROWS]
                index.add(ids, vectors=read_vectors(ids))
            index.train_if_due()
            index.save(path)
        return index

    def save(self, path: Path) -> None:
        """Replace the file atomically: written beside it, synced, renamed. It holds no tombstones."""
        with self._lock:
            self.purge()
            payload = self._seqs.astype("<i8").tobytes() + faiss.serialize_index(self._index).tobytes()
            header = {
                "version": FILE_VERSION,
                "identity": self.identity,
                "last_seq": self.last_seq,
                "num_ids": len(self._seqs),
                "num_trained": self._num_trained,
                "sha256": hashlib.sha256(payload).hexdigest(),
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        try:
            with draft.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # -- contents

    @property
    def ids(self) -> frozenset[int]:
        """The ids that are in the index now."""
        with self._lock:
            return frozenset(self._slots)

    @property
    def is_exact(self) -> bool:
        """Whether every search looks at every vector."""
        return self._num_trained == 0

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, ids: Sequence[int], *, vectors: Vectors) -> None:
        """Add rows; an id that is there already gets the new vector."""
        vectors = check_vectors(vectors, dimension=self.dimension, source="the caller")
        if len(ids) != len(vectors):
            raise ValueError(f"ids has {len(ids)} entries and vectors {len(vectors)}: give one id per row")
        if not ids:
            return
        with self._lock:
            self._bury(self._slots.keys() & set(ids))
            first = len(self._seqs)
            self._index.add(vectors)  # of either kind: they are numbered in the order of adding
            self._seqs = np.concatenate([self._seqs, np.asarray(ids, dtype=np.int64)])
            self._is_alive = np.concatenate([self._is_alive, np.ones(len(ids), dtype=np.bool_)])
            self._slots.update(zip(ids, range(first, first + len(ids)), strict=True))
            self.last_seq = max(self.last_seq, *ids)
            self.version += 1

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the ids that are there; their number is returned. Their vectors stay in memory until `purge`."""
        with self._lock:
            known = self._slots.keys() & set(ids)
            self._bury(known)
            num_dead = len(self._seqs) - len(self._slots)
            if num_dead > max(_MIN_DEAD, MAX_DEAD_SHARE * len(self._seqs)):
                self.purge()
            return len(known)

    def purge(self) -> None:
        """Take removed vectors out of the index itself."""
        with self._lock:
            if len(self._slots) == len(self._seqs):
                return
            self._index.remove_ids(_selector(~self._is_alive))
            if not self.is_exact:  # a flat index moves its vectors up, an inverted file keeps their numbers
                _renumber(self._index.invlists, np.cumsum(self._is_alive) - 1)
            self._seqs = self._seqs[self._is_alive]
            self._is_alive = np.ones(len(self._seqs), dtype=np.bool_)
            self._slots = {seq: slot for slot, seq in enumerate(self._seqs.tolist())}
            self._num_purges += 1
            self.version += 1

    def search(self, query: NDArray[np.float32], *, k: int, allowed: Allowed | None = None) -> dict[int, float]:
        """The k nearest ids and their cosines, best first. `query` is one unit vector; `allowed` restricts the ids."""
        with self._lock:
            mask = self._is_alive
            if allowed is not None:
                mask = mask & allowed(self._seqs)
            num_allowed = int(np.count_nonzero(mask))
            num_found = min(k, num_allowed)
            if num_found == 0:
                return {}
            params = self._parameters(mask, is_selective=num_allowed < max(_SELECTIVE * len(mask), 10 * k))
            cosines, slots = self._index.search(query.reshape(1, -1), num_found, params=params)
            found = slots[0] >= 0
            seqs = self._seqs[slots[0][found]]
        return dict(zip(seqs.tolist(), np.clip(cosines[0][found], -1.0, 1.0).tolist(), strict=True))

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """The stored rows of these ids, in their order."""
        with self._lock:
            return self._rows()[[self._slots[key] for key in ids]]

    # -- above the exact size

    def train_if_due(self) -> bool:
        """Train the inverted file anew if the index has outgrown its form; True if it did.

        Searches and additions go on meanwhile. A purge, which numbers the vectors anew, makes it begin again later.
        """
        with self._lock:
            num = len(self._slots)
            if num <= self.config.ivf_above or (not self.is_exact and num <= REGROWTH * self._num_trained):
                return False
            self.purge()
            num_purges, rows = self._num_purges, self._rows()
        logger.info("training an inverted file for %d vectors", num)
        trained = _train(rows, min_recall=self.config.min_recall)
        with self._lock:
            if self._num_purges != num_purges:
                return False
            trained.add(self._rows()[num:])
            self._index, self._num_trained = trained, num
        return True

    def _bury(self, ids: Iterable[int]) -> None:
        for key in list(ids):
            self._is_alive[self._slots.pop(key)] = False

    def _parameters(self, mask: Mask, *, is_selective: bool) -> Any:
        """How to search among the slots of `mask`. With few of them every list is looked at."""
        build: Any = faiss.SearchParameters if self.is_exact else faiss.SearchParametersIVF
        options: dict[str, Any] = {}
        if not mask.all():
            options["sel"] = _selector(mask)
        if not self.is_exact:
            options["nprobe"] = self._index.nlist if is_selective else self._index.nprobe
        return build(**options) if options else None

    def _rows(self) -> Vectors:
        """All vectors by slot, tombstones too."""
        num = self._index.ntotal
        if self.is_exact:
            flat = faiss.rev_swig_ptr(self._index.get_xb(), num * self.dimension)
            return np.array(flat, dtype=np.float32).reshape(num, self.dimension)
        rows = np.empty((num, self.dimension), dtype=np.float32)
        lists = self._index.invlists
        for number in range(lists.nlist):
            size = lists.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                rows[ids] = codes.view("<f2").reshape(size, self.dimension)
        return rows


def _selector(mask: Mask) -> Any:
    build: Any = faiss.IDSelectorBitmap  # takes an array since faiss's own wrapper, which its types do not know
    return build(np.packbits(mask, bitorder="little"))


def _train(rows: Vectors, *, min_recall: float) -> Any:
    """An inverted file of float16 vectors that visits so many lists that `min_recall` of the 10 nearest are found."""
    num, dimension = rows.shape
    num_lists = max(1, round(4 * np.sqrt(num)))
    quantizer = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dimension, num_lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    rng = np.random.default_rng(0)
    sample = rng.permutation(num)[: _TRAINING_ROWS_PER_LIST * num_lists]
    index.cp.min_points_per_centroid = 1
    index.train(rows[sample])
    index.add(rows)
    queries = rows[rng.permutation(num)[:_TUNING_QUERIES]]
    exact = _exact_neighbours(rows, queries, k=_TUNING_K + 1)  # the first is the vector itself
    index.nprobe = 1
    while index.nprobe < num_lists:
        _, found = index.search(queries, _TUNING_K + 1)
        recall = np.mean([len(set(one) & set(other)) for one, other in zip(exact, found, strict=True)]) / exact.shape[1]
        if recall >= min_recall:
            break
        index.nprobe = min(num_lists, 2 * index.nprobe)
    return index


def _exact_neighbours(rows: Vectors, queries: Vectors, *, k: int) -> NDArray[np.int64]:
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    neighbours: NDArray[np.int64] = flat.search(queries, k)[1]
    return neighbours


def _renumber(lists: Any, new_number: NDArray[np.int64]) -> None:
    """Give the vectors of inverted lists other numbers, in place."""
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = new_number[ids]
