"""RetrainingScheduler: what is due is begun once, one run at a time, and never by a reset of the emergency stop.

In: schedules, triggers (what a benchmark found), requests of people. Out: calls of the runners by kind of job,
and a row for each run (schedule_book.py). Who runs holds a lease: it gives signs of life, and others take it for crashed after
`lease_s` without one by their own monotonic clock, so that no two clocks are compared and no jump of a clock ends a lease. Its
fencing number is then worth nothing: what it would still do is refused by `Job.check`.
Source of the lease: leader election of Kubernetes' client-go (observed time).
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autonomous.jobs import JobKind, ScheduledJob, SchedulesConfig
from autonomous.safety.latch import Latch, LearningStopped, Permit
from autonomous.schedule_book import ScheduleBook
from autonomous.schedule_rows import OutcomeName, RunRecord
from memory.types import Guard

logger = logging.getLogger(__name__)


class LeaseLost(RuntimeError):
    """The run is no longer this scheduler's: it was held to have crashed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was begun, for its runner."""

    run: RunRecord
    settings: ScheduledJob
    fence: int
    check: Guard
    """Ask it before each effect. Raises LearningStopped, LeaseLost."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, in a sentence, and the ids of what it made."""

    result: OutcomeName
    detail: str = ""
    results: tuple[str, ...] = ()
    num_to_label: int | None = None
    """Uncertain answers that waited for people when it began."""


RunJob = Callable[[Job], Outcome]
"""Does a job's work. What it raises is a failure, but for LearningStopped and LeaseLost."""


class ChooseToLabel(Protocol):
    """Chooses by uncertainty sampling what people should label before a retraining (autonomous/labelling.py)."""

    def __call__(self, most: int, /) -> Sequence[str]:
        """Fills the queue for people with uncertain answers until `most` wait there; ids of all that wait now. Idempotent."""


def choose_before(choose: ChooseToLabel, retrain: RunJob) -> RunJob:
    """A retraining that first asks for labels, which count for the next one. What goes wrong with that does not hold it up."""

    def run(job: Job) -> Outcome:
        num_to_label = None
        try:
            num_to_label = len(choose(job.settings.num_to_label)) if job.settings.num_to_label else None
        except LearningStopped:
            raise
        except Exception:
            logger.exception("uncertain answers could not be chosen")
        outcome = retrain(job)
        return Outcome(outcome.result, outcome.detail, outcome.results, num_to_label)

    return run


@dataclass
class _Lease:
    """On this scheduler's run; `beaten_at` by the monotonic clock, from before the sign of life was written."""

    fence: int
    permit: Permit
    beaten_at: float


