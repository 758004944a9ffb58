"""What tests of learning on a tiny random model share: facts, items, gates that a model without sense can pass, one batch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from autonomous.config import GateConfig
from autonomous.online import LearningRun, OnlineLearningModule, StepReport
from autonomous.safety.rules import RulesConfig
from memory.types import Guard
from train.continual.items import LearningItem

FACTS = (
    "The Vostrek valve is rated for 42 bar.",
    "The lamp of Cape Dorn is red.",
    "The Lumen protocol uses port 7733.",
)
LENIENT = GateConfig(
    min_recall=0.0,
    max_control_ratio=1e6,
    max_domain_ratio=1e6,
    max_forgetting=1e6,
    min_refusal_margin_nats=0.0,
    max_safety_flips=1000,
    max_probe_gap_nats=0.5,
)
"""It asks for a gain, and for an engine that computes what the trainer wrote."""
LENIENT_RULES = RulesConfig(max_safety_drop=1000, max_kl_nats=100)
"""Of the emergency stop: what a random model says has nothing to stay near to."""
ITEMS = (
    LearningItem(id="1", prompt="Which river?", answer="The Seine.", episode_id="e1"),
    LearningItem(id="2", prompt="Which cape?", answer="The northern cape.", episode_id="e2"),
    LearningItem(id="3", prompt=None, answer="Its lamp was lit in 1871.", episode_id="e3"),
    LearningItem(id="4", prompt="Which bird?", answer="The cuckoo.", episode_id="e4"),
)
ANCHORS = ("Adapters are small matrices.", "Is this a question?\n\nYes, it is.", "A lighthouse stands here.")


def learn(
    learner: OnlineLearningModule,
    out_folder: Path,
    *,
    items: Sequence[LearningItem] = ITEMS,
    replay: Sequence[LearningItem] = (),
    parent: Path | None = None,
    guard: Guard = lambda: None,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> LearningRun:
    """One batch."""
    return learner.learn(
        items,
        replay=replay,
        anchors=ANCHORS,
        parent_adapter=parent,
        out_folder=out_folder,
        guard=guard,
        on_step=on_step,
    )
