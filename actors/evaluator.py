"""The evaluator actor: judges candidates in a process of its own, with texts that the learner never sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from autonomous.config import GateConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Question
from autonomous.safety.latch import Latch
from autonomous.safety.processes import register
from autonomous.versions.report import EvaluationReport
from memory.types import Episode


class EvaluatorShell(Shell):
    """Holds the SelfEvaluationSystem. An evaluation has no effect but its report, so it may be repeated."""

    def __init__(self, settings_sha256: str, *, config: GateConfig, base_folder: Path, latch: Path) -> None:
        super().__init__("evaluator", settings_sha256)
        self._system = SelfEvaluationSystem(config, base_folder=base_folder)
        self._latch = Latch.open(latch)
        register(latch.parent, role="evaluator", within="learner")

    @ray.method
    def warm_up(self) -> None:
        """Load the base model; idempotent. Raises LearningStopped."""
        self._latch.permit("evaluation", within="learner")
        self._system.start()

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
        guard = self._latch.permit("evaluation", within="learner").check
        self._system.start()
        return self._system.evaluate(
            candidate, parent=parent, questions=questions, earlier=earlier, training=training, guard=guard
        )

    @ray.method
    def surprise(self, episodes: Sequence[Episode], adapter: Path | None) -> dict[str, float]:
        """How little a version knows of what episodes teach. Raises LearningStopped."""
        guard = self._latch.permit("evaluation", within="learner").check
        self._system.start()
        return self._system.surprise(episodes, adapter=adapter, guard=guard)
