"""The job `consolidate`: a run of the memory's consolidation, whoever holds the memory."""

from collections.abc import Callable, Mapping
from typing import Any

from autonomous.retraining import Job, Outcome, RunJob


def consolidation_job(consolidate: Callable[[], Mapping[str, Any]]) -> RunJob:
    """`consolidate` does a run, asks the emergency stop by itself at each step, and gives the fields of its report."""

    def run(job: Job) -> Outcome:
        job.check()
        report = consolidate()
        if report["state"] != "done":
            return Outcome("failed", report["problem"], (report["run"],))
        return Outcome("done", "consolidated", (report["run"],))

    return run
