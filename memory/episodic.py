"""EpisodicMemory: what happened, passage by passage. Durable before it is acknowledged, recalled by words and meaning.

The database is the truth. The keyword index changes in the same transaction as the rows, so a passage can be recalled
right after its acknowledgement. Vectors follow: `index_pending` embeds in commit order. Below standard trust passages
are kept in rows only, in no index, until somebody releases them. Passages that say the same are kept as repeats.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embedder
from memory.episode_backends import EpisodicConfig, open_backend
from memory.episode_index import EpisodeIndex
from memory.episode_reader import EpisodeReader
from memory.episode_rows import (
    FIELDS,
    PENDING,
    RECALLABLE,
    EpisodeRows,
    IndexChange,
    check_episode,
    embedded_text,
    episode_from,
)
from memory.recall import ANY_EPISODE, Candidate, Recall
from memory.revisions import Revisions
from memory.store import SqlConnection, SqlDatabase, no_guard
from memory.types import (
    AppendResult,
    Episode,
    EpisodeFilter,
    Guard,
    MemoryHealth,
    RecallHit,
    Trust,
)
from memory.words import WordStatistics

logger = logging.getLogger(__name__)

T = TypeVar("T")


class EpisodicMemory(EpisodeReader):
    """See the module. Open with `EpisodicMemory.open`. Every method may be called from any thread."""

    def __init__(
        self,
        config: EpisodicConfig,
        *,
        embedder: Embedder,
        clock: Callable[[], float],
        database: SqlDatabase,
        index: EpisodeIndex,
    ) -> None:
        super().__init__(database)
        self.config = config
        self._recall = Recall(embedder)
        self._clock = clock
        self._rows = EpisodeRows(database)
        self._revisions = Revisions(database, self._rows)
        self._index = index  # follows under the writer lock, so in the order of the commits
        self._embedding_lock = (
            threading.Lock()
        )  # one bulk embedding at a time; taken before the writer lock, never after

    @classmethod
    def open(
        cls, config: EpisodicConfig, *, embedder: Embedder, clock: Callable[[], float] = time.time
    ) -> "EpisodicMemory":
        """Open or create the store and bring its indexes in step with the rows.

        Vectors of another embedder are dropped and become pending again. Raises: StoreProblem for a file that a newer
        program wrote, or that is damaged, or a server that does not answer.
        """
        database, index = open_backend(config, embedder=embedder)
        return cls(config, embedder=embedder, clock=clock, database=database, index=index)

    def close(self) -> None:
        """Save the index and close the database. Nothing acknowledged depends on it."""
        self.save_index()
        self._database.close()

    # -- writing

    def append(
        self,
        episodes: Sequence[Episode],
        *,
        guard: Guard = no_guard,
        recorded_at: Sequence[float] | None = None,
    ) -> AppendResult:
        """Store passages in one transaction; the result is the acknowledgement that they are on disk.

        An id that is there already changes nothing but its `times_seen`; an erased id is stored anew. Beyond the
        capacity rows leave in the same transaction. `recorded_at` is for a store that is one of several, which all take
        the time from one clock. Raises: ValueError for an unusable episode, StoreFull, or whatever `guard` raises; then
        nothing of the batch is written.
        """
        for episode in episodes:
            check_episode(episode, max_text_chars=self.config.max_text_chars)
        with self._changing(guard) as (connection, change):
            now = self._clock()
            added, repeated, merged = self._rows.append(
                connection, episodes, now=now, recorded_at=recorded_at, change=change
            )
            num_evicted = self._rows.evict(connection, capacity=self.config.capacity, now=now, change=change)
            (last_seq,) = connection.execute("SELECT last_seq FROM totals").fetchone()
        if num_evicted:
            logger.warning("evicted episodes=%d: the capacity is %d", num_evicted, self.config.capacity)
        return AppendResult(tuple(added), tuple(repeated), last_seq, tuple(merged))

    def index_pending(self, *, max_episodes: int = 32) -> int:
        """Embed the next passages by seq and index them; how many were taken up, 0 when nothing is pending.

        Writers are not held up while it embeds. Raises: ValueError for a NaN or wrongly shaped embedding; nothing of
        the batch is stored then, and its passages stay recallable by their words.
        """
        if max_episodes < 1:
            raise ValueError(f"max_episodes is {max_episodes}: give at least 1")
        with self._embedding_lock:
            with self._database.read() as connection:
                rows = connection.execute(
                    f"SELECT seq, title, text FROM episode WHERE {PENDING} ORDER BY seq LIMIT {max_episodes:d}"
                ).fetchall()
            if not rows:
                return 0
            vectors = self._recall.embed([embedded_text(title, text) for _, title, text in rows])
            by_seq = {row[0]: vector for row, vector in zip(rows, vectors, strict=True)}
            with self._database.exclusive():
                with self._database.write() as connection:
                    still = connection.execute(
                        f"SELECT seq FROM episode WHERE {PENDING} AND seq {self._database.one_of('seqs')} ORDER BY seq",
                        {"seqs": self._database.many(list(by_seq))},
                    ).fetchall()
                    written = {seq: by_seq[seq] for (seq,) in still}  # the others left meanwhile
                    self._index.write_vectors(connection, written)
                self._index.follow_vectors(written)
        return len(rows)

    def delete_document(self, document_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Erase a document; the ids of its episodes, empty if it is unknown or erased already.

        One transaction nulls text, title, metadata and vector, leaves a tombstone and rewrites the keyword index. Then
        the vectors leave the index and its file, and the log is cut, so that no file holds the text any more. What left
        to make room before is named too, so that what was derived from it can be erased.
        """
        return self._erase("document_id", document_id, guard=guard)

    def delete_source(self, source_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Erase all that a source has said, as `delete_document` does."""
        return self._erase("source_id", source_id, guard=guard)

    def retire(self, ids: Sequence[str], *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Let episodes go that their source no longer says: neither recalled nor learned; the ids that were there.

        It is known that they were there, so what was derived from them can be erased with their document. Whoever says the
        same goes on saying it.
        """
        with self._changing(guard) as (connection, change):
            rows = self._rows.select(
                connection, f"id {self._database.one_of('ids')}", {"ids": self._database.many(ids)}
            )
            self._rows.retire(connection, rows, now=self._clock(), change=change)
        return tuple(row["id"] for row in rows)

    def set_trust(
        self,
        trust: Trust,
        *,
        ids: Sequence[str] | None = None,
        source_id: str | None = None,
        between: tuple[Trust, Trust] = (Trust.QUARANTINED, Trust.TRUSTED),
        guard: Guard = no_guard,
    ) -> tuple[str, ...]:
        """Release episodes that wait (to STANDARD or TRUSTED) or hold them (below): the ids whose trust changed.

        Of these ids, or of a source, or of these ids of a source; only of those whose trust lies `between` two. What is
        released comes last in the stream, so that those who follow it meet it.
        """
        if ids is None and source_id is None:
            raise ValueError("neither ids nor source_id is given: say which episodes get another trust")
        condition = "trust <> :trust AND trust BETWEEN :low AND :high AND (:source IS NULL OR source_id = :source)"
        if ids is not None:
            condition += f" AND id {self._database.one_of('ids')}"
        parameters = {
            "trust": int(trust), "low": int(between[0]), "high": int(between[1]), "source": source_id,
            "ids": self._database.many(list(ids or ())),
        }  # fmt: skip
        with self._changing(guard) as (connection, change):
            rows = self._rows.select(connection, condition, parameters)
            self._rows.move(connection, rows, trust=trust, now=self._clock(), change=change)
            self._revisions.set_trust(connection, trust, ids=ids, source_id=source_id, between=between)
        return tuple(row["id"] for row in rows)

    # -- consolidation

    def revise(
        self,
        run: str,
        step: str,
        *,
        saliences: Mapping[str, float] | None = None,
        prune: Sequence[str] = (),
        guard: Guard = no_guard,
    ) -> int:
        """Change saliences, or let episodes go, as one step of a run of consolidation that `undo` can take back.

        How many rows were changed. A step that was done already changes nothing and tells what it did.
        """
        with self._changing(guard) as (connection, change):
            return self._revisions.apply(
                connection, run, step, saliences=saliences or {}, prune=prune, now=self._clock(), change=change
            )

    def undo(self, run: str, *, guard: Guard = no_guard) -> int:
        """Take back what a run of consolidation changed, but for what was changed or erased since; how many rows."""
        with self._changing(guard) as (connection, change):
            return self._revisions.undo(connection, run, now=self._clock(), change=change)

    def forget_revisions(self, *, but: Sequence[str], guard: Guard = no_guard) -> int:
        """Keep what is needed to undo these runs, and no others; how many rows went."""
        with self._changing(guard) as (connection, _):
            return self._revisions.forget(connection, but=but)

    def forget_departed(self, ids: Sequence[str], *, erased_before: float, guard: Guard = no_guard) -> int:
        """Know no longer of these episodes that they left, nor of erased ones that there were any; how many rows went.

        What an undo could bring back stays known. Before an episode is no longer known, nothing of its words is left on disk:
        afterwards nobody could ask for their erasure.
        """
        if ids:
            self._index.purge_words()
        with self._changing(guard) as (connection, _):
            num_rows: int = connection.execute(
                f"DELETE FROM departed WHERE id {self._database.one_of('ids')} AND NOT EXISTS (SELECT 1 FROM revised"
                " WHERE revised.id = departed.id AND revised.kind = 'pruned')",
                {"ids": self._database.many(ids)},
            ).rowcount
            num_rows += connection.execute(
                "DELETE FROM episode WHERE deleted_at < :before", {"before": erased_before}
            ).rowcount
        if num_rows:
            self._database.checkpoint()
        return num_rows

    # -- recall

    def recall(
        self, query: str, *, k: int, min_cosine: float = -1.0, where: EpisodeFilter = ANY_EPISODE
    ) -> list[RecallHit]:
        """The k best passages by fused score, each with its true cosine to the query, none below `min_cosine`.

        Passages that wait for their vector are found by their words; the k best of them are embedded on the spot.
        Erased passages and those below standard trust are never returned. An empty query finds nothing.
        """
        return self._recall.over([self], query, k=k, min_cosine=min_cosine, where=where)

    def word_statistics(self, terms: Sequence[str]) -> WordStatistics:
        """What this store adds to the statistics that `candidates` scores words with."""
        return self._reading(lambda connection: self._index.statistics(connection, terms))

    def candidates(
        self,
        terms: Sequence[str],
        vector: NDArray[np.float32],
        *,
        statistics: WordStatistics,
        limit: int,
        where: EpisodeFilter,
    ) -> list[Candidate]:
        """What each ranker of this store finds best, to be ranked by `recall.rank`."""

        def search(connection: SqlConnection) -> list[Candidate]:
            scores = self._index.candidates(
                connection, terms=terms, statistics=statistics, vector=vector, limit=limit, where=where
            )
            rows = connection.execute(
                f"SELECT seq, times_seen + (SELECT coalesce(sum(times_seen), 0) FROM episode AS repeat"
                f" WHERE repeat.duplicate_of = episode.seq AND repeat.deleted_at IS NULL), {FIELDS} FROM episode"
                f" WHERE {RECALLABLE} AND seq {self._database.one_of('seqs')}",
                {"seqs": self._database.many(list(scores))},
            ).fetchall()
            return [
                Candidate(episode_from(row[2:]), scores[row[0]].bm25, scores[row[0]].cosine, int(row[1]))
                for row in rows
            ]

        return self._reading(search)

    # -- state

    def health(self) -> MemoryHealth:
        """Sizes now. `indexed_seq` is the newest seq up to which every recallable episode has its vector.

        A document counts where its first passage is, so that the sizes of shards add up.
        """
        with self._database.read() as connection:
            (num_documents,) = connection.execute(
                "SELECT count(DISTINCT document_id) FROM episode WHERE position = 0 AND deleted_at IS NULL"
            ).fetchone()
            num_episodes, num_learnable, last_seq = connection.execute(
                "SELECT num_rows, num_recallable, last_seq FROM totals"
            ).fetchone()
            (first_pending,) = connection.execute(f"SELECT min(seq) FROM episode WHERE {PENDING}").fetchone()
        indexed_seq = last_seq if first_pending is None else first_pending - 1
        size_bytes = self._database.size_bytes() + self._index.size_bytes()
        return MemoryHealth(num_episodes, num_documents, num_learnable, last_seq, indexed_seq, size_bytes)

    def save_index(self) -> None:
        """Write the vector index to its file, which only makes the next start quicker."""
        with self._database.exclusive():
            self._index.save()

    def maintain(self) -> bool:
        """Slow work in the background that keeps recall quick; True if the vector index is worth saving.

        Call it when nothing is pending.
        """
        return self._index.maintain()

    def verify(self) -> None:
        """Compare the indexes with the rows, which takes seconds, and rebuild what differs."""
        self._index.verify()

    # -- helpers

    @contextmanager
    def _changing(self, guard: Guard, *, is_erasure: bool = False) -> Iterator[tuple[SqlConnection, IndexChange]]:
        """One transaction of the rows and the words, and the indexes right behind it."""
        with self._database.exclusive():
            change = IndexChange(is_erasure=is_erasure)
            with self._database.write(guard=guard) as connection:
                yield connection, change
                self._index.write(connection, change)
            self._index.follow(change)

    def _reading(self, search: Callable[[SqlConnection], T]) -> T:
        """One snapshot; again if the index was damaged and could be rebuilt."""
        try:
            with self._database.read() as connection:
                return search(connection)
        except Exception as error:
            if not self._index.repair(error):
                raise
        with self._database.read() as connection:
            return search(connection)

    def _erase(self, column: str, value: str, *, guard: Guard) -> tuple[str, ...]:
        ids = self._ids(column, value)
        if not ids:
            return ()
        with self._changing(guard, is_erasure=True) as (connection, change):
            rows = self._rows.select(connection, f"{column} = :value", {"value": value})
            self._rows.erase(connection, rows, now=self._clock(), change=change)
            for table in ("departed", "revised"):
                connection.execute(f"DELETE FROM {table} WHERE {column} = :value", {"value": value})
        logger.info("erased episodes=%d", len(ids))
        return ids
