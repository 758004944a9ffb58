"""Opens a store's tables: in a SQLite file, or in a schema of a PostgreSQL database where a URL names one.

Schemas are scripts of CREATE statements with {integer}, {real} and {key} (text in the order of its code points) for the
types that the two call otherwise.
"""

from pathlib import Path

from memory.store import Database, SqlDatabase


def open_tables(
    schema: str, *, version: int, path: Path, url: str, namespace: str, vector: str | None = None
) -> SqlDatabase:
    """The database with these tables, created when absent; `vector` is the type of {vector} in PostgreSQL.

    Raises StoreProblem for tables of another version, a damaged file, or a server that does not answer.
    """
    if url:
        from memory.postgres import PostgresDatabase  # psycopg is loaded only where it is used

        types = {"integer": "BIGINT", "real": "DOUBLE PRECISION", "key": 'TEXT COLLATE "C"', "vector": vector}
        return PostgresDatabase(url, namespace=namespace, schema=schema.format(**types), version=version)
    types = {"integer": "INTEGER", "real": "REAL", "key": "TEXT", "vector": "BLOB"}
    return Database(path, schema=schema.format(**types), version=version)


def check_server(url: str) -> None:
    """Raises StoreAway if a URL is given and no PostgreSQL server answers there."""
    if url:
        from memory.postgres import connect

        connect(url).close()
