"""The stop latch on disk.

The file has a fixed size from the start and is overwritten in place, so a full disk cannot prevent a stop. Whatever cannot be
read as a latch counts as a stop, and so does an old file that was put back. A copy of the last change lies beside it: it tells
the scope if the latch is damaged.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from autonomous.safety.latch_state import MODES, SCOPES, LatchState, joined
from train.files import sync_path

SIZE_BYTES = 4096
"""One block: overwritten in place by one write."""
FORMAT = 2
LOCK_TIMEOUT_S = 0.25
"""A lock is held for as long as a sync to disk takes. A stop that does not get it (its holder is frozen) writes without it."""
REOPEN_S = 0.25
"""The file is opened anew so often: a file system of the network shows others' changes at an opening."""
MAX_TEXT = 1000
"""Longer reasons and names are cut: the block is small."""


class LatchFile:
    """One latch file and its copy, for several processes; its caller sees to it that one thread uses it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.floor = 0
        """A file with a lower epoch is an old one that was put back."""
        self._copy = path.with_name(path.name + ".copy")
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._seen: tuple[bytes, LatchState] | None = None
        self._attached_at = 0.0

    @staticmethod
    def create(path: Path, state: LatchState) -> None:
        """Write a new file. Raises FileExistsError if there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_block(descriptor, state)
        finally:
            os.close(descriptor)
        sync_path(path.parent)

    def write(self, descriptor: int, state: LatchState) -> None:
        """Make a change durable, through the descriptor that `exclusive` gave. Raises OSError."""
        write_block(descriptor, state)
        self.floor = state.epoch
        with suppress(OSError):  # what tells the scope if the latch is damaged later
            _write_file(self._copy, state)

    def empty(self) -> None:
        """Make of it what reads as a stop, which needs no space. Raises OSError."""
        os.truncate(self.path, 0)

    @contextmanager
    def exclusive(self, *, must_lock: bool) -> Iterator[tuple[int, bool]]:
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

    def read(self) -> LatchState:
        """The state; the bytes are judged once. Whatever is wrong is a stop of epoch 0."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
            is_old = time.monotonic() - self._attached_at > REOPEN_S
            if self._descriptor is None or identity != self._identity or is_old:
                self._attach(identity)
            assert self._descriptor is not None, "just attached"
            block = os.pread(self._descriptor, SIZE_BYTES + 1, 0)
            if self._seen is None or block != self._seen[0]:
                state = decode(block)
                if state.epoch < self.floor:
                    raise ValueError(f"its epoch {state.epoch} is below {self.floor}: another file took its place")
                self.floor, self._seen = state.epoch, (block, state)
            return self._seen[1]
        except (OSError, ValueError) as error:
            self._seen = None
            return self._unreadable(f"the latch {self.path} cannot be read ({error}), which counts as a stop")

    def _unreadable(self, reason: str) -> LatchState:
        """A stop of learning, or of what the copy of the last change says if that is wider."""
        stop = LatchState(mode="stopped", epoch=0, reason=reason, by="latch", at=0.0)
        try:
            copy = decode(self._copy.read_bytes())
        except (OSError, ValueError):
            return stop
        return stop if copy.mode == "armed" else replace(joined(stop, copy), epoch=0, reason=reason, epochs={})

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
            self.floor += 1
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._identity != identity:
            self._seen = None
        self._descriptor, self._identity, self._attached_at = descriptor, identity, time.monotonic()


def _write_file(path: Path, state: LatchState) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        write_block(descriptor, state)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_block(descriptor: int, state: LatchState) -> None:
    """Overwrite the file in place, and wait until it is on disk. Raises OSError."""
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


def decode(block: bytes) -> LatchState:
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
