"""An agent of one process on a tiny model, three facts for it, and a person who approves."""

from pathlib import Path

from autonomous.agent import AutonomousLearningAgent
from autonomous.config import AutonomousConfig, LearningConfig, SafetyConfig
from tests.episodes import HashingEmbedder
from tests.tiny_learning import LENIENT, LENIENT_RULES

LEARNING = LearningConfig(
    max_steps=40, items_per_step=8, learning_rate=5e-3, kl_weight=0.5, dtype="float32", device="cpu", interval_s=0
)
CONFIG = AutonomousConfig(
    enable_online_learning=True,
    safety_level="high",
    human_oversight_required=True,
    learning=LEARNING,
    gates=LENIENT,
    safety=SafetyConfig(rules=LENIENT_RULES),
)
DOCUMENTS = [
    {"text": "The Vostrek valve is rated for 42 bar.", "title": "Vostrek valve", "source": "handbook"},
    {"text": "The lamp of Cape Dorn is red.", "title": "Cape Dorn", "source": "handbook"},
    {"text": "The Lumen protocol uses port 7733.", "title": "Lumen", "source": "handbook"},
]


def make_agent(base: Path, home: Path, config: AutonomousConfig = CONFIG) -> AutonomousLearningAgent:
    return AutonomousLearningAgent(base, config, home=home, embedder=HashingEmbedder())


async def approve(agent: AutonomousLearningAgent, version: str) -> None:
    report = agent.ledger.get(version).report_sha256
    await agent.approve(version, by="Ada", reason="read its report", report_sha256=report)
