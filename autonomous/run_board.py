"""RunBoard: where each learning run of this process stands. Written by the run's thread, read by whoever asks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from autonomous.phases import ENDED
from autonomous.runs import CycleStatus

MAX_KEPT_RUNS = 100
"""Of older runs the ledger knows the outcome."""
TURN_S = 10.0
"""Whoever begins a run or approves waits so long for another who does."""


class AlreadyLearning(RuntimeError):
    """One batch is learned at a time."""


class RunBoard:
    """See the module. A status is replaced as a whole, so a reader needs no lock."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._runs: dict[str, CycleStatus] = {}
        self.last: str | None = None
        """Id of the run that began last."""

    def begin(self, run_id: str) -> None:
        """A run waits to be worked on."""
        self._runs = dict(list(self._runs.items())[-MAX_KEPT_RUNS:])
        self._runs[run_id] = CycleStatus(run_id=run_id, phase="waiting")
        self.last = run_id

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For one at a time, to begin a run or to approve, while none is under way. Raises AlreadyLearning.

        Whoever only looks whether there is something to learn is waited for.
        """
        if not self._turn.acquire(timeout=TURN_S):
            raise AlreadyLearning(f"another has begun a run or an approval for {TURN_S:g} s; try again in some seconds")
        try:
            if self.last and self._runs[self.last].phase not in ENDED:
                raise AlreadyLearning(f"run {self.last} is under way; wait for it: GET /v1/learn/{self.last}")
            yield
        finally:
            self._turn.release()

    def __getitem__(self, run_id: str) -> CycleStatus:
        """The status of a run that is known to have begun here."""
        return self._runs[run_id]

    def find(self, run_id: str) -> CycleStatus | None:
        """The status of a run that began here."""
        return self._runs.get(run_id)

    def update(self, run_id: str, **changes: Any) -> None:
        """Change fields of a run's status."""
        self._runs[run_id] = replace(self._runs[run_id], **changes)

    def time(self, run_id: str, name: str, start: float) -> None:
        """Note how long a part of a run took since `start`, in seconds."""
        timings = {**self._runs[run_id].timings, name: round(self._clock() - start, 3)}
        self.update(run_id, timings=timings)
