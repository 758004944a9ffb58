"""Turns: one resident model, an evaluation that a learning run waits for, and a benchmark that can wait.

In: threads that want the model. Out: one of them at a time; who is patient begins only when nobody urgent waits, and is told
when somebody does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock with two ranks. Not reentrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_taken = False
        self._num_urgent = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody urgent waits: a patient holder ends its turn soon."""
        with self._changed:
            return self._num_urgent > 0

    @contextmanager
    def urgent(self) -> Iterator[None]:
        """Hold the model, next."""
        with self._changed:
            self._num_urgent += 1
            try:
                self._changed.wait_for(lambda: not self._is_taken)
            finally:
                self._num_urgent -= 1
            self._is_taken = True
        yield from self._hold()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Hold the model when nobody urgent wants it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken and self._num_urgent == 0)
            self._is_taken = True
        yield from self._hold()

    def _hold(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
