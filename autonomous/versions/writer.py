"""How the version ledger is written: one transaction per mutation, its audit row in it, the checkpoint right behind it."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autonomous.versions.audit import GENESIS_HASH, AuditRow, Body, Checkpoint
from autonomous.versions.budget import PREFIX
from autonomous.versions.checkpoint import CheckpointFile, checkpoint_of, is_on_chain, second_checkpoint_of
from autonomous.versions.history import CONSENT_PREFIX
from autonomous.versions.queries import LedgerQueries
from autonomous.versions.schema import SCHEMA, VERSION
from autonomous.versions.transaction import ACTION_PREFIX, Transaction
from autonomous.versions.verify import CHECKPOINT_OPENED, names_checkpoint
from memory.store import Database, no_guard
from memory.types import Guard

logger = logging.getLogger(__name__)

OWN_PREFIXES = (ACTION_PREFIX, PREFIX, CONSENT_PREFIX, "audit.")
"""Of audit actions that only the ledger writes."""


class LedgerWriter(LedgerQueries):
    """Opens the ledger's file, writes transactions and audit rows."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        warm_versions: int = 3,
        checkpoint_folder: Path | None = None,
    ) -> None:
        """Open or create. `checkpoint_folder` keeps a second, signed checkpoint elsewhere (AutonomousConfig.audit_checkpoint).

        Raises memory.store.StoreProblem for a newer schema or a file that is no database.
        """
        if warm_versions < 1:
            raise ValueError(f"warm_versions is {warm_versions}: keep at least 1, the version that a rollback restores")
        database = Database(path, schema=SCHEMA, version=VERSION)
        second = [] if checkpoint_folder is None else [second_checkpoint_of(path, checkpoint_folder)]
        super().__init__(database, checkpoints=(checkpoint_of(path), *second))
        self._database: Database = database
        self.path = path
        self._clock = clock
        self._warm_versions = warm_versions
        with self._database.write() as connection:  # under the write lock: no row can be committed meanwhile
            (num_rows,) = connection.execute("SELECT count(*) FROM audit").fetchone()
            if num_rows == 0 and not self._checkpoints[0].path.exists():
                self._checkpoints[0].write(Checkpoint(0, GENESIS_HASH))
        for file in second:
            self._begin_elsewhere(file)

    def close(self) -> None:
        """Close all connections; later calls raise ValueError."""
        self._database.close()

    @contextmanager
    def _write(self, guard: Guard = no_guard) -> Iterator[Transaction]:
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                transaction = Transaction(connection, now=float(self._clock()))
                yield transaction
                files = self._true_checkpoints(connection) if transaction.last_row is not None else []
            if transaction.last_row is not None:
                self._write_checkpoints(files, transaction.last_row)

    def _true_checkpoints(self, connection: sqlite3.Connection) -> list[CheckpointFile]:
        """Those that may name the next row. One that names a row which the log does not hold stays: it is the proof."""
        files = []
        for file in self._checkpoints:
            try:
                checkpoint = file.read()
            except (OSError, ValueError) as error:
                logger.error("audit checkpoint not written: %s", error)
                continue
            if checkpoint is not None and is_on_chain(connection, checkpoint):
                files.append(file)
            else:
                logger.error("audit checkpoint %s is missing or names a row that the log does not hold", file.path)
        return files

    def _write_checkpoints(self, files: Sequence[CheckpointFile], row: AuditRow) -> None:
        for file in files:
            try:
                file.write(Checkpoint(row.seq, row.hash))
            except (OSError, ValueError) as error:  # the commit is done; the next one writes the checkpoint anew
                logger.error("audit checkpoint %s not written after row %d: %s", file.path, row.seq, error)

    def _begin_elsewhere(self, file: CheckpointFile) -> None:
        """A checkpoint elsewhere begins with the row that is the last now, and is named in the log, once. Later it is not made
        anew: one that is gone is reported.
        """
        with self._database.exclusive():
            with self._database.read() as connection:
                if names_checkpoint(connection, file):
                    return
                last = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
            try:
                if not file.path.exists():
                    file.write(Checkpoint(*(last or (0, GENESIS_HASH))))
            except (OSError, ValueError) as error:
                logger.error("audit checkpoint %s was not begun: %s", file.path, error)
                return
            with self._write() as transaction:
                after = {"file": str(file.path)}
                transaction.audit(CHECKPOINT_OPENED, by="system", subject="audit", after=after)

    def append_audit(
        self,
        *,
        actor: str,
        action: str,
        subject: str,
        before: Body | None = None,
        after: Body | None = None,
        evidence: Body | None = None,
    ) -> int:
        """Add a row about something outside of the ledger; returns its seq. Asks no guard: a stop is audited too."""
        if prefix := next((one for one in OWN_PREFIXES if action.startswith(one)), None):
            raise ValueError(f"action {action!r} begins with {prefix!r}, which only the ledger writes: rename it")
        with self._write() as transaction:
            return transaction.audit(
                action, by=actor, subject=subject, before=before, after=after, evidence=evidence
            ).seq
