"""ScheduleBook: the durable half of the scheduler: which slots are settled, what waits, what runs, how it ended.

In: jobs, the clock's time, requests. Out: RunRecords. One transaction per change, under a permit of the emergency stop. A slot
is one row, so that a clock that jumps back and a second scheduler on the same file begin nothing twice.

A stop and a reset let the intervals begin anew: slots up to then are settled, what waited is dropped.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autonomous.jobs import ScheduledJob, SchedulesConfig, decide_slots
from autonomous.safety.latch import Latch, Permit
from autonomous.safety.latch_state import Scope
from autonomous.schedule import next_due
from autonomous.schedule_rows import (
    SCHEMA,
    VERSION,
    Origin,
    OutcomeName,
    Reason,
    RunRecord,
    add_reason,
    beat_run,
    begin_run,
    close_runs,
    end_run,
    insert_run,
    prune_runs,
    queued,
    requeue_run,
    running,
    select_runs,
)
from memory.store import Database

ACTION = "a scheduled run"
WITHIN: Scope = "learner"
"""The narrowest stop holds every scheduled run."""
MAX_EVIDENCE = 4000
"""Characters of a trigger's evidence as JSON."""
MAX_REASON = 500


class UnknownSchedule(LookupError):
    """No job of this name."""


class ScheduleBook:
    """One SQLite file. Thread-safe, and safe for several processes. What returned is on disk."""

    def __init__(
        self, config: SchedulesConfig, *, path: Path, latch: Latch, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or create. Jobs that are no longer configured are dropped, changed schedules begin anew.

        Raises memory.store.StoreProblem for a newer schema or a file that is no database.
        """
        self._config = config
        self._jobs = config.jobs
        self._latch = latch
        self._clock = clock
        self._database = Database(path, schema=SCHEMA, version=VERSION)
        self._adopt_config()

    def close(self) -> None:
        """Close the file; later calls raise ValueError."""
        self._database.close()

    # -- questions

    def job(self, name: str) -> ScheduledJob:
        """Raises UnknownSchedule."""
        if name not in self._jobs:
            raise UnknownSchedule(f"there is no scheduled job '{name}': there are {', '.join(self._jobs)}")
        return self._jobs[name]

    def schedules(self) -> list[dict[str, Any]]:
        """Each job: when it is due, what waits or runs, how it ended last."""
        with self._database.read() as connection:
            settled = dict(connection.execute("SELECT name, settled_to FROM schedules"))
            known = [(name, job) for name, job in self._jobs.items() if name in settled]
            return [_describe(connection, name, job, settled_to=settled[name]) for name, job in known]

    def runs(self, name: str, *, limit: int = 20) -> list[RunRecord]:
        """A job's runs, newest first. Raises UnknownSchedule."""
        self.job(name)
        clauses = "WHERE name = :name ORDER BY id DESC LIMIT :limit"
        with self._database.read() as connection:
            return select_runs(connection, clauses, {"name": name, "limit": limit})

    def findings(self) -> list[str]:
        """What a person should look at: jobs whose last run failed, and clocks that went back."""
        found = []
        for row in self.schedules():
            last = row["last"]
            if last is not None and last["outcome"] in ("failed", "crashed"):
                found.append(f"{row['name']}: its last run {last['outcome']}: {last['detail']}")
            if row["next_due"] is not None and row["settled_to"] > self._clock() + self._config.grace_s:
                found.append(
                    f"{row['name']}: its slots are settled up to {_text(_moment(row['settled_to']))}, which is to come: "
                    "the clock was ahead. Nothing is due before: set the clock, or give the job another schedule"
                )
        return found

    def holds(self, fence: int) -> bool:
        """Whether this fencing number is the one of the run that is under way."""
        with self._database.read() as connection:
            run = running(connection)
        return run is not None and run.fence == fence

    # -- requests

    def request(
        self, origin: Origin, name: str, *, by: str, reason: str, evidence: Mapping[str, Any] | None, key: str | None
    ) -> RunRecord:
        """Queue a run, or add the reason to one that waits; the run. The same `key` changes nothing.

        Of a person's request one that is under way is the answer too. Raises UnknownSchedule, ValueError, LearningStopped.
        """
        job = self.job(name)
        for field, text in (("by", by), ("reason", reason)):
            if not text.strip():
                raise ValueError(f"{field} is empty: say who asks for the run, and why")
        if evidence is not None and (size := len(json.dumps(evidence))) > MAX_EVIDENCE:
            raise ValueError(f"evidence has {size} characters as JSON, {MAX_EVIDENCE} are kept: give a summary")
        with self._write() as (connection, permit):
            now = self._clock()
            asked = Reason(key or secrets.token_hex(6), by, reason[:MAX_REASON], now, evidence)
            if known := _with_key(connection, name, asked.key):
                return known
            under_way = running(connection)
            if origin == "asked" and under_way is not None and under_way.name == name:
                return under_way
            waiting = queued(connection, name, *(("asked", "slot") if origin == "asked" else ("trigger",)))
            if waiting:
                add_reason(connection, waiting[0], asked)
            else:
                due_at = now if origin == "asked" else self._debounced(connection, name, now=now)
                slot, epoch = f"{origin} {asked.key}", permit.epoch
                insert_run(connection, name, job.kind, slot=slot, due_at=due_at, epoch=epoch, reasons=[asked])
            found = _with_key(connection, name, asked.key)
            return found if found is not None else waiting[0]

    # -- runs

    def begin(self, holder: str, *, is_left: Callable[[RunRecord], bool]) -> tuple[RunRecord, Permit] | None:
        """Settle the slots that are over, and begin what waits longest, if nothing runs and nobody has stopped it.

        `is_left` tells whether the run that is under way was left by its holder. Raises LearningStopped.
        """
        with self._write() as (connection, permit):
            now = self._clock()
            under_way = running(connection)
            if under_way is not None and is_left(under_way):
                self._close_left(connection, under_way, epoch=permit.epoch, now=now)
            for name, job in self._jobs.items():
                self._settle(connection, name, job, epoch=permit.epoch, now=now)
            run = self._next(connection, now=now)
            if run is None:
                return None
            begin_run(connection, run, holder=holder, epoch=permit.epoch, now=now)
            begun = running(connection)
            assert begun is not None, "begun in this transaction"
        return begun, permit

    def beat(self, fence: int) -> bool:
        """A sign of life; False if the run was taken over."""
        with self._database.write() as connection:
            return beat_run(connection, fence)

    def end(
        self,
        fence: int,
        outcome: OutcomeName,
        *,
        detail: str = "",
        results: tuple[str, ...] = (),
        num_to_label: int | None = None,
    ) -> bool:
        """How a run ended; False if it was taken over. Asks no permit: the end of a run is told while stopped too."""
        with self._database.write() as connection:
            is_held = end_run(
                connection,
                fence,
                outcome=outcome,
                detail=detail,
                results=results,
                num_to_label=num_to_label,
                now=self._clock(),
            )
            prune_runs(connection, keep=self._config.kept_runs)
        return is_held

    # -- parts

    @contextmanager
    def _write(self) -> Iterator[tuple[sqlite3.Connection, Permit]]:
        """A transaction under a permit. What a stop and a reset undid is settled first. Raises LearningStopped."""
        self._latch.permit(ACTION, within=WITHIN)  # while stopped there is no transaction
        permits: list[Permit] = []
        with self._database.write(guard=lambda: permits[0].check()) as connection:  # noqa: PLW0108  # not there yet
            # Taken inside: two schedulers see the epochs in the order in which they write.
            permits.append(self._latch.permit(ACTION, within=WITHIN))
            self._begin_anew(connection, epoch=permits[0].epoch)
            yield connection, permits[0]

    def _begin_anew(self, connection: sqlite3.Connection, *, epoch: int) -> None:
        """After a stop and a reset: what was due until now is settled, what waited is dropped."""
        (known,) = connection.execute("SELECT epoch FROM scheduler").fetchone()
        if known == epoch:
            return
        now = self._clock()
        connection.execute("UPDATE schedules SET settled_to = max(settled_to, ?)", (now,))
        waiting = [run.id for run in select_runs(connection, "WHERE state = 'queued'", {})]
        detail = "learning was stopped while it waited; a reset begins nothing"
        close_runs(connection, waiting, outcome="dropped", detail=detail, now=now)
        connection.execute("UPDATE scheduler SET epoch = ?", (epoch,))

    def _close_left(self, connection: sqlite3.Connection, run: RunRecord, *, epoch: int, now: float) -> None:
        """A run without a holder waits again, or is marked: after its last attempt, and after a stop and a reset."""
        job = self._jobs.get(run.name)
        if run.epoch != epoch:
            detail = "its scheduler was gone after a stop; a reset begins nothing"
            close_runs(connection, [run.id], outcome="stopped", detail=detail, now=now)
        elif job is None or run.attempt >= job.max_attempts:
            detail = f"its scheduler gave no sign of life for {self._config.lease_s:g} s, in attempt {run.attempt}"
            close_runs(connection, [run.id], outcome="crashed", detail=detail, now=now)
        else:
            requeue_run(connection, run, now=now)

    def _settle(self, connection: sqlite3.Connection, name: str, job: ScheduledJob, *, epoch: int, now: float) -> None:
        """Queue the slots that are over, or skip them."""
        grace_s = self._config.grace_s
        if job.missed == "skip":
            old = [run.id for run in queued(connection, name, "slot") if run.due_at < now - grace_s]
            close_runs(connection, old, outcome="skipped", detail="another run was under way for too long", now=now)
        row = connection.execute("SELECT settled_to FROM schedules WHERE name = ?", (name,)).fetchone()
        if row is None:  # a scheduler with another configuration knows no such job
            return
        grace = timedelta(seconds=grace_s)
        plan = decide_slots(job, settled_to=_moment(row[0]), now=_moment(now), grace=grace)
        if plan.newest is None:
            return
        connection.execute("UPDATE schedules SET settled_to = ? WHERE name = ?", (plan.newest.timestamp(), name))
        num_slots = plan.num_skipped + bool(plan.to_run)
        for slot in plan.to_run or (plan.newest,):
            text, due_at = _text(slot), slot.timestamp()
            insert_run(connection, name, job.kind, slot=text, due_at=due_at, epoch=epoch, num_slots=num_slots)
            num_slots = 1
        waiting = queued(connection, name, "slot")
        if not plan.to_run:
            passed = [run.id for run in waiting if run.slot == _text(plan.newest)]
            close_runs(connection, passed, outcome="skipped", detail="it passed while nothing could run", now=now)
        num_kept = job.max_missed if job.missed == "run_all" else 1
        surplus = [run.id for run in queued(connection, name, "slot")[:-num_kept]]
        close_runs(connection, surplus, outcome="skipped", detail="a later slot took its place", now=now)
        prune_runs(connection, keep=self._config.kept_runs)

    def _next(self, connection: sqlite3.Connection, *, now: float) -> RunRecord | None:
        """What waits longest, if nothing runs. A clock that went back delays nothing beyond the distance of triggers."""
        if running(connection) is not None:
            return None
        latest = now + self._config.trigger_distance_s
        connection.execute(
            "UPDATE runs SET due_at = :latest WHERE state = 'queued' AND due_at > :latest", {"latest": latest}
        )
        clauses = "WHERE state = 'queued' AND due_at <= :now ORDER BY due_at, id"
        return next((run for run in select_runs(connection, clauses, {"now": now}) if run.name in self._jobs), None)

    def _debounced(self, connection: sqlite3.Connection, name: str, *, now: float) -> float:
        """When a trigger may begin a run: `trigger_distance_s` behind the last that one began, and no later."""
        distance_s = self._config.trigger_distance_s
        clauses = "WHERE name = :name AND slot GLOB 'trigger *' AND started_at IS NOT NULL ORDER BY id DESC LIMIT 1"
        last = select_runs(connection, clauses, {"name": name})
        began_at = last[0].started_at if last else None
        return now if began_at is None else min(max(now, began_at + distance_s), now + distance_s)

    def _adopt_config(self) -> None:
        """Which jobs there are is this configuration's from now on."""
        now, epoch = self._clock(), self._latch.state().epoch_of(WITHIN)
        with self._database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO scheduler VALUES (1, ?, 0)", (epoch,))
            known = dict(connection.execute("SELECT name, schedule FROM schedules"))
            schedules = {name: job.schedule.model_dump_json() for name, job in self._jobs.items()}
            for name in known.keys() - schedules.keys():
                connection.execute("DELETE FROM schedules WHERE name = ?", (name,))
                waiting = [run.id for run in queued(connection, name, "slot", "trigger", "asked")]
                close_runs(connection, waiting, outcome="dropped", detail="its job is no longer configured", now=now)
            for name, schedule in schedules.items():
                if known.get(name) != schedule:
                    connection.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?)", (name, schedule, now))
                    waiting = [run.id for run in queued(connection, name, "slot")]
                    close_runs(connection, waiting, outcome="dropped", detail="its schedule was changed", now=now)
            prune_runs(connection, keep=self._config.kept_runs)


