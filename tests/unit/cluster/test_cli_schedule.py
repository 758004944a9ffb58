"""`autonomous schedule` against a system that answers HTTP with the real scheduler behind it, and the job's waiting."""

import json
from typing import Any

import pytest

from autonomous.retraining import Outcome
from cluster.cli import run
from cluster.jobs.retrain import follow

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def say(system: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("cluster.cli_schedule.POLL_S", 0.001)

    def run_line(*arguments: str, status: int = 0) -> str:
        assert run(["schedule", *arguments, "--config", str(system.config_path)]) == status
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run_line


def test_a_drill_is_run_waited_for_and_remembered(say: Any) -> None:
    assert "weekly on sunday at 04:00 UTC" in say("list")
    assert say("run", "drill", "--by", "ann") == "drill: done. drilled\n"
    assert "asked" in say("history", "drill")
    (remembered,) = json.loads(say("history", "drill", "--json"))["runs"]
    assert (remembered["outcome"], remembered["reasons"][0]["by"]) == ("done", "ann")
    assert "done, 20" in say("list")


def test_a_failed_run_is_an_exit_status_and_a_finding(say: Any, system: Any) -> None:
    system.parts.schedules.outcome = Outcome("failed", "bundle: a file was altered")
    assert "a file was altered" in say("run", "drill", status=1)
    assert "Look at drill: its last run failed" in say("list")
    assert "there is no scheduled job 'nap'" in say("run", "nap", status=1)


def test_without_waiting_and_when_it_takes_too_long_the_run_goes_on(say: Any) -> None:
    assert "is queued" in say("run", "drill", "--no-wait")
    assert "goes on" in say("run", "drill", "--timeout", "0", status=1)


def test_a_submitted_job_follows_its_run_to_the_end_and_says_when_it_is_gone() -> None:
    first = {"id": 7, "name": "retrain", "state": "queued", "attempt": 0, "outcome": None, "detail": ""}
    answers = iter([[first], [{**first, "state": "running", "attempt": 1}], [{"id": 8}, {**first, "state": "ended"}]])
    pauses: list[float] = []
    assert follow(first, lambda: next(answers), pause=pauses.append)["state"] == "ended"
    assert len(pauses) == 3
    with pytest.raises(LookupError, match="run 7 of retrain is no longer known"):
        follow(first, lambda: [{"id": 8}], pause=pauses.append)
