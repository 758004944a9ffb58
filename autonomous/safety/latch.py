"""The stop latch: one small file that every side effect asks at its commit.

A stop is a fact on disk, not a message to a busy process: whoever may write the file can stop all learning, also while
Ray is down, and a restart does not forget it. The file has a fixed size from the start and is overwritten in place, so
a full disk cannot prevent a stop. Whatever cannot be read as a latch counts as a stop. The epoch rises with every change:
a permit taken before a stop is refused after the reset too, so that a straggler's late write finds no way in.

A stop has a category (pause, stop, kill; how hard it is) and a scope (the learner, all learning, everything), and is only ever
widened until a person resets it. Where a watchdog runs (watchdog.py), its silence is a stop too.

Source: ISO 13850 and IEC 60204-1 (latched; a reset permits a restart but does not start anything).
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from autonomous.safety.heartbeat import Heartbeat
from train.files import sync_path

SIZE_BYTES = 4096
"""One block: overwritten in place by one write."""
FORMAT = 2
LOCK_TIMEOUT_S = 0.25
"""A lock is held for microseconds. A stop that does not get it (its holder is frozen) writes without it."""
MAX_TEXT = 1000
"""Longer reasons and names are cut: the block is small."""

Mode = Literal["armed", "paused", "stopped", "killed"]
"""Each is harder than those before it."""
Scope = Literal["learner", "learning", "all"]
"""learner: optimizer steps and what they lead to. learning: everything that changes a model or its memory, and what the agent
does outside. all: answers too. Each holds those before it."""
MODES: tuple[Mode, ...] = get_args(Mode)
SCOPES: tuple[Scope, ...] = get_args(Scope)


WHAT: dict[Scope, str] = {"learner": "the learner", "learning": "learning", "all": "everything"}


@dataclass(frozen=True, slots=True)
class LatchState:
    """The latch as it stands. armed: side effects are permitted. `at` in seconds since the epoch (Unix)."""

    mode: Mode
    epoch: int
    """Rises with every change."""
    reason: str
    by: str
    at: float
    scope: Scope = "learning"
    epochs: Mapping[str, int] = field(default_factory=dict)
    """By scope: the epoch of the last change that concerned it. Empty means always `epoch`."""

    def forbids(self, within: Scope) -> bool:
        """Whether an action that a stop of this scope forbids is forbidden now."""
        return self.mode != "armed" and SCOPES.index(within) <= SCOPES.index(self.scope)

    def epoch_of(self, within: Scope) -> int:
        """The epoch under which such an action is permitted."""
        return self.epochs.get(within, self.epoch)


class LearningStopped(RuntimeError):
    """A side effect was refused: says who stopped, why, when, and how to reset."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to one kind of side effect, until the latch changes. `check` is a memory.types.Guard."""

    latch: "Latch"
    action: str
    epoch: int
    within: Scope = "learning"
    """The narrowest scope of a stop that forbids it."""

    def check(self) -> None:
        """Call right before the effect takes place. Raises LearningStopped."""
        state = self.latch.state()
        if state.forbids(self.within):
            raise LearningStopped(_refusal(self.action, state))
        if state.epoch_of(self.within) != self.epoch:
            raise LearningStopped(
                f"{self.action} is refused: learning was stopped and reset since it began (epoch {self.epoch}, "
                f"now {state.epoch_of(self.within)}); start it again"
            )


