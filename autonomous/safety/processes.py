"""The processes that a kill ends: each writes itself down when it starts, and is killed and looked for by its pid.

A record is pid and start, so that another process that has the pid by now is left alone. What a registered process starts
is found by descent, and by a mark in its environment if its parents are gone. None of it needs Ray, so it works while
Ray's control plane is down. What Ray starts again afterwards is an empty shell: everything that an actor does asks the
latch first.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

from autonomous.safety.latch_state import SCOPES, Scope
from autonomous.safety.machine import boot_id, is_stopped, place, start_of

logger = logging.getLogger(__name__)

FOLDER = "processes"
MARK = "AUTONOMOUS_REGISTERED"
"""Environment variable that what a registered process starts inherits: the names of the records above it."""
KILL_TIMEOUT_S = 5.0
FREEZE_TIMEOUT_S = 0.5
"""A process that computes stops within milliseconds; one that waits for a disk may not."""
_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Registered:
    """A process as it was written down. `start` in ticks of the boot."""

    pid: int
    start: str
    boot: str
    place: str
    """Where the pid has its meaning (machine.place)."""
    role: str
    within: Scope
    """The narrowest scope of a kill that ends it."""

    @property
    def name(self) -> str:
        """Of the record: no other process has it."""
        return f"{self.boot[:8]}-{self.pid}-{self.start}"


Records: TypeAlias = dict[Path, Registered | None]
"""By their files; None for one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a process. `is_gone`: it was looked for and not found; a zombie is gone."""

    pid: int
    role: str
    is_gone: bool
    seconds: float
    problem: str = ""
    """Why nobody can say that it is gone."""


def register(safety_folder: Path, *, role: str, within: Scope) -> None:
    """Write down this process. Idempotent. Raises OSError: a process that cannot be found must not begin."""
    record = _record_of(os.getpid(), role, within)
    _write(safety_folder, record)
    marks = os.environ.get(MARK, "").split()
    if record.name not in marks:
        os.environ[MARK] = " ".join([*marks, record.name])


def register_started(safety_folder: Path, pid: int, *, role: str, within: Scope) -> Path:
    """Write down a process that this one has started and not waited for; its record, for `forget`. Raises OSError."""
    return _write(safety_folder, _record_of(pid, role, within))


def _record_of(pid: int, role: str, within: Scope) -> Registered:
    return Registered(pid, start_of(pid), boot_id(), place(), role, within)


def _write(safety_folder: Path, record: Registered) -> Path:
    folder = safety_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.replace(path)
    return path


def registered(safety_folder: Path) -> Records:
    """The records of processes that live, or may live elsewhere; None for one that cannot be read. Those of dead ones go."""
    found: Records = {}
    for path in sorted((safety_folder / FOLDER).glob("*.json")):
        try:
            record = _read(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            logger.warning("record %s cannot be read: %s", path, error)
            found[path] = None
            continue
        if record.place == place() and not _lives(record):
            forget(path)
        else:
            found[path] = record
    return found


def forget_all(safety_folder: Path) -> None:
    """Drop the records of an earlier life: to be called where none of its processes is left."""
    for path in (safety_folder / FOLDER).glob("*.json"):
        forget(path)


def kill_registered(
    safety_folder: Path,
    scope: Scope,
    *,
    known: Records | None = None,
    timeout_s: float = KILL_TIMEOUT_S,
) -> list[Killed]:
    """SIGKILL the processes of a scope on this machine, with all that they started, and look whether they are gone.

    `known` are the records of before, so that what others kill at the same time, as a watchdog does, is told of as well.
    Those of other machines are waited for: their own watchdogs kill them. Of what cannot be read, reached or seen it is said
    that nobody knows. Never raises for what is wrong with a record or a process: the others are killed all the same.
    """
    start = time.monotonic()
    doomed: dict[int, tuple[str, str]] = {}  # pid -> (start, role)
    elsewhere: dict[Path, Registered] = {}
    rows: list[Killed] = []
    for path, record in {**(known or {}), **registered(safety_folder)}.items():
        if record is None:
            rows.append(Killed(0, path.stem, False, 0.0, "its record cannot be read: look with ps"))
        elif SCOPES.index(record.within) > SCOPES.index(scope):
            continue
        elif record.place != place():
            elsewhere[path] = record
        else:
            doomed |= _kill_tree(record) if _lives(record) else {record.pid: (record.start, record.role)}
    rows += _watch(doomed, elsewhere, start=start, timeout_s=timeout_s)
    registered(safety_folder)  # the records of what is gone go
    return rows


def _watch(
    doomed: Mapping[int, tuple[str, str]], elsewhere: Mapping[Path, Registered], *, start: float, timeout_s: float
) -> list[Killed]:
    """Look until all are gone, or the time is up."""
    gone_after: dict[int | Path, float] = {}
    while True:
        for pid, (began, _) in doomed.items():
            if pid not in gone_after and start_of(pid) != began:
                gone_after[pid] = time.monotonic() - start
        for path in elsewhere:
            if path not in gone_after and not path.exists():
                gone_after[path] = time.monotonic() - start
        elapsed = time.monotonic() - start
        if len(gone_after) == len(doomed) + len(elsewhere) or elapsed >= timeout_s:
            break
        time.sleep(_LOOK_S)
    here = [
        Killed(
            pid,
            role,
            pid in gone_after,
            round(gone_after.get(pid, elapsed), 4),
            "" if pid in gone_after else "it lives",
        )
        for pid, (_, role) in sorted(doomed.items())
    ]
    return here + [
        Killed(
            record.pid, record.role, path in gone_after, round(gone_after.get(path, elapsed), 4),
            "" if path in gone_after else f"it runs on {record.place}, where no watchdog has said that it is gone",
        )
        for path, record in elsewhere.items()
    ]  # fmt: skip


def _kill_tree(record: Registered) -> dict[int, tuple[str, str]]:
    """Freeze a process and all that it started, then kill them: pid -> (start, role) of each.

    Frozen first and looked at until nothing new appears, because a process that runs may start another meanwhile. This
    process itself is left alone.
    """
    tree: dict[int, str] = {}
    waiting = [record.pid]
    try:
        while waiting:
            for pid in waiting:
                if pid != os.getpid() and (began := start_of(pid)):
                    tree[pid] = began
                    _signal(pid, signal.SIGSTOP)
            _wait_until_stopped(waiting)
            waiting = [pid for pid in _started_by(record, tree) if pid not in tree and pid != os.getpid()]
    finally:
        for pid in tree:
            _signal(pid, signal.SIGKILL)
    return {pid: (began, record.role) for pid, began in tree.items()}


def _wait_until_stopped(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    while not all(is_stopped(pid) for pid in pids if pid != os.getpid()) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _started_by(record: Registered, tree: Mapping[int, str]) -> list[int]:
    """The children of a tree, and what bears the record's mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.ppid() in tree or record.name in process.environ().get(MARK, "").split():
                found.append(process.pid)
    return [pid for pid in found if start_of(pid)]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except OSError as error:  # not ours to kill: it is found alive afterwards and said so
        logger.error("process %d could not be sent %s: %s", pid, number.name, error)


def _read(path: Path) -> Registered:
    """Raises OSError, ValueError, TypeError for a record that says nothing that can be used."""
    record = Registered(**json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(record.pid, int) or record.pid < 2 or not record.start:
        raise ValueError(f"pid {record.pid!r} and start {record.start!r} name no process")
    if record.within not in SCOPES:  # of another release: any kill ends it
        return Registered(**{**asdict(record), "within": SCOPES[0]})
    return record


def _lives(record: Registered) -> bool:
    return record.boot == boot_id() and start_of(record.pid) == record.start


def forget(path: Path) -> None:
    """Drop the record of a process that is gone."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
