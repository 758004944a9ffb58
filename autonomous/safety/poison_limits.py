"""PoisonLimits: how much of what looks like poison is borne at each level of safety, and what a finding says.

Apart from poison.py, which hashes texts, because every process reads the configuration.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from autonomous.safety.screen import Level

CONTRADICTION, SOURCE, FLOODING, CROWD, BURST = (
    "poison.contradiction", "poison.source", "poison.flooding", "poison.crowd", "poison.burst",
)  # fmt: skip


class PoisonConfig(BaseModel):
    """What counts as the same words and as sudden. How much is borne depends on `agent.safety_level` (LIMITS)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    near_identical: float = Field(0.6, gt=0, le=1)
    """Passages that share so much of their wording (Jaccard of 3-word shingles) are one voice."""
    burst_window_s: float = Field(3600.0, gt=0)
    """Sources that say one thing within so many seconds, and nobody before them, are a burst."""


@dataclass(frozen=True, slots=True)
class PoisonLimits:
    """How much one level of safety bears. None: not looked at."""

    trusted: int
    """A statement is held if so many independent trusted sources contradict it,"""
    standard: int
    """or so many of standard trust or better."""
    repeats: int | None
    """Most passages that say one thing in nearly the same words."""
    crowd: int | None
    """Most sources that say one thing in nearly the same words."""
    burst: int | None
    """Most sources that say one thing for the first time within `burst_window_s`."""
    source_facts: int | None
    """All that a source says in a batch is held if so many of its statements contradict others,"""
    source_share: float = 0.34
    """and if they are such a share of those that could."""


LIMITS: "dict[Level, PoisonLimits]" = {
    "high": PoisonLimits(trusted=1, standard=1, repeats=4, crowd=2, burst=6, source_facts=3),
    "medium": PoisonLimits(trusted=1, standard=2, repeats=8, crowd=4, burst=10, source_facts=5),
    "low": PoisonLimits(trusted=1, standard=3, repeats=None, crowd=None, burst=None, source_facts=None),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a passage is not learned: the rule, what was measured against which threshold, and what a person can do."""

    rule: str
    value: float
    threshold: float
    fix: str
