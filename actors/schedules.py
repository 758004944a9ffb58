"""What the agent's scheduled jobs do: learning cycles, the rollback drill, and what other actors do of it."""

from typing import Any

import ray

from actors.calls import actor
from autonomous.benchmark_job import benchmark_job
from autonomous.consolidation_job import consolidation_job
from autonomous.jobs import JobKind
from autonomous.learn_until_done import LearnUntilDone
from autonomous.loop import LearningLoop
from autonomous.retraining import Job, RunJob, choose_before
from autonomous.versions.drill import RollbackDrill


def build_runners(agent: LearningLoop, drill: RollbackDrill) -> dict[JobKind, RunJob]:
    """By kind of job. A kind that is not here fails with a sentence that says so."""
    learn = LearnUntilDone(agent)
    retrain = choose_before(choose_to_label, learn)
    runners: dict[JobKind, RunJob] = {"learn": learn, "retrain": retrain, "drill": drill.run_job}
    evaluate = benchmark_job(agent.ledger, has_benchmark=has_benchmark, benchmark=begin_benchmark)
    return {**runners, "consolidate": consolidation_job(consolidate), "evaluate": evaluate}


def choose_to_label(most: int) -> list[str]:
    """Have the feedback actor fill the labelling queue up; the answers that wait there."""
    waiting: list[str] = ray.get(actor("feedback").choose_to_label.remote(most))
    return waiting


def has_benchmark(version: str) -> bool:
    """Whether the evaluator has benchmarked a version."""
    return bool(ray.get(actor("evaluator").has_benchmark.remote(version)))


def begin_benchmark(job: Job, version: str) -> str:
    """Have the evaluator begin. Its report, and what it asks to be learned again, come when it is done."""
    ray.get(actor("evaluator").benchmark.remote(version))
    return f"the benchmark of {version} has begun"


def consolidate() -> dict[str, Any]:
    """A run of the semantic actor's consolidation."""
    report: dict[str, Any] = ray.get(actor("semantic").consolidate.remote())
    return report
