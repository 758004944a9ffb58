"""The processes of one system, found by the environment variable that all of them inherit.

`ray stop` would end every Ray on the machine; these functions touch only processes whose environment names this home.
"""

import os
import time
from pathlib import Path

import psutil

HOME_VARIABLE = "AUTONOMOUS_HOME"
"""Set in the environment of the Ray head; raylet, workers, actors and replicas inherit it."""
EXEC_LOOKS, EXEC_LOOK_S = 20, 0.001
"""How often, and with what pause, a process without an environment is looked at."""


def find_processes(home: Path) -> list[psutil.Process]:
    """All live processes of this home but the caller's own. A zombie is not alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and _environment(process).get(HOME_VARIABLE) == str(home)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, nor does one that ends while it is looked at."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(process: psutil.Process) -> dict[str, str]:
    """Of a process. While it begins a program (exec) the kernel shows none for a moment: then it is asked again."""
    for _ in range(EXEC_LOOKS):
        environment: dict[str, str] = process.environ()
        if environment or not process.exe():  # a thread of the kernel has no program
            return environment
        time.sleep(EXEC_LOOK_S)
    return {}


def end_processes(home: Path, *, head_pid: int | None, grace_s: float) -> int:
    """End every process of this home and verify that none is left.

    The head gets SIGTERM first: it drains and ends its children. What is left after `grace_s` seconds is killed.
    Returns the number of processes that were ended. Raises RuntimeError naming the pids that survive a kill.
    """
    processes = find_processes(home)
    for process in processes:
        if process.pid == head_pid:
            _signal(process, force=False)
    deadline = time.monotonic() + grace_s
    while head_pid is not None and time.monotonic() < deadline and psutil.pid_exists(head_pid) and find_processes(home):
        time.sleep(0.1)
    for _ in range(3):  # a dying parent may have started a child between two looks
        leftovers = find_processes(home)
        if not leftovers:
            return len(processes)
        for process in leftovers:
            _signal(process, force=True)
        psutil.wait_procs(leftovers, timeout=10)
    if survivors := find_processes(home):
        raise RuntimeError(f"processes {[p.pid for p in survivors]} of {home} survive SIGKILL; look at them with ps")
    return len(processes)


def _signal(process: psutil.Process, *, force: bool) -> None:
    try:
        process.kill() if force else process.terminate()
    except psutil.NoSuchProcess:
        return
