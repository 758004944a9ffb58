"""What the audit log says about one version: who proposed it, who moved it and why, who agreed.

In: an open snapshot of the ledger. Out: steps, oldest first. The log is the only source: what was not logged did not happen.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autonomous.people import is_machine, is_same_person
from autonomous.versions.audit import AuditRow, row_of
from autonomous.versions.schema import VersionRecord
from autonomous.versions.states import State
from autonomous.versions.transaction import ACTION_PREFIX

CONSENT_PREFIX = "consent."
"""Of the audit rows about what waits for a second person, which only the ledger writes."""
START_RUN = ACTION_PREFIX + "start_run"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to a version. `at` in seconds since the epoch; "" where the row says nothing."""

    seq: int
    at: float
    by: str
    action: str
    from_state: str
    to_state: str
    reason: str
    evidence_sha256: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def of(cls, row: AuditRow) -> "Step":
        """The step that an audit row records."""
        before, after = row.before or {}, row.after or {}
        return cls(
            seq=row.seq,
            at=row.ts,
            by=row.actor,
            action=row.action,
            from_state=str(before.get("state", "")),
            to_state=str(after.get("state", "")),
            reason=str(after.get("reason", "")),
            evidence_sha256=row.evidence_sha256,
        )

    @property
    def is_approval(self) -> bool:
        """Whether a person let the version go on from where it waited."""
        waited = self.from_state == State.AWAITING_APPROVAL.value
        return waited and self.to_state == State.SHADOW.value and not is_machine(self.by)


def steps_of(connection: sqlite3.Connection, record: VersionRecord) -> Sequence[Step]:
    """All rows about a version and the run that it was."""
    query = "SELECT * FROM audit WHERE subject IN (:name, :run_id) ORDER BY seq"
    rows = connection.execute(query, {"name": record.name, "run_id": record.run_id})
    return [Step.of(row_of(row)) for row in rows]


def proposer_of(connection: sqlite3.Connection, record: VersionRecord) -> str:
    """Who asked for the run; "" for the frozen original, which nobody did."""
    query = "SELECT actor FROM audit WHERE subject = ? AND action = ?"
    row = connection.execute(query, (record.run_id, START_RUN)).fetchone()
    return "" if row is None else str(row[0])


def successor_of(connection: sqlite3.Connection, record: VersionRecord) -> str | None:
    """The version that began to serve when this one last stopped to: the rows of both lie in one transaction."""
    query = """
        SELECT subject FROM audit WHERE action IN (:promote, :restore) AND seq >
            (SELECT max(seq) FROM audit WHERE subject = :name AND action IN (:supersede, :rollback))
        ORDER BY seq LIMIT 1
    """
    names = ("promote", "restore", "supersede", "rollback")
    actions = {name: ACTION_PREFIX + name for name in names}
    row = connection.execute(query, {**actions, "name": record.name}).fetchone()
    return None if row is None else str(row[0])


def own_proposal(connection: sqlite3.Connection, line: Sequence[VersionRecord], *, person: str) -> str | None:
    """The version of a line (root first) that this person proposed and nobody else has approved; None if there is none.

    Read from the newest back: somebody else who approved an ancestor approved all that it stands on.
    """
    for record in reversed(line):
        steps = steps_of(connection, record)
        others = [step for step in steps if step.is_approval and not is_same_person(step.by, person)]
        if others:
            return None
        if is_same_person(proposer_of(connection, record), person):
            return record.name
    return None


def evidence_of(connection: sqlite3.Connection, sha256: str) -> Any:
    """The body that is kept under a hash; None if nothing is."""
    row = connection.execute("SELECT body FROM evidence WHERE sha256 = ?", (sha256,)).fetchone()
    return None if row is None else json.loads(row[0])


def gates_sha256_of(connection: sqlite3.Connection, record: VersionRecord) -> str | None:
    """The hash of the gates that are bound to a version."""
    row = connection.execute("SELECT gates_sha256 FROM versions WHERE id = ?", (record.row_id,)).fetchone()
    found: str | None = row[0]
    return found
