"""The data gate: which passages of a batch go on to training, and which wait for a person.

In: a DataReport, which says what was measured of each passage (data_report.py), and the bounds. Out: BatchDecision. A passage
beyond a bound is held, with rule, value, threshold and fix; one of which something could not be measured is undecided: it is
neither learned nor put before a person, and is judged again next time. Pure.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from autonomous.safety.poison_limits import Finding, PoisonConfig
from memory.types import Episode, Trust

ORIGIN, GENERATED_ORIGIN = "origin", "generated"
"""Key of an episode's metadata: who wrote it; and its value for what the system wrote itself."""
PROVENANCE, LICENCE, SENSITIVE, DUPLICATE, LEAK, TRUST = (
    "provenance", "licence", "sensitive", "duplicate", "evaluation leak", "trust",
)  # fmt: skip
NEVER_RELEASED = frozenset({LEAK})
"""No person can let these pass: a version that has read its examination cannot be examined."""


class DataGateConfig(BaseModel):
    """Bounds of what may be learned (G0). The bounds of poison follow `agent.safety_level`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sensitive: int = Field(0, ge=0)
    """Personal data and secrets of one passage that cleaning left."""
    max_duplicate_share: float = Field(0.95, gt=0, le=1)
    """Share of a passage's wording (5-word shingles) that one other passage holds which states the same facts: in the batch,
    or learned. Product sheets that differ in a number state other facts, and are none."""
    licences: tuple[str, ...] = ()
    """Licences that a document's metadata may name (`licence`). Empty: any, and none."""
    min_sources: int = Field(1, ge=1)
    """Least distinct sources of a batch. The documents of a laptop mostly have one."""
    max_generated_share: float = Field(0.5, ge=0, lt=1)
    """Most passages of a batch that the system wrote itself, as their metadata say (`origin = generated`); others of them
    wait for documents of others. Models that are trained on their own text alone collapse (arXiv:2404.01413)."""
    min_label_agreement: float = Field(0.9, ge=0, le=1)
    """Least share of the things that a batch gives a value to which it gives one value."""
    max_belief_shift_nats: float = Field(0.1, ge=0)
    """G4: so much of a preference for the trusted answer a candidate may lose where it then prefers the other one, nats per
    answer token."""
    poison: PoisonConfig = PoisonConfig()


