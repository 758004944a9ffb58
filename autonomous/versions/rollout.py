"""Rollout: a version that passed its gates meets users, step by step, and leaves when it serves them worse.

Pure. In: how requests ended, counted by version (an arm), and where the rollout stands. Out: a decision with a gate's three
values: G7 (canary: beside production, on a share of the users) and G8 (soak: after the promotion, against its predecessor).

Errors, slow answers and masked answers are shares of requests, so one always-valid interval (confidence.py) judges all
three at any time. An arm fails when its share is surely beyond the limit and surely worse than the other's: when the whole
machine is slow, no version is to blame. It passes when it is surely no worse than the other by more than `max_excess`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from autonomous.config import RolloutConfig
from autonomous.versions.confidence import Interval, always_valid_interval
from autonomous.versions.gates import GateResult, Verdict

CANARY = "G7 canary"
SOAK = "G8 soak"
MAX_ALONE = 0.5
"""An arm whose requests surely fail more often than not fails without another arm to compare it with."""
METRICS = ("errors", "slow answers", "masked answers")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. `version` answered it, or would have; `seconds` from its arrival to its end."""

    version: str
    seconds: float
    is_error: bool = False
    is_masked: bool = False


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """Requests of one version, and how many of them ended badly."""

    num_requests: int = 0
    num_errors: int = 0
    num_slow: int = 0
    num_masked: int = 0

    def plus(self, outcomes: Iterable[Outcome], *, slow_s: float) -> "ArmCounts":
        """With these requests too."""
        rows = list(outcomes)
        return ArmCounts(
            num_requests=self.num_requests + len(rows),
            num_errors=self.num_errors + sum(row.is_error for row in rows),
            num_slow=self.num_slow + sum(row.seconds > slow_s for row in rows),
            num_masked=self.num_masked + sum(row.is_masked for row in rows),
        )

    def of(self, metric: str) -> int:
        """Requests that ended badly in this way."""
        return {"errors": self.num_errors, "slow answers": self.num_slow, "masked answers": self.num_masked}[metric]


class Move(StrEnum):
    """What a canary does next."""

    STAY = "stay"
    STEP = "step"
    PROMOTE = "promote"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class CanaryDecision:
    """A move and why. `percent` is the share after a step."""

    move: Move
    gate: GateResult
    percent: float = 0.0


def compare_arms(name: str, arm: ArmCounts, other: ArmCounts, config: RolloutConfig) -> GateResult:
    """Whether one arm serves worse than another. fail: surely; pass: surely not by more than `max_excess`."""
    verdicts = [_compare(name, metric, arm, other, config) for metric in METRICS]
    for wanted in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if found := [gate for gate in verdicts if gate.verdict is wanted]:
            return found[0]
    told = "; ".join(gate.reason for gate in verdicts)
    return GateResult(name, Verdict.PASS, max(gate.value or 0.0 for gate in verdicts), config.max_excess, told)


def decide_canary(
    canary: ArmCounts, control: ArmCounts, *, percent: float, at_step: int, elapsed_s: float, config: RolloutConfig
) -> CanaryDecision:
    """What a canary of this share does next. `at_step` counts its requests since the share was set; times in seconds."""
    gate = compare_arms(CANARY, canary, control, config)
    if gate.verdict is Verdict.FAIL:
        return CanaryDecision(Move.WITHDRAW, gate)
    later = [step for step in config.canary_percents if step > percent]
    if later and at_step >= config.min_requests:
        return CanaryDecision(Move.STEP, gate, later[0])
    if not later and at_step >= config.min_requests and gate.verdict is Verdict.PASS:
        return CanaryDecision(Move.PROMOTE, gate)
    if elapsed_s > config.max_canary_s:
        told = f"undecided after {elapsed_s / 3600:.1f} hours with {canary.num_requests} requests: {gate.reason}"
        return CanaryDecision(Move.WITHDRAW, GateResult(CANARY, Verdict.INCONCLUSIVE, gate.value, gate.threshold, told))
    return CanaryDecision(Move.STAY, gate)


def decide_soak(
    production: ArmCounts, predecessor: ArmCounts, *, elapsed_s: float, config: RolloutConfig
) -> GateResult | None:
    """The verdict on a new production: fail at once, the others when `soak_s` is over; None until then.

    `predecessor` counts the requests of the version before it while that served.
    """
    gate = compare_arms(SOAK, production, predecessor, config)
    return gate if gate.verdict is Verdict.FAIL or elapsed_s >= config.soak_s else None


def _compare(name: str, metric: str, arm: ArmCounts, other: ArmCounts, config: RolloutConfig) -> GateResult:
    limit = {
        "errors": config.max_error_rate,
        "slow answers": config.max_slow_share,
        "masked answers": config.max_masked_share,
    }[metric]
    own, others = (_interval(counts, metric, config) for counts in (arm, other))
    excess = own.high - others.low
    told = (
        f"{metric}: {arm.of(metric)} of {arm.num_requests}, against {other.of(metric)} of {other.num_requests}; "
        f"surely {own.low:.3f} to {own.high:.3f} against {others.low:.3f} to {others.high:.3f}"
    )
    if metric == "errors" and own.low > MAX_ALONE:
        return GateResult(name, Verdict.FAIL, own.low, MAX_ALONE, told)
    if other.num_requests and own.low > limit and own.low > others.high:
        return GateResult(name, Verdict.FAIL, own.low, limit, told)
    if arm.num_requests and other.num_requests and excess <= config.max_excess:
        return GateResult(name, Verdict.PASS, excess, config.max_excess, told)
    return GateResult(name, Verdict.INCONCLUSIVE, excess, config.max_excess, f"{told}: too few requests to be sure")


def _interval(counts: ArmCounts, metric: str, config: RolloutConfig) -> Interval:
    """By Bonferroni over the metrics and both arms."""
    confidence = 1 - (1 - config.confidence) / (2 * len(METRICS))
    return always_valid_interval(counts.of(metric), counts.num_requests, confidence=confidence)
