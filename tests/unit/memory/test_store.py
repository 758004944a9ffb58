import sqlite3
from pathlib import Path

import pytest

from memory.store import Database, StoreProblem, open_database

SCHEMA = "CREATE TABLE item (name TEXT PRIMARY KEY);\nINSERT INTO item VALUES ('first');\n"


def _names(database: Database) -> list[str]:
    with database.read() as connection:
        return [row[0] for row in connection.execute("SELECT name FROM item ORDER BY name")]


def test_writes_are_synced_in_wal_mode_and_erased_values_are_overwritten(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "new" / "x.db", schema=SCHEMA, version=1)

    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
    connection.close()


def test_a_newer_schema_is_refused_with_what_to_do_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    open_database(path, schema=SCHEMA, version=2).close()
    before = path.read_bytes()

    with pytest.raises(StoreProblem, match=r"schema version 2.*upgrade the program"):
        open_database(path, schema=SCHEMA, version=1)
    assert path.read_bytes() == before


def test_an_older_schema_and_a_foreign_database_are_refused(tmp_path: Path) -> None:
    open_database(tmp_path / "old.db", schema=SCHEMA, version=1).close()
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE other (x)")

    for name in ("old.db", "foreign.db"):
        with pytest.raises(StoreProblem, match="no migration"):
            open_database(tmp_path / name, schema=SCHEMA, version=2)


def test_a_file_that_is_no_database_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all" * 300)

    with pytest.raises(StoreProblem, match="restore it from a backup"):
        open_database(path, schema=SCHEMA, version=1)
    assert path.read_bytes() == b"not a database at all" * 300


def test_what_the_guard_or_the_body_raises_rolls_everything_back(tmp_path: Path) -> None:
    def refuse() -> None:
        raise PermissionError("stopped")

    database = Database(tmp_path / "x.db", schema=SCHEMA, version=1)
    with pytest.raises(PermissionError), database.write(guard=refuse) as connection:
        connection.execute("INSERT INTO item VALUES ('refused')")
    with pytest.raises(sqlite3.IntegrityError), database.write() as connection:
        connection.executemany("INSERT INTO item VALUES (?)", [("broken",), ("first",)])

    with database.write() as connection:
        connection.execute("INSERT INTO item VALUES ('second')")
    assert _names(database) == ["first", "second"]


def test_a_reader_sees_one_snapshot_while_a_writer_commits(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db", schema=SCHEMA, version=1)
    with database.read() as reader:
        assert reader.execute("SELECT count(*) FROM item").fetchone() == (1,)
        with database.write() as connection:
            connection.execute("INSERT INTO item VALUES ('second')")
        assert reader.execute("SELECT count(*) FROM item").fetchone() == (1,)

    assert _names(database) == ["first", "second"]


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db", schema=SCHEMA, version=1)
    assert _names(database) == ["first"]
    database.close()

    with pytest.raises(ValueError, match="is closed"):
        _names(database)
    database.close()
