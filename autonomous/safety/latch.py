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
"""A lock is held for as long as a sync to disk takes. A stop that does not get it (its holder is frozen) writes without it."""
LOCKLESS_STEP = 1000
"""By which such a stop raises the epoch: what the holder of the lock writes behind it has a lower one, which is refused."""
REOPEN_S = 0.25
"""The file is opened anew so often: a file system of the network shows others' changes at an opening."""
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


class LatchChanged(RuntimeError):
    """A reset came too late: the latch is not as its caller saw it."""


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
        self._attached_at = 0.0
        self._copy = path.with_name(path.name + ".copy")
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
            state = self._read()
            if self._forced is not None and state.epoch > self._forced.epoch:
                self._forced = None  # it could be written since, here or by another process
            if self._forced is not None:
                state = _joined(state, self._forced)
        silence = "" if state.forbids("learning") else self._heartbeat.silence()
        if not silence:
            return state
        reason = f"{silence}; start it again with: autonomous watchdog"
        return _joined(state, LatchState("stopped", 0, reason, "latch", self._clock(), "learning"))

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

    def reset(self, *, reason: str, by: str, epoch: int | None = None) -> LatchState:
        """Permit all side effects again. Starts nothing. Also replaces a damaged or missing file.

        `epoch` is that of the stop that the caller decided on. Raises ValueError without a reason and a person's name,
        LatchChanged if it was stopped again meanwhile.
        """
        for name, value in (("reason", reason), ("by", by)):
            if not value.strip():
                raise ValueError(f"{name} is empty: a reset needs a reason and the name of who is responsible")
        return self._change("armed", reason=reason, by=by, scope="all", epoch=epoch)

    def _change(self, mode: Mode, *, reason: str, by: str, scope: Scope, epoch: int | None = None) -> LatchState:
        reason, by = reason[:MAX_TEXT], by[:MAX_TEXT]
        with self._lock:
            try:
                seen = self._read()
                if epoch not in (None, seen.epoch):
                    raise LatchChanged(f"the latch was {seen.mode} by {seen.by} meanwhile: {seen.reason}. Decide anew")
                with self._exclusive(must_lock=mode == "armed") as (descriptor, is_locked):
                    step = 1 if is_locked else LOCKLESS_STEP
                    if mode == "armed":
                        after = self._write_reset(descriptor, seen, reason, by)
                    else:
                        after = self._write_stop(descriptor, mode, reason, by, scope, step=step)
                if not is_locked:
                    after = self._assert_again(after)
                self._forced = None
                return after
            except OSError:
                if mode != "armed":
                    self._force(mode, reason, by, scope)
                raise

    def _write_reset(self, descriptor: int, seen: LatchState, reason: str, by: str) -> LatchState:
        """A reset undoes the stop that its caller saw, and no other."""
        if seen.mode == "armed":
            return seen
        epoch = self._epoch_behind(seen, 1)
        touched = seen.scope if seen.epoch > 0 else "all"
        after = LatchState("armed", epoch, reason, by, self._clock(), "all", _epochs(seen, touched, epoch))
        now = self._read()
        if (now.mode, now.scope, now.epoch) != (seen.mode, seen.scope, seen.epoch):
            raise LatchChanged(
                f"the latch was {now.mode} by {now.by} meanwhile: {now.reason}. Look at it, then reset it"
            )
        self._write(descriptor, after)
        return after

    def _write_stop(self, descriptor: int, mode: Mode, reason: str, by: str, scope: Scope, *, step: int) -> LatchState:
        """Widen what holds; again if somebody wrote meanwhile, because the holder of the lock may have been frozen."""
        while True:
            before = self._read()
            wanted_mode, wanted_scope = _widened(before, mode, scope)
            if (before.mode, before.scope) == (wanted_mode, wanted_scope) and before.epoch > 0:
                return before
            epoch = self._epoch_behind(before, step)
            epochs = _epochs(before, wanted_scope, epoch)
            after = LatchState(wanted_mode, epoch, reason, by, self._clock(), wanted_scope, epochs)
            if self._read() == before:
                self._write(descriptor, after)
                return after

    def _epoch_behind(self, before: LatchState, step: int) -> int:
        """After damage the old epoch is unknown: the clock in milliseconds is above any count that was reached."""
        return before.epoch + step if before.epoch > 0 else max(int(self._clock() * 1000), self._floor + step)

    def _write(self, descriptor: int, state: LatchState) -> None:
        _write(descriptor, state)
        self._floor = state.epoch
        with suppress(OSError):  # what tells the scope if the latch is damaged later
            _write_file(self._copy, state)

    def _assert_again(self, stop: LatchState) -> LatchState:
        """A stop that was written without the lock: see that whoever held it has not written over it since."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            state = self._read()
            if state.epoch == 0 or _joined(state, stop) != state:  # written over, or softer or narrower than the stop
                with self._exclusive(must_lock=False) as (descriptor, _):
                    state = self._write_stop(
                        descriptor, stop.mode, stop.reason, stop.by, stop.scope, step=LOCKLESS_STEP
                    )
            if time.monotonic() > deadline:
                return state
            time.sleep(0.01)

    def _force(self, mode: Mode, reason: str, by: str, scope: Scope) -> None:
        """A stop that cannot be written: it holds in this process until a change can be written. The file is emptied if it
        permits, which needs no space and stops learning everywhere.
        """
        before = self._read()
        wanted_mode, wanted_scope = _widened(before, mode, scope)
        self._forced = LatchState(wanted_mode, max(self._floor, before.epoch), reason, by, self._clock(), wanted_scope)
        if before.mode == "armed":
            with suppress(OSError):
                os.truncate(self.path, 0)

    @contextmanager
    def _exclusive(self, *, must_lock: bool) -> Iterator[tuple[int, bool]]:
        """The file and whether it is locked against other processes; created if missing (a stop must always be possible).

        Raises TimeoutError if `must_lock` and another process keeps the lock.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not (is_locked := _try_lock(descriptor)) and time.monotonic() <= deadline:
                time.sleep(0.001)
            if must_lock and not is_locked:
                raise TimeoutError(f"another process holds the lock of the latch {self.path}; try again")
            yield descriptor, is_locked
        finally:
            os.close(descriptor)
        sync_path(self.path.parent)

    def _read(self) -> LatchState:
        """The file's state; the bytes are judged once. Whatever is wrong is a stop of epoch 0."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
            is_old = time.monotonic() - self._attached_at > REOPEN_S
            if self._descriptor is None or identity != self._identity or is_old:
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
            return self._unreadable(f"the latch {self.path} cannot be read ({error}), which counts as a stop")

    def _unreadable(self, reason: str) -> LatchState:
        """A stop of learning, or of what the copy of the last change says if that is wider."""
        stop = LatchState(mode="stopped", epoch=0, reason=reason, by="latch", at=0.0)
        try:
            copy = _decode(self._copy.read_bytes())
        except (OSError, ValueError):
            return stop
        return stop if copy.mode == "armed" else replace(_joined(stop, copy), epoch=0, reason=reason, epochs={})

    def _attach(self, identity: tuple[int, int]) -> None:
        """Open the file. One that took the place of the file seen before must have a higher epoch.

        The old descriptor is held until then, so its inode number cannot come back for another file.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            if self._descriptor is not None and identity == self._identity:
                return  # no descriptors are left: the one of before shows the same file
            raise
        if self._identity not in (None, identity):
            self._floor += 1
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._identity != identity:
            self._seen = None
        self._descriptor, self._identity, self._attached_at = descriptor, identity, time.monotonic()


