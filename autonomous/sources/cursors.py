"""CursorStore: which sources there are, how far each was read, what of it is known, and what was refused.

A batch is committed in one transaction after the store of passages has acknowledged it: a crash in between reads the batch
again, which changes nothing there. What is about to be handed on is written down before. Of a source that is in the
configuration file and was changed at run time the latest counts: the file wins again when its entry is edited.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from autonomous.sources.batch import Cursor, Mark, SourceBatch
from autonomous.sources.config import SourceConfig, place_of, source_from_json
from memory.store import Database, no_guard
from memory.types import Guard
from train.data.document import RawDocument, Rejected

SCHEMA_VERSION = 1
MAX_REFUSED = 1000
"""Refused documents that are kept per source, the newest."""
MAX_TEXT = 1000
"""Longer reasons are cut."""
_SCHEMA = """
CREATE TABLE source (
  id TEXT PRIMARY KEY, config TEXT NOT NULL, in_file TEXT, is_removed INTEGER NOT NULL DEFAULT 0, added_at REAL NOT NULL);
CREATE TABLE progress (
  source_id TEXT PRIMARY KEY, cursor TEXT NOT NULL DEFAULT '{}', num_documents INTEGER NOT NULL DEFAULT 0,
  num_repeated INTEGER NOT NULL DEFAULT 0, num_refused INTEGER NOT NULL DEFAULT 0, num_removed INTEGER NOT NULL DEFAULT 0,
  num_bytes INTEGER NOT NULL DEFAULT 0, last_read_at REAL, error TEXT NOT NULL DEFAULT '');
CREATE TABLE mark (
  seq INTEGER PRIMARY KEY, source_id TEXT NOT NULL, key TEXT NOT NULL, document_id TEXT NOT NULL, stamp TEXT NOT NULL,
  sha256 TEXT NOT NULL, UNIQUE(source_id, key));
CREATE TABLE refused (
  seq INTEGER PRIMARY KEY, source_id TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
  fix TEXT NOT NULL, refused_at REAL NOT NULL, UNIQUE(source_id, key));
"""
Origin = Literal["configuration", "run time"]


class UnknownSource(LookupError):
    """No source has this id."""


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A source as it counts now."""

    config: SourceConfig
    origin: Origin
    """Whether the configuration file says it so."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a source was read. Counts are of all batches; `num_documents` counts what was handed to the store of passages,
    `num_repeated` those of it that were there already."""

    cursor: Cursor
    num_documents: int
    num_repeated: int
    num_refused: int
    num_removed: int
    num_bytes: int
    last_read_at: float | None
    """Of the last batch, seconds since the epoch."""
    error: str
    """Why it could not be read the last time; empty if it could."""


@dataclass(frozen=True, slots=True)
class RefusedDocument:
    """What of a source is neither recalled nor learned. `status`: unreadable, rejected or quarantined."""

    key: str
    status: str
    reason: str
    fix: str
    refused_at: float = 0.0


