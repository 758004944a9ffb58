"""The learner actor: keeps the base model in memory and trains adapters on it, or copies of it, one batch at a time."""

from collections.abc import Sequence
from pathlib import Path

import ray

from actors.base import Shell
from autonomous.config import LearningConfig, SafetyConfig
from autonomous.online_weights import build_learner
from autonomous.runs import LearningRun, StepReport
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.processes import register
from autonomous.safety.screen import Level
from autonomous.versions.ledger import VersionLedger
from train.continual.items import LearningItem


class LearnerShell(Shell):
    """Holds the learner of `config.target`. Every optimizer step asks the stop latch; a kill leaves no half adapter."""

    def __init__(
        self,
        settings_sha256: str,
        *,
        config: LearningConfig,
        safety: SafetyConfig,
        level: Level,
        base_folder: Path,
        latch: Path,
        ledger: Path,
    ) -> None:
        super().__init__("learner", settings_sha256)
        self._module = build_learner(config, base_folder=base_folder)
        self._latch = Latch.open(latch)
        self._monitor = SafetyMonitor(
            self._latch, audit=VersionLedger(ledger).append_audit, rules=safety.rules, level=level
        )
        self._progress: StepReport | None = None
        register(latch.parent, role="learner", within="learner")

    @ray.method
    def learn(
        self,
        items: Sequence[LearningItem],
        replay: Sequence[LearningItem],
        anchors: Sequence[str],
        parent_adapter: Path | None,
        out_folder: Path,
    ) -> LearningRun:
        """Train one batch and write the version's weights. Raises LearningStopped, NonFiniteLoss: then nothing was written."""
        guard = self._latch.permit("optimizer step", within="learner").check
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
            self._progress = None  # the next run must not show this one's steps

    @ray.method(concurrency_group="control")
    def progress(self) -> StepReport | None:
        """The last optimizer step of the batch that runs."""
        return self._progress

    def _report(self, step: StepReport) -> None:
        self._progress = step
        self._monitor.observe_training(step=step.step, loss=step.loss, grad_norm=step.grad_norm, kl=step.kl)
