"""Kills, with real processes."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autonomous.safety import processes
from autonomous.safety.machine import start_of
from autonomous.safety.processes import FOLDER, forget_all, kill_registered, register, registered
from cluster.processes import is_alive
from tests.safety_processes import SLEEP, Start, starting
from tests.waiting import until

DAEMON = (
    'code = \'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],'
    " start_new_session=True); print(p.pid, flush=True)'\n"
    "subprocess.run([sys.executable, '-c', code])\n" + SLEEP
)
"""Starts a process whose own parent ends at once."""
FORKS = (
    "weight = bytearray(os.urandom(1)) * (150 << 20)\n"
    "for number in range(10**6):\n"
    "    if os.fork() == 0:\n"
    "        time.sleep(30)\n"
    "        os._exit(0)\n"
    "    if number == 3: print(flush=True)\n"
    "    if number > 3: time.sleep(0.002)\n"
)
"""Forks without end; each fork of so much memory takes a while, so that a kill meets one under way."""
KILLS_ITSELF = (
    "code = 'import sys; from pathlib import Path; from autonomous.safety.processes import kill_registered;"
    ' print("killed", [one.is_gone for one in kill_registered(Path(sys.argv[1]), "all")], file=open(sys.argv[2], "w"))\'\n'
    "subprocess.Popen([sys.executable, '-c', code, sys.argv[1], sys.argv[1] + '/told'])\n"
    "print(flush=True)\n" + SLEEP
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as run:
        yield run


def _record(safety: Path) -> Path:
    (path,) = (safety / FOLDER).glob("*.json")
    return path


def test_a_kill_ends_the_processes_of_its_scope_with_their_children_and_no_others(tmp_path: Path, start: Start) -> None:
    learner, engine = start("learner", "learner"), start("engine", "all")
    killed = kill_registered(tmp_path, "learning")

    assert {(one.pid, one.role, one.is_gone) for one in killed} == {(pid, "learner", True) for pid in learner}
    assert [is_alive(pid) for pid in (*learner, *engine)] == [False, False, True, True]
    assert [one and one.role for one in registered(tmp_path).values()] == ["engine"]
    assert {one.pid for one in kill_registered(tmp_path, "all")} == set(engine)
    assert kill_registered(tmp_path, "all") == []


def test_a_child_whose_own_parent_has_ended_is_found_by_its_mark(tmp_path: Path, start: Start) -> None:
    learner, orphan = start("learner", "learner", DAEMON)
    until(lambda: psutil.Process(orphan).ppid() != learner and len(psutil.Process(learner).children()) == 0)
    assert {one.pid for one in kill_registered(tmp_path, "learner")} == {learner, orphan}
    assert not is_alive(orphan)


def test_nothing_that_is_forked_in_the_moment_of_the_kill_survives(tmp_path: Path, start: Start) -> None:
    for _ in range(3):
        (learner,) = start("learner", "learner", FORKS)
        group = {
            process.pid for process in psutil.process_iter() if psutil.Process(learner).cmdline() == _line(process)
        }
        assert len(group) > 3
        assert all(one.is_gone for one in kill_registered(tmp_path, "learner"))
        assert not [process.pid for process in psutil.process_iter() if str(tmp_path) in " ".join(_line(process))]


def _line(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else list(process.cmdline())
    except psutil.Error:
        return []


def test_a_process_that_was_given_the_pid_of_a_registered_one_is_left_alone(tmp_path: Path, start: Start) -> None:
    pids = start("learner", "learner")
    path = _record(tmp_path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "start": str(int(record["start"]) - 6000)}))

    assert kill_registered(tmp_path, "all") == []
    assert all(is_alive(pid) for pid in pids)
    assert not path.exists()


def test_a_record_of_before_whose_pid_another_process_has_by_now_is_told_as_gone(tmp_path: Path, start: Start) -> None:
    pids = start("learner", "learner")
    path = _record(tmp_path)
    record = registered(tmp_path)[path]
    assert record is not None
    path.unlink()
    known = {path: replace(record, start=str(int(record.start) - 6000))}
    (row,) = kill_registered(tmp_path, "all", known=known)
    assert (row.pid, row.is_gone) == (pids[0], True)
    assert all(is_alive(pid) for pid in pids)


def test_a_clock_that_is_put_forward_hides_nothing(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = start("learner", "learner")
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 60)
    assert {one.pid for one in kill_registered(tmp_path, "learner")} == set(pids)
    assert not any(is_alive(pid) for pid in pids)


def test_odd_records_keep_no_kill_from_the_others_and_are_told(tmp_path: Path, start: Start) -> None:
    pids = start("learner", "learner")
    record = json.loads(_record(tmp_path).read_text())
    tools = start("tool", "learner", f"print(flush=True)\n{SLEEP}")
    for name, text in (
        ("0", "{"), ("1", "[]"), ("2", json.dumps({**record, "pid": -1})), ("3", json.dumps({**record, "pid": "x"})),
    ):  # fmt: skip
        (tmp_path / FOLDER / f"{name}.json").write_text(text)
    of_tool = next(path for path in (tmp_path / FOLDER).glob("*.json") if f"-{tools[0]}-" in path.name)
    of_tool.write_text(json.dumps({**json.loads(of_tool.read_text()), "within": "a scope of another release"}))

    killed = kill_registered(tmp_path, "learner")
    assert {one.pid for one in killed if one.is_gone} == {*pids, *tools}
    assert [(one.role, one.problem) for one in killed if not one.is_gone] == [
        (name, "its record cannot be read: look with ps") for name in "0123"
    ]


def test_a_disk_on_which_no_record_can_be_removed_keeps_no_kill(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("dead", "learner")
    kill_registered(tmp_path, "learner")
    pids = start("learner", "learner")

    def read_only(*_: object, **__: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    assert {one.pid for one in kill_registered(tmp_path, "learner")} == set(pids)


def test_what_runs_on_another_machine_is_gone_when_its_own_watchdog_says_so(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("learner", "learner")
    path = _record(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "place": "node7 pid:[1]"}))
    (elsewhere,) = kill_registered(tmp_path, "learner", timeout_s=0.1)
    assert (elsewhere.is_gone, "it runs on node7" in elsewhere.problem) == (False, True)

    watch = processes._watch

    def after_its_watchdog(*arguments: object, **named: object) -> object:
        path.unlink()
        return watch(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "_watch", after_its_watchdog)
    (elsewhere,) = kill_registered(tmp_path, "learner")
    assert (elsewhere.is_gone, elsewhere.problem) == (True, "")


def test_whoever_kills_is_left_alive_also_inside_of_what_is_killed(tmp_path: Path, start: Start) -> None:
    register(tmp_path, role="here", within="learner")
    assert kill_registered(tmp_path, "all") == []
    forget_all(tmp_path)
    assert registered(tmp_path) == {}

    (learner,) = start("learner", "learner", KILLS_ITSELF)
    until((tmp_path / "told").exists)
    until(lambda: (tmp_path / "told").read_text().startswith("killed [True]"))
    assert not is_alive(learner)


def test_a_start_is_that_of_the_kernel_and_a_dead_process_has_none() -> None:
    assert start_of(psutil.Process().pid).isdigit()
    assert start_of(2**22 + 1) == ""
    assert sys.platform == "linux"
