"""Whether a ledger's file still says what was written: the audit chain, its checkpoint, and the tables beside it.

In: the database and the checkpoint files. Out: an AuditReport that names the first bad row. What the tables say of each
version is derived once more from the audit rows alone (logged.py) and compared, so an edit of a table by hand is noticed too.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from autonomous.versions.audit import AuditReport, Checkpoint, verify_rows
from autonomous.versions.checkpoint import CheckpointFile
from autonomous.versions.logged import Facts, LoggedVersion, logged_versions, stored_versions
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
        for seq, reason in (*_bad_evidence(connection), *_bad_versions(connection)):
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
    query = """
        SELECT seq FROM audit WHERE action = ? AND
            (SELECT count(*) FROM evidence
             WHERE sha256 IN (json_extract(after, '$.report_sha256'), json_extract(after, '$.gates_sha256'))) < 2
        ORDER BY seq
    """
    for (seq,) in connection.execute(query, (ACTION_PREFIX + "bind_report",)):
        yield seq, f"the report or the gates that row {seq} bound are missing"
    for sha256, body in connection.execute("SELECT sha256, body FROM evidence"):
        if hashlib.sha256(str(body).encode()).hexdigest() != sha256:
            yield None, f"evidence {sha256} was altered"


def _bad_versions(connection: sqlite3.Connection) -> Iterator[tuple[int | None, str]]:
    """Versions whose rows, episodes and held back episodes are not what the audit log leads to."""
    logged, stored = logged_versions(connection), stored_versions(connection)
    for name in {**logged, **stored}:
        if name not in logged:
            yield None, f"version {name} was added by hand: no row of the log names it"
        elif name not in stored:
            seq = logged[name].said_by["state"]
            yield seq, f"version {name} was removed by hand: row {seq} says that it is {logged[name].facts['state']}"
        else:
            yield from _edited(name, logged[name], stored[name])


def _edited(name: str, logged: LoggedVersion, stored: Facts) -> Iterator[tuple[int | None, str]]:
    for fact, expected in logged.facts.items():
        if stored[fact] != expected:
            seq = logged.said_by[fact]
            told = f"its {fact} is {stored[fact]!r} in the table, and {expected!r} by row {seq}"
            yield seq, f"version {name} was edited by hand: {told}"
