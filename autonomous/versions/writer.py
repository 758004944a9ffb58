"""How the version ledger is written: one transaction per mutation, its audit row in it, the checkpoint right behind it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autonomous.versions.audit import GENESIS_HASH, AuditRow, Body, Checkpoint
from autonomous.versions.budget import PREFIX
from autonomous.versions.queries import LedgerQueries, checkpoint_of
from autonomous.versions.schema import SCHEMA, VERSION
from autonomous.versions.transaction import ACTION_PREFIX, Transaction
from memory.store import Database, no_guard
from memory.types import Guard

logger = logging.getLogger(__name__)


class LedgerWriter(LedgerQueries):
    """Opens the ledger's file, writes transactions and audit rows."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, warm_versions: int = 3) -> None:
        """Open or create. Raises memory.store.StoreProblem for a newer schema or a file that is no database."""
        if warm_versions < 1:
            raise ValueError(f"warm_versions is {warm_versions}: keep at least 1, the version that a rollback restores")
        super().__init__(Database(path, schema=SCHEMA, version=VERSION), checkpoint=checkpoint_of(path))
        self._clock = clock
        self._warm_versions = warm_versions
        with self._database.write() as connection:  # under the write lock: no row can be committed meanwhile
            (num_rows,) = connection.execute("SELECT count(*) FROM audit").fetchone()
            if num_rows == 0 and not self._checkpoint.path.exists():
                self._checkpoint.write(Checkpoint(0, GENESIS_HASH))

    def close(self) -> None:
        """Close all connections; later calls raise ValueError."""
        self._database.close()

    @contextmanager
    def _write(self, guard: Guard = no_guard) -> Iterator[Transaction]:
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                transaction = Transaction(connection, now=float(self._clock()))
                yield transaction
            if transaction.last_row is not None:
                self._write_checkpoint(transaction.last_row)

    def _write_checkpoint(self, row: AuditRow) -> None:
        try:
            self._checkpoint.write(Checkpoint(row.seq, row.hash))
        except (OSError, ValueError) as error:  # the commit is done; the next one writes the checkpoint anew
            logger.error("audit checkpoint not written after row %d: %s", row.seq, error)

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
        if prefix := next((one for one in (ACTION_PREFIX, PREFIX) if action.startswith(one)), None):
            raise ValueError(f"action {action!r} begins with {prefix!r}, which only the ledger writes: rename it")
        with self._write() as transaction:
            return transaction.audit(
                action, by=actor, subject=subject, before=before, after=after, evidence=evidence
            ).seq
