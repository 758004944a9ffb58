"""The routes of what runs by itself: learning, retraining, the rollback drill, consolidation."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from serve.parts import ScheduleParts
from serve.schemas import Response, Signed

Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows.")]


class RunRequest(Signed):
    """POST /v1/schedules/{name}/run."""

    key: str | None = Field(None, min_length=1, max_length=100)
    """Your id of this request: sent again, it asks for no second run."""


class RunInfo(Response):
    """One run of a job. Times in seconds since the epoch."""

    id: int
    name: str
    slot: str
    """The moment that it was due, in UTC; "trigger ..." or "asked ..." for others."""
    state: str
    """queued, running or ended."""
    outcome: str | None = None
    """done, nothing, failed, inconclusive, stopped, crashed, skipped or dropped."""
    detail: str = ""
    results: list[str] = Field(default_factory=list)
    """Ids of what it made."""
    attempt: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    num_to_label: int | None = None
    """Uncertain answers that waited for people when a retraining began."""


class ScheduleInfo(Response):
    """One job."""

    name: str
    kind: str
    schedule: str
    missed: str
    """What becomes of slots that passed while nothing could run: skip, run_once or run_all."""
    next_due: float | None = None
    open: list[RunInfo]
    """What waits or runs."""
    last: RunInfo | None = None


class ScheduleList(Response):
    """GET /v1/schedules."""

    schedules: list[ScheduleInfo]
    findings: list[str]
    """What a person should look at."""


class RunList(Response):
    """GET /v1/schedules/{name}/runs, newest first."""

    runs: list[RunInfo]


def build_schedule_router(schedules: ScheduleParts) -> APIRouter:
    """All routes below /v1/schedules."""
    router = APIRouter(prefix="/v1/schedules", tags=["Schedules"])

    @router.get("", response_model=ScheduleList)
    async def listing() -> Any:
        """What runs by itself: when next, what waits, how it ended last."""
        return await schedules.schedules()

    @router.get("/{name}/runs", response_model=RunList)
    async def runs(name: str, limit: Limit = 20) -> Any:
        """A job's runs, newest first."""
        return {"runs": await schedules.runs(name, limit=limit)}

    @router.post("/{name}/run", status_code=202, response_model=RunInfo)
    async def run(name: str, body: RunRequest) -> Any:
        """Ask for a run now: it begins when no other runs. One that waits or is under way is the answer. 423: stopped."""
        return await schedules.run(name, by=body.by, reason=body.reason, key=body.key)

    return router
