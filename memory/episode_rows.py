"""The tables of EpisodicMemory, and what is read from and put into their rows and the keyword index."""

import json
import math
import sqlite3
from typing import Any

from memory.types import Episode, Trust

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE episode (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- commit order, never reused
  id TEXT NOT NULL UNIQUE, document_id TEXT NOT NULL, source_id TEXT NOT NULL, tenant TEXT NOT NULL,
  title TEXT, text TEXT, metadata TEXT, embedding BLOB,  -- all four NULL after erasure; embedding: float16, unit length
  position INTEGER NOT NULL, trust INTEGER NOT NULL, salience REAL NOT NULL,
  happened_at REAL NOT NULL, recorded_at REAL NOT NULL, times_seen INTEGER NOT NULL DEFAULT 1, deleted_at REAL);
CREATE INDEX episode_document ON episode(document_id) WHERE deleted_at IS NULL;
CREATE INDEX episode_source ON episode(source_id) WHERE deleted_at IS NULL;
CREATE INDEX episode_pending ON episode(seq) WHERE embedding IS NULL AND deleted_at IS NULL AND trust > 0;
CREATE INDEX episode_salience ON episode(salience, seq) WHERE deleted_at IS NULL;
CREATE VIRTUAL TABLE episode_words USING fts5(
  title, text, content='episode', content_rowid='seq', tokenize='porter unicode61 remove_diacritics 2');
INSERT INTO episode_words(episode_words, rank) VALUES('rank', 'bm25(0.5, 1.0)');
"""
FIELDS = "id, document_id, source_id, title, text, position, happened_at, trust, salience, tenant, metadata"
PENDING = "embedding IS NULL AND deleted_at IS NULL AND trust > 0"
INDEXED = "embedding IS NOT NULL AND deleted_at IS NULL AND trust > 0"
LAST_SEQ = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'episode'), 0)"


def select_indexed_seqs(connection: sqlite3.Connection, *, source_id: str | None = None) -> set[int]:
    rows = connection.execute(
        f"SELECT seq FROM episode WHERE {INDEXED} AND (?1 IS NULL OR source_id = ?1)", (source_id,)
    )
    return {row[0] for row in rows}


def search_words(
    connection: sqlite3.Connection, expression: str, *, limit: int, source_id: str | None
) -> dict[int, float]:
    """{seq: BM25}, higher is better (FTS5's own sign is the other way round)."""
    rows = connection.execute(
        "SELECT rowid, -rank FROM episode_words WHERE episode_words MATCH ?1"
        " AND (?2 IS NULL OR rowid IN (SELECT seq FROM episode WHERE source_id = ?2 AND deleted_at IS NULL))"
        " ORDER BY rank LIMIT ?3",
        (expression, source_id, limit),
    )
    return dict(rows.fetchall())


def forget_words(connection: sqlite3.Connection, *, seq: int, title: str, text: str, trust: int) -> None:
    """Take a row out of the keyword index, which needs the very values that were put in."""
    if trust > Trust.QUARANTINED:
        connection.execute(
            "INSERT INTO episode_words(episode_words, rowid, title, text) VALUES('delete', ?, ?, ?)", (seq, title, text)
        )


def embedded_text(title: str, text: str) -> str:
    """What of a passage is embedded: its title helps a passage that does not name its subject."""
    return f"{title}\n{text}" if title else text


def episode_from(row: tuple[Any, ...]) -> Episode:
    """From the columns of FIELDS, in their order."""
    return Episode(*(*row[:7], Trust(row[7]), *row[8:10], json.loads(row[10])))


def check_episode(episode: Episode) -> None:
    """Raises ValueError naming the field of an episode that cannot be stored."""
    for field in ("id", "document_id", "source_id", "text"):
        if not getattr(episode, field).strip():
            raise ValueError(f"{field} of episode {episode.id!r} is empty: give it a value")
    for field in ("happened_at", "salience"):
        if not math.isfinite(getattr(episode, field)):
            raise ValueError(f"{field} of episode {episode.id!r} is {getattr(episode, field)}: give a finite number")
