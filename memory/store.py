"""SQLite as the truth: one writer connection under a lock, a pool of reader connections, a checked schema version.

A write is one transaction in WAL mode with `synchronous=FULL`: when `Database.write` returns, the rows are on disk. The
guard (the emergency stop) is asked right before COMMIT. Erased values are overwritten (`secure_delete`).
`SqlDatabase` is what the stores need of it: statements with `:named` parameters that PostgreSQL (postgres.py) runs too.
Source of the settings: sqlite.org/wal.html, sqlite.org/pragma.html.
"""

import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from memory.types import Guard

logger = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 30.0
"""How long a statement waits for another process's lock."""


class StoreProblem(ValueError):
    """The database file cannot be used as it is. It is left untouched."""


class StoreAway(StoreProblem):
    """The database server does not answer. It may be there again soon."""


class StoreFull(RuntimeError):
    """There was no room for a write. Nothing of it was written; the store stays open and can be read."""


class SqlConnection(Protocol):
    """One connection inside a transaction. Parameters are named: `:name` in the statement, a mapping beside it."""

    def execute(self, sql: str, parameters: Mapping[str, Any] = ..., /) -> Any:
        """A cursor: fetchone, fetchall, rowcount, iteration."""

    def executemany(self, sql: str, parameters: Iterable[Mapping[str, Any]], /) -> Any:
        """The same statement for each mapping."""


class SqlDatabase(Protocol):
    """A database with one writer at a time. Both backends behave alike; see `Database` for what each method promises."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the writer lock of this process."""

    def write(self, *, guard: Guard = ...) -> AbstractContextManager[SqlConnection]:
        """One write transaction."""

    def read(self) -> AbstractContextManager[SqlConnection]:
        """One consistent snapshot."""

    def one_of(self, name: str) -> str:
        """The condition that a column is in the list parameter `name`: f"id {database.one_of('ids')}"."""

    def many(self, values: Collection[str] | Collection[int]) -> Any:
        """A list parameter for `one_of`."""

    def checkpoint(self) -> None:
        """Leave no erased text in a log."""

    def size_bytes(self) -> int:
        """Bytes on disk."""

    def close(self) -> None:
        """Close every connection."""


def no_guard() -> None:
    """The guard of callers that no emergency stop watches: always permits."""


def open_database(path: Path, *, schema: str, version: int) -> sqlite3.Connection:
    """A writer connection in autocommit mode (transactions are explicit); creates the file and its schema when absent.

    `schema` is a script of CREATE statements, `version` (> 0) is kept in `PRAGMA user_version`.
    Raises: StoreProblem for a newer or unknown version, or a file that is not a SQLite database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = _connect(path)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        _ensure_schema(connection, path=path, schema=schema, version=version)
        connection.execute("PRAGMA journal_mode=WAL")  # after the check: a refused file is not even touched
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):  # locked, disk full, read-only: not the file's content
            raise
        raise StoreProblem(
            f"database {path} cannot be read ({error}). It was left as it is: restore it from a backup, "
            "or move it away to start empty."
        ) from error
    except StoreProblem:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _ensure_schema(connection: sqlite3.Connection, *, path: Path, schema: str, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")  # two processes that open a new file at once create it only once
    try:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if found == 0 and num_tables == 0:
            for statement in statements_of(schema):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={version:d}")
        elif found > version:
            raise StoreProblem(
                f"database {path} has schema version {found}, this program knows versions up to {version}. "
                "It was left as it is: upgrade the program, or give it another folder."
            )
        elif found < version:
            raise StoreProblem(
                f"database {path} has schema version {found}, this program needs {version} and has no migration. "
                "It was left as it is: give the program another folder."
            )
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def statements_of(script: str) -> Iterator[str]:
    """Split a script, because `executescript` would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class Database:
    """One database file with its writer lock and its readers. Thread-safe."""

    def __init__(self, path: Path, *, schema: str, version: int) -> None:
        self.path = path
        self._writer = open_database(path, schema=schema, version=version)
        self._write_lock = threading.RLock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._is_closed = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the writer lock around a transaction and what must follow it in commit order (an index update)."""
        with self._write_lock:
            yield

    @contextmanager
    def write(self, *, guard: Guard = no_guard) -> Iterator[sqlite3.Connection]:
        """One write transaction. Whatever the body or the guard raises rolls it back, and nothing is written."""
        with self._write_lock:
            self._check_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                guard()
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise StoreFull(
                        f"no room to write to {self.path} ({error}). Nothing of this write was kept, what was "
                        "acknowledged before is safe: free disk space, then send it again."
                    ) from error
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent snapshot of the committed rows. Never waits for the writer."""
        self._check_open()
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("ROLLBACK")
            self._readers.put(connection)
            if self._is_closed:
                self._close_readers()

    def one_of(self, name: str) -> str:
        """The condition that a column is in the list parameter `name`."""
        return f"IN (SELECT value FROM json_each(:{name}))"

    def many(self, values: Collection[str] | Collection[int]) -> str:
        """A list parameter for `one_of`."""
        return json.dumps(list(values))

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database and cut it to zero bytes, so that no erased text stays in it."""
        with self._write_lock:
            is_busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            logger.warning("checkpoint of %s is incomplete: a reader holds the write-ahead log", self.path)

    def size_bytes(self) -> int:
        """Bytes on disk: the database and its write-ahead log."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close every connection; a later call raises ValueError. Closing twice is harmless."""
        with self._write_lock:
            self._is_closed = True
            self._close_readers()
            self._writer.close()

    def _close_readers(self) -> None:
        while True:
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                return
            with closing(connection):
                pass

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"database {self.path} is closed: open the store again before using it")
