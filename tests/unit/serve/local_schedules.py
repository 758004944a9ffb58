"""`serve.parts.ScheduleParts` in one process."""

from pathlib import Path
from typing import Any

from autonomous import retraining
from autonomous.jobs import SchedulesConfig
from autonomous.safety.latch import Latch
from autonomous.schedule_book import UnknownSchedule
from serve.errors import NotFoundError


class LocalSchedules:
    """`serve.parts.ScheduleParts` in one process: whatever waits is run when the runs are asked for."""

    def __init__(self, folder: Path, latch: Latch) -> None:
        self.outcome = retraining.Outcome("done", "drilled")
        self.scheduler = retraining.RetrainingScheduler(
            SchedulesConfig(), path=folder / "schedules.sqlite", latch=latch, runners={"drill": self._work}
        )

    def _work(self, job: retraining.Job) -> retraining.Outcome:
        return self.outcome

    async def schedules(self) -> dict[str, Any]:
        return {"schedules": self.scheduler.book.schedules(), "findings": self.scheduler.findings()}

    async def runs(self, name: str, *, limit: int) -> list[dict[str, Any]]:
        if (job := self.scheduler.tick()) is not None:
            self.scheduler.finish(job, self.scheduler.execute(job))
        try:
            return [run.to_dict() for run in self.scheduler.book.runs(name, limit=limit)]
        except UnknownSchedule as problem:
            raise NotFoundError(str(problem)) from problem

    async def run(self, name: str, *, by: str, reason: str, key: str | None) -> dict[str, Any]:
        try:
            return self.scheduler.ask(name, by=by, reason=reason, key=key).to_dict()
        except UnknownSchedule as problem:
            raise NotFoundError(str(problem)) from problem
