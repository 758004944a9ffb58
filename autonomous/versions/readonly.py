"""A ledger that is only looked at: no lock is waited for, and no byte of it changes, whatever its reader tries.

In: the ledger's file. Out: the same answers as from VersionLedger (queries.py). Opened with SQLite's `mode=ro`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from autonomous.versions.checkpoint import checkpoint_of, second_checkpoint_of
from autonomous.versions.queries import LedgerQueries
from autonomous.versions.schema import VERSION
from memory.store import BUSY_TIMEOUT_S, StoreProblem


class ReadOnlyDatabase:
    """One file, opened for each snapshot."""

    def __init__(self, path: Path, *, version: int) -> None:
        """Raises FileNotFoundError; StoreProblem for another schema version, or what `read` raises."""
        if not path.exists():
            raise FileNotFoundError(f"there is no ledger {path}: nothing was ever learned in this home")
        self._path = path
        self._uri = f"file:{quote(str(path.resolve()))}?mode=ro"
        with self.read() as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != version:
            raise StoreProblem(
                f"ledger {path} has schema version {found}, this program reads {version}: use its release"
            )

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent snapshot of the committed rows. Raises StoreProblem for a file that is damaged or no database, also
        where the damage is met only while its rows are read.
        """
        try:
            with closing(
                sqlite3.connect(self._uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA query_only=ON")
                connection.execute("BEGIN")
                yield connection
        except sqlite3.DatabaseError as error:
            raise StoreProblem(
                f"ledger {self._path} cannot be read ({error}): restore it from a backup, unless it is only locked or "
                "its permissions are wrong"
            ) from error


class ReadOnlyLedger(LedgerQueries):
    """The questions of a ledger, without what changes it."""

    def __init__(self, path: Path, *, checkpoint_folder: Path | None = None) -> None:
        """Raises what ReadOnlyDatabase raises."""
        second = [] if checkpoint_folder is None else [second_checkpoint_of(path, checkpoint_folder)]
        super().__init__(ReadOnlyDatabase(path, version=VERSION), checkpoints=(checkpoint_of(path), *second))
