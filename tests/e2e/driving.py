"""What the tests of the whole system have in common: a user who keeps asking, and waiting for what a system must reach."""

import threading
from typing import Any

import httpx

from autonomous.safety.processes import registered
from tests.waiting import until

LIMIT_S = 120.0
"""A system that has not reached by then what it must reach never will."""


def roles_that_live(system: Any) -> set[str]:
    """Of the processes that a kill would end."""
    return {record.role for record in registered(system.home / "safety").values() if record is not None}


def wait_for_first_step(system: Any, run_id: str) -> None:
    """Until the learner has taken an optimizer step of this run."""

    def has_stepped() -> bool:
        status = system.get(f"/v1/learn/{run_id}")
        assert status["phase"] in ("waiting", "training"), status
        return bool(status["step"] >= 1)

    until(has_stepped, timeout_s=LIMIT_S)


class Traffic:
    """One user asking all the time; collects every failure."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.failures: list[str] = []
        self.num_answered = 0

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(1.0):
            try:
                self._system.ask("Name a colour.", retrieval=False, max_tokens=8)
                self.num_answered += 1
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(repr(error))
