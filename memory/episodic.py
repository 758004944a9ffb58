"""EpisodicMemory: what happened, passage by passage. Durable before it is acknowledged, recalled by words and meaning.

SQLite is the truth. The keyword index (FTS5) changes in the same transaction as the rows, so a passage can be recalled
right after its acknowledgement. Vectors follow: `index_pending` embeds in commit order, writes the float16 vector into
the row, then into the faiss index, which is rebuilt from the rows whenever its file is missing, damaged or behind.
Quarantined passages are kept in rows only, in neither index.
"""

import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from memory.embed import Embedder
from memory.episode_rows import (
    FIELDS,
    INDEXED,
    LAST_SEQ,
    PENDING,
    SCHEMA,
    SCHEMA_VERSION,
    check_episode,
    embedded_text,
    episode_from,
    forget_words,
    search_words,
    select_indexed_seqs,
)
from memory.rag_index import RAGIndex, Vectors, check_vectors, decode_vectors, encode_vector
from memory.retrieval import fuse, match_expression
from memory.store import Database, no_guard
from memory.types import AppendResult, DocumentInfo, Episode, Guard, MemoryHealth, RecallHit, Trust

logger = logging.getLogger(__name__)

_MIN_CANDIDATES = 50


class EpisodicConfig(BaseModel):
    """Bounded store of experiences with vector and keyword recall."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Holds episodic.db (the truth) and episodic.index (rebuildable). One process at a time should write to it."""
    capacity: int = Field(100_000, gt=0)
    """Most episodes kept; beyond it the least salient go first, the oldest of equal ones."""
    oversample: int = Field(4, ge=1)
    """Candidates per ranker and wanted hit (at least 50): fusion reorders them, a cosine bound drops some."""


