"""The learner actor: keeps the base model in memory and trains adapters on it, or copies of it, one batch at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from autonomous.config import LearningConfig, SafetyConfig
from autonomous.local_learner import LocalLearner
from autonomous.permits import Permits
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
        switch = Latch.open(latch)
        audit = VersionLedger(ledger).append_audit
        self._learner = LocalLearner(
            config,
            base_folder=base_folder,
            permits=Permits(switch),
            monitor=SafetyMonitor(switch, audit=audit, rules=safety.rules, level=level),
        )
        register(latch.parent, role="learner", within="learner")

    @ray.method
    def learn(self, items: Sequence[LearningItem], options: dict[str, Any]) -> LearningRun:
        """Train one batch and write the version's weights, with the options of LearnerPort.learn.

        Raises LearningStopped, NonFiniteLoss: then nothing was written.
        """
        return self._learner.learn(items, **options)

    @ray.method(concurrency_group="control")
    def progress(self) -> StepReport | None:
        """The last optimizer step of the batch that runs."""
        return self._learner.progress()

    @ray.method(concurrency_group="control")
    def num_tokens(self) -> int:
        """Tokens that the newest batch has trained on so far; 0 after a restart."""
        return self._learner.num_tokens()
