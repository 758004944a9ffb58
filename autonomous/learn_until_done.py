"""LearnUntilDone: one run of the kinds `learn` and `retrain`, as learning cycles in turn.

In: how a cycle is started and where it stands. Out: an Outcome that names the cycles. A retraining goes on until nothing is
left to be learned, the budget of seconds or cycles is used, a cycle fails, or a version waits for a person: what is trained
beside one that waits could not serve after its approval.
"""

import time
from collections.abc import Callable
from typing import Protocol

from autonomous.budget import BudgetExceeded, ClockWentBack
from autonomous.loop import NothingToLearn, RolloutUnderWay
from autonomous.people import is_machine
from autonomous.phases import ENDED
from autonomous.retraining import Job, Outcome
from autonomous.run_board import AlreadyLearning
from autonomous.runs import CycleStatus
from autonomous.versions.ledger import PromotionsFrozen
from autonomous.versions.states import State

POLL_S = 0.5
BY_SCHEDULE = "agent:schedule"


class Cycles(Protocol):
    """What LearningLoop offers of it."""

    def start_cycle(self, *, by: str) -> str:
        """Begin a cycle that `by` asked for; its id.

        Raises AlreadyLearning, NothingToLearn, PromotionsFrozen, LearningStopped.
        """

    def status_of(self, run_id: str | None = None) -> CycleStatus | None:
        """Where a cycle stands."""


class LearnUntilDone:
    """See the module. `pause` waits for some seconds."""

    def __init__(
        self,
        cycles: Cycles,
        *,
        pause: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cycles = cycles
        self._pause = pause
        self._monotonic = monotonic

    def __call__(self, job: Job) -> Outcome:
        """Run the cycles of a job. Raises LearningStopped, LeaseLost; a cycle that is under way then comes to its own end."""
        end_at = self._monotonic() + job.settings.budget_s
        most = 1 if job.settings.kind == "learn" else job.settings.max_cycles
        done: list[str] = []
        while len(done) < most and self._monotonic() < end_at:
            job.check()
            try:
                run_id = self._cycles.start_cycle(by=_asked_by(job))
            except (NothingToLearn, RolloutUnderWay, BudgetExceeded, ClockWentBack) as error:  # all may take hours
                return Outcome("done" if done else "nothing", str(error), tuple(done))
            except AlreadyLearning:  # a person's; it is waited for within the budget
                self._pause(POLL_S)
                continue
            except PromotionsFrozen as error:
                return Outcome("failed", str(error), tuple(done))
            done.append(run_id)
            status = self._wait_for(run_id, job)
            if status.phase == "failed":
                return Outcome("failed", f"{run_id}: {status.error}", tuple(done))
            if status.state == State.AWAITING_APPROVAL.value:
                return Outcome("done", f"version {status.version} waits for approval", tuple(done))
        if not done:
            return Outcome("nothing", f"other learning was under way for {job.settings.budget_s:g} s")
        budget = "cycles" if len(done) >= most else f"{job.settings.budget_s:g} s"
        return Outcome("done", f"{len(done)} learned" if most == 1 else f"the budget of {budget} is used", tuple(done))

    def _wait_for(self, run_id: str, job: Job) -> CycleStatus:
        while True:
            status = self._cycles.status_of(run_id)
            if status is not None and status.phase in ENDED:
                return status
            job.check()
            self._pause(POLL_S)


def _asked_by(job: Job) -> str:
    """The person who asked for the run, so that who proposes does not approve; else the schedule."""
    people = [str(reason.get("by", "")) for reason in job.run.reasons]
    return next((by for by in people if by.strip() and not is_machine(by)), BY_SCHEDULE)
