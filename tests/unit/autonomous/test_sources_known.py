"""Which sources there are: those of the configuration file and those of the run time, added, changed and removed."""

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autonomous.config import AutonomousConfig
from autonomous.safety.latch import LearningStopped
from autonomous.sources.cursors import CursorStore, UnknownSource
from tests.streams import Stream, jsonl, numbered, source


def test_a_source_that_is_removed_is_read_no_longer_and_what_it_said_stays(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", "The first jar."))
    stream.drain()
    stream.reader.remove("log")
    jsonl(folder, "log", "The second jar.")
    stream.drain(seconds=100)
    assert stream.store.texts() == ["The first jar."]
    assert stream.reader.status(stream.now)["sources"] == []
    for ask in (stream.reader.remove, stream.reader.read_now, lambda key: stream.reader.refused(key, limit=1)):
        with pytest.raises(UnknownSource, match="there is no source 'log'"):
            ask("log")


def test_a_source_that_is_removed_while_its_batch_is_stored_stays_removed(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 9)))
    real = stream.store.__class__.__call__

    class Removing(stream.store.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, documents: Any, removed: Any) -> Any:
            remover = threading.Thread(target=stream.reader.remove, args=("log",))
            remover.start()
            remover.join()
            return real(self, documents, removed)

    stream.store.__class__ = Removing
    stream.drain()
    assert stream.cursors.sources() == {}
    assert stream.store.num_calls == 1


def test_read_now_does_not_wait_for_the_interval_nor_for_a_failure_to_be_over(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", "The first jar."))
    stream.drain()
    jsonl(folder, "log", "The second jar.")
    stream.reader.read_now("log")
    stream.drain()
    assert len(stream.store.texts()) == 2


def test_what_is_added_twice_goes_on_unless_it_lies_elsewhere(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 3)))
    stream.drain()
    stream.add(**jsonl(folder, "log"), title_field="title")
    stream.drain()
    assert stream.row("log")["num_documents"] == 3
    other = jsonl(folder, "other", "The other place.")
    stream.add(**{**other, "id": "log"})
    stream.drain()
    assert (stream.row("log")["num_documents"], "The other place." in stream.store.texts()) == (1, True)


def test_a_source_is_not_added_while_learning_is_stopped_but_can_be_removed(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", "x"))
    stream.latch.stop(reason="drill", by="ann")
    with pytest.raises(LearningStopped):
        stream.add(**jsonl(folder, "more", "y"))
    stream.reader.remove("log")
    assert stream.cursors.sources() == {}


def test_of_the_file_and_the_run_time_the_latest_counts(folder: Path) -> None:
    cursors = CursorStore(folder / "cursors.sqlite")
    fields = {"id": "a", "kind": "folder", "path": str(folder)}
    first, edited = source(**fields), source(**fields, interval_s=99)
    at_run_time = source(**fields, interval_s=7)

    def counts() -> list[tuple[float, str]]:
        return [(one.config.interval_s, one.origin) for one in cursors.sources().values()]

    cursors.follow_file([first])
    assert counts() == [(10.0, "configuration")]
    cursors.add(at_run_time)
    cursors.follow_file([first])  # a restart: the entry is as it was
    assert counts() == [(7.0, "run time")]
    cursors.follow_file([edited])
    assert counts() == [(99.0, "configuration")]
    cursors.remove("a")
    cursors.follow_file([edited])
    assert counts() == []
    cursors.follow_file([first])
    assert counts() == [(10.0, "configuration")]
    cursors.follow_file([])
    assert counts() == []
    cursors.add(at_run_time)
    cursors.follow_file([])
    assert counts() == [(7.0, "run time")]
    cursors.close()


def test_the_configuration_names_a_wrong_entry_and_two_of_one_id() -> None:
    entry = {"id": "a", "kind": "folder", "path": "/srv/wiki"}
    assert AutonomousConfig.model_validate({"sources": [entry]}).sources == (source(**entry, interval_s=60.0),)
    for bad in (
        [entry, {**entry, "path": "/srv/other"}], [{**entry, "kind": "ftp"}], [{**entry, "pattern": "*"}],
        [{**entry, "id": "a/b"}], [{**entry, "interval_s": 0}], [{**entry, "include": ["../x"]}],
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            AutonomousConfig.model_validate({"sources": bad})
