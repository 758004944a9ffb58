"""The tables of the version ledger, and what their rows mean.

versions          one row from DRAFT on; a unique index allows one PRODUCTION; a trigger keeps a fixed bundle unchanged
version_episodes  which episodes a version itself was trained on, in order
held_back         episodes that a rejected or rolled back version learned: not to be learned again
adapter_numbers   AUTOINCREMENT: a number is never given twice
audit, evidence   the hash chain (audit.py), append-only; evidence and reports under their own hash
"""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from autonomous.versions.gates import GateResult
from autonomous.versions.states import State

VERSION = 2
"""Of the tables and of what the audit rows say; another file is refused. 2: they name folder and held back episodes."""

SCHEMA = """
CREATE TABLE adapter_numbers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    version_id TEXT NOT NULL UNIQUE
);
CREATE TABLE evidence (
    sha256 TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    run_id TEXT UNIQUE,
    version_id TEXT UNIQUE,
    parent TEXT REFERENCES versions(version_id),
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    changed_seq INTEGER NOT NULL,
    config TEXT NOT NULL,
    folder TEXT,
    manifest TEXT,
    stream_offset INTEGER CHECK (stream_offset >= 0),
    adapter_number INTEGER UNIQUE REFERENCES adapter_numbers(number),
    report_sha256 TEXT REFERENCES evidence(sha256),
    gates_sha256 TEXT REFERENCES evidence(sha256),
    CHECK (run_id IS NOT NULL OR version_id IS NOT NULL)
);
CREATE UNIQUE INDEX one_production ON versions(state) WHERE state = 'PRODUCTION';
CREATE TRIGGER bundle_is_immutable
BEFORE UPDATE OF version_id, parent, folder, manifest, stream_offset, adapter_number ON versions
WHEN OLD.version_id IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a bundle never changes'); END;
CREATE TABLE version_episodes (
    version INTEGER NOT NULL REFERENCES versions(id),
    position INTEGER NOT NULL,
    episode_id TEXT NOT NULL,
    PRIMARY KEY (version, episode_id)
) WITHOUT ROWID;
CREATE INDEX version_episodes_by_episode ON version_episodes(episode_id);
CREATE TABLE held_back (
    episode_id TEXT NOT NULL,
    version INTEGER NOT NULL REFERENCES versions(id),
    PRIMARY KEY (episode_id, version)
) WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    ts REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before TEXT,
    after TEXT,
    evidence_sha256 TEXT,
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER audit_is_never_updated BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
"""

LINE = """
WITH RECURSIVE line(id, parent, depth) AS (
    SELECT id, parent, 0 FROM versions WHERE id = :id
    UNION ALL
    SELECT versions.id, versions.parent, line.depth + 1 FROM versions JOIN line ON versions.version_id = line.parent
)
"""
"""The version :id and its ancestors, depth 0 first."""

DESCENDANTS = """
WITH RECURSIVE learned(id) AS (
    SELECT version FROM version_episodes WHERE episode_id IN (SELECT value FROM json_each(:episodes))
    UNION
    SELECT child.id FROM learned
    JOIN versions AS mother USING (id)
    JOIN versions AS child ON child.parent = mother.version_id
)
SELECT version_id FROM learned JOIN versions USING (id) ORDER BY id
"""
"""Versions that were trained on one of :episodes (a JSON list), and all versions trained on top of those."""

_RECORDS = """
SELECT versions.*, reports.body AS report, gates.body AS gates,
       (SELECT json_extract(after, '$.percent') FROM audit WHERE seq = changed_seq) AS percent,
       (SELECT count(*) FROM version_episodes WHERE version = versions.id) AS num_episodes
FROM versions
LEFT JOIN evidence AS reports ON reports.sha256 = report_sha256
LEFT JOIN evidence AS gates ON gates.sha256 = gates_sha256
"""


class UnknownVersion(ValueError):
    """The ledger has no version or run of this name."""


@dataclass(frozen=True)
class Pointers:
    """Which version is in which slot. V1 is the newest in SHADOW or CANARY, else V2; V3 the newest QUARANTINED."""

    v1: str
    v2: str
    v3: str | None
    canary_percent: float = 0.0
    """Share of the users of V2 whom V1 answers."""