class RetrainingScheduler:
    """See the module. One thread calls `run_until`, or `step`; the other methods are safe from any thread."""

    def __init__(
        self,
        config: SchedulesConfig,
        *,
        path: Path,
        latch: Latch,
        runners: Mapping[JobKind, RunJob],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the file of the schedules. Raises memory.store.StoreProblem."""
        self._config = config
        self._runners = runners
        self._monotonic = monotonic
        self._holder = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._worker: threading.Thread | None = None
        self._lease: _Lease | None = None
        self._ended: tuple[Job, Outcome] | None = None
        self._seen: tuple[int | None, int, float] = (None, 0, 0.0)
        """Fence and beats of another's run, and since when they have stood still by the monotonic clock."""
        self._problem = ""
        self.book = ScheduleBook(config, path=path, latch=latch, clock=clock)

    def close(self) -> None:
        """Wait until the run that is under way has ended, write that down, and close the file; later calls fail."""
        if self._worker is not None:
            self._worker.join()
        self._write_down()
        self.book.close()

    def trigger(
        self, name: str, *, by: str, reason: str, evidence: Mapping[str, Any] | None = None, key: str | None = None
    ) -> RunRecord:
        """Ask for a run because of something that was found. Several that come close together are one run, and two runs that
        triggers began are `trigger_distance_s` apart. The same `key` changes nothing.

        Raises UnknownSchedule, ValueError, LearningStopped (ask again after the reset).
        """
        return self.book.request("trigger", name, by=by, reason=reason, evidence=evidence, key=key)

    def ask(self, name: str, *, by: str, reason: str, key: str | None = None) -> RunRecord:
        """A person wants a run now; one that waits or is under way is the answer. Raises as `trigger`."""
        return self.book.request("asked", name, by=by, reason=reason, evidence=None, key=key)

    def findings(self) -> list[str]:
        """What a person should look at."""
        own = [f"the scheduler cannot work: {self._problem}"] if self._problem else []
        return own + self.book.findings()

    def run_until(self, is_over: threading.Event) -> None:
        """Step every `poll_s` until the event is set; the first time after `settle_s`."""
        if is_over.wait(self._config.settle_s):
            return
        while not is_over.wait(self._config.poll_s):
            self.step()

    def step(self) -> None:
        """Write down what has ended, give a sign of life, or begin what is due, in a thread of its own."""
        try:
            if self._ended is not None:
                self._write_down()
            elif self._lease is not None:
                self.beat()
            elif (job := self.tick()) is not None:
                self._worker = threading.Thread(target=self._work, args=(job,), name=f"job-{job.run.name}", daemon=True)
                self._worker.start()
            self._problem = ""
        except Exception as error:  # the thread must live: findings() tells it, and the next step tries again
            if not self._problem:
                logger.exception("the scheduler cannot work")
            self._problem = f"{type(error).__name__}: {error}"

    def tick(self) -> Job | None:
        """Begin what is due; the caller then calls `execute` and `finish`. None if nothing is, and while stopped."""
        beaten_at = self._monotonic()
        try:
            begun = self.book.begin(self._holder, is_left=self._is_left)
        except LearningStopped:
            return None
        if begun is None:
            return None
        run, permit = begun
        assert run.fence is not None, "it runs"
        lease = self._lease = _Lease(run.fence, permit, beaten_at)
        logger.info("scheduled run=%d job=%s slot=%s attempt=%d", run.id, run.name, run.slot, run.attempt)
        return Job(run=run, settings=self.book.job(run.name), fence=run.fence, check=lambda: self._check(lease))

    def execute(self, job: Job) -> Outcome:
        """Do the work. Does not raise."""
        kind = job.settings.kind
        try:
            job.check()
            if (runner := self._runners.get(kind)) is None:
                return Outcome("failed", f"no part of this system does jobs of the kind '{kind}'")
            return runner(job)
        except (LearningStopped, LeaseLost) as error:
            return Outcome("stopped", str(error))
        except Exception as error:  # a run's failure is its outcome; the scheduler goes on
            logger.exception("job %s failed", job.run.name)
            return Outcome("failed", f"{type(error).__name__}: {error}")

    def finish(self, job: Job, outcome: Outcome) -> bool:
        """Write down how a run ended; False if it was taken over meanwhile: then whoever did that tells it."""
        is_held = self.book.end(
            job.fence,
            outcome.result,
            detail=outcome.detail,
            results=outcome.results,
            num_to_label=outcome.num_to_label,
        )
        self._lease = None
        logger.info("run=%d job=%s ended: %s %s", job.run.id, job.run.name, outcome.result, outcome.detail)
        return is_held

    def beat(self) -> None:
        """A sign of life of the run that is under way here."""
        lease, at = self._lease, self._monotonic()
        if lease is not None and self.book.beat(lease.fence):
            lease.beaten_at = at

    def _write_down(self) -> None:
        """How the worker's run ended, if it has."""
        if self._ended is not None:
            self.finish(*self._ended)
            self._ended = None

    def _work(self, job: Job) -> None:
        self._ended = (job, self.execute(job))

    def _check(self, lease: _Lease) -> None:
        lease.permit.check()
        is_fresh = self._monotonic() - lease.beaten_at < self._config.lease_s
        if not is_fresh or not self.book.holds(lease.fence):
            raise LeaseLost(
                "the run gave no sign of life for too long and counts as crashed; its slot may be begun again"
            )

    def _is_left(self, run: RunRecord) -> bool:
        """Whether nothing was heard of a run's holder for a whole lease, watched from here."""
        at = self._monotonic()
        if self._seen[:2] != (run.fence, run.beats):
            self._seen = (run.fence, run.beats, at)
        is_left = at - self._seen[2] >= self._config.lease_s
        if is_left:
            logger.warning("run=%d job=%s was left by its scheduler %s", run.id, run.name, run.holder)
        return is_left
