"""A home and the learning loop in it, with the learner, evaluator and engine of an agent of one process."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autonomous.budget import BudgetConfig
from autonomous.config import AutonomousConfig, GateConfig, LearningConfig, SafetyConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.local_engine import LocalEngine
from autonomous.local_evaluator import LocalEvaluator
from autonomous.local_learner import LocalLearner
from autonomous.loop import LearningLoop
from autonomous.permits import Permits
from autonomous.ports import AgentParts
from autonomous.runs import CycleStatus, StepReport
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.bundle import base_bundle
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.report import EvaluationReport
from tests.passages import Passages
from tests.tiny_learning import LENIENT_RULES
from tests.watches import make_watch
from train.adapt.reference import AdapterRef

LEARNING = LearningConfig(
    max_steps=60, items_per_step=8, learning_rate=1e-2, kl_weight=0.01, dtype="float32", device="cpu", interval_s=0
)
UNLIMITED = BudgetConfig()
STRICT = GateConfig(max_control_ratio=1.0001)


class Learner(LocalLearner):
    """`hold` holds it at a step while it is not set."""

    def __init__(self, base: Path, *, latch: Latch, monitor: SafetyMonitor) -> None:
        super().__init__(LEARNING, base_folder=base, permits=Permits(latch), monitor=monitor)
        self.hold = threading.Event()
        self.hold.set()
        self.is_training = threading.Event()
        self.steps: list[StepReport] = []

    def _report(self, step: StepReport) -> None:
        super()._report(step)
        self.steps.append(step)
        self.is_training.set()
        self.hold.wait()


class Evaluator(LocalEvaluator):
    """It `fails` as one that was killed, and leaves gates open while it `sees_nothing`."""

    fails = False
    sees_nothing = False

    def evaluate(self, candidate: Path, **arguments: Any) -> EvaluationReport:
        if self.fails:
            raise OSError("the evaluator was killed")
        report = super().evaluate(candidate, **arguments)
        return replace(report, told_secrets=None) if self.sees_nothing else report


class Engine(LocalEngine):
    """It remembers what is loaded."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, config=LEARNING)
        self.loaded: set[str] = set()

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        self.loaded.add(adapter.name)
        return super().prepare(adapter, probe)

    def drop(self, adapter: AdapterRef) -> None:
        self.loaded.discard(adapter.name)


class World:
    """A home, and the agent in it, which can be started again."""

    def __init__(
        self,
        home: Path,
        base: Path,
        *,
        gates: GateConfig,
        oversight: bool = False,
        budget: BudgetConfig = UNLIMITED,
    ) -> None:
        self._home = home
        self._base = base
        self._config = AutonomousConfig(
            human_oversight_required=oversight,
            learning=LEARNING,
            gates=gates,
            budget=budget,
            safety=SafetyConfig(two_people=False, rules=LENIENT_RULES),
        )
        self.memory = Passages()
        self.latch = Latch.create(home / "latch")
        monitor = SafetyMonitor(
            self.latch, audit=lambda *_, **__: None, rules=LENIENT_RULES, level=self._config.safety_level
        )
        self.learner = Learner(base, latch=self.latch, monitor=monitor)
        system = SelfEvaluationSystem(gates, base_folder=base, dtype="float32")
        self.evaluator = Evaluator(system, permits=Permits(self.latch))
        self.engine = Engine(base)
        self.late_s = 0.0
        self.agent = self.start()

    def start(self) -> LearningLoop:
        ledger = VersionLedger(self._home / "ledger.sqlite", clock=self.clock)
        return LearningLoop(
            self._config,
            parts=AgentParts(memory=self.memory, learner=self.learner, evaluator=self.evaluator, engine=self.engine),
            ledger=ledger,
            latch=self.latch,
            watch=make_watch(self._config, self._home, ledger=ledger, latch=self.latch, clock=self.clock),
            versions_folder=self._home / "versions",
            base=base_bundle(self._base, code_sha256="0" * 64),
            clock=self.clock,
        )

    def clock(self) -> float:
        return time.time() + self.late_s

    def learn(self) -> CycleStatus:
        return self.wait(self.agent.start_cycle())

    def wait(self, run_id: str) -> CycleStatus:
        for thread in threading.enumerate():
            if thread.name == run_id:
                thread.join(timeout=60)
        status = self.agent.status_of(run_id)
        assert status is not None
        return status
