"""What a benchmark measured and proves: scores by item of a version, of V2 and of the frozen original, and comparisons.

In: paired scores. Out: per metric and reference better, worse or undecided; JSON. Nothing is decided about the version here:
people read it, and autonomous.triggers compares it with earlier ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from statistics import median
from typing import Any, Literal, cast

from autonomous.statistics import (
    MIN_PAIRS,
    as_floats,
    bootstrap_lower_bound,
    bootstrap_p_value,
    bootstrap_upper_bound,
    holm,
    items_needed,
    sign_test,
    wilson_interval,
)
from autonomous.versions.audit import plain, sha256_of

Kind = Literal["loss", "margin", "share"]
"""loss: nats per token, lower is better. margin: nats per token, higher is better. share: 0 or 1, higher is better."""
Against = Literal["V2", "original"]
FORMAT = 1
"""Of the JSON; a newer one is refused."""


class Outcome(StrEnum):
    """Of a metric against a reference, with a family-wise error over all metrics."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class MetricScores:
    """Scores of the same items. `current` is V2's, empty where V2 is the version itself or the original."""

    name: str
    kind: Kind
    items: tuple[str, ...]
    candidate: tuple[float, ...]
    current: tuple[float, ...]
    original: tuple[float, ...]

    def of(self, against: Against) -> tuple[float, ...]:
        """The reference's scores."""
        return self.current if against == "V2" else self.original

    def gains(self, against: Against) -> list[float]:
        """By item, above 0 where the candidate is better."""
        sign = -1.0 if self.kind == "loss" else 1.0
        pairs = zip(self.candidate, self.of(against), strict=True)
        return [sign * (candidate - reference) for candidate, reference in pairs]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric against a reference. `gain` and its one-sided bounds are above 0 where the candidate is better; p values are
    adjusted by Holm's method over the metrics compared with this reference.
    """

    metric: str
    against: Against
    num_items: int
    candidate: float
    reference: float
    gain: float
    lower: float
    upper: float
    p_better: float
    p_worse: float
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds to the first token and tokens per second of the evaluator's own copy, measured in turns with the original."""

    first_token_s: tuple[float, ...]
    first_token_s_original: tuple[float, ...]
    tokens_per_s: tuple[float, ...]
    tokens_per_s_original: tuple[float, ...]

    @property
    def first_token_ratio(self) -> float:
        """Of the medians, over the original's: above 1 is slower."""
        return median(self.first_token_s) / median(self.first_token_s_original)

    @property
    def rate_ratio(self) -> float:
        """Of the medians, over the original's: below 1 is slower."""
        return median(self.tokens_per_s) / median(self.tokens_per_s_original)


