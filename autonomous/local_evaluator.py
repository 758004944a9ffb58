"""The evaluator as an object of the calling process: an actor holds one, and so does an agent of one process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Question
from autonomous.permits import Permits
from autonomous.versions.report import EvaluationReport
from memory.types import Episode, Guard


class LocalEvaluator:
    """EvaluatorPort: judges in the calling thread; the system lets one judge at a time."""

    def __init__(self, system: SelfEvaluationSystem, *, permits: Permits) -> None:
        self._system = system
        self._permits = permits

    def warm_up(self) -> None:
        """See EvaluatorPort. Nothing to gain in this process: the model loads when it is needed."""

    def prepare(self) -> None:
        """Load the base model and ask the original what all are compared with; idempotent. Raises LearningStopped."""
        guard = self._start()
        self._system.prepare(guard=guard)

    def evaluate(
        self,
        candidate: Path,
        *,
        parent: Path | None,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: dict[str, Any],
    ) -> EvaluationReport:
        """See EvaluatorPort. Raises LearningStopped."""
        guard = self._start()
        return self._system.evaluate(
            candidate, parent=parent, questions=questions, earlier=earlier, training=training, guard=guard
        )

    def surprise(self, episodes: Sequence[Episode], *, adapter: Path | None) -> dict[str, float]:
        """How little a version knows of what episodes teach; see SelfEvaluationSystem. Raises LearningStopped."""
        guard = self._start()
        return self._system.surprise(episodes, adapter=adapter, guard=guard)

    def _start(self) -> Guard:
        """Load the model if it is not, once the latch permits it."""
        guard = self._permits.guard("evaluation")
        guard()
        self._system.start()
        return guard
