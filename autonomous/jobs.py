"""Scheduled jobs: which kinds of work run by themselves, when, and what happens with what was missed or crashed.

In: the TOML section [agent.schedules]. Out: SchedulesConfig, and `decide_slots`, the pure decision about slots that are over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autonomous.schedule import Schedule, missed

JobKind = Literal["learn", "retrain", "evaluate", "drill", "consolidate"]
"""learn: one learning cycle. retrain: cycles until nothing is left or the budget is used. evaluate: the benchmark of V2.
drill: whether a rollback would work. consolidate: the memory.
"""
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
MissedPolicy = Literal["skip", "run_once", "run_all"]
NAME = r"[a-z][a-z0-9_-]{0,39}"
MAX_JOBS = 32


class ScheduledJob(BaseModel):
    """One kind of work under a name of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: JobKind
    """May be left out where the name is a kind."""
    schedule: Schedule = Schedule()
    """When it is due; on demand when absent."""
    missed: MissedPolicy = "run_once"
    """What becomes of slots that passed while nothing could run: nothing, one run for all of them, or a run for each."""
    max_missed: int = Field(3, ge=1, le=100)
    """run_all: most slots that wait at once; older ones are skipped."""
    max_attempts: int = Field(2, ge=1, le=10)
    """How often a slot is begun whose run ended by a crash; 1 only marks it."""
    budget_s: float = Field(3600.0, gt=0)
    """learn and retrain: no cycle begins after so many seconds."""
    max_cycles: int = Field(50, ge=1)
    """retrain: most learning cycles of one run."""
    num_to_label: int = Field(20, ge=0)
    """retrain: the labelling queue is filled with uncertain answers beforehand, until so many wait for people there. 0: it is
    left as it is, as always by an agent of one process, which logs no requests."""


DEFAULT_JOBS: dict[str, ScheduledJob] = {
    "learn": ScheduledJob(kind="learn"),
    "retrain": ScheduledJob(kind="retrain"),
    "evaluate": ScheduledJob(kind="evaluate", schedule=Schedule(kind="daily", at=time(3))),
    "drill": ScheduledJob(kind="drill", schedule=Schedule(kind="weekly", weekday="sunday", at=time(4))),
    "consolidate": ScheduledJob(kind="consolidate"),
}


class SchedulesConfig(BaseModel):
    """What runs by itself. Each job of the defaults is there unless one of its name takes its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: dict[str, ScheduledJob] = Field(default_factory=dict, validate_default=True)
    """By name: evaluate (daily, some five minutes of one core where V2 has no benchmark yet), drill (weekly), learn, retrain
    and consolidate on demand, and what is added."""
    poll_s: float = Field(1.0, gt=0)
    """How often it is looked whether something is due."""
    settle_s: float = Field(60.0, ge=0)
    """Nothing begins sooner after the start of the process: its other parts start too."""
    lease_s: float = Field(60.0, gt=0)
    """A run whose scheduler gave no sign of life for so long has crashed. Well above poll_s."""
    grace_s: float = Field(300.0, gt=0)
    """skip: a slot that is older has passed."""
    trigger_distance_s: float = Field(3600.0, ge=0)
    """Least time between the starts of two runs of a job that triggers asked for; what comes meanwhile is one run."""
    kept_runs: int = Field(200, ge=1)
    """Ended runs that are kept of each job."""

    @field_validator("jobs", mode="before")
    @classmethod
    def _kinds_of_names(cls, jobs: Any) -> Any:
        if not isinstance(jobs, Mapping):
            return jobs
        given = {
            name: {"kind": name, **job} if name in JOB_KINDS and isinstance(job, Mapping) else job
            for name, job in jobs.items()
        }
        return {**DEFAULT_JOBS, **given}

    @field_validator("jobs")
    @classmethod
    def _names(cls, jobs: dict[str, ScheduledJob]) -> dict[str, ScheduledJob]:
        if len(jobs) > MAX_JOBS:
            raise ValueError(f"{len(jobs)} jobs are named, {MAX_JOBS} can be: give some the same schedule")
        for name in jobs:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"'{name}' is no name of a job: use up to 40 of a-z, 0-9, - and _, a letter first")
        return jobs

    def with_learning_every(self, every_s: float) -> "SchedulesConfig":
        """The same with `learn` every so many seconds; 0 changes nothing. Raises ValueError if `learn` has its own time."""
        if every_s == 0:
            return self
        learn = self.jobs["learn"]
        if learn.schedule.kind != "manual":
            raise ValueError(
                f"agent.schedules.jobs.learn is due {learn.schedule}, and agent.learning.interval_s = {every_s:g} asks for "
                "another time: set interval_s = 0, or remove the schedule"
            )
        schedule = Schedule(kind="every", every_s=every_s)
        return self.model_copy(update={"jobs": {**self.jobs, "learn": learn.model_copy(update={"schedule": schedule})}})


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What becomes of slots that are over: those that are run, oldest first, and how many are not."""

    to_run: tuple[datetime, ...] = ()
    num_skipped: int = 0
    newest: datetime | None = None
    """The newest slot that is over; from now on all up to it are settled. None if there is none."""


def decide_slots(job: ScheduledJob, *, settled_to: datetime, now: datetime, grace: timedelta) -> SlotPlan:
    """Which of the slots behind `settled_to` are run, by the job's policy; pure."""
    over = missed(job.schedule, settled_to, now, limit=job.max_missed)
    if not over.slots:
        return SlotPlan()
    newest = over.slots[-1]
    match job.missed:
        case "run_all":
            to_run = over.slots
        case "run_once":
            to_run = (newest,)
        case "skip":
            to_run = (newest,) if now - newest <= grace else ()
    return SlotPlan(to_run, over.num_slots - len(to_run), newest)
