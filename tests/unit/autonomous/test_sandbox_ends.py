"""What ends a running program of the sandbox: a stop, a kill, the end of whoever runs it."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.machine import start_of
from autonomous.safety.processes import FOLDER, kill_registered, registered
from autonomous.tools.config import SandboxConfig
from autonomous.tools.confined_process import (
    _prefix,
    remove_leftovers,
    run_confined,
)
from cluster.processes import is_alive
from memory.store import no_guard
from memory.types import Guard
from tests.waiting import until

BEGIN = "open('began', 'w').close()\n"


def _pid_of_begun(safety: Path) -> int:
    """Of the one program that runs, once its first line has run; 0 before."""
    pids = [record.pid for record in registered(safety).values() if record is not None]
    return pids[0] if pids and Path(f"/proc/{pids[0]}/cwd/began").exists() else 0


class _Running:
    """A program that runs in a thread."""

    def __init__(self, safety: Path, source: str, guard: Guard) -> None:
        self.problem: BaseException | None = None
        self.result: Any = None
        self._thread = threading.Thread(target=self._call, args=(safety, BEGIN + source, guard))
        self._thread.start()
        until(lambda: _pid_of_begun(safety))
        self.pid = _pid_of_begun(safety)

    def _call(self, safety: Path, source: str, guard: Guard) -> None:
        config = SandboxConfig(cpu_s=60, wall_s=60, min_isolation="interpreter")
        try:
            self.result = run_confined(
                source, level="interpreter", config=config, timeout_s=60, guard=guard, safety_folder=safety
            )
        except BaseException as error:
            self.problem = error

    def join(self) -> None:
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("pull", ["stop", "pause", "kill"])
def test_a_latch_that_is_pulled_ends_a_program_that_would_run_on(pull: str, tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    running = _Running(tmp_path, "while True: pass", latch.permit("tool call").check)
    assert is_alive(running.pid)
    getattr(latch, pull)(reason="enough", by="ada")
    until(lambda: not is_alive(running.pid))
    running.join()
    assert isinstance(running.problem, LearningStopped)
    assert not list((tmp_path / FOLDER).glob("*.json"))


def test_a_stop_of_the_learner_alone_leaves_a_program_running(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    running = _Running(tmp_path, "import time; time.sleep(0.3); print('done')", latch.permit("tool call").check)
    latch.stop(reason="enough", by="ada", scope="learner")
    running.join()
    assert running.result.output == "done\n"


def test_the_kill_of_the_registry_reaches_a_program_by_its_own_record(tmp_path: Path) -> None:
    running = _Running(tmp_path, "while True: pass", no_guard)
    killed = kill_registered(tmp_path, "learning")
    assert [(one.pid, one.role, one.is_gone) for one in killed] == [(running.pid, "tool", True)]
    running.join()
    assert running.result.status < 0


def test_a_program_dies_with_whoever_runs_it_and_its_folder_is_removed_by_the_next(
    tmp_path: Path, temporary: Path
) -> None:
    code = (
        "from pathlib import Path\nfrom autonomous.tools.confined_process import run_confined\n"
        "from autonomous.tools.config import SandboxConfig\n"
        f"run_confined({BEGIN + 'while True: pass'!r}, level='interpreter', config=SandboxConfig(cpu_s=60, wall_s=60),"
        " timeout_s=60,"
        f" guard=lambda: None, safety_folder=Path({str(tmp_path)!r}))"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], env=os.environ | {"TMPDIR": str(temporary)}
    )
    until(lambda: _pid_of_begun(tmp_path))
    pid = _pid_of_begun(tmp_path)
    runner.kill()
    runner.wait()
    until(lambda: not is_alive(pid), timeout_s=5)
    of_this_process = tempfile.mkdtemp(prefix=_prefix(os.getpid(), start_of(os.getpid())))
    assert len(list(temporary.iterdir())) == 2
    remove_leftovers()
    assert list(temporary.iterdir()) == [Path(of_this_process)]
