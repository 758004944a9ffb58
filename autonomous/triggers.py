"""Triggers: what benchmarks say should be learned again. A pure function of their history.

In: benchmark reports, oldest first. Out: triggers with their evidence; whoever schedules learning decides what they lead to.
Three rules look at the newest report: a score fell below its best, a domain's loss rose (drift), a share is below its floor.
Each needs confidence, over all metrics together (Holm): chance alone would pull a trigger with one metric in twenty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autonomous.benchmark_report import BenchmarkReport, MetricScores
from autonomous.statistics import MIN_PAIRS, as_floats, bootstrap_p_value, holm

TriggerKind = Literal["fall", "drift", "floor"]


class TriggerConfig(BaseModel):
    """When a benchmark starts learning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_fall_share: float = Field(0.05, ge=0, le=1)
    """Of a share (recall, instructions, refusals, reviews): so far below its best is a fall."""
    min_fall_nats: float = Field(0.1, ge=0)
    """Of a margin: so far below its best, nats per token, is a fall."""
    min_rise_nats: float = Field(0.1, ge=0)
    """Of a loss: so far above its best, nats per token, is drift. 0.1 is 10 % more perplexity, the gates' limit for a step."""
    floors: dict[str, float] = {"recall": 0.5}
    """Least shares by metric. recall: the gate's own threshold; below it versions would not have been promoted."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, over all metrics together."""
    bootstrap_samples: int = Field(2000, ge=200)
    """Resamples of a paired bootstrap."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """Something to learn again. `reference` is the version whose score is fallen short of; None for a floor."""

    kind: TriggerKind
    metric: str
    version: str
    reference: str | None
    value: float
    """The newest mean."""
    best: float
    """What it should be: the best mean on the same items, or the floor."""
    num_items: int
    p_value: float
    """Adjusted by Holm's method over the metrics that this rule looked at."""
    reason: str

    @property
    def key(self) -> str:
        """The same trigger has the same key."""
        return f"{self.version}/{self.metric}/{self.kind}"


def decide_triggers(history: Sequence[BenchmarkReport], config: TriggerConfig) -> list[Trigger]:
    """What the newest report shows against those before it. Without a report nothing is triggered."""
    if not history:
        return []
    newest = history[-1]
    found = [fall for metric in newest.metrics if (fall := _fall(metric, newest, history[:-1], config))]
    found_floors = [floor for metric in newest.metrics if (floor := _floor(metric, newest, config))]
    return [*_confident(found, config), *_confident(found_floors, config)]


def _fall(
    metric: MetricScores, newest: BenchmarkReport, earlier: Sequence[BenchmarkReport], config: TriggerConfig
) -> Trigger | None:
    """The metric against the report in which the same items did best; None where nothing compares."""
    sign = -1.0 if metric.kind == "loss" else 1.0
    now = dict(zip(metric.items, metric.candidate, strict=True))
    best: tuple[float, BenchmarkReport, list[tuple[float, float]]] | None = None
    for report in earlier:
        then = report.metric(metric.name)
        if then is None or then.kind != metric.kind:
            continue
        before = dict(zip(then.items, then.candidate, strict=True))
        pairs = [(before[item], now[item]) for item in metric.items if item in before]
        if len(pairs) >= MIN_PAIRS:
            lead = sign * sum(old - new for old, new in pairs) / len(pairs)
            if best is None or lead > best[0]:
                best = (lead, report, pairs)
    if best is None:
        return None
    _, report, pairs = best
    falls = as_floats(sign * (old - new) for old, new in pairs)
    kind: TriggerKind = "drift" if metric.kind == "loss" else "fall"
    threshold = {"loss": config.min_rise_nats, "margin": config.min_fall_nats, "share": config.min_fall_share}
    value, was = sum(new for _, new in pairs) / len(pairs), sum(old for old, _ in pairs) / len(pairs)
    return Trigger(
        kind=kind,
        metric=metric.name,
        version=newest.version,
        reference=report.version,
        value=value,
        best=was,
        num_items=len(pairs),
        p_value=bootstrap_p_value(falls, above=threshold[metric.kind], samples=config.bootstrap_samples),
        reason=f"{metric.name} is {value:.3f} and was {was:.3f} in {report.version}, over {len(pairs)} items",
    )


def _floor(metric: MetricScores, newest: BenchmarkReport, config: TriggerConfig) -> Trigger | None:
    floor = config.floors.get(metric.name)
    if floor is None or metric.kind != "share" or len(metric.candidate) < MIN_PAIRS:
        return None
    value, num_items = sum(metric.candidate) / len(metric.candidate), len(metric.candidate)
    return Trigger(
        kind="floor",
        metric=metric.name,
        version=newest.version,
        reference=None,
        value=value,
        best=floor,
        num_items=num_items,
        p_value=_p_below(round(sum(metric.candidate)), num_items, floor=floor),
        reason=f"{metric.name} is {value:.3f} over {num_items} items, the floor is {floor}",
    )


def _p_below(num_hits: int, num_trials: int, *, floor: float) -> float:
    """Exact probability of so few hits or fewer where the share is the floor."""
    return sum(
        math.comb(num_trials, hits) * floor**hits * (1 - floor) ** (num_trials - hits) for hits in range(num_hits + 1)
    )


def _confident(found: Sequence[Trigger], config: TriggerConfig) -> list[Trigger]:
    adjusted = holm([trigger.p_value for trigger in found])
    return [
        replace(trigger, p_value=p_value)
        for trigger, p_value in zip(found, adjusted, strict=True)
        if p_value <= 1 - config.confidence
    ]
