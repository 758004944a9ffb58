"""The loop over the sources: bounded batches, a store that is busy, one bad source alone, every kind."""

import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from autonomous.sources.batch import Cursor, ReadLimit, SourceBatch
from autonomous.sources.config import SourceConfig
from autonomous.sources.readers import build_reader
from autonomous.sources.stream import IngestBusy
from memory.store import StoreFull, no_guard
from memory.types import Guard
from tests.streams import Stream, http_server, jsonl, numbered, source


def test_everything_is_stored_and_counted_and_looked_at_again_after_the_interval(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 10)))
    assert stream.drain()[-1] == "nothing"
    assert stream.store.texts() == sorted(numbered("jar", 10))
    jsonl(folder, "log", "The last jar is empty.")
    assert stream.drain() == ["nothing"]
    stream.drain(seconds=10)
    assert "The last jar is empty." in stream.store.texts()
    row = stream.row("log")
    assert (row["num_documents"], row["num_refused"], row["error"], row["origin"]) == (11, 0, "", "run time")


def test_a_flood_is_read_in_bounded_batches_and_starves_nobody(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "flood", *numbered("drop", 400)))
    stream.add(**jsonl(folder, "small", *numbered("leaf", 6)))
    served = [stream.reader.step(stream.now).source_id for _ in range(6)]
    assert served == ["flood", "small", "flood", "small", "flood", "flood"]
    assert stream.row("small")["num_documents"] == 6
    stream.drain()
    assert len(stream.store.texts()) == 406
    assert stream.store.most_documents == 4


def test_one_document_may_be_larger_than_a_batch_but_no_batch_grows_beyond_it(stream: Stream, folder: Path) -> None:
    texts = [f"{n} " + "word " * 600 for n in range(6)]
    stream.add(**jsonl(folder, "big", *texts))
    stream.drain()
    assert stream.store.most_bytes < 2 * max(map(len, texts))
    assert stream.row("big")["num_documents"] == 6


@pytest.mark.parametrize("error", [IngestBusy("too much waits"), StoreFull("no room")])
def test_a_store_that_takes_nothing_is_waited_for_and_nothing_is_lost(
    stream: Stream, folder: Path, error: Exception
) -> None:
    stream.store.failures = [error] * 3
    stream.add(**jsonl(folder, "log", *numbered("jar", 9)))
    waits = []
    for _ in range(3):
        step = stream.reader.step(stream.now)
        waits.append(step.wait_s)
        assert (step.did, stream.reader.step(stream.now).did) == ("held", "held")
        assert stream.reader.status(stream.now)["waits_for"] == str(error)
        stream.now += step.wait_s
    assert waits == [1.0, 2.0, 4.0]
    assert stream.store.num_calls == 3
    stream.drain()
    assert len(stream.store.texts()) == 9
    assert stream.reader.status(stream.now)["waits_for"] == ""


def test_one_bad_source_does_not_stop_the_others_and_is_tried_again_ever_later(stream: Stream, folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    stream.add(id="bad", kind="folder", path=str(gone))
    gone.rmdir()
    stream.add(**jsonl(folder, "good", *numbered("jar", 5)))
    stream.drain()
    assert stream.row("good")["num_documents"] == 5
    waits = []
    for _ in range(3):
        row = stream.row("bad")
        waits.append(row["next_read_s"])
        assert "there is no folder" in row["error"]
        stream.drain(seconds=row["next_read_s"])
    assert waits == [10.0, 20.0, 40.0]
    gone.mkdir()
    (gone / "a.md").write_text("It is back.")
    stream.drain(seconds=stream.row("bad")["next_read_s"])
    assert (stream.row("bad")["error"], stream.row("bad")["num_failures"]) == ("", 0)


class Broken:
    """A reader with a bug."""

    def read(self, cursor: Cursor, limit: ReadLimit, *, guard: Guard = no_guard) -> SourceBatch:
        raise ZeroDivisionError("a bug")


def test_a_reader_with_a_bug_is_a_failed_source_and_not_the_end_of_the_loop(folder: Path) -> None:
    def open_reader(config: SourceConfig) -> Any:
        known = stream.cursors
        return Broken() if config.id == "bad" else build_reader(
            config, known=known, max_document_bytes=1000, home=stream.home
        )  # fmt: skip

    stream = Stream(folder, open_reader=open_reader)
    stream.add(**jsonl(folder, "bad", "x"))
    stream.add(**jsonl(folder, "good", "The good one."))
    stream.drain()
    assert stream.row("bad")["error"] == "ZeroDivisionError: a bug"
    assert stream.store.texts() == ["The good one."]
    stream.close()


def test_a_source_of_each_kind_of_the_configuration_is_read_into_the_store(folder: Path) -> None:
    class Feed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"items": [{"text": "From the feed."}]}')

        def log_message(self, *_: Any) -> None:
            pass

    for name in ("wiki", "app"):
        (folder / name).mkdir()
        (folder / name / "page.md").write_text(f"From the {name}.")
    for arguments in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@x", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(folder / "app"), *arguments], check=True, capture_output=True)
    stream = Stream(folder)
    with http_server(Feed) as url:
        stream.cursors.follow_file([
            source(id="wiki", kind="folder", path=str(folder / "wiki")),
            source(id="app", kind="git", repository=str(folder / "app")),
            source(id="feed", kind="http", url=url, allow_private=True),
            source(**jsonl(folder, "log", "From the log.")),
        ])  # fmt: skip
        stream.restart()
        stream.drain()
    words = [f"From the {name}." for name in ("app", "feed", "log", "wiki")]
    assert stream.store.texts() == words
    assert {one["origin"] for one in stream.reader.status(stream.now)["sources"]} == {"configuration"}
    stream.close()
