"""Schedulers on one file with clocks that a test sets; what they begin is written down."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autonomous.jobs import SchedulesConfig
from autonomous.retraining import Job, Outcome, RetrainingScheduler, RunJob
from autonomous.safety.latch import Latch
from tests.clock import Clock

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()
"""A Monday."""
HOUR, DAY = 3600.0, 86_400.0
ON_DEMAND = {"schedule": {"kind": "manual"}}
HOURLY = {"learn": {"schedule": {"kind": "hourly"}}}


class Desk:
    """A folder with a latch and the schedulers that share it. `clock` is the time of day, `monotonic` only goes on."""

    def __init__(self, folder: Path, jobs: dict[str, Any], **settings: Any) -> None:
        self.folder = folder
        self.latch = Latch.create(folder / "latch")
        self.clock = Clock(NOON)
        self.monotonic = Clock(1000.0)
        self.config = SchedulesConfig.model_validate(
            {"jobs": {"drill": ON_DEMAND, "evaluate": ON_DEMAND, **jobs}, **settings}
        )
        self.done: list[Job] = []
        self.runners: dict[Any, RunJob] = dict.fromkeys(("learn", "retrain", "drill"), self.work)

    def work(self, job: Job) -> Outcome:
        """The runner of most tests."""
        job.check()
        self.done.append(job)
        return Outcome("done", "worked")

    def open(self, config: SchedulesConfig | None = None) -> RetrainingScheduler:
        """One more scheduler on the file."""
        return RetrainingScheduler(
            config or self.config,
            path=self.folder / "schedules.sqlite",
            latch=Latch.open(self.folder / "latch"),
            runners=self.runners,
            clock=self.clock,
            monotonic=self.monotonic,
        )

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.now += seconds
        self.monotonic.now += seconds


def run_all(scheduler: RetrainingScheduler, *, before: Callable[[Job], None] = lambda job: None) -> list[str]:
    """Begin and end whatever is due; the slots."""
    slots = []
    while (job := scheduler.tick()) is not None:
        before(job)
        assert scheduler.finish(job, scheduler.execute(job))
        slots.append(job.run.slot)
    return slots


def outcomes(scheduler: RetrainingScheduler, name: str) -> list[tuple[str, str | None]]:
    """The slots of a schedule's runs and how these ended, the newest first."""
    return [(run.slot, run.outcome) for run in scheduler.book.runs(name, limit=1000)]
