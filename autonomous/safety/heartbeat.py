"""The watchdog's sign of life: a small file per machine that it overwrites several times a second.

Where a watchdog is expected, its silence counts as a stop: a stop that nobody would carry out must not look like safety.
Where none was ever started, nothing is asked. Times are those of the machine's monotonic clock, so a clock that jumps does
not matter.
"""

import os
import platform
import re
import time
from pathlib import Path

from autonomous.safety.machine import boot_id

BEAT_S = 0.25
MAX_SILENCE_S = 5.0
"""Longer than a busy machine keeps a process waiting, and no longer than a stop may take."""
_SIZE = 128


class Heartbeat:
    """The watchdog of this machine and safety folder: whether one is expected (`expect`), and whether it lives (`silence`)."""

    def __init__(self, folder: Path) -> None:
        machine = re.sub(r"[^A-Za-z0-9.-]", "_", platform.node()) or "localhost"
        self._beaten = folder / f"heartbeat-{machine}"
        self._expected = folder / f"watched-{machine}"

    def expect(self) -> None:
        """From now on silence is a stop."""
        self._expected.parent.mkdir(parents=True, exist_ok=True)
        self._expected.touch()

    def remove(self) -> None:
        """The system was ended on purpose: there is nothing to watch."""
        self._expected.unlink(missing_ok=True)
        self._beaten.unlink(missing_ok=True)

    def beat(self) -> None:
        """I live. The file is overwritten in place, so that a full disk does not matter once it is there. Raises OSError."""
        descriptor = os.open(self._beaten, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, f"{boot_id()} {time.monotonic()!r}".encode().ljust(_SIZE), 0)
        finally:
            os.close(descriptor)

    def silence(self) -> str:
        """Why the watchdog counts as dead; "" if it lives, or if none is expected."""
        if not self._expected.exists():
            return ""
        try:
            block = self._beaten.read_bytes()
        except OSError as error:
            return f"the watchdog's heartbeat cannot be read ({error})"
        boot, _, beaten = block.decode("ascii", "replace").strip().partition(" ")
        try:
            silent_s = time.monotonic() - float(beaten)
        except ValueError:
            return f"the watchdog's heartbeat {self._beaten} is garbled"
        if boot != boot_id() or not silent_s >= 0:
            return "the watchdog has not run since this machine was started"
        if silent_s > MAX_SILENCE_S:
            return f"the watchdog has been silent for {silent_s:.0f} s"
        return ""

    def lives(self) -> bool:
        """Whether one is expected and not silent."""
        return self._expected.exists() and not self.silence()
