"""The stop latch: one small file that every side effect asks at its commit.

A stop is a fact on disk (latch_file.py), not a message to a busy process: whoever may write the file can stop all learning,
also while Ray is down, and a restart does not forget it. The epoch rises with every change: a permit taken before a stop is
refused after the reset too, so that a straggler's late write finds no way in. Where a watchdog runs (watchdog.py), its silence
is a stop too. How hard and how wide a stop is: latch_state.py.

Source: ISO 13850 and IEC 60204-1 (latched; a reset permits a restart but does not start anything).
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autonomous.safety.heartbeat import Heartbeat
from autonomous.safety.latch_file import LOCK_TIMEOUT_S, MAX_TEXT, LatchFile
from autonomous.safety.latch_state import WHAT, LatchState, Mode, Scope, epochs_after, joined, widened

LOCKLESS_STEP = 1000
"""By which a stop without the lock raises the epoch: what the lock's holder writes behind it is lower, and refused."""


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
        self._file = LatchFile(path)
        self._forced: LatchState | None = None  # a stop that could not be written holds in this process

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], float] = time.time) -> "Latch":
        """Write a new, armed latch. Only bring-up of a new home calls this: anywhere else a missing file is a stop.

        Raises FileExistsError if there is one.
        """
        created = LatchState(mode="armed", epoch=1, reason="created", by="bring-up", at=clock(), scope="all")
        LatchFile.create(path, created)
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
            state = self._file.read()
            if self._forced is not None and state.epoch > self._forced.epoch:
                self._forced = None  # it could be written since, here or by another process
            if self._forced is not None:
                state = joined(state, self._forced)
        silence = "" if state.forbids("learning") else self._heartbeat.silence()
        if not silence:
            return state
        reason = f"{silence}; start it again with: autonomous watchdog"
        return joined(state, LatchState("stopped", 0, reason, "latch", self._clock(), "learning"))

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
                seen = self._file.read()
                if epoch not in (None, seen.epoch):
                    raise LatchChanged(f"the latch was {seen.mode} by {seen.by} meanwhile: {seen.reason}. Decide anew")
                with self._file.exclusive(must_lock=mode == "armed") as (descriptor, is_locked):
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
        after = LatchState("armed", epoch, reason, by, self._clock(), "all", epochs_after(seen, touched, epoch))
        now = self._file.read()
        if (now.mode, now.scope, now.epoch) != (seen.mode, seen.scope, seen.epoch):
            raise LatchChanged(
                f"the latch was {now.mode} by {now.by} meanwhile: {now.reason}. Look at it, then reset it"
            )
        self._file.write(descriptor, after)
        return after

    def _write_stop(self, descriptor: int, mode: Mode, reason: str, by: str, scope: Scope, *, step: int) -> LatchState:
        """Widen what holds; again if somebody wrote meanwhile, because the holder of the lock may have been frozen."""
        while True:
            before = self._file.read()
            wanted_mode, wanted_scope = widened(before, mode, scope)
            if (before.mode, before.scope) == (wanted_mode, wanted_scope) and before.epoch > 0:
                return before
            epoch = self._epoch_behind(before, step)
            epochs = epochs_after(before, wanted_scope, epoch)
            after = LatchState(wanted_mode, epoch, reason, by, self._clock(), wanted_scope, epochs)
            if self._file.read() == before:
                self._file.write(descriptor, after)
                return after

    def _epoch_behind(self, before: LatchState, step: int) -> int:
        """After damage the old epoch is unknown: the clock in milliseconds is above any count that was reached."""
        return before.epoch + step if before.epoch > 0 else max(int(self._clock() * 1000), self._file.floor + step)

    def _assert_again(self, stop: LatchState) -> LatchState:
        """A stop that was written without the lock: see that whoever held it has not written over it since."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            state = self._file.read()
            if state.epoch == 0 or joined(state, stop) != state:  # written over, or softer or narrower than the stop
                with self._file.exclusive(must_lock=False) as (descriptor, _):
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
        before = self._file.read()
        wanted_mode, wanted_scope = widened(before, mode, scope)
        self._forced = LatchState(
            wanted_mode, max(self._file.floor, before.epoch), reason, by, self._clock(), wanted_scope
        )
        if before.mode == "armed":
            with suppress(OSError):
                self._file.empty()


def _refusal(action: str, state: LatchState) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(state.at)) if state.at else "an unknown time"
    return (
        f"{action} is refused: {WHAT[state.scope]} was {state.mode} by {state.by} at {when}: {state.reason}. "
        'A person permits it again with: autonomous reset --reason "..." --by NAME'
    )
