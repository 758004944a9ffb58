"""What a process that reads, trains or judges asks at each commit: the stop latch, and whether it is ending itself."""

import threading

from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.latch_state import Scope
from memory.types import Guard


class Permits:
    """The latch's permits, for a process that may be `ending`: then no further step is permitted either."""

    def __init__(self, latch: Latch, *, ending: threading.Event | None = None) -> None:
        self._latch = latch
        self._ending = ending or threading.Event()

    def guard(self, action: str, *, within: Scope = "learner") -> Guard:
        """To be asked at each commit. Raises LearningStopped."""
        check = self._latch.permit(action, within=within).check

        def guard() -> None:
            if self._ending.is_set():
                raise LearningStopped(
                    f"{action} is refused: the agent is being stopped; it goes on after its next start"
                )
            check()

        return guard
