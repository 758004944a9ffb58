"""The scheduler's tables: up to where each schedule is settled, and its runs.

schedules  one row per job: slots up to `settled_to` are decided and never come up again; it is never set back
runs       one row per slot (a unique key), trigger or request; another unique key allows one running row in the system
scheduler  the latch's epoch under which the schedules count, and the last fencing number that was given

In: an open transaction. Out: changed rows, RunRecords. What is decided about them is in schedule_book.py.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from autonomous.jobs import JobKind

VERSION = 1
"""Of the schema; a newer file is refused."""

SCHEMA = """
CREATE TABLE scheduler (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    fence INTEGER NOT NULL
);
CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    schedule TEXT NOT NULL,
    settled_to REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    slot TEXT NOT NULL,
    num_slots INTEGER NOT NULL,
    due_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'ended')),
    reasons TEXT NOT NULL,
    num_reasons INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL,
    fence INTEGER UNIQUE,
    holder TEXT,
    beats INTEGER NOT NULL DEFAULT 0,
    started_at REAL,
    ended_at REAL,
    outcome TEXT,
    detail TEXT NOT NULL DEFAULT '',
    results TEXT NOT NULL DEFAULT '[]',
    num_to_label INTEGER,
    UNIQUE (name, slot)
);
CREATE UNIQUE INDEX one_running ON runs(state) WHERE state = 'running';
CREATE INDEX runs_by_name ON runs(name, id);
"""

OutcomeName = Literal["done", "nothing", "failed", "inconclusive", "stopped", "crashed", "skipped", "dropped"]
"""done, nothing (to do), failed, inconclusive, stopped: how a run ended. crashed: without a word. skipped: its slot passed.
dropped: it waited when learning was stopped, or when its job went.
"""
Origin = Literal["slot", "trigger", "asked"]
"""A schedule, something that was found, a person."""
MAX_DETAIL = 1000
MAX_RESULTS = 100
MAX_REASONS = 16
"""Of a run: what triggers say beyond them is only counted."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a run was asked for, by whom, when (seconds since the epoch); `key` tells one request from another."""

    key: str
    by: str
    reason: str
    at: float
    evidence: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        evidence = {} if self.evidence is None else {"evidence": dict(self.evidence)}
        return {"key": self.key, "by": self.by, "reason": self.reason, "at": self.at, **evidence}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. Times in seconds since the epoch."""

    id: int
    name: str
    kind: JobKind
    slot: str
    """The slot in UTC; "trigger ..." or "asked ..." with a key for others."""
    num_slots: int
    """Slots that it stands for: those that passed unseen before it are not run themselves."""
    due_at: float
    state: Literal["queued", "running", "ended"]
    reasons: tuple[dict[str, Any], ...]
    num_reasons: int
    attempt: int
    epoch: int
    fence: int | None
    holder: str | None
    beats: int
    started_at: float | None
    ended_at: float | None
    outcome: OutcomeName | None
    detail: str
    results: tuple[str, ...]
    """Ids of what the run made: learning runs, an audit row."""
    num_to_label: int | None
    """Uncertain answers that wait for people since it began."""

    def to_dict(self) -> dict[str, Any]:
        """What GET /v1/schedules shows."""
        hidden = ("epoch", "beats", "holder")
        shown = {name: getattr(self, name) for name in self.__slots__ if name not in hidden}
        return {**shown, "reasons": list(self.reasons), "results": list(self.results)}


def select_runs(connection: sqlite3.Connection, clauses: str, values: Mapping[str, Any]) -> list[RunRecord]:
    """Runs by SQL clauses (WHERE, ORDER BY, LIMIT)."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return [_record_of(row) for row in cursor.execute(f"SELECT * FROM runs {clauses}", values)]


def running(connection: sqlite3.Connection) -> RunRecord | None:
    """The run that is under way."""
    found = select_runs(connection, "WHERE state = 'running'", {})
    return found[0] if found else None


def queued(connection: sqlite3.Connection, name: str, *origins: Origin) -> list[RunRecord]:
    """Waiting runs of a job that began so, oldest first."""
    waiting = select_runs(connection, "WHERE state = 'queued' AND name = :name ORDER BY id", {"name": name})
    return [run for run in waiting if origin_of(run.slot) in origins]


def origin_of(slot: str) -> Origin:
    """What a run goes back to."""
    return "trigger" if slot.startswith("trigger ") else "asked" if slot.startswith("asked ") else "slot"


