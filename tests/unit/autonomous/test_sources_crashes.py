"""The loop over the sources when it is stopped or dies: the cursor comes behind the acknowledgement, so nothing is lost."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.streams import Crash, Stream, jsonl, numbered


def test_while_stopped_nothing_is_read_and_after_the_reset_all_of_it(stream: Stream, folder: Path) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 5)))
    stream.latch.stop(reason="drill", by="ann")
    step = stream.reader.step(stream.now)
    assert (step.did, step.wait_s > 0, stream.store.num_calls, stream.row("log")["num_documents"]) == (
        "stopped", True, 0, 0,
    )  # fmt: skip
    assert "stopped by ann" in stream.reader.status(stream.now)["waits_for"]
    stream.latch.reset(reason="over", by="ann")
    stream.drain()
    assert len(stream.store.texts()) == 5


def test_a_stop_between_the_acknowledgement_and_the_cursor_repeats_but_loses_nothing(
    stream: Stream, folder: Path
) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 3)))
    real = stream.store.__class__.__call__

    class Stopping(stream.store.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, documents: Any, removed: Any) -> Any:
            outcomes = real(self, documents, removed)
            if self.num_calls == 1:
                stream.latch.stop(reason="drill", by="ann")
            return outcomes

    stream.store.__class__ = Stopping
    assert stream.reader.step(stream.now).did == "stopped"
    assert stream.row("log")["num_documents"] == 0
    stream.latch.reset(reason="over", by="ann")
    stream.drain()
    assert (stream.row("log")["num_documents"], stream.row("log")["num_repeated"]) == (3, 3)
    assert len(stream.store.texts()) == 3


def test_a_crash_behind_the_acknowledgement_repeats_the_batch_which_changes_nothing(
    stream: Stream, folder: Path
) -> None:
    stream.add(**jsonl(folder, "log", *numbered("jar", 6)))
    stream.store.crash_after = True
    with pytest.raises(Crash):
        stream.reader.step(stream.now)
    stream.restart()
    stream.drain()
    assert stream.store.texts() == sorted(numbered("jar", 6))
    assert stream.row("log")["num_repeated"] == 4


@pytest.mark.parametrize("what", ["removed", "changed back"])
def test_what_was_stored_by_a_crashed_step_and_is_gone_before_it_is_read_again_is_retired(
    stream: Stream, folder: Path, what: str
) -> None:
    wiki = folder / "wiki"
    wiki.mkdir()
    (wiki / "kept.md").write_text("The kept page.")
    page = wiki / "page.md"
    page.write_text("The first words.")
    os.utime(page, (1, 1))
    stream.add(id="wiki", kind="folder", path=str(wiki))
    stream.drain()
    page.write_text("The second words.")
    stream.store.crash_after = True
    stream.now += 10
    with pytest.raises(Crash):
        stream.reader.step(stream.now)
    stream.restart()
    page.unlink()
    if what == "changed back":
        page.write_text("The first words.")
        os.utime(page, (1, 1))
    stream.drain()
    assert stream.store.texts() == ["The first words.", "The kept page."][what == "removed" :]
