"""The learner as an object of the calling process: an actor holds one, and so does an agent of one process.

It must not reach what the evaluator judges by (.importlinter).
"""

from collections.abc import Sequence
from pathlib import Path

from autonomous.config import LearningConfig
from autonomous.online_weights import build_learner
from autonomous.permits import Permits
from autonomous.runs import LearningRun, StepReport
from autonomous.safety.monitor import SafetyMonitor
from train.continual.items import LearningItem


class LocalLearner:
    """LearnerPort: trains in the calling thread. Every optimizer step asks the latch and is watched by the monitor."""

    def __init__(self, config: LearningConfig, *, base_folder: Path, permits: Permits, monitor: SafetyMonitor) -> None:
        self._module = build_learner(config, base_folder=base_folder)
        self._permits = permits
        self._monitor = monitor
        self._progress: StepReport | None = None
        self._num_tokens = 0

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
        """See LearnerPort. Raises LearningStopped, NonFiniteLoss: then nothing was written."""
        self._num_tokens = 0
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
                attempt=attempt,
            )
        finally:
            self._progress = None  # the next run must not show this one's steps

    def progress(self) -> StepReport | None:
        """See LearnerPort."""
        return self._progress

    def num_tokens(self) -> int:
        """See LearnerPort."""
        return self._num_tokens

    def _report(self, step: StepReport) -> None:
        self._progress = step
        self._num_tokens += step.num_tokens
        self._monitor.observe_training(step=step.step, loss=step.loss, grad_norm=step.grad_norm, kl=step.kl)