def insert_run(
    connection: sqlite3.Connection,
    name: str,
    kind: JobKind,
    *,
    slot: str,
    due_at: float,
    epoch: int,
    num_slots: int = 1,
    reasons: Iterable[Reason] = (),
) -> bool:
    """Queue a run; False if there is one of this slot."""
    listed = [reason.to_dict() for reason in reasons]
    cursor = connection.execute(
        "INSERT OR IGNORE INTO runs (name, kind, slot, num_slots, due_at, state, reasons, num_reasons, epoch)"
        " VALUES (:name, :kind, :slot, :num_slots, :due_at, 'queued', :reasons, :num, :epoch)",
        {
            "name": name,
            "kind": kind,
            "slot": slot,
            "num_slots": num_slots,
            "due_at": due_at,
            "reasons": json.dumps(listed[:MAX_REASONS]),
            "num": len(listed),
            "epoch": epoch,
        },
    )
    return cursor.rowcount == 1


def add_reason(connection: sqlite3.Connection, run: RunRecord, reason: Reason) -> None:
    """One more reason for a run that waits."""
    reasons = [*run.reasons, reason.to_dict()][:MAX_REASONS]
    connection.execute(
        "UPDATE runs SET reasons = :reasons, num_reasons = num_reasons + 1 WHERE id = :id AND state = 'queued'",
        {"reasons": json.dumps(reasons), "id": run.id},
    )


def begin_run(connection: sqlite3.Connection, run: RunRecord, *, holder: str, epoch: int, now: float) -> None:
    """queued -> running, under the next fencing number."""
    connection.execute("UPDATE scheduler SET fence = fence + 1")
    connection.execute(
        "UPDATE runs SET state = 'running', fence = (SELECT fence FROM scheduler), holder = :holder, beats = 0,"
        " epoch = :epoch, attempt = attempt + 1, started_at = :now WHERE id = :id AND state = 'queued'",
        {"holder": holder, "epoch": epoch, "now": now, "id": run.id},
    )


def beat_run(connection: sqlite3.Connection, fence: int) -> bool:
    """A sign of life; False if the run is no longer the holder's."""
    cursor = connection.execute("UPDATE runs SET beats = beats + 1 WHERE fence = ? AND state = 'running'", (fence,))
    return cursor.rowcount == 1


def end_run(
    connection: sqlite3.Connection,
    fence: int,
    *,
    outcome: OutcomeName,
    detail: str,
    results: Iterable[str],
    num_to_label: int | None,
    now: float,
) -> bool:
    """running -> ended; False if the run is no longer the holder's."""
    cursor = connection.execute(
        "UPDATE runs SET state = 'ended', outcome = :outcome, detail = :detail, results = :results,"
        " num_to_label = :num_to_label, ended_at = :now WHERE fence = :fence AND state = 'running'",
        {
            "fence": fence,
            "outcome": outcome,
            "detail": detail[:MAX_DETAIL],
            "results": json.dumps(list(results)[-MAX_RESULTS:]),
            "num_to_label": num_to_label,
            "now": now,
        },
    )
    return cursor.rowcount == 1


def close_runs(
    connection: sqlite3.Connection, ids: Iterable[int], *, outcome: OutcomeName, detail: str, now: float
) -> None:
    """End runs that wait or whose holder is gone."""
    connection.executemany(
        "UPDATE runs SET state = 'ended', outcome = ?, detail = ?, ended_at = ? WHERE id = ? AND state != 'ended'",
        [(outcome, detail[:MAX_DETAIL], now, key) for key in ids],
    )


def requeue_run(connection: sqlite3.Connection, run: RunRecord, *, now: float) -> None:
    """A run whose holder is gone waits again; the holder's fencing number is worth nothing any more."""
    connection.execute(
        "UPDATE runs SET state = 'queued', fence = NULL, holder = NULL, due_at = ? WHERE id = ? AND state = 'running'",
        (now, run.id),
    )


def prune_runs(connection: sqlite3.Connection, *, keep: int) -> None:
    """Of each job the newest ended runs stay."""
    connection.execute(
        "DELETE FROM runs WHERE id IN (SELECT id FROM"
        " (SELECT id, row_number() OVER (PARTITION BY name ORDER BY id DESC) AS place FROM runs WHERE state = 'ended')"
        " WHERE place > ?)",
        (keep,),
    )


def _record_of(row: sqlite3.Row) -> RunRecord:
    values = dict(row)
    return RunRecord(
        **{
            **values,
            "kind": cast("JobKind", values["kind"]),
            "reasons": tuple(json.loads(values["reasons"])),
            "results": tuple(json.loads(values["results"])),
        }
    )
