"""Waiting for what has to come."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


def until(
    look: Callable[[], T | None],
    *,
    timeout_s: float = 20.0,
    every_s: float = POLL_S,
    ignoring: type[Exception] | tuple[type[Exception], ...] = (),
) -> T:
    """The first thing that `look` finds that counts as true. What it raises of `ignoring` says that it is not there yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if found := look():
                return found
        except ignoring:
            pass
        assert time.monotonic() < deadline, f"it did not come within {timeout_s:g} s"
        time.sleep(every_s)
