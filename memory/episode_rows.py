"""The rows of EpisodicMemory in SQL that SQLite and PostgreSQL both run: appended, released, held, evicted, erased.

Each function runs inside its caller's transaction and tells by an IndexChange which episodes can be recalled now and
which can be no longer; the index follows (episode_index.py). A row that comes into recall, or comes back to it, is given a
new seq: whoever follows the stream by seq misses nothing.

A *repeat* is a row whose words are those of an earlier one (`duplicate_of`). It stays, so that erasing the earlier one
makes it the episode, but only the earlier one is recalled and learned.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory.store import SqlConnection, SqlDatabase
from memory.types import Episode, EpisodeFilter, Trust
from memory.words import count_words, near_duplicate_key

SCHEMA_VERSION = 3
MAX_TEXT_CHARS = 16_384
"""Of a passage. The embedder sees some 1,000 of them."""
MAX_NAME_CHARS = 1024
"""Of an id, a document, a source, a tenant, a key or a value of metadata."""
_MOST, _MOST_POSITION = 1e15, 2**31
TICK_S = 1e-6
"""Between two rows of one write."""
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE totals (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1), last_seq {integer} NOT NULL, num_rows {integer} NOT NULL,
  num_recallable {integer} NOT NULL, num_words {integer} NOT NULL, last_recorded_at {real} NOT NULL);
INSERT INTO totals VALUES (1, 0, 0, 0, 0, 0);
CREATE TABLE episode (
  seq {integer} PRIMARY KEY,  -- commit order, never reused
  id TEXT NOT NULL UNIQUE, document_id TEXT NOT NULL, source_id TEXT NOT NULL, tenant TEXT NOT NULL,
  position INTEGER NOT NULL, trust INTEGER NOT NULL, salience {real} NOT NULL, num_words INTEGER NOT NULL,
  happened_at {real} NOT NULL, recorded_at {real} NOT NULL, times_seen INTEGER NOT NULL,
  duplicate_of {integer}, deleted_at {real}, duplicate_key TEXT,
  title TEXT, metadata TEXT, text TEXT, embedding {vector});  -- these five NULL after erasure; vectors have unit length
CREATE INDEX episode_document ON episode(document_id) WHERE deleted_at IS NULL;
CREATE INDEX episode_source ON episode(source_id) WHERE deleted_at IS NULL;
CREATE INDEX episode_duplicate ON episode(duplicate_of) WHERE duplicate_of IS NOT NULL;
CREATE INDEX episode_repeats ON episode(seq) WHERE duplicate_of IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX episode_key ON episode(duplicate_key) WHERE duplicate_of IS NULL AND deleted_at IS NULL AND trust >= 2;
CREATE INDEX episode_pending ON episode(seq)
  WHERE embedding IS NULL AND duplicate_of IS NULL AND deleted_at IS NULL AND trust >= 2;
CREATE INDEX episode_salience ON episode(salience, recorded_at) WHERE deleted_at IS NULL;
CREATE INDEX episode_waiting ON episode(happened_at) WHERE trust < 2 AND deleted_at IS NULL;
CREATE TABLE episode_tag (
  key TEXT NOT NULL, value TEXT NOT NULL, seq {integer} NOT NULL, PRIMARY KEY (key, value, seq));
CREATE INDEX episode_tag_seq ON episode_tag(seq);
CREATE INDEX episode_erased ON episode(deleted_at) WHERE deleted_at IS NOT NULL;
CREATE TABLE departed (  -- evicted and pruned episodes: what was derived from them can still be erased with their source
  id {key} PRIMARY KEY, document_id TEXT NOT NULL, source_id TEXT NOT NULL, departed_at {real} NOT NULL);
CREATE INDEX departed_document ON departed(document_id);
CREATE INDEX departed_source ON departed(source_id);
CREATE TABLE revision (  -- what consolidation did, and what was there before
  run TEXT NOT NULL, step TEXT NOT NULL, num_rows INTEGER NOT NULL, PRIMARY KEY (run, step));
CREATE TABLE revised (
  run TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, document_id TEXT NOT NULL, source_id TEXT NOT NULL,
  before TEXT NOT NULL, after_salience {real}, PRIMARY KEY (run, id, kind));
CREATE INDEX revised_document ON revised(document_id);
CREATE INDEX revised_source ON revised(source_id);
"""
FIELDS = "id, document_id, source_id, title, text, position, happened_at, trust, salience, tenant, metadata"
RECALLABLE = "duplicate_of IS NULL AND deleted_at IS NULL AND trust >= 2"
PENDING = f"embedding IS NULL AND {RECALLABLE}"
INDEXED = f"embedding IS NOT NULL AND {RECALLABLE}"
_COLUMNS = (
    "seq", "id", "document_id", "source_id", "tenant", "position", "trust", "salience", "num_words", "happened_at",
    "recorded_at", "times_seen", "duplicate_of", "duplicate_key", "title", "metadata", "text",
)  # fmt: skip
_INSERT = f"INSERT INTO episode({', '.join(_COLUMNS)}) VALUES({', '.join(f':{name}' for name in _COLUMNS)})"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM episode"