class CursorStore:
    """See the module. Thread-safe. Implements batch.Known."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create. Raises memory.store.StoreProblem for a newer schema or a file that is no database."""
        self._database = Database(path, schema=_SCHEMA, version=SCHEMA_VERSION)
        self._clock = clock

    def close(self) -> None:
        """Close all connections; later calls raise ValueError."""
        self._database.close()

    # -- which sources there are

    def follow_file(self, sources: Sequence[SourceConfig], *, guard: Guard = no_guard) -> None:
        """Take over what the configuration file says, where it says something new: its entries that were added or edited,
        and those that are gone from it and were not changed at run time."""
        entries = {config.id: config for config in sources}
        with self._database.write(guard=guard) as connection:
            rows = connection.execute("SELECT id, config, in_file FROM source WHERE in_file IS NOT NULL").fetchall()
            known = {key: (config, in_file) for key, config, in_file in rows}
            for key, config in entries.items():
                text = config.model_dump_json()
                if key not in known or known[key][1] != text:
                    self._put(connection, config, in_file=text)
            for key, (text, in_file) in known.items():
                if key not in entries and text == in_file:
                    self._forget(connection, key)
                    connection.execute("DELETE FROM source WHERE id = :id", {"id": key})
                elif key not in entries:
                    connection.execute("UPDATE source SET in_file = NULL WHERE id = :id", {"id": key})

    def add(self, config: SourceConfig, *, guard: Guard = no_guard) -> None:
        """From now on read this source, in place of one of the same id. Another place is read from its start."""
        with self._database.write(guard=guard) as connection:
            row = connection.execute("SELECT in_file FROM source WHERE id = :id", {"id": config.id}).fetchone()
            self._put(connection, config, in_file=None if row is None else row[0])

    def remove(self, source_id: str, *, guard: Guard = no_guard) -> bool:
        """Read it no longer and forget how far it was read; False if there is none. What it said stays stored."""
        with self._database.write(guard=guard) as connection:
            removed = connection.execute(
                "UPDATE source SET is_removed = 1 WHERE id = :id AND is_removed = 0", {"id": source_id}
            ).rowcount
            self._forget(connection, source_id)
            connection.execute("DELETE FROM source WHERE id = :id AND in_file IS NULL", {"id": source_id})
        return bool(removed)

    def sources(self) -> dict[str, StoredSource]:
        """All that are read, by id in the order of their names. An entry that this release cannot read is left out."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, config, in_file FROM source WHERE is_removed = 0 ORDER BY id"
            ).fetchall()
        found = {}
        for key, text, in_file in rows:
            try:
                config = source_from_json(text)
            except ValidationError:
                continue  # written by a newer release: it stays in the table for that one
            found[key] = StoredSource(config, "configuration" if text == in_file else "run time")
        return found

    # -- how far each was read

    def progress(self, source_id: str) -> Progress:
        """Raises UnknownSource."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT cursor, num_documents, num_repeated, num_refused, num_removed, num_bytes, last_read_at, error"
                " FROM progress WHERE source_id = :id",
                {"id": source_id},
            ).fetchone()
        if row is None:
            raise UnknownSource(f"there is no source {source_id!r}; autonomous sources list shows them")
        return Progress(json.loads(row[0]), *row[1:])

    def refused(self, source_id: str, *, limit: int) -> list[RefusedDocument]:
        """The newest first. Raises UnknownSource."""
        self.progress(source_id)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, status, reason, fix, refused_at FROM refused WHERE source_id = :id ORDER BY seq DESC"
                f" LIMIT {limit:d}",
                {"id": source_id},
            ).fetchall()
        return [RefusedDocument(*row) for row in rows]

    def marks(self, source_id: str) -> dict[str, Mark]:
        """See Known."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, document_id, stamp, sha256 FROM mark WHERE source_id = :id", {"id": source_id}
            )
            return {row[0]: Mark(*row[1:]) for row in rows}

    def marks_of(self, source_id: str, keys: Sequence[str]) -> dict[str, Mark]:
        """See Known."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, document_id, stamp, sha256 FROM mark WHERE source_id = :id"
                f" AND key {self._database.one_of('keys')}",
                {"id": source_id, "keys": self._database.many(list(keys))},
            )
            return {row[0]: Mark(*row[1:]) for row in rows}

    def intend(self, source_id: str, batch: SourceBatch, *, guard: Guard = no_guard) -> None:
        """Keep which documents are about to be handed on, with unknown content. A process that dies before `commit` may have
        stored them: if they change back or go before they are read again, that is noticed all the same.
        """
        ids = {document.id for document in batch.documents}
        rows = [
            {"id": source_id, "key": key, "document": mark.document_id}
            for key, mark in batch.marks.items()
            if mark is not None and mark.document_id in ids
        ]
        if not rows:
            return
        with self._database.write(guard=guard) as connection:
            connection.executemany(
                "INSERT INTO mark(source_id, key, document_id, stamp, sha256) SELECT :id, :key, :document, '', ''"
                " WHERE EXISTS (SELECT 1 FROM progress WHERE source_id = :id)"
                " ON CONFLICT(source_id, key) DO UPDATE SET document_id = :document, stamp = '', sha256 = ''",
                rows,
            )

    def commit(
        self,
        source_id: str,
        batch: SourceBatch,
        *,
        refused: Sequence[RefusedDocument],
        num_repeated: int,
        num_bytes: int,
        guard: Guard = no_guard,
    ) -> bool:
        """Keep that a batch was acknowledged. False, and nothing is kept, if the source is gone. Raises what `guard` does."""
        now = self._clock()
        with self._database.write(guard=guard) as connection:
            changed = connection.execute(
                "UPDATE progress SET cursor = :cursor, num_documents = num_documents + :documents, num_repeated ="
                " num_repeated + :repeated, num_removed = num_removed + :removed, num_bytes = num_bytes + :bytes,"
                " last_read_at = :now, error = '' WHERE source_id = :id",
                {
                    "cursor": json.dumps(batch.cursor), "documents": len(batch.documents), "repeated": num_repeated,
                    "removed": len(batch.removed), "bytes": num_bytes, "now": now, "id": source_id,
                },
            ).rowcount  # fmt: skip
            if not changed:
                return False
            self._write_marks(connection, source_id, batch.marks, batch.max_marks)
            well = {key_of(one) for one in batch.documents} - {one.key for one in refused}
            connection.execute(
                f"DELETE FROM refused WHERE source_id = :id AND key {self._database.one_of('keys')}",
                {"id": source_id, "keys": self._database.many(sorted(well | self._gone(batch.marks)))},
            )
            self._write_refused(connection, source_id, refused, now)
        return True

    def note_error(self, source_id: str, error: str, *, guard: Guard = no_guard) -> None:
        """Why it could not be read; the cursor stays."""
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE progress SET error = :error WHERE source_id = :id", {"error": error[:MAX_TEXT], "id": source_id}
            )

    # -- helpers

    def _put(self, connection: Any, config: SourceConfig, *, in_file: str | None) -> None:
        row = connection.execute(
            "SELECT config FROM source WHERE id = :id AND is_removed = 0", {"id": config.id}
        ).fetchone()
        if row is not None and not _is_same_place(row[0], config):
            self._forget(connection, config.id)
        connection.execute(
            "INSERT INTO source(id, config, in_file, added_at) VALUES(:id, :config, :in_file, :now)"
            " ON CONFLICT(id) DO UPDATE SET config = :config, in_file = :in_file, is_removed = 0, added_at = :now",
            {"id": config.id, "config": config.model_dump_json(), "in_file": in_file, "now": self._clock()},
        )
        connection.execute("INSERT INTO progress(source_id) VALUES(:id) ON CONFLICT DO NOTHING", {"id": config.id})

    @staticmethod
    def _forget(connection: Any, source_id: str) -> None:
        for table in ("progress", "mark", "refused"):
            connection.execute(f"DELETE FROM {table} WHERE source_id = :id", {"id": source_id})

    @staticmethod
    def _gone(marks: Mapping[str, Mark | None]) -> set[str]:
        return {key for key, mark in marks.items() if mark is None}

    @staticmethod
    def _write_marks(connection: Any, source_id: str, marks: Mapping[str, Mark | None], max_marks: int | None) -> None:
        connection.executemany(
            "DELETE FROM mark WHERE source_id = :id AND key = :key", [{"id": source_id, "key": key} for key in marks]
        )
        connection.executemany(
            "INSERT INTO mark(source_id, key, document_id, stamp, sha256) VALUES(:id, :key, :document, :stamp, :sha256)",
            [
                {"id": source_id, "key": key, "document": mark.document_id, "stamp": mark.stamp, "sha256": mark.sha256}
                for key, mark in marks.items()
                if mark is not None
            ],
        )
        if max_marks is not None:
            connection.execute(
                "DELETE FROM mark WHERE seq <= (SELECT seq FROM mark WHERE source_id = :id ORDER BY seq DESC"
                f" LIMIT 1 OFFSET {max_marks:d}) AND source_id = :id",
                {"id": source_id},
            )

    @staticmethod
    def _write_refused(connection: Any, source_id: str, refused: Sequence[RefusedDocument], now: float) -> None:
        """One row for each key; what is refused again for the same reason is not counted again."""
        num_new = 0
        for one in refused:
            values = {
                "id": source_id, "key": one.key[:MAX_TEXT], "status": one.status, "reason": one.reason[:MAX_TEXT],
                "fix": one.fix[:MAX_TEXT], "now": now,
            }  # fmt: skip
            where = "source_id = :id AND key = :key"
            same = connection.execute(f"SELECT 1 FROM refused WHERE {where} AND reason = :reason", values).fetchone()
            if same is None:
                num_new += 1
                connection.execute(f"DELETE FROM refused WHERE {where}", values)
                connection.execute(
                    "INSERT INTO refused(source_id, key, status, reason, fix, refused_at)"
                    " VALUES(:id, :key, :status, :reason, :fix, :now)",
                    values,
                )
        connection.execute(
            "UPDATE progress SET num_refused = num_refused + :num WHERE source_id = :id",
            {"num": num_new, "id": source_id},
        )
        connection.execute(
            "DELETE FROM refused WHERE seq <= (SELECT seq FROM refused WHERE source_id = :id ORDER BY seq DESC"
            f" LIMIT 1 OFFSET {MAX_REFUSED:d}) AND source_id = :id",
            {"id": source_id},
        )


def key_of(item: RawDocument | Rejected) -> str:
    """What a refusal is known by: the path, and of a record its id or place in it."""
    if isinstance(item, Rejected):
        return item.path if item.offset is None else f"{item.path}#{item.offset}"
    place = item.metadata.get("record_id", item.metadata.get("offset"))
    path = item.metadata.get("path", item.id)
    return path if place is None else f"{path}#{place}"


def _is_same_place(text: str, config: SourceConfig) -> bool:
    try:
        return place_of(source_from_json(text)) == place_of(config)
    except ValidationError:
        return False
