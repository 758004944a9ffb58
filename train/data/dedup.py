"""Deduplicator: which documents say what another one says, exactly or nearly, and which of them stays.

In: document tables, one per unit. Out: for every duplicate the document that is kept in its place, with their similarity, so
that an audit can follow each removal. Steps: sign every document, pair those that share a text hash or a band
(dedup_edges.py), verify the near pairs, join pairs to groups (connected components), keep one document of each group. Pairs
and groups depend on the documents alone, not on how many workers found them.

LSH candidates are not duplicates: with 16 bands of 8 rows 24 % of the pairs of similarity .6 become candidates. Pairs whose
estimate lies beyond the threshold by `verify_margin` are decided by it; between, the texts' shingles are compared.
Sources: Broder 1997; Lee et al., Deduplicating Training Data Makes Language Models Better (arXiv:2107.06499).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from train.data.dedup_edges import (
    Edges,
    Numbers,
    SignedDocuments,
    SignedUnit,
    find_candidates,
    find_exact,
    gather,
    merge_edges,
    sign_documents,
    unit_starts,
)
from train.data.jit import jit
from train.data.minhash import MinHashConfig, jaccard, shingles_of
from train.data.schema import set_column, with_reasons

EXACT_RULE, NEAR_RULE = "duplicate.exact", "duplicate.near"
DUPLICATE_OF = "duplicate_of"
"""Key of a document's metadata: the id of the document that was kept in its place."""
PAIRS_AT_ONCE = 1024
BYTES_PER_CHAR = 16
"""Memory that comparing takes: the text and its copy in UTF-8, up to 4 bytes each, and 8 for a shingle, which can be as many
as the characters (Chinese)."""
ROWS_AT_ONCE = 1 << 14

KeepPolicy = Literal["first", "longest", "best_quality"]
ReadTexts = Callable[[Numbers], pa.ChunkedArray]
"""Texts of documents, given by their numbers in ascending order."""


class DedupConfig(BaseModel):
    """What counts as a duplicate, and which document of a group stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minhash: MinHashConfig = MinHashConfig()
    """Signatures."""
    threshold: float = Field(0.8, gt=0, le=1)
    """Least Jaccard similarity of the word shingles of near duplicates."""
    verify_margin: float = Field(0.1, ge=0, le=1)
    """Estimates closer to the threshold than this are verified by the texts; .1 is three standard errors of 128 permutations.
    0 believes every estimate, 1 verifies every candidate."""
    keep: KeepPolicy = "first"
    """Which document of a group stays: the first in the order of the run, the longest text, or the best quality score. Ties go
    to the first."""
    memory_bytes: int = Field(1 << 30, ge=1 << 20)
    """Memory for the hashes and signatures of one job; more hashes go through temporary files, more signatures are loaded one
    part after the other. The pairs that are found come on top."""
    audit_pairs: int = Field(200, ge=0)
    """Removed documents whose texts are compared exactly, to estimate precision and recall."""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The documents that go, in ascending order, each with the one that stays and their estimated similarity."""

    document: Numbers
    kept: Numbers
    similarity: npt.NDArray[np.float32]
    is_exact: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.document)


@dataclass(frozen=True, slots=True)
class DedupEstimate:
    """How good the near-duplicate removal is, estimated on pairs drawn at random and compared exactly.

    `precision`: share of removed documents whose similarity with the kept one reaches the threshold, with its 95 % interval
    (Wilson). Groups are chains, so it can be below 1 where every pair was verified. `recall`: share of the pairs above the
    threshold that share a band, by inverse probability weights (Horvitz & Thompson 1952). None where nothing was near.
    """

    num_pairs: int
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None


