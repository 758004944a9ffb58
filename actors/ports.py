"""The agent's parts as calls to the other actors and to the engine replicas.

Each call looks its actor up by name, so that an actor that was replaced by newer code is found. What may be repeated is
repeated after a crash of the other side; training is not.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError

from actors.calls import ActorMissing, actor, retried
from actors.stores import remote_store
from autonomous.holds import Hold, HoldState, left_out_of
from autonomous.lessons import Question
from autonomous.runs import LearningRun, StepReport
from autonomous.safety.poison import Evidence
from autonomous.versions.report import EvaluationReport
from memory.types import Episode
from train.adapt.reference import AdapterRef
from train.continual.items import LearningItem

SERVE_APPLICATION = "autonomous"
ENGINE_DEPLOYMENT = "EngineDeployment"
REPLICA_TIMEOUT_S = 120.0
"""An engine replica that was killed is back after its whole start."""
SEMANTIC_TIMEOUT_S = 60.0
"""A semantic actor that was killed is back when it has read its facts."""
LEARNER_TIMEOUT_S = 60.0
"""A learner that was killed is back, without its model, after some seconds."""
COUNT_TIMEOUT_S = 2.0
"""Whoever counts what waits shows it, and looks again soon."""


class RayMemory:
    """MemoryPort over the episodic actor, and the semantic one for what is believed and held."""

    def __init__(self) -> None:
        self._store = remote_store("episodic")

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        """See MemoryPort."""
        return self._store.freshest(limit=limit, offset=offset)

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """See MemoryPort."""
        return self._store.get(ids)

    def suspect(self, ids: Sequence[str]) -> Sequence[str]:
        """See MemoryPort."""
        held: Sequence[str] = ray.get(actor("semantic").suspect.remote(list(ids)))
        return held

    def contradicted(self, episodes: Sequence[Episode]) -> Evidence:
        """See MemoryPort."""
        evidence: Evidence = self._semantic("contradicted", list(episodes))
        return evidence

    def hold_states(self, episodes: Sequence[Episode]) -> dict[str, HoldState]:
        """See MemoryPort."""
        states: dict[str, HoldState] = self._semantic("hold_states", list(episodes))
        return states

    def hold(self, holds: Sequence[Hold]) -> None:
        """See MemoryPort."""
        self._semantic("hold", list(holds))

    def num_learnable(self, besides: Collection[str]) -> int:
        """See MemoryPort. Not repeated: who counts looks again soon. Raises GetTimeoutError."""
        held = ray.get(actor("semantic").held_below.remote(), timeout=COUNT_TIMEOUT_S)
        counted = actor("episodic").read.remote("num_learnable", (left_out_of(besides, held),), {})
        return int(ray.get(counted, timeout=COUNT_TIMEOUT_S))

    def held(self, limit: int) -> list[Hold]:
        """See MemoryPort."""
        holds: list[Hold] = self._semantic("held", limit)
        return holds

    @staticmethod
    def _semantic(method: str, *arguments: Any) -> Any:
        """Each of these may be repeated."""
        return retried(
            lambda: ray.get(getattr(actor("semantic"), method).remote(*arguments)), timeout_s=SEMANTIC_TIMEOUT_S
        )


class RayLearner:
    """LearnerPort over the learner actor. A killed learner ends the run: the ledger has seen none of it."""

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
        """See LearnerPort."""
        retried(lambda: ray.get(actor("learner").identity.remote()), timeout_s=LEARNER_TIMEOUT_S)
        options = {
            "replay": list(replay),
            "anchors": list(anchors),
            "parent_adapter": parent_adapter,
            "out_folder": out_folder,
            "attempt": attempt,
        }
        run: LearningRun = ray.get(actor("learner").learn.remote(list(items), options))
        return run

    def progress(self) -> StepReport | None:
        """See LearnerPort; None while the learner restarts."""
        try:
            step: StepReport | None = ray.get(actor("learner").progress.remote(), timeout=2)
        except (RayError, ActorMissing):
            return None
        return step

    def num_tokens(self) -> int:
        """See LearnerPort; 0 for a learner that was killed."""
        try:
            tokens: int = ray.get(actor("learner").num_tokens.remote(), timeout=2)
        except (RayError, ActorMissing):
            return 0
        return tokens


class RayEvaluator:
    """EvaluatorPort over the evaluator actor."""

    def warm_up(self) -> None:
        """See EvaluatorPort."""
        actor("evaluator").warm_up.remote()

    def evaluate(
        self,
        candidate: Path,
        *,
        parent: Path | None,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: dict[str, Any],
    ) -> EvaluationReport:
        """See EvaluatorPort."""
        report: EvaluationReport = retried(
            lambda: ray.get(
                actor("evaluator").evaluate.remote(candidate, parent, list(questions), list(earlier), training)
            ),
            timeout_s=60,
        )
        return report


class RayEngine:
    """EnginePort over all replicas of the engine deployment."""

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        """See EnginePort."""
        scores: list[list[float]] = retried(
            lambda: self._handle().broadcast("prepare", adapter, probe).results(timeout_s=REPLICA_TIMEOUT_S),
            timeout_s=REPLICA_TIMEOUT_S,
        )
        return scores

    def drop(self, adapter: AdapterRef) -> None:
        """See EnginePort."""
        retried(
            lambda: self._handle().broadcast("drop", adapter).results(timeout_s=REPLICA_TIMEOUT_S),
            timeout_s=REPLICA_TIMEOUT_S,
        )

    @staticmethod
    def _handle() -> Any:
        return ray_serve.get_deployment_handle(ENGINE_DEPLOYMENT, SERVE_APPLICATION)
