"""The watchdog's sign of life: a small file per machine that it overwrites several times a second.

Where such a file is, its silence counts as a stop: a stop that nobody would carry out must not look like safety. Where
there never was one, nothing is asked. Times are those of the machine's monotonic clock, so a clock that jumps does not matter.
"""

import os
import platform
import re
import time
from functools import cache
from pathlib import Path

BEAT_S = 0.25
MAX_SILENCE_S = 5.0
"""Longer than a busy machine keeps a process waiting, and no longer than a stop may take."""
_SIZE = 128
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def heartbeat_path(folder: Path) -> Path:
    """The file of this machine."""
    return folder / f"heartbeat-{re.sub(r'[^A-Za-z0-9.-]', '_', platform.node()) or 'localhost'}"


class Heartbeat:
    """Writes (`beat`) or reads (`silence`) the sign of life of a safety folder. Not thread-safe for writing."""

    def __init__(self, folder: Path) -> None:
        self._path = heartbeat_path(folder)
        self._descriptor: int | None = None

    def beat(self) -> None:
        """I live. Never raises for a full disk: the file has its size from the start."""
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self._descriptor, f"{_boot_id()} {time.monotonic():.3f}".encode().ljust(_SIZE), 0)

    def silence(self) -> str:
        """Why the watchdog counts as dead; "" if it lives, or if there is none on this machine."""
        try:
            block = self._path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"the watchdog's heartbeat {self._path} cannot be read ({error})"
        boot_id, _, beaten = block.decode("ascii", "replace").strip().partition(" ")
        try:
            silent_s = time.monotonic() - float(beaten)
        except ValueError:
            return f"the watchdog's heartbeat {self._path} is garbled"
        if boot_id != _boot_id():
            return "the watchdog has not run since this machine was started"
        if silent_s > MAX_SILENCE_S:
            return f"the watchdog has been silent for {silent_s:.0f} s"
        return ""

    def remove(self) -> None:
        """The system was ended on purpose: there is nothing to watch."""
        self._path.unlink(missing_ok=True)


@cache
def _boot_id() -> str:
    """Tells one start of the machine from another; its monotonic clock begins anew at each."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