@dataclass(frozen=True)
class BenchmarkReport:
    """One benchmark of one version. Times in seconds; `created_at` since the epoch."""

    version: str
    current: str | None
    """V2 when it was made; None where that is the original or the version itself."""
    created_at: float
    seconds: float
    confidence: float
    metrics: tuple[MetricScores, ...]
    comparisons: tuple[Comparison, ...]
    latency: Latency | None
    suites_sha256: str
    code_sha256: str
    rotation: str

    def metric(self, name: str) -> MetricScores | None:
        """By name."""
        return next((one for one in self.metrics if one.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": FORMAT, **cast("dict[str, Any]", plain(asdict(self)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BenchmarkReport":
        """What `to_dict` gave. Raises ValueError for one of a newer program, or with fields that are missing."""
        if values.get("format") != FORMAT:
            raise ValueError(
                f"benchmark report has format {values.get('format')!r}, this program reads {FORMAT}: upgrade, or run the "
                "benchmark again"
            )
        named = {name: value for name, value in values.items() if name != "format"}
        known = {item.name for item in fields(cls)}
        if wrong := sorted(set(named) ^ known):
            raise ValueError(f"benchmark report has other fields than this program knows: {wrong}; run it again")
        metrics = tuple(
            MetricScores(
                name=one["name"],
                kind=one["kind"],
                **{key: tuple(one[key]) for key in ("items", "candidate", "current", "original")},
            )
            for one in named["metrics"]
        )
        comparisons = tuple(Comparison(**{**one, "outcome": Outcome(one["outcome"])}) for one in named["comparisons"])
        latency = named["latency"] and Latency(**{name: tuple(value) for name, value in named["latency"].items()})
        return cls(**{**named, "metrics": metrics, "comparisons": comparisons, "latency": latency})

    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        return sha256_of(self.to_dict())


def compare(metrics: Sequence[MetricScores], *, against: Against, confidence: float, samples: int) -> list[Comparison]:
    """Each metric that the reference was asked, with p values adjusted over all of them.

    Shares by the exact sign test (McNemar's), the others by the paired bootstrap. Raises ValueError for scores that are not
    finite: a benchmark of a broken model proves nothing.
    """
    asked = [one for one in metrics if len(one.of(against)) >= MIN_PAIRS]
    p_values = [_p_values(one, against, samples=samples) for one in asked]
    better, worse = (holm([pair[side] for pair in p_values]) for side in (0, 1))
    return [
        _compare_one(one, against, p_better=p_better, p_worse=p_worse, confidence=confidence, samples=samples)
        for one, p_better, p_worse in zip(asked, better, worse, strict=True)
    ]


def interval_of(scores: Sequence[float], *, kind: Kind, confidence: float, samples: int) -> tuple[float, float]:
    """Two-sided interval of the mean: Wilson's for shares, else the bootstrap's."""
    if kind == "share":
        return wilson_interval(round(sum(scores)), len(scores), confidence=confidence)
    one_sided = (1 + confidence) / 2
    return (
        bootstrap_lower_bound(scores, confidence=one_sided, samples=samples),
        bootstrap_upper_bound(scores, confidence=one_sided, samples=samples),
    )


def _p_values(metric: MetricScores, against: Against, *, samples: int) -> tuple[float, float]:
    gains = as_floats(metric.gains(against))
    if not all(map(math.isfinite, gains)):
        raise ValueError(f"a score of {metric.name} is not finite: evaluate the version first, its gates say why")
    if metric.kind == "share":
        num_gained, num_lost = int((gains > 0).sum()), int((gains < 0).sum())
        return sign_test(num_gained, num_lost), sign_test(num_lost, num_gained)
    return (
        bootstrap_p_value(gains, above=0.0, samples=samples),
        bootstrap_p_value(-gains, above=0.0, samples=samples),
    )


def _compare_one(
    metric: MetricScores, against: Against, *, p_better: float, p_worse: float, confidence: float, samples: int
) -> Comparison:
    gains = metric.gains(against)
    gain = sum(gains) / len(gains)
    alpha = 1 - confidence
    outcome = Outcome.BETTER if p_better <= alpha else Outcome.WORSE if p_worse <= alpha else Outcome.UNDECIDED
    return Comparison(
        metric=metric.name,
        against=against,
        num_items=len(gains),
        candidate=sum(metric.candidate) / len(gains),
        reference=sum(metric.of(against)) / len(gains),
        gain=gain,
        lower=bootstrap_lower_bound(gains, confidence=confidence, samples=samples),
        upper=bootstrap_upper_bound(gains, confidence=confidence, samples=samples),
        p_better=p_better,
        p_worse=p_worse,
        outcome=outcome,
        reason=_tell(metric, gains, gain, outcome, confidence=confidence, samples=samples),
    )


def _tell(
    metric: MetricScores, gains: list[float], gain: float, outcome: Outcome, *, confidence: float, samples: int
) -> str:
    if metric.kind == "share":
        told = f"{sum(one > 0 for one in gains)} gained, {sum(one < 0 for one in gains)} lost of {len(gains)} items"
    else:
        told = f"{gain:+.3f} nats per token over {len(gains)} items"
    if outcome is not Outcome.UNDECIDED:
        return told
    if not any(gains):
        return f"{told}; no item differs"
    needed = items_needed(gains, threshold=0.0, confidence=confidence, samples=samples)
    return f"{told}; " + (
        f"about {needed:,} such items would decide" if needed and needed > len(gains) else "too few for so many metrics"
    )
