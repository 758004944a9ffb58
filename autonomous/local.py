"""The agent's parts as objects of one process, over one folder of the base model. Each loads the model for itself, so that
answering goes on while a batch is learned or judged.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autonomous.config import GateConfig, LearningConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Question
from autonomous.online_weights import build_learner
from autonomous.panel_weights import version_model
from autonomous.runs import LearningRun, StepReport
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.report import EvaluationReport
from memory.types import Episode, Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.reference import AdapterRef
from train.adapt.scoring import answer_questions, score_tokens
from train.continual.items import LearningItem


class Permits:
    """The latch's permits, for a process that may be ending: then no further step is permitted either."""

    def __init__(self, latch: Latch, *, ending: threading.Event) -> None:
        self._latch = latch
        self._ending = ending

    def guard(self, action: str) -> Guard:
        """To be asked at each commit. Raises LearningStopped."""
        check = self._latch.permit(action, within="learner").check

        def guard() -> None:
            if self._ending.is_set():
                raise LearningStopped(
                    f"{action} is refused: the agent is being stopped; it goes on after its next start"
                )
            check()

        return guard


class LocalLearner:
    """LearnerPort: trains in the calling thread. Every optimizer step asks the latch and is watched by the monitor."""

    def __init__(self, config: LearningConfig, *, base_folder: Path, permits: Permits, monitor: SafetyMonitor) -> None:
        self._module = build_learner(config, base_folder=base_folder)
        self._permits = permits
        self._monitor = monitor
        self._progress: StepReport | None = None

    def learn(
        self,
        items: Sequence[LearningItem],
        *,
        replay: Sequence[LearningItem],
        anchors: Sequence[str],
        parent_adapter: Path | None,
        out_folder: Path,
    ) -> LearningRun:
        """See LearnerPort. Raises LearningStopped, NonFiniteLoss: then nothing was written."""
        guard = self._permits.guard("optimizer step")
        self._module.start()
        try:
            return self._module.learn(
                items,
                replay=replay,
                anchors=anchors,
                parent_adapter=parent_adapter,
                out_folder=out_folder,
                guard=guard,
                on_step=self._report,
            )
        finally:
            self._progress = None

    def progress(self) -> StepReport | None:
        """See LearnerPort."""
        return self._progress

    def _report(self, step: StepReport) -> None:
        self._progress = step
        self._monitor.observe_training(step=step.step, loss=step.loss, grad_norm=step.grad_norm, kl=step.kl)


class LocalEvaluator:
    """EvaluatorPort: judges in the calling thread, one at a time."""

    def __init__(self, config: GateConfig, *, base_folder: Path, permits: Permits, secret: bytes) -> None:
        self._system = SelfEvaluationSystem(config, base_folder=base_folder, secret=secret)
        self._permits = permits
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """See EvaluatorPort. Nothing to gain here: the model loads when it is needed."""

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
        with self._lock:
            self._system.start()
            return self._system.evaluate(
                candidate,
                parent=parent,
                questions=questions,
                earlier=earlier,
                training=training,
                guard=self._permits.guard("evaluation"),
            )

    def surprise(self, episodes: Sequence[Episode], *, adapter: Path | None) -> Mapping[str, float]:
        """How little a version knows of what episodes teach; see SelfEvaluationSystem. Raises LearningStopped."""
        guard = self._permits.guard("evaluation")
        with self._lock:
            self._system.start()
            return self._system.surprise(episodes, adapter=adapter, guard=guard)


class LocalEngine:
    """EnginePort with one replica, which also answers: transformers' generate, one answer at a time. Thread-safe."""

    def __init__(self, base_folder: Path, *, config: LearningConfig) -> None:
        self._folder = base_folder
        self._config = config
        self._lock = threading.Lock()
        self._base: BaseModelInMemory | None = None

    @property
    def base(self) -> BaseModelInMemory:
        """The model that answers, loaded at the first use. Raises ModelFolderProblem."""
        if self._base is None:
            torch.set_num_threads(self._config.num_threads)
            device = pick_device(self._config.device)
            self._base = load_base_model(self._folder, dtype=self._config.dtype, device=device)
        return self._base

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self.base.tokenizer.encode(text, add_special_tokens=False))

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        """See EnginePort: what lies on disk is loaded and scored."""
        if not probe:
            return [[]]
        return [self._with(adapter, lambda model: score_tokens(model, probe, base=self.base))]

    def drop(self, adapter: AdapterRef) -> None:
        """See EnginePort. A version is in memory only while it answers."""

    def answer(self, prompt: str, *, adapter: AdapterRef | None, max_tokens: int) -> str:
        """The greedy answer of a version to one user message."""
        (text,) = self._with(
            adapter, lambda model: answer_questions(model, [prompt], base=self.base, max_new_tokens=max_tokens)
        )
        return str(text)

    def _with(self, adapter: AdapterRef | None, ask: Any) -> Any:
        with self._lock, version_model(None if adapter is None else Path(adapter.folder), base=self.base) as model:
            return ask(model)
