"""The processes that a kill ends: each writes itself down when it starts, and is killed and looked for by its pid.

A record is pid and start, so that another process that has the pid by now is left alone. None of it needs Ray, so it works
while Ray's control plane is down. What Ray starts again afterwards is an empty shell: everything that an actor does asks the
latch first.
"""

import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from autonomous.safety.latch import SCOPES, Scope

logger = logging.getLogger(__name__)

FOLDER = "processes"
KILL_TIMEOUT_S = 5.0
_SAME_START_S = 0.05
"""Two readings of the start of one process differ by less."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A process as it was written down. `started_at` in seconds since the epoch, as psutil has it."""

    pid: int
    started_at: float
    role: str
    within: Scope
    """The narrowest scope of a kill that ends it."""
    host: str


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a process. `is_gone`: it was looked for and not found; a zombie is gone."""

    pid: int
    role: str
    is_gone: bool
    seconds: float


def register(safety_folder: Path, *, role: str, within: Scope) -> None:
    """Write down this process. Idempotent. Raises OSError: a process that cannot be found must not begin."""
    process = psutil.Process()
    record = Registered(process.pid, process.create_time(), role, within, platform.node())
    folder = safety_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.host}-{record.pid}.json"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.replace(path)


def registered(safety_folder: Path) -> list[Registered]:
    """The live processes of this machine that were written down; records of dead ones are removed."""
    found = []
    for path in sorted((safety_folder / FOLDER).glob("*.json")):
        try:
            record = Registered(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            logger.warning("record %s cannot be read: %s", path, error)
            continue
        if record.host != platform.node():
            continue
        if _process_of(record) is None:
            path.unlink(missing_ok=True)
        else:
            found.append(record)
    return found


def kill_registered(safety_folder: Path, scope: Scope, *, timeout_s: float = KILL_TIMEOUT_S) -> list[Killed]:
    """SIGKILL the processes of a scope on this machine, with all that they started, and look whether they are gone."""
    start = time.monotonic()
    doomed: dict[int, tuple[psutil.Process, str]] = {}
    for record in registered(safety_folder):
        process = _process_of(record)
        if process is None or SCOPES.index(record.within) > SCOPES.index(scope) or process.pid == os.getpid():
            continue
        doomed |= {one.pid: (one, record.role) for one in _frozen_tree(process)}
    for process, _ in doomed.values():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    gone_after: dict[int, float] = {}
    while len(gone_after) < len(doomed) and time.monotonic() - start < timeout_s:
        for pid, (process, _) in doomed.items():
            if pid not in gone_after and _is_gone(process):
                gone_after[pid] = time.monotonic() - start
        time.sleep(0.005)
    elapsed = time.monotonic() - start
    return [
        Killed(pid, role, pid in gone_after, round(gone_after.get(pid, elapsed), 4))
        for pid, (_, role) in sorted(doomed.items())
    ]


def _process_of(record: Registered) -> psutil.Process | None:
    """The process that a record means, if it lives."""
    try:
        process = psutil.Process(record.pid)
        is_it = abs(process.create_time() - record.started_at) < _SAME_START_S
    except psutil.NoSuchProcess:
        return None
    return process if is_it and not _is_gone(process) else None


def _frozen_tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started, each stopped before it is asked for its children: none can start another."""
    tree, waiting = list[psutil.Process](), [process]
    while waiting:
        one = waiting.pop()
        with suppress(psutil.NoSuchProcess):
            one.suspend()
            tree.append(one)
            waiting += one.children()
    return tree


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
