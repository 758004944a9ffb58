"""What tells one start of a machine, and one process on it, from another. None of it moves with the wall clock."""

import os
import platform
from functools import cache
from pathlib import Path

import psutil

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat behind the command's name (proc(5): state is field 3, starttime field 22)."""
_STOPPED = frozenset("TtZXx")


@cache
def boot_id() -> str:
    """Another one at each start of the machine."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"boot {psutil.boot_time():.0f}"


@cache
def place() -> str:
    """Where a pid of this process has its meaning: the machine's name and the pid namespace (a container's own)."""
    try:
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        namespace = ""
    return f"{platform.node() or 'localhost'} {namespace}".strip()


def start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks since the boot; "" if there is none, or only a zombie."""
    fields = _stat(_PROC / str(pid) / "stat")
    return "" if fields is None or fields[_STATE] in "ZXx" else fields[_START]


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process stands still, so that none can start another process; also if it is gone."""
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return True
    states = [fields[_STATE] for fields in map(_stat, (thread / "stat" for thread in threads)) if fields is not None]
    return all(state in _STOPPED for state in states)


def _stat(path: Path) -> list[str] | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # a command's name may hold spaces and brackets
