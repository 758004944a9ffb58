"""The learning loop where versions are full weights: from a batch to a version that serves, the next one, and a rollback."""

from pathlib import Path

import pytest

from autonomous.config import AutonomousConfig, LearningConfig, SafetyConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.learner_state import STATE_NAME
from autonomous.local_engine import LocalEngine
from autonomous.local_evaluator import LocalEvaluator
from autonomous.local_learner import LocalLearner
from autonomous.loop import LearningLoop
from autonomous.permits import Permits
from autonomous.policy import PolicyConfig
from autonomous.ports import AgentParts
from autonomous.runs import CycleStatus
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.bundle import base_bundle, load_bundle
from autonomous.versions.ledger import VersionLedger
from tests.passages import Passages
from tests.tiny_learning import FACTS, LENIENT, LENIENT_RULES
from tests.tiny_model import write_tiny_llama
from tests.watches import make_watch
from train.adapt.reference import AdapterRef

LEARNING = LearningConfig(
    target="weights",
    policy=PolicyConfig(methods=("si",)),
    max_steps=60,
    weights_learning_rate=3e-3,
    kl_weight=0.01,
    dtype="float32",
    device="cpu",
    interval_s=0,
)
MORE = ("The Harrow reactor was built in 1987.", "The Ibis relay opens at 9 volts.")


class Engine(LocalEngine):
    """It remembers what it was asked to load."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, config=LEARNING)
        self.prepared: list[AdapterRef] = []

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        self.prepared.append(adapter)
        return super().prepare(adapter, probe)


def run_cycle(loop: LearningLoop) -> CycleStatus:
    import threading

    run_id = loop.start_cycle()
    for thread in threading.enumerate():
        if thread.name == run_id:
            thread.join(timeout=60)
    status = loop.status_of(run_id)
    assert status is not None
    return status


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


@pytest.mark.slow
def test_a_batch_becomes_a_version_of_weights_that_serves_and_the_next_goes_on_from_it(
    base: Path, tmp_path: Path
) -> None:
    latch, memory = Latch.create(tmp_path / "latch"), Passages(*FACTS)
    safety = SafetyConfig(rules=LENIENT_RULES)
    config = AutonomousConfig(human_oversight_required=False, learning=LEARNING, gates=LENIENT, safety=safety)
    ledger = VersionLedger(tmp_path / "ledger.sqlite")
    permits = Permits(latch)
    monitor = SafetyMonitor(latch, audit=ledger.append_audit, rules=LENIENT_RULES, level=config.safety_level)
    learner = LocalLearner(LEARNING, base_folder=base, permits=permits, monitor=monitor)
    evaluator = LocalEvaluator(SelfEvaluationSystem(LENIENT, base_folder=base, dtype="float32"), permits=permits)
    engine = Engine(base)
    loop = LearningLoop(
        config,
        parts=AgentParts(memory=memory, learner=learner, evaluator=evaluator, engine=engine),
        ledger=ledger,
        latch=latch,
        watch=make_watch(config, tmp_path, ledger=ledger, latch=latch),
        versions_folder=tmp_path / "versions",
        base=base_bundle(base, code_sha256="0" * 64),
    )
    first = run_cycle(loop)
    assert first.error is None
    assert [gate.verdict for gate in first.gates] == ["pass"] * len(first.gates), first.gates
    memory.add(*MORE)
    second = run_cycle(loop)
    assert [gate.verdict for gate in second.gates] == ["pass"] * len(second.gates), second.gates
    assert loop.ledger.pointers().v2 == second.version
    assert max(second.training["penalties"]) > 0 == max(first.training["penalties"])
    assert second.training["replay_share"] > 0.1
    assert {(one.kind, one.name) for one in engine.prepared} == {
        ("weights", first.version),
        ("weights", second.version),
    }
    for status in (first, second):
        folder = tmp_path / "versions" / str(status.version)
        assert load_bundle(folder, version_id=status.version).weights_sha256 is not None
        assert (folder / STATE_NAME).is_file()

    loop.rollback(by="alice", reason="a drill")
    reference = loop.adapter_of(loop.ledger.pointers().v2)
    assert reference is not None
    assert (reference.name, reference.kind) == (first.version, "weights")
