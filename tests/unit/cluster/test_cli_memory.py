"""`autonomous memory` against a system that answers HTTP with the real stores behind it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.cli import run

Captured = pytest.CaptureFixture[str]
Say = Callable[..., str]


@pytest.fixture
def say(system: Any, capsys: Captured) -> Say:
    """Runs a command line and gives what it prints."""
    for source, code, at in (("guide", "KX-4471", 0.0), ("forum", "KX-9999", 1_700_000_000.0)):
        text = f"The access code of the gate of Vellmar is {code}."
        assert run_documents(system, {"id": source, "source": source, "text": text, "happened_at": at})

    def run_line(*arguments: str, status: int = 0) -> str:
        assert run(["memory", *arguments, "--config", str(system.config_path)]) == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    return run_line


def run_documents(system: Any, *documents: dict[str, Any]) -> Any:
    from cluster.client import Client

    with Client(system.url) as client:
        return client.add_documents(documents)["documents"]


def test_a_context_and_facts_are_shown_with_where_they_stand(say: Say) -> None:
    shown = say("context", "access code of the gate of Vellmar", "--tokens", "60")
    assert "episodic" in shown
    assert "of 60 tokens." in shown
    assert say("facts", "zeppelin") == "Nothing is held about zeppelin.\n"
    now = say("facts", "access code of the gate of Vellmar")
    assert "KX-4471" in now
    assert "2023-11-14" in now
    then = say("facts", "access code of the gate of Vellmar", "--as-of", "2020-01-31")
    assert "KX-9999" not in then
    assert "write a day as 2026-01-31" in say("facts", "x", "--as-of", "yesterday", status=2)


def test_a_source_is_held_back_released_and_forgotten(say: Say) -> None:
    assert say("trust") == "Every source has the default trust.\n"
    assert "names the source, the level and --reason" in say("trust", "forum", status=2)
    held = say("trust", "forum", "untrusted", "--reason", "not ours", "--by", "ann")
    assert held == "forum is untrusted now; the trust of 1 passages changed.\n"
    assert "not ours" in say("trust")
    (waiting,) = json.loads(say("waiting", "--json"))["episodes"]
    assert waiting["id"] in say("waiting")
    assert say("release", waiting["id"], "--reason", "read") == "Released 1 of 1 passages.\n"
    assert say("waiting") == "Nothing waits.\n"
    assert say("alarms") == "No source raises an alarm.\n"
    assert say("forget", "forum", "--reason", "asked") == "Erased 1 passages of forum.\n"
    assert "has nothing stored" in say("forget", "forum", "--reason", "asked", status=1)


def test_a_consolidation_is_run_listed_and_undone(say: Say) -> None:
    assert say("consolidate", "--list") == "None has run yet.\n"
    assert "done" in say("consolidate")
    (report,) = json.loads(say("consolidate", "--list", "--json"))["runs"]
    assert say("undo", report["run"], "--reason", "too early") == f"Run {report['run']} is undone.\n"
    assert "cannot be undone" in say("undo", report["run"], "--reason", "again", status=1)