def _describe(connection: sqlite3.Connection, name: str, job: ScheduledJob, *, settled_to: float) -> dict[str, Any]:
    due = next_due(job.schedule, _moment(settled_to))
    is_open = "WHERE name = :name AND state != 'ended' ORDER BY id"
    has_run = (
        "WHERE name = :name AND state = 'ended' AND outcome NOT IN ('skipped', 'dropped') ORDER BY id DESC LIMIT 1"
    )
    last = select_runs(connection, has_run, {"name": name})
    return {
        "name": name,
        "kind": job.kind,
        "schedule": str(job.schedule),
        "missed": job.missed,
        "next_due": None if due is None else due.timestamp(),
        "settled_to": settled_to,
        "open": [run.to_dict() for run in select_runs(connection, is_open, {"name": name})],
        "last": last[0].to_dict() if last else None,
    }


def _with_key(connection: sqlite3.Connection, name: str, key: str) -> RunRecord | None:
    """The run that this request asked for."""
    clauses = (
        "WHERE name = :name AND EXISTS"
        " (SELECT 1 FROM json_each(reasons) WHERE json_extract(value, '$.key') = :key) ORDER BY id DESC LIMIT 1"
    )
    found = select_runs(connection, clauses, {"name": name, "key": key})
    return found[0] if found else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