class Deduplicator:
    """Finds duplicates among signed documents. Holds no documents; see dedup_index.py for what must outlive a run."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def sign(self, table: pa.Table) -> SignedDocuments:
        """What later steps need of a document table."""
        quality = np.asarray(table["quality"].to_numpy(), np.float32)
        return sign_documents(table["text"], self.config.minhash, quality=quality)

    def find_exact(self, units: Sequence[SignedUnit]) -> Edges:
        """Pairs of equal texts."""
        return find_exact(units, memory_bytes=self.config.memory_bytes)

    def find_candidates(self, units: Sequence[SignedUnit], band: int, *, exact: Edges) -> Edges:
        """Pairs that share a band and may be near duplicates; copies of an earlier text take no part."""
        return find_candidates(
            units,
            band,
            least=self.config.threshold - self.config.verify_margin,
            threshold=self.config.threshold,
            skip=np.unique(exact.second),
            memory_bytes=self.config.memory_bytes,
            signature_bytes=4 * self.config.minhash.num_permutations,
        )

    def verify(self, units: Sequence[SignedUnit], candidates: Edges, read_texts: ReadTexts) -> Edges:
        """The candidates that are near duplicates; where texts were compared, with their exact similarity."""
        threshold, margin = self.config.threshold, self.config.verify_margin
        similarity = candidates.similarity.copy()
        unsure = np.flatnonzero((similarity < threshold + margin) & (margin > 0))
        similarity[unsure] = self.compare_texts(units, candidates.first[unsure], candidates.second[unsure], read_texts)
        is_near = similarity >= np.float32(threshold)
        return Edges(candidates.first[is_near], candidates.second[is_near], similarity[is_near], candidates.num_capped)

    def compare_texts(
        self, units: Sequence[SignedUnit], first: Numbers, second: Numbers, read_texts: ReadTexts
    ) -> npt.NDArray[np.float32]:
        """Exact Jaccard similarity of each pair. As many texts are read at once as `memory_bytes` holds, or two."""
        similarity = np.empty(len(first), np.float32)
        if not len(first):
            return similarity
        documents, places = np.unique(np.stack([first, second]), return_inverse=True)
        lengths = gather(units, documents, unit_starts(units), "length")
        num_chars = lengths[places].reshape(2, -1).sum(axis=0)
        for rows in _slices(num_chars, most=self.config.memory_bytes // BYTES_PER_CHAR):
            documents, places = np.unique(np.stack([first[rows], second[rows]]), return_inverse=True)
            sets = shingles_of(read_texts(documents), self.config.minhash)
            pairs = places.reshape(2, -1).T.tolist()
            similarity[rows] = [jaccard(sets[a], sets[b]) for a, b in pairs]
        return similarity

    def decide(self, units: Sequence[SignedUnit], exact: Edges, near: Edges) -> Duplicates:
        """One document of each group of connected pairs stays; the others are its duplicates."""
        starts = unit_starts(units)
        first, second = np.concatenate([exact.first, near.first]), np.concatenate([exact.second, near.second])
        members, places = np.unique(np.stack([first, second]), return_inverse=True)
        if len(members) == 0:
            none = np.zeros(0, np.int64)
            return Duplicates(none, none, np.zeros(0, np.float32), np.zeros(0, np.bool_))
        group = _components(places.reshape(2, -1).astype(np.int64), len(members))
        columns: dict[KeepPolicy, str] = {"longest": "length", "best_quality": "quality"}
        if self.config.keep == "first":
            rank = np.zeros(len(members))
        else:
            rank = -gather(units, members, starts, columns[self.config.keep]).astype(np.float64)
        order = np.lexsort((members, rank, group))
        is_best = np.ones(len(order), np.bool_)
        is_best[1:] = group[order][1:] != group[order][:-1]
        best_of = np.empty(len(members), np.int64)
        best_of[group[order][is_best]] = members[order][is_best]
        kept = best_of[group]
        goes = kept != members
        document, kept = members[goes], kept[goes]
        return self._describe(units, document, kept, starts)

    def _describe(self, units: Sequence[SignedUnit], document: Numbers, kept: Numbers, starts: Numbers) -> Duplicates:
        originals, places = np.unique(kept, return_inverse=True)
        mine, theirs = (gather(units, numbers, starts, "exact") for numbers in (document, originals))
        is_exact = (mine == theirs[places]).all(axis=1)
        similarity = np.empty(len(document), np.float32)
        for first in range(0, len(document), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            names, at = np.unique(kept[rows], return_inverse=True)
            ours, others = (gather(units, numbers, starts, "signatures") for numbers in (document[rows], names))
            similarity[rows] = np.mean(ours == others[at], axis=1)
        return Duplicates(document, kept, similarity, is_exact)

    def estimate(
        self,
        units: Sequence[SignedUnit],
        duplicates: Duplicates,
        near: Edges,
        read_texts: ReadTexts,
        *,
        seed: int = 0,
    ) -> DedupEstimate:
        """Precision and recall of the near-duplicate removal, from `audit_pairs` pairs for each."""
        generator = np.random.default_rng(seed)
        threshold = self.config.threshold
        removed = np.flatnonzero(~duplicates.is_exact)
        rows = np.sort(generator.permutation(removed)[: self.config.audit_pairs])
        pairs = np.sort(generator.permutation(len(near))[: self.config.audit_pairs])
        if not len(rows) or not len(pairs):
            return DedupEstimate(0, None, None, None, None)
        found = self.compare_texts(units, duplicates.document[rows], duplicates.kept[rows], read_texts)
        precision = float(np.mean(found >= np.float32(threshold)))
        low, high = wilson_interval(precision, len(rows))
        similarity = self.compare_texts(units, near.first[pairs], near.second[pairs], read_texts)
        similar = similarity[similarity >= np.float32(threshold)]
        weights = [1 / self.config.minhash.candidate_probability(float(value)) for value in similar]
        recall = len(weights) / sum(weights) if weights else None
        return DedupEstimate(len(rows), precision, low, high, recall)

    def deduplicate(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """The tables with the reasons and the metadata of their duplicates, all in memory."""
        units = [self.sign(table) for table in tables]
        texts = pa.chunked_array([chunk for table in tables for chunk in table["text"].chunks], pa.large_string())
        ids = np.concatenate([table["id"].to_numpy() for table in tables]) if tables else np.zeros(0, object)
        exact = self.find_exact(units)
        bands = range(self.config.minhash.num_bands)
        candidates = merge_edges([self.find_candidates(units, band, exact=exact) for band in bands])
        near = self.verify(units, candidates, texts.take)
        duplicates = self.decide(units, exact, near)
        starts = unit_starts(units)
        marked = []
        for index, table in enumerate(tables):
            low, high = np.searchsorted(duplicates.document, starts[index : index + 2])
            rows = duplicates.document[low:high] - starts[index]
            part = slice(low, high)
            marked.append(
                mark_duplicates(
                    table,
                    rows,
                    list(ids[duplicates.kept[part]]),
                    duplicates.similarity[part],
                    duplicates.is_exact[part],
                )
            )
        return marked


def mark_duplicates(
    table: pa.Table,
    rows: Numbers,
    kept_ids: Sequence[str],
    similarity: npt.NDArray[np.float32],
    is_exact: npt.NDArray[np.bool_],
) -> pa.Table:
    """The table whose `rows` have a reason, and in their metadata the id of the document that was kept."""
    if not len(rows):
        return table
    reasons: list[list[dict[str, object]]] = [[] for _ in range(len(table))]
    metadata = table["metadata"].to_pylist()
    for row, kept_id, value, exact in zip(rows.tolist(), kept_ids, similarity.tolist(), is_exact.tolist(), strict=True):
        reasons[row] = [{"rule": EXACT_RULE if exact else NEAR_RULE, "value": round(value, 4)}]
        metadata[row] = [*metadata[row], (DUPLICATE_OF, kept_id)]
    table = set_column(table, "metadata", pa.array(metadata, table.schema.field("metadata").type))
    return with_reasons(table, reasons)


def wilson_interval(share: float, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share that was observed in `count` draws (Wilson 1927)."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (centre - spread) / (1 + z * z / count)), min(1.0, (centre + spread) / (1 + z * z / count))


def _slices(num_chars: Numbers, *, most: int) -> Iterator[slice]:
    """Consecutive pairs of at most `most` characters and PAIRS_AT_ONCE in number, or a single one."""
    ends = np.cumsum(num_chars)
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + most, side="right"))
        last = min(max(last, first + 1), first + PAIRS_AT_ONCE)
        yield slice(first, last)
        first = last


@jit
def _components(pairs: npt.NDArray[np.int64], num_members: int) -> Numbers:
    """For each member the least member of its connected component (union by least root, with path halving)."""
    parent = np.arange(num_members)
    for index in range(pairs.shape[1]):
        a, b = pairs[0, index], pairs[1, index]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for member in range(num_members):  # a parent is never after its member
        parent[member] = parent[parent[member]]
    return parent