@dataclass(frozen=True, slots=True)
class EpisodeReport:
    """What was measured of one passage. None: it could not be."""

    episode_id: str
    source_id: str
    trust: Trust
    licence: str | None
    num_sensitive: int
    duplicate_share: float | None
    duplicate_of: str
    leaks: Mapping[str, int] | None
    """Word n-grams that it shares with evaluation items, by suite."""
    poison: tuple[Finding, ...] | None
    is_released: bool = False
    """A person has seen what was found and lets it be learned."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **asdict(self),
            "trust": int(self.trust),
            "leaks": None if self.leaks is None else dict(self.leaks),
            "poison": None if self.poison is None else [asdict(one) for one in self.poison],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EpisodeReport":
        """The report that `to_dict` gave."""
        poison = values["poison"]
        found = None if poison is None else tuple(Finding(**one) for one in poison)
        return cls(**{**values, "trust": Trust(values["trust"]), "poison": found})


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was measured of a batch. `label_agreement` None: nothing in it has a value."""

    episodes: tuple[EpisodeReport, ...] = ()
    label_agreement: float | None = None
    num_beliefs: int = 0
    """Facts of the memory that it was compared with."""
    suites_sha256: str = ""
    """Of the evaluation texts that were looked for."""
    probes: tuple[dict[str, Any], ...] = field(default=())
    """Questions on what the memory holds (safety/probes.py), to be asked of the candidate."""

    @property
    def num_sources(self) -> int:
        """Distinct sources."""
        return len({one.source_id for one in self.episodes})

    def with_released(self, ids: Collection[str]) -> "DataReport":
        """The report that knows which passages a person let pass."""
        rows = tuple(replace(one, is_released=one.episode_id in ids) for one in self.episodes)
        return replace(self, episodes=rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "episodes": [one.to_dict() for one in self.episodes],
            "label_agreement": self.label_agreement,
            "num_beliefs": self.num_beliefs,
            "suites_sha256": self.suites_sha256,
            "probes": [dict(one) for one in self.probes],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataReport":
        """The report that `to_dict` gave."""
        return cls(
            episodes=tuple(EpisodeReport.from_dict(one) for one in values["episodes"]),
            label_agreement=values["label_agreement"],
            num_beliefs=values["num_beliefs"],
            suites_sha256=values["suites_sha256"],
            probes=tuple(values["probes"]),
        )


@dataclass(frozen=True, slots=True)
class BatchDecision:
    """Ids of what may be learned, what is held with its findings, and what could not be judged with the reason."""

    accepted: tuple[str, ...]
    held: Mapping[str, tuple[Finding, ...]]
    undecided: Mapping[str, str]


def decide_batch(report: DataReport, config: DataGateConfig, *, is_whole: bool = True) -> BatchDecision:
    """Which passages go on. A whole batch of too few sources is undecided: it waits for others."""
    accepted: list[str] = []
    held: dict[str, tuple[Finding, ...]] = {}
    undecided: dict[str, str] = {}
    for one in report.episodes:
        if findings := find_beyond(one, config):
            held[one.episode_id] = findings
        elif unknown := find_unknown(one):
            undecided[one.episode_id] = unknown
        else:
            accepted.append(one.episode_id)
    sources = {one.source_id for one in report.episodes if one.episode_id in set(accepted)}
    if is_whole and accepted and len(sources) < config.min_sources:
        reason = f"{len(sources)} sources, and data.min_sources = {config.min_sources}: wait for documents of others"
        undecided |= dict.fromkeys(accepted, reason)
        accepted = []
    return BatchDecision(tuple(accepted), held, undecided)


def find_beyond(one: EpisodeReport, config: DataGateConfig) -> tuple[Finding, ...]:
    """The bounds that a passage is beyond. Of one that a person released, only those that nobody can release."""
    found = []
    if not one.source_id.strip():
        found.append(Finding(PROVENANCE, 0.0, 1.0, "it names no source: send the document again with one"))
    if one.trust < Trust.STANDARD:
        fix = "its source is not trusted: release it, or believe the source"
        found.append(Finding(TRUST, float(one.trust), float(Trust.STANDARD), fix))
    if config.licences and one.licence not in config.licences:
        told = f"licence {one.licence!r}" if one.licence else "no licence"
        fix = f"its metadata names {told}, and data.licences allows {', '.join(config.licences)}: send it with one of them"
        found.append(Finding(LICENCE, 0.0, 1.0, fix))
    if one.num_sensitive > config.max_sensitive:
        fix = "it holds personal data or secrets: remove them from the document and send it again"
        found.append(Finding(SENSITIVE, float(one.num_sensitive), float(config.max_sensitive), fix))
    if one.duplicate_share is not None and one.duplicate_share > config.max_duplicate_share:
        fix = f"it says what {one.duplicate_of} says: nothing is lost; release it to learn it all the same"
        found.append(Finding(DUPLICATE, round(one.duplicate_share, 4), config.max_duplicate_share, fix))
    for suite, num_shared in sorted((one.leaks or {}).items()):
        fix = f"it holds texts of the evaluation suite {suite!r}: erase the document"
        found.append(Finding(LEAK, float(num_shared), 0.0, fix))
    found.extend(one.poison or ())
    if one.is_released:
        found = [finding for finding in found if finding.rule in NEVER_RELEASED]
    return tuple(found)


def find_unknown(one: EpisodeReport) -> str:
    """What could not be measured of a passage; empty if all was."""
    if one.leaks is None:
        return "the evaluation texts could not be looked for: judge it again"
    if one.poison is None and not one.is_released:
        return "the memory has not read yet all that came before it: it is judged again in the next cycle"
    return ""


def is_generated(episode: Episode) -> bool:
    """Whether the system wrote a passage itself."""
    return episode.metadata.get(ORIGIN) == GENERATED_ORIGIN
