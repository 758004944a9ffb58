"""PostgreSQL as the truth, for memories beyond one machine: the same statements as SQLite's, in a schema of their own.

One writer at a time over all processes (an advisory lock per schema), so the order of commits is the order of `seq` here
too. A write is durable when it returns, if the server has `synchronous_commit` on, which is its default. What erasure
cannot reach are the server's write-ahead log, replicas and backups: they are the operator's.
Source: postgresql.org/docs (explicit locking, 13.3.5), psycopg 3 (psycopg.org/psycopg3).
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from memory.store import SqlConnection, StoreAway, StoreFull, StoreProblem, no_guard, statements_of
from memory.types import Guard

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_EXTENSION_LOCK = 7_236_451_881
CONNECT_TIMEOUT_S = 10
_DEAD_PEER: dict[str, Any] = {
    "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000
}  # fmt: skip
"""How soon a host that vanished is noticed, in seconds and milliseconds; else the kernel waits for a quarter of an hour."""
_PASSING = ("starting up", "shutting down", "recovery mode", "too many")
"""In what a server says that will take connections soon."""
ANALYSE_S = 60.0
IDLE_CONNECTIONS = 8
"""Readers that are kept open."""


class _Connection:
    """One connection as the stores use it: named parameters, literals where a type would be unclear."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        import psycopg

        self.raw = connection
        self._cursor_of_literals = psycopg.ClientCursor

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None, /) -> Any:
        """See SqlConnection."""
        cursor = self._cursor_of_literals(self.raw)
        return cursor.execute(_translated(sql), dict(parameters or {}))

    def executemany(self, sql: str, parameters: Iterable[Mapping[str, Any]], /) -> Any:
        """See SqlConnection. Sent in one go, without waiting for each."""
        cursor = self.raw.cursor()
        rows = [dict(one) for one in parameters]
        if rows:
            cursor.executemany(_translated(sql), rows)
        return cursor


def _translated(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


def connect(url: str) -> "psycopg.Connection[Any]":
    """A connection that commits each statement by itself.

    Raises: StoreAway if the server does not answer, StoreProblem if it refuses, ValueError for a URL with a password.
    """
    import psycopg

    if urlsplit(url).password:
        raise ValueError(
            "the database URL holds a password, which would be written to logs and run folders: leave it out and set "
            "PGPASSWORD, or use ~/.pgpass"
        )
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, **_DEAD_PEER)
    except psycopg.OperationalError as error:
        if "FATAL:" in str(error) and not any(one in str(error) for one in _PASSING):
            raise StoreProblem(f"PostgreSQL at {url} refuses ({str(error).strip()}): correct the URL") from error
        raise _away(url, error) from error


def _away(url: str, error: Exception) -> StoreAway:
    return StoreAway(
        f"PostgreSQL at {url} does not answer ({str(error).strip()}): start it, or correct the URL. What was acknowledged "
        "is safe; send again what was not."
    )


