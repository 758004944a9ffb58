"""What finds episodes in PostgreSQL: postings with BM25 in SQL, and pgvector. Both change in the rows' transaction.

The terms are those of SQLite's tokenizer and the formula is the same, so both backends score alike. Beyond the size for
exact search an ivfflat index is built; its scan goes on until a filter has let enough through.
Source: github.com/pgvector/pgvector (ivfflat, iterative index scans).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from memory.episode_index import Scores
from memory.episode_rows import INDEXED, RECALLABLE, SCHEMA, IndexChange, Row, sql_of
from memory.postgres import PostgresDatabase
from memory.rag_index import IndexConfig, decode_vectors, encode_vector
from memory.store import SqlConnection
from memory.types import EpisodeFilter
from memory.words import K1, TITLE_WEIGHT, B, Tokenizer, WordStatistics

logger = logging.getLogger(__name__)

IVF_PROBES = 64
"""Lists of the inverted file that a search begins with; it goes on while a filter lets too few through."""
_BATCH = 256
MAX_TERM_BYTES = 512
"""Of a word as it is; a longer one is known by its hash."""


POSTGRES_SCHEMA = (
    SCHEMA
    + """
CREATE TABLE posting (
  term TEXT NOT NULL, seq BIGINT NOT NULL, occurrences DOUBLE PRECISION NOT NULL, PRIMARY KEY (term, seq));
