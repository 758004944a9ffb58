"""`autonomous sources` against a system that answers HTTP with the real reader and cursors behind it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run

Captured = pytest.CaptureFixture[str]
Say = Callable[..., str]


@pytest.fixture
def say(system: Any, capsys: Captured) -> Say:
    """Runs a command line and gives what it prints."""

    def run_line(*arguments: str, status: int = 0) -> str:
        assert run(["sources", *arguments, "--config", str(system.config_path)]) == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    return run_line


def test_a_folder_is_added_read_listed_and_removed(say: Say, system: Any, documents: Path) -> None:
    assert say("list") == "No source is read. Add one with: autonomous sources add\n"
    assert "docs is read from now on" in say("add", "docs", "--folder", "docs", "--include", "*.txt", "--every", "5")
    system.parts.sources.settle()
    assert "folder" in say("list")
    (row,) = json.loads(say("list", "--json"))["sources"]
    assert (row["num_documents"], row["config"]["path"], row["config"]["interval_s"]) == (3, str(documents), 5.0)
    assert "is empty" in say("refused", "docs")
    assert "looked at now" in say("read", "docs")
    assert "is not read any more" in say("remove", "docs", "--reason", "it moved")
    assert "there is no source 'docs'" in say("remove", "docs", "--reason", "again", status=1)


def test_a_problem_and_a_stop_are_shown(say: Say, system: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    say("add", "gone", "--folder", str(folder))
    folder.rmdir()
    system.parts.sources.settle()
    assert "there is no" in say("list")
    system.parts.sources.latch.stop(reason="drill", by="ann")
    system.parts.sources.settle()
    assert "Nothing is read now: reading sources is refused" in say("list")


def test_wrong_usage_says_what_is_wanted(say: Say, tmp_path: Path) -> None:
    assert "give one of --folder, --git, --url and --jsonl" in say("add", "x", status=2)
    assert "give one of" in say("add", "x", "--folder", "a", "--git", "b", status=2)
    assert "there is no folder" in say("add", "x", "--folder", str(tmp_path / "none"), status=1)
    assert "web address" in say("add", "x", "--url", "ftp://example.org", status=1)
