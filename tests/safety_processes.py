"""What the tests of kills share: real registered processes, and waiting for what has to come."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from autonomous.safety.latch_state import Scope

ROOT = Path(__file__).parents[1]
_REGISTER = (
    "import os, subprocess, sys, time\n"
    "from pathlib import Path\n"
    "from autonomous.safety.processes import register\n"
    "register(Path(sys.argv[1]), role=sys.argv[2], within=sys.argv[3])\n"
)
SLEEP = "time.sleep(600)"
WITH_CHILD = (
    f"child = subprocess.Popen([sys.executable, '-c', 'import time; {SLEEP}'])\nprint(child.pid, flush=True)\n{SLEEP}"
)
"""Says the pid of its child."""
Start = Callable[..., list[int]]
"""(role, scope, what it does then) -> its pid and those that it says."""


@contextmanager
def starting(safety: Path) -> Iterator[Start]:
    """Starts registered processes; whatever is left of them and of what they started is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(role: str, within: Scope, then: str = WITH_CHILD) -> list[int]:
        command = [sys.executable, "-c", _REGISTER + then, str(safety), role, within]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return [process.pid, *map(int, process.stdout.readline().split())]

    try:
        yield run
    finally:
        for process in started:
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
            process.kill()
            process.communicate()
