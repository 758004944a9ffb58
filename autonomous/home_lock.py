"""The lock of a home: one agent at a time learns in it, whether in a process of its own or as an actor of the system.

In: the home. Out: an open file that holds the lock (flock, on `.agent.lock`) until it is closed or its process has ended,
however that ended. A program that it starts does not inherit it.
"""

import fcntl
import time
from pathlib import Path
from typing import IO

RETRY_S = 0.05


class HomeInUse(RuntimeError):
    """Another process owns the home."""


def own_home(home: Path, *, wait_s: float = 0.0) -> IO[str]:
    """The lock of a home, which is made if need be. `wait_s` is how long an owner that is about to end may take.

    Raises HomeInUse.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (home / ".agent.lock").open("w")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(RETRY_S)
                continue
            lock.close()
            raise HomeInUse(
                f"home = {home}: another agent works in it, the system of `autonomous up` or an AutonomousLearningAgent; "
                "stop that one, or give another home"
            ) from error
        return lock