@dataclass(frozen=True)
class VersionRecord:
    """One row of the ledger. `name` is the version id, or the run id as long as there is no bundle. Times in s."""

    name: str
    run_id: str | None
    state: State
    parent: str | None
    created_at: float
    changed_at: float
    num_episodes: int
    config: dict[str, Any] = field(repr=False)
    is_fixed: bool
    """Whether there is a bundle: an id, a folder, a manifest."""
    stored_folder: Path | None = field(repr=False)
    manifest: dict[str, Any] | None = field(repr=False)
    stream_offset: int | None
    adapter_number: int | None
    """None for runs, and for the frozen original, which has no adapter."""
    report_sha256: str | None
    gates: tuple[GateResult, ...]
    percent: float | None
    """Of a CANARY: the share of the users whom it answers."""
    report_json: str | None = field(repr=False)
    row_id: int = field(repr=False)

    @property
    def folder(self) -> Path:
        """Where the bundle lies. Raises ValueError for a run without one."""
        if self.stored_folder is None:
            raise ValueError(f"run {self.name} is {self.state} and has no bundle: wait until it is CANDIDATE")
        return self.stored_folder

    @property
    def report(self) -> dict[str, Any] | None:
        """The evaluation report that is bound to the version, if there is one."""
        return None if self.report_json is None else cast("dict[str, Any]", json.loads(self.report_json))

    @property
    def is_genesis(self) -> bool:
        """Whether this is the frozen original."""
        return self.run_id is None

    def to_dict(self) -> dict[str, Any]:
        """What GET /v1/versions shows."""
        return {
            "id": self.name,
            "run_id": self.run_id,
            "state": self.state.value,
            "parent": self.parent,
            "adapter_number": self.adapter_number,
            "created_at": self.created_at,
            "changed_at": self.changed_at,
            "percent": self.percent,
            "num_episodes": self.num_episodes,
            "stream_offset": self.stream_offset,
            "gates": [gate.to_dict() for gate in self.gates],
            "report_sha256": self.report_sha256,
        }


def select_records(
    connection: sqlite3.Connection, clauses: str = "", values: dict[str, Any] | None = None
) -> list[VersionRecord]:
    """Records by SQL clauses (WHERE, ORDER BY, LIMIT) over `versions`."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return [_record_of(row) for row in cursor.execute(_RECORDS + clauses, values or {})]


def find_record(connection: sqlite3.Connection, name: str) -> VersionRecord:
    """By version id or run id. Raises UnknownVersion."""
    found = select_records(connection, "WHERE version_id = :name OR run_id = :name", {"name": name})
    if not found:
        raise UnknownVersion(f"the ledger has no version or run {name!r}: GET /v1/versions lists them")
    return found[0]


def select_in_states(connection: sqlite3.Connection, states: Iterable[State]) -> list[VersionRecord]:
    """Records in one of these states, the last moved first."""
    names = json.dumps(sorted(states))
    return select_records(
        connection, "WHERE state IN (SELECT value FROM json_each(:names)) ORDER BY changed_seq DESC", {"names": names}
    )


def select_line(connection: sqlite3.Connection, record: VersionRecord) -> list[VersionRecord]:
    """The version and its ancestors, root first."""
    ids = [
        row[0] for row in connection.execute(LINE + "SELECT id FROM line ORDER BY depth DESC", {"id": record.row_id})
    ]
    by_id = {
        found.row_id: found
        for found in select_records(
            connection, "WHERE id IN (SELECT value FROM json_each(:ids))", {"ids": json.dumps(ids)}
        )
    }
    return [by_id[row_id] for row_id in ids]


def learned_by_line(connection: sqlite3.Connection, record: VersionRecord) -> set[str]:
    """Episodes that the version or an ancestor was trained on."""
    query = LINE + "SELECT DISTINCT episode_id FROM version_episodes JOIN line ON version = line.id"
    return {row[0] for row in connection.execute(query, {"id": record.row_id})}


def held_back(connection: sqlite3.Connection) -> set[str]:
    """Episodes that are not to be learned again."""
    return {row[0] for row in connection.execute("SELECT DISTINCT episode_id FROM held_back")}


def _record_of(row: sqlite3.Row) -> VersionRecord:
    return VersionRecord(
        name=row["version_id"] or row["run_id"],
        run_id=row["run_id"],
        state=State(row["state"]),
        parent=row["parent"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
        num_episodes=row["num_episodes"],
        config=json.loads(row["config"]),
        is_fixed=row["version_id"] is not None,
        stored_folder=None if row["folder"] is None else Path(row["folder"]),
        manifest=None if row["manifest"] is None else json.loads(row["manifest"]),
        stream_offset=row["stream_offset"],
        adapter_number=row["adapter_number"],
        report_sha256=row["report_sha256"],
        gates=tuple(GateResult.from_dict(gate) for gate in json.loads(row["gates"] or "[]")),
        percent=row["percent"],
        report_json=row["report"],
        row_id=row["id"],
    )
