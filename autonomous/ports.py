"""What the agent works with, as protocols: objects of one process, or calls to Ray actors (actors/ports.py)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autonomous.holds import Hold, HoldState
from autonomous.lessons import Question
from autonomous.runs import LearningRun, StepReport
from autonomous.safety.poison import Evidence
from autonomous.versions.report import EvaluationReport
from memory.types import Episode
from train.adapt.reference import AdapterRef
from train.continual.items import LearningItem


class MemoryPort(Protocol):
    """Where passages come from."""

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        """(commit order, episode), most salient first, newest first."""

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """The episodes that still exist."""

    def suspect(self, ids: Sequence[str]) -> Sequence[str]:
        """Hold episodes back, neither recalled nor learned, until a person releases them; those whose trust changed.

        Idempotent. Raises LearningStopped.
        """

    def contradicted(self, episodes: Sequence[Episode]) -> Evidence:
        """What is held about what the episodes say, by whom and since when."""

    def hold_states(self, episodes: Sequence[Episode]) -> dict[str, HoldState]:
        """Those of the episodes that are held back from learning, or that a person has released."""

    def hold(self, holds: Sequence[Hold]) -> None:
        """Hold episodes back from learning until a person releases them."""

    def num_learnable(self, besides: Collection[str]) -> int:
        """How many passages are offered for learning, but for these and for those that are held."""

    def held(self, limit: int) -> list[Hold]:
        """What is held, newest first."""


class LearnerPort(Protocol):
    """What trains."""

    def learn(
        self,
        items: Sequence[LearningItem],
        *,
        replay: Sequence[LearningItem],
        anchors: Sequence[str],
        parent_adapter: Path | None,
        out_folder: Path,
        attempt: int,
    ) -> LearningRun:
        """Train one batch and write the adapter to `out_folder`. `attempt` counts the trainings of these items, from 1 on."""

    def progress(self) -> StepReport | None:
        """The last step of the batch that runs."""

    def num_tokens(self) -> int:
        """Tokens that the newest batch has trained on so far, however it ended."""


class EvaluatorPort(Protocol):
    """What judges."""

    def warm_up(self) -> None:
        """Begin to load the model; returns at once."""

    def evaluate(
        self,
        candidate: Path,
        *,
        parent: Path | None,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: dict[str, Any],
    ) -> EvaluationReport:
        """Score a candidate against its parent and the frozen original."""


class EnginePort(Protocol):
    """What serves."""

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        """Load the adapter on every replica; the log-probabilities of `probe` from each."""

    def drop(self, adapter: AdapterRef) -> None:
        """Forget the adapter on every replica."""


@dataclass(frozen=True)
class AgentParts:
    """What the agent works with."""

    memory: MemoryPort
    learner: LearnerPort
    evaluator: EvaluatorPort
    engine: EnginePort
