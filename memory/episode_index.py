"""What finds episodes in one SQLite store: words in FTS5, vectors in faiss, filters in arrays.

All three follow the rows: the words in their transaction, vectors and arrays right behind the commit, under the writer
lock. Each is rebuilt from the rows when it is missing, behind or damaged.
"""

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory.columns import ColumnRow, ColumnView, EpisodeColumns, Mask, Seqs
from memory.episode_rows import INDEXED, RECALLABLE, REPEATED, SCHEMA, IndexChange, own_conditions
from memory.rag_index import IndexConfig, RAGIndex, Vectors, decode_vectors, encode_vector
from memory.store import Database, SqlConnection
from memory.types import EpisodeFilter
from memory.words import TITLE_WEIGHT, TOKENIZER, Tokenizer, WordStatistics, score_term

logger = logging.getLogger(__name__)

_PROBED = 16
_MERGE_PAGES, _MERGES = 64, 20
"""Of the keyword index that one write merges, some 10 ms, and writes of one call of `maintain`."""

SQLITE_SCHEMA = SCHEMA + (
    f"""
CREATE VIEW episode_recallable AS SELECT seq, title, text FROM episode WHERE {RECALLABLE};
CREATE VIRTUAL TABLE episode_words USING fts5(
  title, text, content='episode_recallable', content_rowid='seq', tokenize='{TOKENIZER}');
INSERT INTO episode_words(episode_words, rank) VALUES('usermerge', 2);
CREATE VIRTUAL TABLE episode_terms USING fts5vocab(episode_words, 'row');
CREATE VIRTUAL TABLE episode_occurrences USING fts5vocab(episode_words, 'instance');
"""
)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one candidate: BM25 (0 where it holds none of the words), and the cosine (None while its vector waits)."""

    bm25: float
    cosine: float | None


class EpisodeIndex(Protocol):
    """Finds episodes. `write` belongs into the transaction of the rows, `follow` behind its commit."""

    def write(self, connection: SqlConnection, change: IndexChange) -> None:
        """Put the words of a change in and out."""

    def follow(self, change: IndexChange) -> None:
        """What a commit made recallable can be found now, what it took away no longer. Erased vectors leave memory and
        disk.
        """

    def write_vectors(self, connection: SqlConnection, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """Store vectors by seq, of recallable rows that have none."""

    def follow_vectors(self, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """What a commit gave a vector can be found by it now."""

    def statistics(self, connection: SqlConnection, terms: Sequence[str]) -> WordStatistics:
        """Of this store, for these terms."""

    def candidates(
        self,
        connection: SqlConnection,
        *,
        terms: Sequence[str],
        statistics: WordStatistics,
        vector: NDArray[np.float32],
        limit: int,
        where: EpisodeFilter,
    ) -> dict[int, Scores]:
        """The `limit` best by words and the `limit` best by vector, both scores of each, by seq."""

    def repair(self, error: Exception) -> bool:
        """Rebuild the part whose damage is the cause of an error; False if none of it is."""

    def verify(self) -> None:
        """Compare all of it with the rows, which takes seconds, and rebuild what differs."""

    def purge_words(self) -> None:
        """Leave nothing on disk of the words of episodes that left. Takes seconds, in short writes."""

    def maintain(self) -> bool:
        """Slow work in the background that keeps searching quick; True if the vector index is worth saving."""

    def save(self) -> None:
        """Bring to disk what only makes the next start quicker."""

    def size_bytes(self) -> int:
        """Bytes on disk beside the database."""


class SqliteEpisodeIndex:
    """See EpisodeIndex and the module."""

    def __init__(self, database: Database, path: Path, *, columns: EpisodeColumns, vectors: RAGIndex) -> None:
        self._database = database
        self._path = path
        self._columns = columns
        self.vectors = vectors
        self._may_merge = True
        self._places: tuple[tuple[int, int], NDArray[np.int64], Mask] | None = None

    @classmethod
    def open(
        cls, database: Database, path: Path, *, dimension: int, identity: str, config: IndexConfig
    ) -> "SqliteEpisodeIndex":
        """The indexes in step with the rows, and no erased text left in the log by a process that was killed."""
        columns = EpisodeColumns()
        with database.read() as connection:
            rows = connection.execute(
                f"SELECT seq, num_words, source_id, tenant, happened_at, trust FROM episode WHERE {RECALLABLE} ORDER BY seq"
            )
            columns.add([ColumnRow(*row) for row in rows])
            wanted = {row[0] for row in connection.execute(f"SELECT seq FROM episode WHERE {INDEXED}")}

            def read_vectors(seqs: Sequence[int]) -> Vectors:
                found = connection.execute(
                    f"SELECT embedding FROM episode WHERE seq {database.one_of('seqs')} ORDER BY seq",
                    {"seqs": database.many(seqs)},
                ).fetchall()
                return decode_vectors([row[0] for row in found], dimension=dimension)

            vectors = RAGIndex.open(
                path, dimension=dimension, identity=identity, wanted=wanted, read_vectors=read_vectors, config=config
            )
        database.checkpoint()
        index = cls(database, path, columns=columns, vectors=vectors)
        index._probe_words()
        return index

    # -- following the rows

    def write(self, connection: SqlConnection, change: IndexChange) -> None:
        """See EpisodeIndex. FTS5 forgets a text only if it is told the very text."""
        forget = "INSERT INTO episode_words(episode_words, rowid, title, text) VALUES('delete', :seq, :title, :text)"
        insert = "INSERT INTO episode_words(rowid, title, text) VALUES(:seq, :title, :text)"
        self._may_merge = self._may_merge or bool(change.removed or change.added)
        try:
            connection.executemany(forget, change.removed)
            connection.executemany(insert, change.added)
            if change.is_erasure:  # FTS5 keeps erased postings until its segments are merged
                connection.execute("INSERT INTO episode_words(episode_words) VALUES('optimize')")
        except sqlite3.DatabaseError as error:
            if not _is_damage_of_words(error):
                raise
            _rebuild_words(connection, problem=str(error))

    def follow(self, change: IndexChange) -> None:
        """See EpisodeIndex."""
        gone = [row["seq"] for row in change.removed]
        self._columns.remove(gone)
        self.vectors.remove(gone)
        self._columns.add(
            [
                ColumnRow(
                    row["seq"], row["num_words"], row["source_id"], row["tenant"], row["happened_at"], row["trust"]
                )
                for row in change.added
            ]
        )
        if change.is_erasure:
            try:
                self.save()
            except OSError:
                self._path.unlink(missing_ok=True)  # it holds the erased vectors; the next start builds it anew
                raise
            finally:
                self._database.checkpoint()

    def write_vectors(self, connection: SqlConnection, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """See EpisodeIndex."""
        connection.executemany(
            "UPDATE episode SET embedding = :blob WHERE seq = :seq",
            [{"seq": seq, "blob": encode_vector(vector)} for seq, vector in vectors.items()],
        )

    def follow_vectors(self, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """See EpisodeIndex."""
        blobs = [encode_vector(vector) for vector in vectors.values()]
        self.vectors.add(list(vectors), vectors=decode_vectors(blobs, dimension=self.vectors.dimension))

    def repair(self, error: Exception) -> bool:
        """See EpisodeIndex."""
        if not isinstance(error, sqlite3.DatabaseError) or not _is_damage_of_words(error):
            return False
        with self._database.exclusive(), self._database.write() as connection:
            _rebuild_words(connection, problem=str(error))
        return True

    def verify(self) -> None:
        """See EpisodeIndex. FTS5 compares its tables with the rows."""
        with self._database.exclusive(), self._database.write() as connection:
            try:
                connection.execute("INSERT INTO episode_words(episode_words, rank) VALUES('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                if not _is_damage_of_words(error):
                    raise
                _rebuild_words(connection, problem=str(error))

    def _probe_words(self) -> None:
        """Whether the keyword index holds as many episodes as there are, and the words of some: at each start."""
        seqs = self._columns.view.seq
        probed = seqs[np.unique(np.linspace(0, len(seqs) - 1, num=min(_PROBED, len(seqs)), dtype=np.int64))]
        with self._database.exclusive(), self._database.write() as connection:
            texts = connection.execute(
                f"SELECT title || ' ' || text FROM episode WHERE seq {self._database.one_of('seqs')}",
                {"seqs": self._database.many(probed.tolist())},
            ).fetchall()
            terms = sorted({term for (text,) in texts for term in Tokenizer().counts(text)})
            try:
                (num_indexed,) = connection.execute("SELECT count(*) FROM episode_words_docsize").fetchone()
                num_found = len(self.statistics(connection, terms).num_with)
            except sqlite3.DatabaseError as error:
                _rebuild_words(connection, problem=str(error))
                return
            if (num_indexed, num_found) != (len(seqs), len(terms)):
                problem = f"it holds {num_indexed} of {len(seqs)} episodes and {num_found} of {len(terms)} probed words"
                _rebuild_words(connection, problem=problem)

    def maintain(self) -> bool:
        """See EpisodeIndex."""
        self._merge_words()
        return self.vectors.train_if_due()

    def _merge_words(self) -> None:
        """Postings of what left stay in FTS5's segments until these are merged: it does that late by itself, and the file
        would grow to twice what it holds.
        """
        for _ in range(_MERGES if self._may_merge else 0):
            if not self._merge(_MERGE_PAGES):
                return

    def purge_words(self) -> None:
        """See EpisodeIndex. Merges all segments into one, as FTS5's optimize does, but in short writes."""
        is_more = self._merge(-_MERGE_PAGES)  # a negative number lets it begin with all of them
        while is_more:
            is_more = self._merge(_MERGE_PAGES)

    def _merge(self, num_pages: int) -> bool:
        """One write that merges some pages; False if there was nothing to do."""
        with self._database.exclusive(), self._database.write() as connection:
            (before,) = connection.execute("SELECT total_changes()").fetchone()
            try:
                connection.execute(f"INSERT INTO episode_words(episode_words, rank) VALUES('merge', {num_pages:d})")
            except sqlite3.DatabaseError as error:
                if not _is_damage_of_words(error):
                    raise
                _rebuild_words(connection, problem=str(error))
            (after,) = connection.execute("SELECT total_changes()").fetchone()
            self._may_merge = after - before >= 2  # as FTS5's manual has it
            return self._may_merge

    def save(self) -> None:
        """See EpisodeIndex."""
        self.vectors.save(self._path)

    def size_bytes(self) -> int:
        """See EpisodeIndex."""
        return self._path.stat().st_size if self._path.exists() else 0

    # -- searching

    def statistics(self, connection: SqlConnection, terms: Sequence[str]) -> WordStatistics:
        """See EpisodeIndex."""
        num_episodes, num_words = connection.execute("SELECT num_recallable, num_words FROM totals").fetchone()
        num_with = {}
        for term in terms:
            row = connection.execute("SELECT doc FROM episode_terms WHERE term = :term", {"term": term}).fetchone()
            if row is not None:
                num_with[term] = row[0]
        return WordStatistics(num_episodes, num_words, num_with)

    def candidates(
        self,
        connection: SqlConnection,
        *,
        terms: Sequence[str],
        statistics: WordStatistics,
        vector: NDArray[np.float32],
        limit: int,
        where: EpisodeFilter,
    ) -> dict[int, Scores]:
        """See EpisodeIndex."""
        view = self._columns.view
        mask = self._columns.select(
            view, where, only=self._only(connection, where), repeated=self._repeated(connection, where)
        )
        bm25 = self._score_words(connection, view, terms=terms, statistics=statistics)
        bm25[~mask] = 0.0
        by_words = _best(bm25, limit)
        near = self.vectors.search(vector, k=limit, allowed=lambda seqs: self._allow(seqs, view, mask))
        positions, is_there = view.positions(np.fromiter(near, dtype=np.int64))
        found = np.union1d(by_words, positions[is_there & mask[positions]])
        seqs = view.seq[found].tolist()
        cosines = self._cosines(connection, seqs, vector=vector)
        return {
            seq: Scores(float(bm25[position]), cosines.get(seq))
            for seq, position in zip(seqs, found.tolist(), strict=True)
        }

    def _score_words(
        self, connection: SqlConnection, view: ColumnView, *, terms: Sequence[str], statistics: WordStatistics
    ) -> NDArray[np.float64]:
        """BM25 of every row of the view."""
        scores = np.zeros(len(view.seq))
        for term in terms:
            found = connection.execute(
                "SELECT group_concat(doc), group_concat(doc) FILTER (WHERE col = 'title') FROM episode_occurrences"
                " WHERE term = :term",
                {"term": term},
            ).fetchone()
            if found[0] is None:
                continue
            (seqs, num), (of_titles, num_in_titles) = (
                np.unique(np.fromstring(one or "", dtype=np.int64, sep=","), return_counts=True) for one in found
            )
            occurrences = num.astype(np.float64)
            occurrences[np.searchsorted(seqs, of_titles)] -= (1 - TITLE_WEIGHT) * num_in_titles
            positions, is_there = view.positions(seqs)
            holds = positions[is_there]
            scores[holds] += score_term(occurrences[is_there], view.num_words[holds], term=term, statistics=statistics)
        return scores

    def _only(self, connection: SqlConnection, where: EpisodeFilter) -> list[Seqs]:
        """The seqs that a filter's documents and metadata allow, one array per condition."""
        only = []
        if where.document_ids is not None:
            rows = connection.execute(
                f"SELECT seq FROM episode WHERE deleted_at IS NULL AND document_id {self._database.one_of('ids')}",
                {"ids": self._database.many(where.document_ids)},
            )
            only.append(_seqs(rows))
        for key, value in where.metadata.items():
            rows = connection.execute(
                "SELECT seq FROM episode_tag WHERE key = :key AND value = :value", {"key": key, "value": value}
            )
            only.append(_seqs(rows))
        return only

    def _repeated(self, connection: SqlConnection, where: EpisodeFilter) -> Seqs | None:
        """Episodes of which a repeat passes the filter; None if there is nothing to pass."""
        condition, values = own_conditions(where, self._database)
        return _seqs(connection.execute(f"{REPEATED} AND {condition}", values)) if condition else None

    def _allow(self, seqs: Seqs, view: ColumnView, mask: Mask) -> Mask:
        """Which vectors may be found. Where the vectors' ids stand among the rows is kept until either changes."""
        key = (view.version, self.vectors.version)
        if self._places is None or self._places[0] != key:
            self._places = (key, *view.positions(seqs))
        _, positions, is_there = self._places
        return is_there & mask[positions] if len(mask) else is_there

    def _cosines(
        self, connection: SqlConnection, seqs: Sequence[int], *, vector: NDArray[np.float32]
    ) -> dict[int, float]:
        rows = connection.execute(
            f"SELECT seq, embedding FROM episode WHERE embedding IS NOT NULL AND seq {self._database.one_of('seqs')}",
            {"seqs": self._database.many(seqs)},
        ).fetchall()
        vectors = decode_vectors([row[1] for row in rows], dimension=self.vectors.dimension)
        cosines = np.clip(vectors @ vector, -1.0, 1.0)
        return dict(zip((row[0] for row in rows), cosines.tolist(), strict=True))


def _seqs(rows: Iterable[tuple[int]]) -> Seqs:
    return np.fromiter((row[0] for row in rows), dtype=np.int64)


def _is_damage_of_words(error: sqlite3.DatabaseError) -> bool:
    """FTS5 tells damage of its own tables apart from that of the database."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CORRUPT_VTAB


def _rebuild_words(connection: SqlConnection, *, problem: str) -> None:
    logger.warning("rebuilding the keyword index from the rows: %s", problem)
    connection.execute("INSERT INTO episode_words(episode_words) VALUES('rebuild')")


def _best(scores: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Positions of the `limit` highest scores above zero, and of those that are equal to the last of them."""
    positive = np.flatnonzero(scores > 0)
    if len(positive) <= limit:
        return positive
    least = np.partition(scores[positive], len(positive) - limit)[len(positive) - limit]
    best: NDArray[np.int64] = positive[scores[positive] >= least]
    return best
