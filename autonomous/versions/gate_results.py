"""What a gate says, and the rule by which it says it.

The rule for three values: the estimate beyond the threshold fails; the estimate and its one-sided bound
(autonomous.statistics) within it pass; in between, and without data, it is inconclusive. A number of the candidate that is
not finite fails; one of the parent or the original is a broken measurement, so inconclusive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from autonomous.config import GateConfig
from autonomous.statistics import MIN_PAIRS, Floats, bootstrap_upper_bound, items_needed

DATA = "G0 data"
BELIEFS = "G4 beliefs"
"""Gates on what was learned (data_gates.py)."""


class Verdict(StrEnum):
    """No data, a crash or an early end is inconclusive, never a pass."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate's answer: what was measured (finite, or None), against which threshold, and a sentence for a person."""

    name: str
    verdict: Verdict
    value: float | None
    threshold: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "value": self.value,
            "threshold": self.threshold,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GateResult":
        """The result that `to_dict` gave."""
        return cls(
            name=values["name"],
            verdict=Verdict(values["verdict"]),
            value=values["value"],
            threshold=values["threshold"],
            reason=values["reason"],
        )


def three_valued(name: str, rises: Floats, threshold: float, config: GateConfig, what: str) -> GateResult:
    """Higher is worse: the mean beyond the threshold fails, the upper bound within it passes."""
    mean = float(rises.mean())
    upper = bootstrap_upper_bound(rises, confidence=config.confidence, samples=config.bootstrap_samples)
    told = f"{what}: mean {mean:.3f}, upper bound {upper:.3f} over {len(rises)} items"
    if mean > threshold:
        return make_result(name, Verdict.FAIL, mean, threshold, told)
    if upper <= threshold:
        return make_result(name, Verdict.PASS, upper, threshold, told)
    return make_result(name, Verdict.INCONCLUSIVE, upper, threshold, f"{told}; {tell_size(rises, threshold, config)}")


def tell_size(differences: Floats, threshold: float, config: GateConfig) -> str:
    """Why a bound does not decide, and how many items would."""
    needed = items_needed(
        differences, threshold=threshold, confidence=config.confidence, samples=config.bootstrap_samples
    )
    return (
        f"too few items to be sure: about {needed:,} such items would decide"
        if needed is not None
        else "the mean is at the threshold: no number of such items would decide"
    )


def worst_of(results: Sequence[GateResult]) -> GateResult:
    """The first failed, else the first inconclusive, else the passed one; of several the one with the highest value."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    return min(results, key=lambda result: (order.index(result.verdict), -(result.value or 0.0)))


def unusable(name: str, threshold: float, *, candidate: Floats, reference: Floats, what: str) -> GateResult | None:
    """The result where two paired lists cannot be compared; None where they can."""
    if not np.isfinite(candidate).all():
        return make_result(name, Verdict.FAIL, None, threshold, f"a loss of the candidate on the {what} is not finite")
    if len(candidate) != len(reference):
        reason = f"{len(candidate)} {what} of the candidate against {len(reference)} of the reference: evaluate again"
    elif not np.isfinite(reference).all():
        reason = f"a loss of the reference on the {what} is not finite: evaluate again"
    elif len(candidate) < MIN_PAIRS:
        reason = f"{len(candidate)} {what}: a bound needs at least {MIN_PAIRS}"
    else:
        return None
    return make_result(name, Verdict.INCONCLUSIVE, None, threshold, reason)


def make_result(name: str, verdict: Verdict, value: float | None, threshold: float | None, reason: str) -> GateResult:
    def finite(number: float | None) -> float | None:
        return number if number is not None and math.isfinite(number) else None

    return GateResult(name, verdict, finite(value), finite(threshold), reason)
