"""RunBoard: where each learning run of this process stands. Written by the run's thread, read by whoever asks."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autonomous.runs import ENDED, CycleStatus

MAX_KEPT_RUNS = 100
"""Of older runs the ledger knows the outcome."""


class RunBoard:
    """See the module. A status is replaced as a whole, so a reader needs no lock."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._runs: dict[str, CycleStatus] = {}
        self.last: str | None = None
        """Id of the run that began last."""

    def begin(self, run_id: str) -> None:
        """A run waits to be worked on."""
        self._runs = dict(list(self._runs.items())[-MAX_KEPT_RUNS:])
        self._runs[run_id] = CycleStatus(run_id=run_id, phase="waiting")
        self.last = run_id

    @property
    def under_way(self) -> str | None:
        """Id of the run that has begun and not ended."""
        return None if self.last is None or self._runs[self.last].phase in ENDED else self.last

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