Row = dict[str, Any]
"""The columns of one episode by name, but for its vector."""


@dataclass(slots=True)
class IndexChange:
    """What comes into recall and what leaves it in one transaction."""

    added: list[Row] = field(default_factory=list)
    removed: list[Row] = field(default_factory=list)
    is_erasure: bool = False
    """Nothing of what was removed may stay in memory or on disk."""


def check_episode(episode: Episode, *, max_text_chars: int) -> None:
    """Raises ValueError naming the field of an episode that cannot be stored."""
    for name in ("id", "document_id", "source_id", "text"):
        if not getattr(episode, name).strip():
            raise ValueError(f"{name} of episode {episode.id!r} is empty: give it a value")
    for name in ("happened_at", "salience"):
        if not abs(getattr(episode, name)) < _MOST:  # neither NaN nor infinite, and before the end of time
            raise ValueError(f"{name} of episode {episode.id!r} is {getattr(episode, name)}: give a finite number")
    if not 0 <= episode.position < _MOST_POSITION:
        raise ValueError(f"position of episode {episode.id!r} is {episode.position}: count from 0")
    names = {name: getattr(episode, name) for name in ("id", "document_id", "source_id", "tenant")}
    marks = [("a key or value of metadata", str(one)) for pair in episode.metadata.items() for one in pair]
    texts = [("title", episode.title), ("text", episode.text)]
    for name, value, most in (
        *((name, value, MAX_NAME_CHARS) for name, value in (*names.items(), *marks)),
        *((name, value, max_text_chars) for name, value in texts),
    ):
        if len(value) > most:
            fix = "cut it into passages (memory.passages.split_passages)" if name == "text" else "shorten it"
            raise ValueError(
                f"{name} of episode {episode.id[:80]!r} has {len(value)} characters, the limit is {most}: {fix}"
            )
        if "\x00" in value or not _is_unicode(value):
            raise ValueError(
                f"{name} of episode {episode.id[:80]!r} holds a NUL character or a lone surrogate: clean it (train.data.clean)"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def row_of(episode: Episode) -> Row:
    """A new row, without its place in the stream."""
    return {
        "id": episode.id,
        "document_id": episode.document_id,
        "source_id": episode.source_id,
        "tenant": episode.tenant,
        "position": episode.position,
        "trust": int(episode.trust),
        "salience": float(episode.salience),
        "num_words": count_words(episode.title, episode.text),
        "happened_at": float(episode.happened_at),
        "times_seen": 1,
        "title": episode.title,
        "metadata": json.dumps(
            {str(key): str(value) for key, value in episode.metadata.items()}, ensure_ascii=False, sort_keys=True
        ),
        "text": episode.text,
    }


def episode_from(row: Sequence[Any]) -> Episode:
    """From the columns of FIELDS, in their order."""
    return Episode(*(*row[:7], Trust(row[7]), *row[8:10], json.loads(row[10])))


def embedded_text(title: str, text: str) -> str:
    """What of a passage is embedded: its title helps a passage that does not name its subject."""
    return f"{title}\n{text}" if title else text


class EpisodeRows:
    """See the module."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def append(
        self,
        connection: SqlConnection,
        episodes: Sequence[Episode],
        *,
        now: float,
        recorded_at: Sequence[float] | None,
        change: IndexChange,
    ) -> tuple[list[str], list[str], list[str]]:
        """Store what is new and count what is there: ids (added, repeated, and those added as repeats of others)."""
        seen = Counter(episode.id for episode in episodes)
        stored = {
            row[0]
            for row in connection.execute(
                f"SELECT id FROM episode WHERE deleted_at IS NULL AND id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(seen))},
            )
        }
        again: list[Row] = [{"id": key, "times": times} for key, times in seen.items() if key in stored]
        if again:
            connection.executemany("UPDATE episode SET times_seen = times_seen + :times WHERE id = :id", again)
        rows: list[Row] = []
        for number, episode in enumerate(episodes):
            if episode.id not in stored:
                stored.add(episode.id)
                rows.append({**row_of(episode), "times_seen": seen[episode.id]})
                if recorded_at is not None:
                    rows[-1]["recorded_at"] = recorded_at[number]
        if rows:  # the tombstones of earlier lives make room
            for table in ("episode", "departed"):
                connection.execute(
                    f"DELETE FROM {table} WHERE id {self._database.one_of('ids')}",
                    {"ids": self._database.many([row["id"] for row in rows])},
                )
        self.insert(connection, rows, now=now, change=change)
        merged = [row["id"] for row in rows if row["duplicate_of"] is not None]
        return [row["id"] for row in rows], [row["id"] for row in again], merged

    def insert(self, connection: SqlConnection, rows: Sequence[Row], *, now: float, change: IndexChange) -> None:
        """Put rows at the end of the stream. A recallable one whose words are there already becomes a repeat.

        The clock may go backwards; `recorded_at` does not: it is the order of writing over all shards of a memory.
        """
        if not rows:
            return
        last_seq, last_recorded_at = connection.execute(
            "UPDATE totals SET last_seq = last_seq + :num, num_rows = num_rows + :num RETURNING last_seq, last_recorded_at",
            {"num": len(rows)},
        ).fetchone()
        recorded_at = max(now, last_recorded_at + TICK_S)
        for number, row in enumerate(rows):
            row["seq"] = last_seq - len(rows) + 1 + number
            row.setdefault("recorded_at", recorded_at + number * TICK_S)
            row["duplicate_key"] = near_duplicate_key(row["text"], tenant=row["tenant"], trust=row["trust"])
        connection.execute(
            "UPDATE totals SET last_recorded_at = :last WHERE last_recorded_at < :last",
            {"last": max(row["recorded_at"] for row in rows)},
        )
        first: dict[str, int] = dict(
            connection.execute(
                f"SELECT duplicate_key, seq FROM episode WHERE duplicate_key {self._database.one_of('keys')}"
                f" AND {RECALLABLE}",
                {"keys": self._database.many([row["duplicate_key"] for row in rows])},
            )
        )
        added = []
        for row in rows:
            row["duplicate_of"] = None
            if row["trust"] >= Trust.STANDARD:
                earlier = first.setdefault(row["duplicate_key"], row["seq"])
                if earlier == row["seq"]:
                    added.append(row)
                else:
                    row["duplicate_of"] = earlier
        connection.executemany(_INSERT, rows)
        self._tag(connection, rows)
        self._count(connection, added, sign=1)
        change.added += added

    def evict(self, connection: SqlConnection, *, capacity: int, now: float, change: IndexChange) -> int:
        """Delete what is beyond the capacity: repeats first, then the least salient, the oldest of equal ones."""
        (num_rows,) = connection.execute("SELECT num_rows FROM totals").fetchone()
        surplus = num_rows - capacity
        if surplus <= 0:
            return 0
        rows = self._rows(connection, "duplicate_of IS NOT NULL AND deleted_at IS NULL ORDER BY seq", limit=surplus)
        if len(rows) < surplus:
            rows += self._rows(
                connection,
                "duplicate_of IS NULL AND deleted_at IS NULL ORDER BY salience, recorded_at",
                limit=surplus - len(rows),
            )
        self.depart(connection, rows, now=now, change=change)
        return len(rows)

    def depart(self, connection: SqlConnection, rows: Sequence[Row], *, now: float, change: IndexChange) -> None:
        """Delete rows of which only id, document and source are remembered."""
        self.delete(connection, rows, change=change)
        connection.executemany(
            "INSERT INTO departed(id, document_id, source_id, departed_at) VALUES(:id, :document_id, :source_id, :now)"
            " ON CONFLICT DO NOTHING",
            [{**row, "now": now} for row in rows],
        )

    def retire(self, connection: SqlConnection, rows: Sequence[Row], *, now: float, change: IndexChange) -> None:
        """Let rows depart that their source no longer says. The oldest remaining repeat of each takes its place."""
        self.depart(connection, rows, now=now, change=change)
        self._promote(connection, rows, now=now, change=change)

    def delete(self, connection: SqlConnection, rows: Sequence[Row], *, change: IndexChange) -> None:
        """Delete rows without a tombstone."""
        self._leave(connection, rows, change=change)
        connection.execute(
            f"DELETE FROM episode WHERE seq {self._database.one_of('seqs')}",
            {"seqs": self._database.many([row["seq"] for row in rows])},
        )

    def erase(self, connection: SqlConnection, rows: Sequence[Row], *, now: float, change: IndexChange) -> None:
        """Null what rows say and leave tombstones. The oldest remaining repeat of an erased episode takes its place."""
        self._leave(connection, rows, change=change)
        connection.execute(
            "UPDATE episode SET title = NULL, text = NULL, metadata = NULL, embedding = NULL, duplicate_key = NULL,"
            f" duplicate_of = NULL, deleted_at = :now WHERE seq {self._database.one_of('seqs')}",
            {"now": now, "seqs": self._database.many([row["seq"] for row in rows])},
        )
        self._promote(connection, rows, now=now, change=change)

    def move(
        self, connection: SqlConnection, rows: Sequence[Row], *, trust: Trust, now: float, change: IndexChange
    ) -> None:
        """Give rows another trust: released ones come into recall, held ones leave it, at the end of the stream."""
        self.delete(connection, rows, change=change)
        self._promote(connection, rows, now=now, change=change)
        self.insert(connection, [{**row, "trust": int(trust)} for row in rows], now=now, change=change)

    def select(self, connection: SqlConnection, condition: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Live rows, in the order of the stream."""
        return self._rows(connection, f"deleted_at IS NULL AND {condition} ORDER BY seq", parameters)

    def _promote(self, connection: SqlConnection, rows: Sequence[Row], *, now: float, change: IndexChange) -> None:
        repeats = self._rows(
            connection,
            f"duplicate_of {self._database.one_of('seqs')} AND deleted_at IS NULL ORDER BY seq",
            {"seqs": self._database.many([row["seq"] for row in rows])},
        )
        if repeats:
            self.delete(connection, repeats, change=change)
            self.insert(connection, repeats, now=now, change=change)

    def _leave(self, connection: SqlConnection, rows: Sequence[Row], *, change: IndexChange) -> None:
        """Rows go out of the totals, the tags and recall."""
        if not rows:
            return
        leaving = [row for row in rows if row["duplicate_of"] is None and row["trust"] >= Trust.STANDARD]
        connection.execute("UPDATE totals SET num_rows = num_rows - :num", {"num": len(rows)})
        connection.execute(
            f"DELETE FROM episode_tag WHERE seq {self._database.one_of('seqs')}",
            {"seqs": self._database.many([row["seq"] for row in rows])},
        )
        self._count(connection, leaving, sign=-1)
        seqs = {row["seq"] for row in leaving}
        came = {row["seq"] for row in change.added}
        change.removed += [row for row in leaving if row["seq"] not in came]
        change.added = [row for row in change.added if row["seq"] not in seqs]

    def _tag(self, connection: SqlConnection, rows: Sequence[Row]) -> None:
        tags = [
            {"key": key, "value": value, "seq": row["seq"]}
            for row in rows
            for key, value in json.loads(row["metadata"]).items()
        ]
        if tags:
            connection.executemany("INSERT INTO episode_tag(key, value, seq) VALUES(:key, :value, :seq)", tags)

    @staticmethod
    def _count(connection: SqlConnection, rows: Sequence[Row], *, sign: int) -> None:
        connection.execute(
            "UPDATE totals SET num_recallable = num_recallable + :num, num_words = num_words + :words",
            {"num": sign * len(rows), "words": sign * sum(row["num_words"] for row in rows)},
        )

    def _rows(
        self,
        connection: SqlConnection,
        condition: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
    ) -> list[Row]:
        bound = "" if limit is None else f" LIMIT {limit:d}"
        found = connection.execute(f"{_SELECT} WHERE {condition}{bound}", parameters or {}).fetchall()
        return [dict(zip(_COLUMNS, row, strict=True)) for row in found]


def sql_of(where: EpisodeFilter, database: SqlDatabase) -> tuple[str, dict[str, Any]]:
    """A filter as a condition on the rows, and its parameters. An episode passes if it or a repeat of it does."""
    conditions = ["trust >= :min_trust", "trust <= :max_trust"]
    values: dict[str, Any] = {"min_trust": int(where.min_trust), "max_trust": int(where.max_trust)}
    if where.max_trust < Trust.STANDARD:
        conditions.append("trust < 2")  # as the index of what waits says it
    own, own_values = own_conditions(where, database)
    if own:
        conditions.append(f"({own} OR seq IN ({REPEATED} AND {own}))")
    return " AND ".join(conditions), values | own_values


REPEATED = "SELECT duplicate_of FROM episode WHERE duplicate_of IS NOT NULL AND deleted_at IS NULL"
"""Seqs of the episodes that have repeats."""


def own_conditions(where: EpisodeFilter, database: SqlDatabase) -> tuple[str, dict[str, Any]]:
    """What a filter asks of a row but trust, as one condition, "" for nothing, and its parameters."""
    conditions, values = [], dict[str, Any]()
    for name, column in (("source_ids", "source_id"), ("document_ids", "document_id")):
        if getattr(where, name) is not None:
            conditions.append(f"{column} {database.one_of(name)}")
            values[name] = database.many(getattr(where, name))
    for name, condition in (
        ("tenant", "tenant = :tenant"),
        ("happened_from", "happened_at >= :happened_from"),
        ("happened_before", "happened_at < :happened_before"),
    ):
        if getattr(where, name) is not None:
            conditions.append(condition)
            values[name] = getattr(where, name)
    for number, (key, value) in enumerate(where.metadata.items()):
        conditions.append(f"seq IN (SELECT seq FROM episode_tag WHERE key = :key{number} AND value = :value{number})")
        values |= {f"key{number}": key, f"value{number}": value}
    return " AND ".join(conditions), values
