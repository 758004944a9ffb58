"""Kills and the watchdog, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autonomous.safety import heartbeat, processes
from autonomous.safety.heartbeat import Heartbeat, heartbeat_path
from autonomous.safety.latch import Latch, LearningStopped, Scope
from autonomous.safety.processes import kill_registered, register, registered
from autonomous.safety.watchdog import Watchdog, last_kill

ROOT = Path(__file__).parents[3]
WORKER = """
import subprocess, sys, time
from pathlib import Path
from autonomous.safety.processes import register
register(Path(sys.argv[1]), role=sys.argv[2], within=sys.argv[3])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
Start = Callable[[str, Scope], list[int]]


@pytest.fixture
def safety(tmp_path: Path) -> Path:
    Latch.create(tmp_path / "latch")
    return tmp_path


@pytest.fixture
def start(safety: Path) -> Iterator[Start]:
    """Starts a registered process that has a child; their pids."""
    started: list[subprocess.Popen[str]] = []

    def run(role: str, within: Scope) -> list[int]:
        command = [sys.executable, "-c", WORKER, str(safety), role, within]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return [process.pid, int(process.stdout.readline())]

    yield run
    for process in started:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.communicate()


@pytest.fixture
def watchdog(safety: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-m", "autonomous.safety.watchdog", str(safety)], cwd=ROOT)
    _until(heartbeat_path(safety).exists)
    yield process
    process.kill()
    process.communicate()


def _until(is_so: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_kill_ends_the_processes_of_its_scope_with_their_children_and_no_others(safety: Path, start: Start) -> None:
    learner, engine = start("learner", "learner"), start("engine", "all")
    killed = kill_registered(safety, "learning")

    assert {(one.pid, one.role, one.is_gone) for one in killed} == {(pid, "learner", True) for pid in learner}
    assert [_lives(pid) for pid in (*learner, *engine)] == [False, False, True, True]
    assert [one.role for one in registered(safety)] == ["engine"]
    assert {one.pid for one in kill_registered(safety, "all")} == set(engine)
    assert kill_registered(safety, "all") == []


def test_a_process_that_was_given_the_pid_of_a_registered_one_is_left_alone(safety: Path, start: Start) -> None:
    pids = start("learner", "learner")
    (path,) = (safety / processes.FOLDER).glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "started_at": record["started_at"] - 60}))

    assert kill_registered(safety, "all") == []
    assert all(_lives(pid) for pid in pids)
    assert not path.exists()


def test_whoever_kills_is_left_alive(safety: Path) -> None:
    register(safety, role="here", within="learner")
    assert kill_registered(safety, "all") == []
    assert [one.role for one in registered(safety)] == ["here"]


@pytest.mark.usefixtures("watchdog")
def test_the_watchdog_carries_out_a_kill_and_writes_down_that_all_are_gone(safety: Path, start: Start) -> None:
    pids = start("learner", "learner")
    latch = Latch.open(safety / "latch")
    latch.permit("optimizer step").check()
    latch.stop(by="ada", reason="odd")
    time.sleep(0.2)
    assert all(_lives(pid) for pid in pids)

    pulled = time.monotonic()
    latch.kill(by="ada", reason="odder", scope="learner")
    _until(lambda: not any(_lives(pid) for pid in pids))
    assert time.monotonic() - pulled < 5
    _until(lambda: last_kill(safety))
    report = last_kill(safety)
    assert (report["epoch"], report["scope"], report["by"]) == (latch.state().epoch, "learning", "ada")
    assert {one["pid"]: one["is_gone"] for one in report["processes"]} == dict.fromkeys(pids, True)


def test_each_kill_is_carried_out_once_also_by_a_watchdog_that_was_restarted(safety: Path, start: Start) -> None:
    latch = Latch.open(safety / "latch")
    start("learner", "learner")
    latch.kill(by="ada", reason="x")
    first = Watchdog(safety).look()
    assert first is not None
    assert (len(first.processes), first.is_complete) == (2, True)

    again = Watchdog(safety)
    pids = start("learner", "learner")
    assert (again.look(), all(_lives(pid) for pid in pids)) == (None, True)
    latch.kill(by="ada", reason="y", scope="all")
    assert again.look() is not None
    assert not any(_lives(pid) for pid in pids)


def test_while_the_watchdog_is_silent_nothing_is_permitted_and_what_was_goes_on_afterwards(
    safety: Path, watchdog: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    permit = Latch.open(safety / "latch").permit("optimizer step")
    permit.check()
    monkeypatch.setattr(heartbeat, "MAX_SILENCE_S", 1.0)
    os.kill(watchdog.pid, signal.SIGSTOP)
    time.sleep(1.2)
    with pytest.raises(
        LearningStopped, match=r"watchdog has been silent for 1 s; start it again with: autonomous watchdog"
    ):
        permit.check()
    assert not permit.latch.state().forbids("all")  # answering goes on
    os.kill(watchdog.pid, signal.SIGCONT)
    _until(lambda: not Heartbeat(safety).silence())
    permit.check()


def test_a_heartbeat_of_an_earlier_start_of_the_machine_or_a_garbled_one_is_silence(safety: Path) -> None:
    latch = Latch.open(safety / "latch")
    assert latch.state().mode == "armed"  # no watchdog was ever here
    Heartbeat(safety).beat()
    assert latch.state().mode == "armed"
    path = heartbeat_path(safety)
    beaten = path.read_text()
    for block, problem in (("other-boot " + beaten.split()[1], "not run since"), ("", "garbled")):
        path.write_text(block)
        assert problem in latch.state().reason
    Heartbeat(safety).remove()
    assert latch.state().mode == "armed"
