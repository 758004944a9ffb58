"""The watchdog, as a real process and round by round."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autonomous.safety import heartbeat
from autonomous.safety.heartbeat import Heartbeat
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.latch_state import LatchState
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.watchdog import REPORT, Watchdog, last_kill
from cluster.processes import is_alive
from tests.safety_processes import ROOT, Start, starting
from tests.tiny_learning import LENIENT_RULES
from tests.waiting import until


@pytest.fixture
def safety(tmp_path: Path) -> Path:
    Latch.create(tmp_path / "latch")
    return tmp_path


@pytest.fixture
def start(safety: Path) -> Iterator[Start]:
    with starting(safety) as run:
        yield run


@pytest.fixture
def watchdog(safety: Path) -> Iterator["subprocess.Popen[bytes]"]:
    Heartbeat(safety).expect()
    process = subprocess.Popen([sys.executable, "-m", "autonomous.safety.watchdog", str(safety)], cwd=ROOT)
    until(Heartbeat(safety).lives)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("watchdog")
def test_a_kill_is_carried_out_and_it_is_written_down_that_all_are_gone(safety: Path, start: Start) -> None:
    pids = start("learner", "learner")
    latch = Latch.open(safety / "latch")
    latch.permit("optimizer step").check()
    latch.kill(by="ada", reason="odd", scope="learner")
    until(lambda: last_kill(safety), timeout_s=5)

    report = last_kill(safety)
    assert (report["epoch"], report["scope"], report["by"]) == (latch.state().epoch, "learner", "ada")
    assert {one["pid"]: one["is_gone"] for one in report["processes"]} == dict.fromkeys(pids, True)
    assert not any(is_alive(pid) for pid in pids)


def test_a_kill_tells_of_what_the_watchdog_was_quicker_to_kill(
    safety: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    latch, watchdog, rows = Latch.open(safety / "latch"), Watchdog(safety), []
    monitor = SafetyMonitor(latch, audit=lambda **row: rows.append(row), rules=LENIENT_RULES, level="high")
    pids, kill = start("learner", "learner"), latch.kill

    def kill_and_look(**told: Any) -> LatchState:
        state = kill(**told)
        watchdog.look()
        return state

    monkeypatch.setattr(latch, "kill", kill_and_look)
    answer = monitor.kill(reason="odd", by="ada", scope="learner")
    assert not any(is_alive(pid) for pid in pids)
    assert [(one["role"], one["is_gone"]) for one in answer["processes"]] == [("learner", True)]
    assert {one["pid"] for one in answer["processes"]} <= set(pids)
    assert answer["is_complete"]
    assert rows[-1]["evidence"]["processes"] == answer["processes"]


def test_a_stop_kills_nothing_and_each_kill_is_carried_out_once(safety: Path, start: Start) -> None:
    latch, watchdog = Latch.open(safety / "latch"), Watchdog(safety)
    pids = start("learner", "learner")
    latch.stop(by="ada", reason="x")
    assert (watchdog.look(), all(is_alive(pid) for pid in pids)) == (None, True)
    latch.kill(by="ada", reason="x")
    first = watchdog.look()
    assert first is not None
    assert (len(first.processes), first.is_complete) == (2, True)

    again = Watchdog(safety)  # after a crash
    pids = start("learner", "learner")
    assert (again.look(), all(is_alive(pid) for pid in pids)) == (None, True)
    latch.kill(by="ada", reason="y", scope="all")
    assert again.look() is not None
    assert not any(is_alive(pid) for pid in pids)


def test_a_kill_that_leaves_something_is_tried_again_until_it_is_given_up(safety: Path) -> None:
    (safety / "processes").mkdir()
    (safety / "processes" / "odd.json").write_text("{")
    Latch.open(safety / "latch").kill(by="ada", reason="x")
    watchdog = Watchdog(safety)
    reports = [watchdog.look() for _ in range(7)]
    assert [report is not None and report.is_complete for report in reports] == [False] * 7
    assert [report is not None for report in reports] == [True] * 5 + [False] * 2


def test_a_watchdog_that_cannot_write_kills_all_the_same(
    safety: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = start("learner", "learner")
    (safety / REPORT).mkdir()

    def full(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Heartbeat, "beat", full)
    Latch.open(safety / "latch").kill(by="ada", reason="x")
    with pytest.raises(OSError, match="no space left"):
        Watchdog(safety).look()
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.slow
def test_while_it_is_silent_nothing_is_permitted_and_what_was_goes_on_afterwards(
    safety: Path, watchdog: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    latch = Latch.open(safety / "latch")
    permit = latch.permit("optimizer step")
    permit.check()
    monkeypatch.setattr(heartbeat, "MAX_SILENCE_S", 1.0)
    os.kill(watchdog.pid, signal.SIGSTOP)
    until(Heartbeat(safety).silence)
    with pytest.raises(LearningStopped, match=r"silent for \d+ s; start it again with: autonomous watchdog"):
        permit.check()
    assert not latch.state().forbids("all")  # answering goes on
    os.kill(watchdog.pid, signal.SIGCONT)
    until(Heartbeat(safety).lives)
    permit.check()


def test_silence_widens_a_stop_of_the_learner_and_leaves_a_wider_one_alone(safety: Path) -> None:
    latch = Latch.open(safety / "latch")
    Heartbeat(safety).expect()
    latch.pause(by="ada", reason="lunch", scope="learner")
    assert (latch.state().mode, latch.state().scope) == ("stopped", "learning")
    latch.kill(by="ada", reason="fire", scope="all")
    assert (latch.state().mode, latch.state().scope, latch.state().reason) == ("killed", "all", "fire")


def test_a_heartbeat_that_is_lost_garbled_or_of_an_earlier_start_is_silence(safety: Path) -> None:
    latch = Latch.open(safety / "latch")
    assert latch.state().mode == "armed"  # no watchdog was ever started
    pulse = Heartbeat(safety)
    pulse.expect()
    assert "cannot be read" in latch.state().reason
    pulse.beat()
    assert latch.state().mode == "armed"
    (path,) = safety.glob("heartbeat-*")
    boot, beaten = path.read_text().split()
    for block, problem in (
        (f"another {beaten}", "not run since"), (f"{boot} {float(beaten) + 1e6}", "not run since"),
        (f"{boot} nan", "not run since"), ("", "garbled"),
    ):  # fmt: skip
        path.write_text(block)
        assert problem in latch.state().reason
    path.unlink()
    assert "cannot be read" in latch.state().reason
    pulse.remove()
    assert latch.state().mode == "armed"