def _holds(scope: Scope, within: Scope) -> bool:
    return SCOPES.index(within) <= SCOPES.index(scope)


def _epochs(before: LatchState, touched: Scope, epoch: int) -> dict[str, int]:
    """By scope, after a change that concerns one."""
    is_known = before.epoch > 0
    return {name: before.epoch_of(name) if is_known and not _holds(touched, name) else epoch for name in SCOPES}


def _widened(before: LatchState, mode: Mode, scope: Scope) -> tuple[Mode, Scope]:
    """A stop is as hard and as wide as it and the one that holds are."""
    if before.mode == "armed":
        return mode, scope
    return max(before.mode, mode, key=MODES.index), max(before.scope, scope, key=SCOPES.index)


def _joined(state: LatchState, stop: LatchState) -> LatchState:
    """As hard and as wide as a state and a stop beside it, under the state's epochs; the state itself if that is so."""
    mode, scope = _widened(state, stop.mode, stop.scope)
    if (mode, scope) == (state.mode, state.scope):
        return state
    return replace(state, mode=mode, scope=scope, reason=stop.reason, by=stop.by, at=stop.at)


def _write_file(path: Path, state: LatchState) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _write(descriptor, state)
    finally:
        os.close(descriptor)


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


def _refusal(action: str, state: LatchState) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(state.at)) if state.at else "an unknown time"
    return (
        f"{action} is refused: {WHAT[state.scope]} was {state.mode} by {state.by} at {when}: {state.reason}. "
        'A person permits it again with: autonomous reset --reason "..." --by NAME'
    )