CREATE INDEX posting_seq ON posting(seq);
"""
)


class PostgresEpisodeIndex:
    """See EpisodeIndex and the module."""

    def __init__(self, database: PostgresDatabase, *, dimension: int, config: IndexConfig) -> None:
        self._database = database
        self._dimension = dimension
        self._config = config
        self._tokenizer = Tokenizer()

    def write(self, connection: SqlConnection, change: IndexChange) -> None:
        """See EpisodeIndex."""
        if change.removed:
            connection.execute(
                f"DELETE FROM posting WHERE seq {self._database.one_of('seqs')}",
                {"seqs": [row["seq"] for row in change.removed]},
            )
        for start in range(0, len(change.added), _BATCH):  # a statement may have 1 GB
            postings = [posting for row in change.added[start : start + _BATCH] for posting in self._postings(row)]
            if not postings:
                continue
            terms, seqs, occurrences = (list(column) for column in zip(*postings, strict=True))
            connection.execute(
                "INSERT INTO posting(term, seq, occurrences) SELECT * FROM unnest("
                "CAST(:terms AS text[]), CAST(:seqs AS bigint[]), CAST(:occurrences AS float8[]))",
                {"terms": terms, "seqs": seqs, "occurrences": occurrences},
            )

    def follow(self, change: IndexChange) -> None:
        """See EpisodeIndex."""
        if change.is_erasure:
            self._database.checkpoint()

    def write_vectors(self, connection: SqlConnection, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """See EpisodeIndex. Rounded as SQLite's rows are, so that both backends give the same cosines."""
        if not vectors:
            return
        rounded = decode_vectors([encode_vector(one) for one in vectors.values()], dimension=self._dimension)
        connection.executemany(
            "UPDATE episode SET embedding = CAST(:vector AS vector) WHERE seq = :seq",
            [{"seq": seq, "vector": _text(vector)} for seq, vector in zip(vectors, rounded, strict=True)],
        )

    def follow_vectors(self, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """See EpisodeIndex: the transaction did it."""

    def statistics(self, connection: SqlConnection, terms: Sequence[str]) -> WordStatistics:
        """See EpisodeIndex."""
        num_episodes, num_words = connection.execute("SELECT num_recallable, num_words FROM totals").fetchone()
        rows = connection.execute(
            f"SELECT term, count(*) FROM posting WHERE term {self._database.one_of('terms')} GROUP BY term",
            {"terms": [_stored(term) for term in terms]},
        )
        found = dict(rows.fetchall())
        return WordStatistics(
            num_episodes, num_words, {term: found[_stored(term)] for term in terms if _stored(term) in found}
        )

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
        condition, parameters = sql_of(where, self._database)
        connection.execute(f"SET LOCAL ivfflat.probes = {IVF_PROBES}")
        connection.execute("SET LOCAL ivfflat.iterative_scan = relaxed_order")
        rows = connection.execute(
            "WITH term AS (SELECT * FROM unnest(CAST(:terms AS text[]), CAST(:idfs AS float8[])) AS t(term, idf)),"
            " score AS MATERIALIZED (SELECT seq, sum(idf * occurrences * (:k1 + 1) / (occurrences + :k1 *"
            " (1 - :b + :b * num_words / :mean))) AS bm25 FROM posting JOIN term USING (term) JOIN episode USING (seq)"
            f" WHERE {RECALLABLE} AND {condition} GROUP BY seq),"
            f" by_words AS (SELECT seq FROM score ORDER BY bm25 DESC FETCH FIRST {limit:d} ROWS WITH TIES),"
            f" near AS (SELECT seq FROM episode WHERE {INDEXED} AND {condition}"
            f" ORDER BY embedding <=> CAST(:vector AS vector) LIMIT {limit:d})"
            " SELECT seq, coalesce(bm25, 0), 1 - (embedding <=> CAST(:vector AS vector)) FROM episode"
            " LEFT JOIN score USING (seq) WHERE seq IN (SELECT seq FROM by_words UNION SELECT seq FROM near)",
            {
                **parameters,
                "terms": [_stored(term) for term in terms],
                "idfs": [statistics.idf(term) for term in terms],
                "k1": K1,
                "b": B,
                "mean": statistics.mean_words,
                "vector": _text(vector),
            },
        ).fetchall()
        return {row[0]: Scores(row[1], None if row[2] is None else float(np.clip(row[2], -1, 1))) for row in rows}

    def repair(self, error: Exception) -> bool:
        """See EpisodeIndex: the server keeps its indexes itself."""
        del error
        return False

    def verify(self) -> None:
        """See EpisodeIndex."""
        with self._database.write() as connection:
            missing = connection.execute(
                f"SELECT seq, title, text FROM episode WHERE {RECALLABLE} AND num_words > 0"
                " AND NOT EXISTS (SELECT 1 FROM posting WHERE posting.seq = episode.seq)"
            ).fetchall()
            stale = connection.execute(
                "DELETE FROM posting WHERE NOT EXISTS (SELECT 1 FROM episode WHERE episode.seq = posting.seq AND"
                f" {RECALLABLE})"
            ).rowcount
            if missing or stale:
                logger.warning("rebuilding the keyword index: %d episodes, %d stale postings", len(missing), stale)
            for start in range(0, len(missing), _BATCH):
                rows = [
                    dict(zip(("seq", "title", "text"), row, strict=True)) for row in missing[start : start + _BATCH]
                ]
                self.write(connection, IndexChange(added=rows))

    def purge_words(self) -> None:
        """See EpisodeIndex: the postings went with the rows, their room is given free by a checkpoint."""

    def maintain(self) -> bool:
        """See EpisodeIndex: let the planner know of many new rows, which the server does some minutes later and until then
        takes ten times as long to search; build the inverted file when the episodes outgrow exact search.
        """
        self._database.analyse()
        with self._database.read() as connection:
            (num,) = connection.execute(f"SELECT count(*) FROM episode WHERE {INDEXED}").fetchone()
            (is_built,) = connection.execute(
                "SELECT count(*) FROM pg_indexes WHERE schemaname = :name AND indexname = 'episode_near'",
                {"name": self._database.namespace},
            ).fetchone()
        if num <= self._config.ivf_above or is_built:
            return False
        num_lists = round(4 * sqrt(num))
        logger.info("building an ivfflat index of %d lists for %d vectors", num_lists, num)
        with self._database.write() as connection:
            connection.execute(
                f"CREATE INDEX episode_near ON episode USING ivfflat (embedding vector_cosine_ops)"
                f" WITH (lists = {num_lists:d}) WHERE {INDEXED}"
            )
        return True

    def save(self) -> None:
        """See EpisodeIndex: nothing is kept beside the server."""

    def size_bytes(self) -> int:
        """See EpisodeIndex: all of it is in the database."""
        return 0

    def _postings(self, row: Row) -> list[tuple[str, int, float]]:
        """(term, seq, weighted occurrences)."""
        occurrences: dict[str, float] = dict(self._tokenizer.counts(row["text"]))
        for term, count in self._tokenizer.counts(row["title"]).items():
            occurrences[term] = occurrences.get(term, 0.0) + TITLE_WEIGHT * count
        return [(_stored(term), row["seq"], float(num)) for term, num in occurrences.items()]


def _stored(term: str) -> str:
    """A term as the postings hold it: an index row has an end."""
    data = term.encode()
    return term if len(data) <= MAX_TERM_BYTES else f"sha256 {hashlib.sha256(data).hexdigest()}"


def _text(vector: NDArray[np.float32]) -> str:
    return f"[{','.join(map(str, vector.tolist()))}]"