class EpisodicMemory:
    """See the module. Open with `EpisodicMemory.open`. Every method may be called from any thread."""

    def __init__(
        self,
        config: EpisodicConfig,
        *,
        embedder: Embedder,
        clock: Callable[[], float],
        database: Database,
        index: RAGIndex,
    ) -> None:
        self.config = config
        self._embedder = embedder
        self._clock = clock
        self._database = database
        self._index_path = config.folder / "episodic.index"
        self._index = index  # changes only under the writer lock, so it follows the commits in their order
        self._embedding_lock = (
            threading.Lock()
        )  # one bulk embedding at a time; taken before the writer lock, never after

    @classmethod
    def open(
        cls, config: EpisodicConfig, *, embedder: Embedder, clock: Callable[[], float] = time.time
    ) -> "EpisodicMemory":
        """Open or create the store in `config.folder` and bring its vector index in step with the rows.

        Vectors of another embedder are dropped and become pending again. Raises: StoreProblem for a file that a newer
        program wrote, or that is damaged.
        """
        database = Database(config.folder / "episodic.db", schema=SCHEMA, version=SCHEMA_VERSION)
        try:
            identity = _claim(database, embedder=embedder)
            index = _open_index(database, config.folder / "episodic.index", embedder=embedder, identity=identity)
        except BaseException:
            database.close()
            raise
        return cls(config, embedder=embedder, clock=clock, database=database, index=index)

    def close(self) -> None:
        """Save the index and close the database. Nothing acknowledged depends on it."""
        self.save_index()
        self._database.close()

    def append(self, episodes: Sequence[Episode], *, guard: Guard = no_guard) -> AppendResult:
        """Store passages in one transaction; the result is the acknowledgement that they are on disk.

        An id that is there already changes nothing but its `times_seen`; an erased id is stored anew. Beyond the
        capacity the least salient rows leave in the same transaction. Raises: ValueError for an unusable episode, or
        whatever `guard` raises; then nothing of the batch is written.
        """
        for episode in episodes:
            check_episode(episode)
        added: dict[str, None] = {}
        repeated: dict[str, None] = {}
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                for episode in episodes:
                    is_new = self._insert(connection, episode)
                    (added if is_new else repeated).setdefault(episode.id)
                evicted = self._evict(connection)
                (last_seq,) = connection.execute(LAST_SEQ).fetchone()
            if evicted:
                self._index.remove(evicted)
                logger.warning("evicted episodes=%d: the capacity is %d", len(evicted), self.config.capacity)
        return AppendResult(tuple(added), tuple(key for key in repeated if key not in added), last_seq)

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
                    f"SELECT seq, title, text FROM episode WHERE {PENDING} ORDER BY seq LIMIT ?", (max_episodes,)
                ).fetchall()
            if not rows:
                return 0
            vectors = self._embed([embedded_text(title, text) for _, title, text in rows])
            with self._database.exclusive():
                with self._database.write() as connection:
                    update = f"UPDATE episode SET embedding = ? WHERE seq = ? AND {PENDING}"
                    written: dict[int, bytes] = {}
                    for (seq, _, _), vector in zip(rows, vectors, strict=True):
                        blob = encode_vector(vector)
                        if connection.execute(update, (blob, seq)).rowcount:  # 0 if it was erased meanwhile
                            written[seq] = blob
                self._index.add(list(written), vectors=self._decode(list(written.values())))
        return len(rows)

    def recall(self, query: str, *, k: int, min_cosine: float = -1.0, source_id: str | None = None) -> list[RecallHit]:
        """The k best passages by fused score, each with its true cosine to the query, none below `min_cosine`.

        Passages that wait for their vector are found by their words; the k best of them are embedded on the spot.
        Quarantined and erased passages are never returned. An empty query finds nothing.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least 1 passage")
        expression = match_expression(query)
        if expression is None:
            return []
        query_vector = self._embed([query])[0]
        limit = max(_MIN_CANDIDATES, self.config.oversample * k)
        with self._database.read() as connection:
            bm25 = search_words(connection, expression, limit=limit, source_id=source_id)
            only = None if source_id is None else select_indexed_seqs(connection, source_id=source_id)
            near = self._index.search(query_vector, k=limit, only=only)
            rows = connection.execute(
                f"SELECT seq, embedding, {FIELDS} FROM episode WHERE deleted_at IS NULL AND trust > 0"
                " AND seq IN (SELECT value FROM json_each(?))",
                (json.dumps(sorted(bm25.keys() | near.keys())),),
            ).fetchall()
        episodes = {row[0]: episode_from(row[2:]) for row in rows}
        blobs = {row[0]: row[1] for row in rows if row[1] is not None}
        waiting = sorted((seq for seq in episodes if seq not in blobs), key=lambda seq: -bm25.get(seq, 0.0))[:k]
        vectors = dict(zip(blobs, self._decode(list(blobs.values())), strict=True))
        if waiting:
            texts = [embedded_text(episodes[seq].title, episodes[seq].text) for seq in waiting]
            vectors.update(zip(waiting, self._embed(texts), strict=True))
        cosines = {seq: float(np.clip(vector @ query_vector, -1.0, 1.0)) for seq, vector in vectors.items()}
        cosines = {seq: cosine for seq, cosine in cosines.items() if cosine >= min_cosine}
        ranked = fuse(
            cosines,
            bm25={seq: bm25[seq] for seq in cosines if seq in bm25},
            salience={seq: episodes[seq].salience for seq in cosines},
        )
        return [RecallHit(episodes[seq], score, cosines[seq]) for seq, score in ranked[:k]]

    def episodes_after(self, seq: int, *, limit: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """The next live episodes of the stream as (seq, episode), ascending: what a learner reads from its offset."""
        condition = "seq > ? AND trust >= ? ORDER BY seq LIMIT ?"
        return [(row[0], episode_from(row[1:])) for row in self._live(condition, seq, int(min_trust), limit)]

    def freshest(self, *, limit: int, offset: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """One page of live episodes as (seq, episode), most salient first, newest first: the order of learning."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT seq, {FIELDS} FROM episode WHERE trust >= ? AND deleted_at IS NULL"
                " ORDER BY salience DESC, seq DESC LIMIT ? OFFSET ?",
                (int(min_trust), limit, offset),
            ).fetchall()
        return [(row[0], episode_from(row[1:])) for row in rows]

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """The live episodes of these ids, quarantined ones too, in the order of `ids`, without unknown ones."""
        rows = self._live("id IN (SELECT value FROM json_each(?))", json.dumps(list(ids)))
        found = {row[1]: episode_from(row[1:]) for row in rows}
        return [found[key] for key in ids if key in found]

    def has(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are stored and not erased."""
        with self._database.read() as connection:
            query = "SELECT id FROM episode WHERE deleted_at IS NULL AND id IN (SELECT value FROM json_each(?))"
            return {row[0] for row in connection.execute(query, (json.dumps(list(ids)),))}

    def documents(self, *, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """One page of the stored documents, newest first; `trust` is the least of a document's passages."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document_id, source_id, title, count(*), min(recorded_at), min(trust) FROM episode"
                " WHERE deleted_at IS NULL AND (?1 IS NULL OR source_id = ?1)"
                " GROUP BY document_id ORDER BY min(seq) DESC LIMIT ?2 OFFSET ?3",
                (source_id, limit, offset),
            ).fetchall()
        return [DocumentInfo(*(*row[:5], Trust(row[5]))) for row in rows]

    def ids_of(self, document_id: str) -> tuple[str, ...]:
        """Ids of a document's live episodes, quarantined ones too, in commit order."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id FROM episode WHERE document_id = ? AND deleted_at IS NULL ORDER BY seq", (document_id,)
            ).fetchall()
        return tuple(row[0] for row in rows)

    def delete_document(self, document_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Erase a document; the ids of its episodes, empty if it is unknown or erased already.

        One transaction nulls text, title, metadata and vector, leaves a tombstone and rewrites the keyword index. Then
        the vector leaves the index and its file, and the log is cut, so that no file holds the text any more.
        """
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                rows = connection.execute(
                    "SELECT seq, id, title, text, trust FROM episode"
                    " WHERE document_id = ? AND deleted_at IS NULL ORDER BY seq",
                    (document_id,),
                ).fetchall()
                for seq, _, title, text, trust in rows:
                    forget_words(connection, seq=seq, title=title, text=text, trust=trust)
                connection.execute(
                    "UPDATE episode SET title = NULL, text = NULL, metadata = NULL, embedding = NULL, deleted_at = ?"
                    " WHERE document_id = ? AND deleted_at IS NULL",
                    (self._clock(), document_id),
                )
                if rows:  # FTS5 keeps erased postings until its segments are merged
                    connection.execute("INSERT INTO episode_words(episode_words) VALUES('optimize')")
            if rows:
                self._index.remove([row[0] for row in rows])
                self.save_index()
                self._database.checkpoint()
                logger.info("erased document=%s episodes=%d", document_id, len(rows))
        return tuple(row[1] for row in rows)

    def health(self) -> MemoryHealth:
        """Sizes now. `indexed_seq` is the newest seq up to which every recallable episode has its vector."""
        with self._database.read() as connection:
            num_episodes, num_documents, num_learnable = connection.execute(
                "SELECT count(*), count(DISTINCT document_id), count(*) FILTER (WHERE trust >= ?) FROM episode"
                " WHERE deleted_at IS NULL",
                (int(Trust.STANDARD),),
            ).fetchone()
            (last_seq,) = connection.execute(LAST_SEQ).fetchone()
            (first_pending,) = connection.execute(f"SELECT min(seq) FROM episode WHERE {PENDING}").fetchone()
        indexed_seq = last_seq if first_pending is None else first_pending - 1
        index_bytes = self._index_path.stat().st_size if self._index_path.exists() else 0
        size_bytes = self._database.size_bytes() + index_bytes
        return MemoryHealth(num_episodes, num_documents, num_learnable, last_seq, indexed_seq, size_bytes)

    def save_index(self) -> None:
        """Write the vector index to its file, which only makes the next start quicker."""
        with self._database.exclusive():
            self._index.save(self._index_path)

    def _live(self, condition: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._database.read() as connection:
            query = f"SELECT seq, {FIELDS} FROM episode WHERE deleted_at IS NULL AND {condition}"
            return connection.execute(query, parameters).fetchall()

    def _embed(self, texts: Sequence[str]) -> Vectors:
        vectors = self._embedder.embed(texts)
        return check_vectors(vectors, dimension=self._embedder.dimension, source=self._embedder.name)

    def _decode(self, blobs: Sequence[bytes]) -> Vectors:
        return decode_vectors(blobs, dimension=self._embedder.dimension)

    def _insert(self, connection: sqlite3.Connection, episode: Episode) -> bool:
        """True if it is new; otherwise its count goes up. An insert that conflicts would use up a seq."""
        count_again = "UPDATE episode SET times_seen = times_seen + 1 WHERE id = ? AND deleted_at IS NULL"
        if connection.execute(count_again, (episode.id,)).rowcount:
            return False
        connection.execute("DELETE FROM episode WHERE id = ?", (episode.id,))  # the tombstone of an earlier life
        row = (
            episode.id, episode.document_id, episode.source_id, episode.title, episode.text, episode.position,
            episode.happened_at, int(episode.trust), episode.salience, episode.tenant,
            json.dumps(dict(episode.metadata), ensure_ascii=False, sort_keys=True), self._clock(),
        )  # fmt: skip
        cursor = connection.execute(f"INSERT INTO episode({FIELDS}, recorded_at) VALUES(?,?,?,?,?,?,?,?,?,?,?,?)", row)
        if episode.trust > Trust.QUARANTINED:
            connection.execute(
                "INSERT INTO episode_words(rowid, title, text) VALUES(?, ?, ?)",
                (cursor.lastrowid, episode.title, episode.text),
            )
        return True

    def _evict(self, connection: sqlite3.Connection) -> list[int]:
        (num_live,) = connection.execute("SELECT count(*) FROM episode WHERE deleted_at IS NULL").fetchone()
        surplus = connection.execute(
            "SELECT seq, title, text, trust FROM episode WHERE deleted_at IS NULL ORDER BY salience, seq LIMIT ?",
            (max(0, num_live - self.config.capacity),),
        ).fetchall()
        for seq, title, text, trust in surplus:
            forget_words(connection, seq=seq, title=title, text=text, trust=trust)
            connection.execute("DELETE FROM episode WHERE seq = ?", (seq,))
        return [row[0] for row in surplus]


def _claim(database: Database, *, embedder: Embedder) -> str:
    """Name the store and its embedder; vectors that another embedder made become pending. The index's identity."""
    name = f"{embedder.name}/{embedder.dimension}"
    with database.write() as connection:
        connection.execute("INSERT OR IGNORE INTO meta VALUES('store_id', ?)", (uuid.uuid4().hex,))
        connection.execute("INSERT OR IGNORE INTO meta VALUES('embedder', ?)", (name,))
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        if meta["embedder"] != name:
            num_dropped = connection.execute(f"UPDATE episode SET embedding = NULL WHERE {INDEXED}").rowcount
            connection.execute("UPDATE meta SET value = ? WHERE key = 'embedder'", (name,))
            logger.warning(
                "embedder changed from %s to %s: embedding %d episodes again", meta["embedder"], name, num_dropped
            )
    return f"{meta['store_id']} {name}"


def _open_index(database: Database, path: Path, *, embedder: Embedder, identity: str) -> RAGIndex:
    """The vector index in step with the rows, and no erased text left in the log by a process that was killed."""
    with database.read() as connection:

        def read_vectors(seqs: Sequence[int]) -> Vectors:
            rows = connection.execute(
                "SELECT embedding FROM episode WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq",
                (json.dumps(list(seqs)),),
            ).fetchall()
            return decode_vectors([row[0] for row in rows], dimension=embedder.dimension)

        index = RAGIndex.open(
            path,
            dimension=embedder.dimension,
            identity=identity,
            wanted=select_indexed_seqs(connection),
            read_vectors=read_vectors,
        )
    database.checkpoint()
    return index