class Latch:
    """One latch file. Cheap to ask (microseconds), safe from several threads and processes."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._heartbeat = Heartbeat(path.parent)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._floor = 0  # a file with a lower epoch is an old one that was put back
        self._seen: tuple[bytes, LatchState] | None = None
        self._forced: LatchState | None = None  # a stop that could not be written holds in this process

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], float] = time.time) -> "Latch":
        """Write a new, armed latch. Only bring-up of a new home calls this: anywhere else a missing file is a stop.

        Raises FileExistsError if there is one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        state = LatchState(mode="armed", epoch=1, reason="created", by="bring-up", at=clock(), scope="all")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, state)
        finally:
            os.close(descriptor)
        sync_path(path.parent)
        return cls(path, clock=clock)

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> "Latch":
        """The latch at `path`. A missing or damaged file is not an error here: it reads as stopped."""
        return cls(path, clock=clock)

    def state(self) -> LatchState:
        """How the latch stands now. Whatever is wrong with the file, the answer is "stopped" with the reason; so it is while
        the watchdog is silent, under the same epochs, so that what was permitted goes on when it is back.
        """
        with self._lock:
            state = self._forced or self._read()
        silence = self._heartbeat.silence() if state.mode == "armed" else ""
        if not silence:
            return state
        reason = f"{silence}; start it again with: autonomous watchdog"
        return replace(state, mode="stopped", scope="learning", reason=reason, by="latch", at=self._clock())

    def permit(self, action: str, *, within: Scope = "learning") -> Permit:
        """The right to `action`, which a stop of this scope or a wider one forbids. Raises LearningStopped."""
        state = self.state()
        if state.forbids(within):
            raise LearningStopped(_refusal(action, state))
        return Permit(latch=self, action=action, epoch=state.epoch_of(within), within=within)

    def stop(self, *, reason: str, by: str, scope: Scope = "learning") -> LatchState:
        """From now on no side effect of this scope takes place. On disk when it returns. Stopping twice keeps the first
        reason, unless the second stop is harder or wider; neither makes the other softer or narrower.
        """
        return self._change("stopped", reason=reason, by=by, scope=scope)

    def pause(self, *, reason: str, by: str, scope: Scope = "learning") -> LatchState:
        """As stop, but meant to be short: what runs may finish its step. A stop is not weakened to a pause."""
        return self._change("paused", reason=reason, by=by, scope=scope)

    def kill(self, *, reason: str, by: str, scope: Scope = "learning") -> LatchState:
        """As stop, and the processes of this scope are to be killed: by the watchdog, or by whoever calls
        `processes.kill_registered`.
        """
        return self._change("killed", reason=reason, by=by, scope=scope)

    def reset(self, *, reason: str, by: str) -> LatchState:
        """Permit all side effects again. Starts nothing. Also replaces a damaged or missing file.

        Raises ValueError without a reason and a person's name.
        """
        for name, value in (("reason", reason), ("by", by)):
            if not value.strip():
                raise ValueError(f"{name} is empty: a reset needs a reason and the name of who is responsible")
        return self._change("armed", reason=reason, by=by, scope="learner")

    def _change(self, mode: Mode, *, reason: str, by: str, scope: Scope) -> LatchState:
        reason, by = reason[:MAX_TEXT], by[:MAX_TEXT]
        with self._lock:
            try:
                with self._exclusive(must_lock=mode == "armed") as descriptor:
                    before = self._read()
                    wanted_mode, wanted_scope = _widened(before, mode, scope)
                    is_same = (before.mode, before.scope) == (wanted_mode, wanted_scope)
                    if self._forced is None and is_same and before.epoch > 0:
                        return before
                    # After damage the old epoch is unknown: the clock in ms is above any count that was reached.
                    now = self._clock()
                    epoch = before.epoch + 1 if before.epoch > 0 else max(int(now * 1000), self._floor + 1)
                    touched = before.scope if mode == "armed" and before.epoch > 0 else wanted_scope
                    epochs = {
                        str(name): epoch if before.epoch == 0 or _holds(touched, name) else before.epoch_of(name)
                        for name in SCOPES
                    }
                    after = LatchState(wanted_mode, epoch, reason, by, now, wanted_scope, epochs)
                    _write(descriptor, after)
                    self._floor, self._forced = epoch, None
                    return after
            except OSError:
                if mode != "armed":
                    self._force(LatchState(mode, self._floor, reason, by, self._clock(), scope))
                raise

    def _force(self, state: LatchState) -> None:
        """A stop that cannot be written: stop this process, and empty the file, which stops all and needs no space."""
        self._forced = state
        with suppress(OSError):
            os.truncate(self.path, 0)

    @contextmanager
    def _exclusive(self, *, must_lock: bool) -> Iterator[int]:
        """The file, locked against other processes; created if it is missing (a stop must always be possible).

        Raises TimeoutError if `must_lock` and another process keeps the lock.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    if must_lock:
                        raise TimeoutError(f"another process holds the lock of the latch {self.path}; try again")
                    break
                time.sleep(0.001)
            yield descriptor
        finally:
            os.close(descriptor)
        sync_path(self.path.parent)

    def _read(self) -> LatchState:
        """The file's state; the bytes are judged once. Whatever is wrong is a stop of epoch 0."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
            if self._descriptor is None or identity != self._identity:
                self._attach(identity)
            assert self._descriptor is not None, "just attached"
            block = os.pread(self._descriptor, SIZE_BYTES + 1, 0)
            if self._seen is None or block != self._seen[0]:
                state = _decode(block)
                if state.epoch < self._floor:
                    raise ValueError(f"its epoch {state.epoch} is below {self._floor}: another file took its place")
                self._floor, self._seen = state.epoch, (block, state)
            return self._seen[1]
        except (OSError, ValueError) as error:
            self._seen = None
            return _unreadable(f"the latch {self.path} cannot be read ({error}), which counts as a stop")

    def _attach(self, identity: tuple[int, int]) -> None:
        """Open the file. One that took the place of the file seen before must have a higher epoch.

        The old descriptor is held until then, so its inode number cannot come back for another file.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if self._identity not in (None, identity):
            self._floor += 1
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._identity, self._seen = descriptor, identity, None


def _holds(scope: Scope, within: Scope) -> bool:
    return SCOPES.index(within) <= SCOPES.index(scope)


def _widened(before: LatchState, mode: Mode, scope: Scope) -> tuple[Mode, Scope]:
    """A reset arms all; a stop is as hard and as wide as it and the one that holds are."""
    if mode == "armed":
        return "armed", "all"
    if before.mode == "armed":
        return mode, scope
    return max(before.mode, mode, key=MODES.index), max(before.scope, scope, key=SCOPES.index)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, state: LatchState) -> None:
    text = json.dumps({"format": FORMAT, **asdict(state)})
    while len(text.encode()) > SIZE_BYTES:  # escapes made the texts longer than MAX_TEXT characters
        shorter = len(state.reason) // 2
        state = LatchState(**{**asdict(state), "reason": state.reason[:shorter], "by": state.by[:200]})
        text = json.dumps({"format": FORMAT, **asdict(state)})
    num_written = os.pwrite(descriptor, text.encode().ljust(SIZE_BYTES), 0)
    if num_written != SIZE_BYTES:
        raise OSError(f"only {num_written} of {SIZE_BYTES} bytes of the latch were written")
    os.ftruncate(descriptor, SIZE_BYTES)
    os.fsync(descriptor)


def _decode(block: bytes) -> LatchState:
    """Raises ValueError for anything that is not a whole latch of this format."""
    if len(block) != SIZE_BYTES:
        raise ValueError(f"it has {len(block)} bytes instead of {SIZE_BYTES}")
    try:
        fields = json.loads(block)
    except ValueError as error:
        raise ValueError("it is garbled") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"it is not a latch of format {FORMAT}; use the release that wrote it")
    try:
        state = LatchState(**fields)
    except TypeError as error:
        raise ValueError(f"its fields are wrong: {error}") from error
    if state.mode not in MODES or state.scope not in SCOPES or not isinstance(state.epoch, int) or state.epoch < 1:
        raise ValueError(f"its mode, scope or epoch is wrong: {state.mode!r}, {state.scope!r}, {state.epoch!r}")
    if not isinstance(state.epochs, dict) or not all(isinstance(one, int) for one in state.epochs.values()):
        raise ValueError(f"its epochs are wrong: {state.epochs!r}")
    return state


def _unreadable(reason: str) -> LatchState:
    return LatchState(mode="stopped", epoch=0, reason=reason, by="latch", at=0.0)


def _refusal(action: str, state: LatchState) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(state.at)) if state.at else "an unknown time"
    return (
        f"{action} is refused: {WHAT[state.scope]} was {state.mode} by {state.by} at {when}: {state.reason}. "
        'A person permits it again with: autonomous reset --reason "..." --by NAME'
    )