class PostgresDatabase:
    """One schema of a PostgreSQL database. Thread-safe. See SqlDatabase and `memory.store.Database`."""

    def __init__(self, url: str, *, namespace: str, schema: str, version: int) -> None:
        """Connect, and create the namespace and its tables when they are absent.

        Raises: ValueError for a URL with a password in it, or a namespace that is no plain name; StoreAway for a
        server that does not answer, StoreProblem for tables of another version.
        """
        if not _NAME.fullmatch(namespace):
            raise ValueError(f"namespace is {namespace!r}: use lower-case letters, digits and _, at most 63 of them")
        self.url = url
        self.namespace = namespace
        self._lock_key = int.from_bytes(hashlib.sha256(namespace.encode()).digest()[:8], signed=True)
        self._write_lock = threading.RLock()
        self._readers: list[_Connection] = []
        self._readers_lock = threading.Lock()
        self._is_closed = False
        self._analysed_at = -ANALYSE_S
        self._writer = self._connect()
        self._ensure_schema(schema, version)

    def _connect(self) -> _Connection:
        import psycopg

        connection = connect(self.url)
        try:
            connection.execute(f"SET search_path TO {self.namespace}, public")
            connection.execute("SET synchronous_commit TO on")
        except psycopg.OperationalError as error:
            raise _away(self.url, error) from error
        return _Connection(connection)

    def _ensure_schema(self, schema: str, version: int) -> None:
        with self._write_lock, self._writer.raw.transaction():
            execute = self._writer.raw.execute
            execute(f"SELECT pg_advisory_xact_lock({_EXTENSION_LOCK})")  # it is the whole database's
            execute(f"SELECT pg_advisory_xact_lock({self._lock_key})")
            execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
            execute(f"CREATE SCHEMA IF NOT EXISTS {self.namespace}")
            execute(f"CREATE TABLE IF NOT EXISTS {self.namespace}.schema_version (version INTEGER NOT NULL)")
            row = execute(f"SELECT version FROM {self.namespace}.schema_version").fetchone()
            if row is None:
                for statement in statements_of(schema):
                    execute(statement)
                execute(f"INSERT INTO {self.namespace}.schema_version VALUES ({version:d})")
            elif row[0] != version:
                fix = "upgrade the program" if row[0] > version else "give it another namespace"
                raise StoreProblem(
                    f"schema {self.namespace} of {self.url} has version {row[0]}, this program needs {version}. "
                    f"It was left as it is: {fix}."
                )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See SqlDatabase."""
        with self._write_lock:
            yield

    @contextmanager
    def write(self, *, guard: Guard = no_guard) -> Iterator[SqlConnection]:
        """See SqlDatabase."""
        import psycopg

        with self._write_lock:
            self._check_open()
            self._writer = self._living(self._writer)
            try:
                with self._writer.raw.transaction():
                    self._writer.raw.execute(f"SELECT pg_advisory_xact_lock({self._lock_key})")
                    yield self._writer
                    guard()
            except psycopg.errors.DiskFull as error:
                raise StoreFull(
                    f"the server of {self.namespace} has no room ({error}). Nothing of this write was kept, what was "
                    "acknowledged before is safe: free disk space there, then send it again."
                ) from error
            except psycopg.OperationalError as error:
                if self._writer.raw.closed:
                    raise _away(self.url, error) from error
                raise

    @contextmanager
    def read(self) -> Iterator[SqlConnection]:
        """See SqlDatabase."""
        import psycopg

        self._check_open()
        with self._readers_lock:
            connection = self._readers.pop() if self._readers else None
        connection = self._living(connection)
        try:
            with connection.raw.transaction():
                connection.raw.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield connection
        except psycopg.OperationalError as error:
            if connection.raw.closed:
                raise _away(self.url, error) from error
            raise
        finally:
            with self._readers_lock:
                is_kept = not self._is_closed and len(self._readers) < IDLE_CONNECTIONS and not connection.raw.closed
                if is_kept:
                    self._readers.append(connection)
            if not is_kept:
                connection.raw.close()

    def one_of(self, name: str) -> str:
        """See SqlDatabase."""
        return f"= ANY(:{name})"

    def many(self, values: Collection[str] | Collection[int]) -> list[str] | list[int]:
        """See SqlDatabase."""
        return list(values)  # type: ignore[return-value]

    def checkpoint(self) -> None:
        """Give the room of erased rows free, so that it is written over."""
        with self._write_lock:
            self._check_open()
            self._writer = self._living(self._writer)
            self._each_table("VACUUM", self._writer, "SELECT tablename FROM pg_tables WHERE schemaname = %s")

    def analyse(self) -> None:
        """Renew the planner's statistics of tables of which a tenth has changed since they were made; once a minute at most.

        Over a connection of its own: writers do not wait for it.
        """
        self._check_open()
        if time.monotonic() - self._analysed_at < ANALYSE_S:
            return
        self._analysed_at = time.monotonic()
        connection = self._connect()
        try:
            self._each_table(
                "ANALYZE",
                connection,
                "SELECT relname FROM pg_stat_user_tables WHERE schemaname = %s"
                " AND n_mod_since_analyze > 500 + n_live_tup / 10",
            )
        finally:
            connection.raw.close()

    def _each_table(self, command: str, connection: _Connection, query: str) -> None:
        import psycopg

        try:
            for (table,) in connection.raw.execute(query, (self.namespace,)).fetchall():
                connection.raw.execute(f"{command} {self.namespace}.{table}")
        except psycopg.OperationalError as error:
            if connection.raw.closed:
                raise _away(self.url, error) from error
            raise

    def size_bytes(self) -> int:
        """Bytes of the schema's tables and indexes on the server."""
        with self.read() as connection:
            (size,) = connection.execute(
                "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n"
                " ON n.oid = c.relnamespace WHERE n.nspname = :name AND c.relkind = 'r'",
                {"name": self.namespace},
            ).fetchone()
        return int(size)

    def drop(self) -> None:
        """Remove the schema with all that it holds."""
        with self._write_lock:
            self._writer.raw.execute(f"DROP SCHEMA {self.namespace} CASCADE")

    def close(self) -> None:
        """See SqlDatabase."""
        with self._write_lock, self._readers_lock:
            self._is_closed = True
            for connection in (*self._readers, self._writer):
                connection.raw.close()
            self._readers.clear()

    def _living(self, connection: _Connection | None) -> _Connection:
        """A connection that answers: this one, or a new one if there is none or the server ended it (it was restarted)."""
        import psycopg

        if connection is not None:
            try:
                connection.raw.execute("")
                return connection
            except psycopg.OperationalError:
                connection.raw.close()
        return self._connect()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"database {self.namespace} is closed: open the store again before using it")
