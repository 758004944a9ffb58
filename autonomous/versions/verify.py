"""Whether a ledger's file still says what was written: the audit chain, its checkpoint, and the tables beside it.

In: the database and the checkpoint files. Out: an AuditReport that names the first bad row. The states of the versions
are derived once more from the audit rows alone and compared, so a table that was edited by hand is noticed too.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from autonomous.versions.audit import AuditReport, Checkpoint, row_of, verify_rows
from autonomous.versions.checkpoint import CheckpointFile
from autonomous.versions.transaction import ACTION_PREFIX

CHECKPOINT_OPENED = "audit.checkpoint-opened"
"""The row that names a checkpoint elsewhere: from then on it must be there."""


class Readable(Protocol):
    """What gives a consistent snapshot: memory.store.Database, or readonly.ReadOnlyDatabase."""

    def read(self) -> AbstractContextManager[sqlite3.Connection]:
        """One snapshot."""


def verify_ledger(database: Readable, *, checkpoint_files: Sequence[CheckpointFile]) -> AuditReport:
    """Read everything in one snapshot and check it. The checkpoints are read first: the log only grows after them."""
    checkpoints: list[Checkpoint] = []
    missing: list[CheckpointFile] = []
    for file in checkpoint_files:
        try:
            checkpoint = file.read()
        except (OSError, ValueError) as error:
            return AuditReport(False, 0, None, str(error))
        if checkpoint is not None:
            checkpoints.append(checkpoint)
        else:
            missing.append(file)
    with database.read() as connection:
        for file in missing:
            if not file.is_signed or names_checkpoint(connection, file):
                reason = f"checkpoint {file.path} is missing: a cut-off end could not be noticed"
                return AuditReport(False, 0, None, reason)
        chain = verify_rows(connection.execute("SELECT * FROM audit ORDER BY seq"), checkpoints=checkpoints)
        if not chain.ok:
            return chain
        for seq, reason in (*_bad_evidence(connection), *_bad_states(connection)):
            return AuditReport(False, chain.num_rows, seq, reason)
    return chain


def names_checkpoint(connection: sqlite3.Connection, file: CheckpointFile) -> bool:
    """Whether the log says that this checkpoint was begun."""
    query = "SELECT 1 FROM audit WHERE action = ? AND json_extract(after, '$.file') = ?"
    return connection.execute(query, (CHECKPOINT_OPENED, str(file.path))).fetchone() is not None


def _bad_evidence(connection: sqlite3.Connection) -> Iterator[tuple[int | None, str]]:
    """Evidence that an audit row names and that is gone or altered."""
    query = """
        SELECT audit.seq, sha256, body FROM audit LEFT JOIN evidence ON sha256 = evidence_sha256
        WHERE evidence_sha256 IS NOT NULL ORDER BY audit.seq
    """
    for seq, sha256, body in connection.execute(query):
        if body is None:
            yield seq, f"the evidence of row {seq} is missing"
        elif hashlib.sha256(str(body).encode()).hexdigest() != sha256:
            yield seq, f"the evidence of row {seq} was altered"
    for sha256, body in connection.execute("SELECT sha256, body FROM evidence"):
        if hashlib.sha256(str(body).encode()).hexdigest() != sha256:
            yield None, f"evidence {sha256} was altered"


def _bad_states(connection: sqlite3.Connection) -> Iterator[tuple[int | None, str]]:
    """Versions whose row is not what the audit log leads to."""
    logged = derive_versions(connection)
    query = "SELECT coalesce(version_id, run_id), state, report_sha256, gates_sha256 FROM versions"
    stored = {name: (state, report, gates) for name, state, report, gates in connection.execute(query)}
    for name in sorted({*logged, *stored}):
        seq, *expected = logged.get(name, (None, None, None, None))
        found = stored.get(name, (None, None, None))
        if tuple(expected) != found:
            yield (
                seq,
                f"version {name} was edited: its row says {found[0]}, {found[1]}, the log {expected[0]}, {expected[1]}",
            )


def derive_versions(connection: sqlite3.Connection) -> dict[str, tuple[int, str, str | None, str | None]]:
    """Name -> (seq of its last row, state, report hash, gates hash), from the ledger's own audit rows alone."""
    versions: dict[str, tuple[int, str, str | None, str | None]] = {}
    for values in connection.execute("SELECT * FROM audit WHERE action GLOB ? ORDER BY seq", (ACTION_PREFIX + "*",)):
        row = row_of(values)
        after: dict[str, Any] = row.after or {}
        _, state, report, gates = versions.get(row.subject, (0, "", None, None))
        if row.action == ACTION_PREFIX + "fix_bundle":
            versions.pop(after["run_id"], None)
        if row.action == ACTION_PREFIX + "bind_report":
            report, gates = after["report_sha256"], after["gates_sha256"]
        else:
            if (state, after["state"]) == ("QUARANTINED", "CANDIDATE"):
                report = gates = None
            state = after["state"]
        versions[row.subject] = (row.seq, state, report, gates)
    return versions
