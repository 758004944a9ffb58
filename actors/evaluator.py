"""The evaluator actor: judges candidates in a process of its own, with texts that the learner never sees."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from actors.calls import actor
from actors.ports import RayMemory
from autonomous.benchmark import Benchmark
from autonomous.config import AutonomousConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Question
from autonomous.local_evaluator import LocalEvaluator
from autonomous.permits import Permits
from autonomous.safety.latch import Latch
from autonomous.safety.processes import register
from autonomous.sentinel import load_secret
from autonomous.triggers import Trigger
from autonomous.version_reports import VersionReports
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.report import EvaluationReport
from memory.types import Episode


class EvaluatorShell(Shell):
    """Holds the SelfEvaluationSystem. An evaluation has no effect but its report, so it may be repeated."""

    def __init__(
        self, settings_sha256: str, *, config: AutonomousConfig, home: Path, base_folder: Path, latch: Path
    ) -> None:
        super().__init__("evaluator", settings_sha256)
        secret = load_secret(latch.parent / "evaluation-secret")
        self._system = SelfEvaluationSystem(config.gates, base_folder=base_folder, secret=secret)
        self._permits = Permits(Latch.open(latch))
        self._evaluator = LocalEvaluator(self._system, permits=self._permits)
        self._reports = VersionReports(
            config,
            ledger=VersionLedger(home / "ledger.sqlite"),
            memory=RayMemory(),
            benchmark=Benchmark(config.benchmark, system=self._system),
            folder=home / "reports",
            on_trigger=_ask_for_retraining,
        )
        register(latch.parent, role="evaluator", within="learner")

    @ray.method
    def warm_up(self) -> None:
        """Load the base model and ask the original what all are compared with; idempotent. Raises LearningStopped."""
        self._evaluator.prepare()

    @ray.method
    def evaluate(
        self,
        candidate: Path,
        parent: Path | None,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: dict[str, Any],
    ) -> EvaluationReport:
        """Score a candidate. Raises LearningStopped between two parts of the evaluation."""
        return self._evaluator.evaluate(
            candidate, parent=parent, questions=questions, earlier=earlier, training=training
        )

    @ray.method
    def surprise(self, episodes: Sequence[Episode], adapter: Path | None) -> dict[str, float]:
        """How little a version knows of what episodes teach. Raises LearningStopped."""
        return self._evaluator.surprise(episodes, adapter=adapter)

    @ray.method(concurrency_group="read")
    def benchmark(self, version_id: str) -> str:
        """Begin the thorough evaluation of a version, which lets candidates go first; returns its id.

        Raises LearningStopped, UnknownVersion, AlreadyBenchmarking.
        """
        guard = self._permits.guard("evaluation")
        self._system.start()
        return self._reports.start(version_id, guard=guard)

    @ray.method(concurrency_group="read")
    def has_benchmark(self, version_id: str) -> bool:
        """Whether a version was benchmarked. Raises UnknownVersion."""
        return self._reports.has_benchmark(version_id)

    @ray.method(concurrency_group="read")
    def version_report(self, version_id: str) -> dict[str, Any]:
        """Gates, evaluation, benchmark and triggers of a version. Raises UnknownVersion."""
        return self._reports.summary(version_id)

    @ray.method(concurrency_group="read")
    def version_page(self, version_id: str) -> str:
        """The same as an HTML page. Raises UnknownVersion."""
        return self._reports.page(version_id)


def _ask_for_retraining(trigger: Trigger) -> None:
    """The agent's scheduler brings together what comes close together. Raises LearningStopped."""
    asked = actor("agent").trigger_schedule.remote(
        "retrain", "agent:benchmark", trigger.reason, asdict(trigger), trigger.key
    )
    ray.get(asked)
