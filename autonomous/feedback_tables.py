"""The tables of requests, feedback and learning tasks: one database, so that an erasure is one transaction.

Whoever asked or voted is known by a pseudonym: a keyed hash (RFC 7693, BLAKE2b) whose key lies in the database alone.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from autonomous.people import person_of
from memory.store import Database

VERSION = 2
_SCHEMA = """
CREATE TABLE pseudonym_key (key BLOB NOT NULL);
CREATE TABLE request (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, answer TEXT NOT NULL, version TEXT NOT NULL, at REAL NOT NULL,
  log_prob REAL, num_output_tokens INTEGER NOT NULL, is_retrieved INTEGER NOT NULL, cosine REAL, sources TEXT NOT NULL,
  tenant TEXT NOT NULL, user TEXT NOT NULL);
CREATE INDEX request_at ON request(at, id);
CREATE INDEX request_user ON request(user);
CREATE TABLE vote (
  response_id TEXT NOT NULL REFERENCES request(id) ON DELETE CASCADE, voter TEXT NOT NULL, rating TEXT NOT NULL,
  reason TEXT NOT NULL, correction TEXT NOT NULL, screen TEXT NOT NULL, is_reviewed INTEGER NOT NULL,
  document_id TEXT NOT NULL, state TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (response_id, voter));
CREATE INDEX vote_voter ON vote(voter);
CREATE INDEX vote_state ON vote(state);
CREATE TABLE to_label (
  place INTEGER PRIMARY KEY, response_id TEXT NOT NULL UNIQUE REFERENCES request(id) ON DELETE CASCADE,
  chosen_at REAL NOT NULL);
CREATE TABLE unwanted_document (document_id TEXT PRIMARY KEY);
CREATE TABLE learning_task (
  gap_id TEXT PRIMARY KEY, state TEXT NOT NULL, kind TEXT NOT NULL, question TEXT NOT NULL, score REAL NOT NULL,
  mean_confidence REAL, episodes TEXT NOT NULL, note TEXT NOT NULL, version TEXT NOT NULL, run_id TEXT NOT NULL,
  num_attempts INTEGER NOT NULL, num_asked INTEGER NOT NULL, num_answered INTEGER NOT NULL,
  created_at REAL NOT NULL, changed_at REAL NOT NULL);
CREATE TABLE task_question (
  gap_id TEXT NOT NULL REFERENCES learning_task(gap_id) ON DELETE CASCADE, response_id TEXT NOT NULL,
  question TEXT NOT NULL, PRIMARY KEY (gap_id, response_id));
CREATE INDEX task_response ON task_question(response_id);
"""


UNASKED = "NOT EXISTS (SELECT 1 FROM task_question WHERE task_question.gap_id = learning_task.gap_id)"
"""Of a task: no request that asks its question is kept any more."""


def open_feedback(path: Path) -> Database:
    """Open or create. Raises memory.store.StoreProblem for another schema or a file that is no database."""
    database = Database(path, schema=_SCHEMA, version=VERSION)
    with database.write() as connection:
        if connection.execute("SELECT 1 FROM pseudonym_key").fetchone() is None:
            connection.execute("INSERT INTO pseudonym_key(key) VALUES(:key)", {"key": secrets.token_bytes(32)})
    return database


def pseudonym_of(connection: sqlite3.Connection, name: str) -> str:
    """What a person is called here, however the name is typed; empty for nobody."""
    if not (person := person_of(name)):
        return ""
    (key,) = connection.execute("SELECT key FROM pseudonym_key").fetchone()
    return hashlib.blake2b(person.encode(), key=key, digest_size=16).hexdigest()


def forget_requests(connection: sqlite3.Connection, ids: Iterable[str]) -> int:
    """Erase requests with their votes and what tasks quote of them; documents made of them are unwanted. How many were there.

    A task whose last question goes, or whose name is one of theirs, goes too.
    """
    listed = {"ids": json.dumps(list(ids))}
    chosen = "IN (SELECT value FROM json_each(:ids))"
    connection.execute(
        "INSERT OR IGNORE INTO unwanted_document(document_id)"
        f" SELECT document_id FROM vote WHERE response_id {chosen} AND document_id != ''",
        listed,
    )
    gaps = [
        row[0] for row in connection.execute(f"SELECT gap_id FROM task_question WHERE response_id {chosen}", listed)
    ]
    forgotten = [
        row[0] for row in connection.execute(f"SELECT question FROM task_question WHERE response_id {chosen}", listed)
    ]
    connection.execute(f"DELETE FROM task_question WHERE response_id {chosen}", listed)
    connection.execute(
        f"DELETE FROM learning_task WHERE gap_id IN (SELECT value FROM json_each(:gaps)) AND ({UNASKED}"
        " OR (question IN (SELECT value FROM json_each(:forgotten)) AND NOT EXISTS (SELECT 1 FROM task_question WHERE"
        " task_question.gap_id = learning_task.gap_id AND task_question.question = learning_task.question)))",
        {"gaps": json.dumps(gaps), "forgotten": json.dumps(forgotten)},
    )
    return int(connection.execute(f"DELETE FROM request WHERE id {chosen}", listed).rowcount)
