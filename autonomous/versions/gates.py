"""The gates: pure functions from an evaluation report to pass, fail or inconclusive, and the decision over all of them.

In: EvaluationReport (report.py) and the thresholds of GateConfig. Out: one GateResult per gate, by the rule of
gate_results.py. Bounds are the paired bootstrap of autonomous.statistics with a fixed seed, so that a report always gives the
same verdict. G0 and G4 are in gate_safety.py.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from autonomous.config import GateConfig
from autonomous.statistics import (
    MIN_PAIRS,
    Floats,
    as_floats,
    bootstrap_lower_bound,
    bootstrap_p_value,
    holm,
    sign_test,
)
from autonomous.versions.gate_results import (
    BELIEFS,
    DATA,
    GateResult,
    Verdict,
    make_result,
    tell_size,
    three_valued,
    unusable,
    worst_of,
)
from autonomous.versions.gate_safety import (
    LEAKS,
    SAFETY,
    SECRETS,
    SENTINEL_SAFETY,
    gate_leaks,
    gate_safety,
    gate_secrets,
    gate_sentinel_safety,
)
from autonomous.versions.report import EvaluationReport

__all__ = [
    "MIN_PAIRS",
    "REQUIRED_GATES",
    "Decision",
    "GateResult",
    "Verdict",
    "decide_gates",
    "decide_promotion",
    "gate_control",
    "gate_domains",
    "gate_forgetting",
    "gate_gain",
    "gate_leaks",
    "gate_probe_parity",
    "gate_recall",
    "gate_safety",
    "gate_secrets",
    "gate_sentinel_safety",
    "gate_training_health",
]

TRAINING = "G1 training health"
GAIN = "G2 gain"
RECALL = "G2 recall"
FORGETTING = "G3 forgetting"
CONTROL_BASE = "G3 control against the original"
CONTROL_PARENT = "G3 control against the parent"
DOMAINS_BASE = "G3 worst domain against the original"
DOMAINS_PARENT = "G3 worst domain against the parent"
PROBE = "G5 probe parity"
REQUIRED_GATES = (
    DATA,
    LEAKS,
    TRAINING,
    GAIN,
    RECALL,
    FORGETTING,
    CONTROL_BASE,
    CONTROL_PARENT,
    DOMAINS_BASE,
    DOMAINS_PARENT,
    SAFETY,
    SENTINEL_SAFETY,
    SECRETS,
    BELIEFS,
    PROBE,
)
"""A promotion needs each of them; one that was not asked counts as inconclusive."""


class Decision(StrEnum):
    """What follows from all gates."""

    GO = "go"
    QUARANTINE = "quarantine"
    PAUSE = "pause"


def decide_gates(report: EvaluationReport, config: GateConfig) -> list[GateResult]:
    """G0 to G4, from the report alone. G5 needs the engine: `gate_probe_parity`."""
    return [
        gate_leaks(report),
        gate_training_health(report),
        gate_gain(report, config),
        gate_recall(report, config),
        gate_forgetting(report, config),
        gate_control(report, config, against="original"),
        gate_control(report, config, against="parent"),
        gate_domains(report, config, against="original"),
        gate_domains(report, config, against="parent"),
        gate_safety(report, config),
        gate_sentinel_safety(report, config),
        gate_secrets(report, config),
    ]


def decide_promotion(gates: Sequence[GateResult]) -> Decision:
    """go: every required gate was asked and all passed. quarantine: one failed. pause: anything else."""
    if any(gate.verdict is Verdict.FAIL for gate in gates):
        return Decision.QUARANTINE
    is_complete = {gate.name for gate in gates}.issuperset(REQUIRED_GATES)
    return Decision.GO if is_complete and all(gate.verdict is Verdict.PASS for gate in gates) else Decision.PAUSE


def is_learned_too_little(gates: Sequence[GateResult]) -> bool:
    """Whether nothing speaks against a version but that it learned too little: no fault of its data."""
    left = {gate.name for gate in gates if gate.verdict is not Verdict.PASS}
    return bool(left) and left <= {GAIN, RECALL}


def gate_training_health(report: EvaluationReport) -> GateResult:
    """G1: every loss, gradient norm and KL is finite, and the loss ends below where it began (thirds of the run)."""
    training = report.training
    series = {name: as_floats(training.get(name) or ()) for name in ("losses", "grad_norms", "kls")}
    losses = series["losses"]
    third = max(1, len(losses) // 3)
    first, last = (float(losses[:third].mean()), float(losses[-third:].mean())) if len(losses) else (math.nan, math.nan)
    for name, values in series.items():
        if not np.isfinite(values).all():
            step = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
            return make_result(TRAINING, Verdict.FAIL, last, first, f"{name} is not finite at step {step}")
    if missing := [name for name, values in series.items() if len(values) == 0]:
        return make_result(
            TRAINING, Verdict.INCONCLUSIVE, last, first, f"no {', '.join(missing)} recorded: train again with them"
        )
    if not training.get("num_steps"):
        return make_result(TRAINING, Verdict.INCONCLUSIVE, last, first, "no optimizer step was taken")
    if len(losses) >= MIN_PAIRS and last >= first:
        return make_result(TRAINING, Verdict.FAIL, last, first, "the loss did not fall over the run, nats per token")
    return make_result(TRAINING, Verdict.PASS, last, first, "all finite, and the loss fell, nats per token")


def gate_gain(report: EvaluationReport, config: GateConfig) -> GateResult:
    """G2: the candidate answers the held-out questions better than its parent, nats per answer token.

    Gain is looked for in two metrics, the loss and the recall, so each counts at the level that Holm's method leaves it: with
    two ways to look better by chance, one at the full level would be found too often.
    """
    threshold = config.min_gain_nats
    candidate, parent = as_floats(report.question_nll_candidate), as_floats(report.question_nll_parent)
    if bad := unusable(GAIN, threshold, candidate=candidate, reference=parent, what="questions"):
        return bad
    gains = parent - candidate
    mean = float(gains.mean())
    p_values = [bootstrap_p_value(gains, above=threshold, samples=config.bootstrap_samples)]
    pairs = list(zip(report.recall_candidate, report.recall_parent, strict=False))
    if pairs:
        num_gained, num_lost = (sum(pair == which for pair in pairs) for which in ((True, False), (False, True)))
        p_values.append(sign_test(num_gained, num_lost))
    alpha = 1 - config.confidence
    num_left = sum(
        p_value >= p_values[0] for p_value in p_values
    )  # hypotheses that Holm has not rejected before this one
    lower = bootstrap_lower_bound(gains, confidence=1 - alpha / num_left, samples=config.bootstrap_samples)
    told = (
        f"mean gain {mean:.3f}, lower bound {lower:.3f} nats per answer token over {len(gains)} questions, "
        f"Holm's level over {len(p_values)} metrics"
    )
    if lower > threshold and holm(p_values)[0] <= alpha:
        return make_result(GAIN, Verdict.PASS, lower, threshold, told)
    if mean <= threshold:
        return make_result(GAIN, Verdict.FAIL, lower, threshold, told)
    reason = f"{told}; {tell_size(gains, threshold, config)}"
    return make_result(GAIN, Verdict.INCONCLUSIVE, lower, threshold, reason)


def gate_recall(report: EvaluationReport, config: GateConfig) -> GateResult:
    """G2: the candidate says enough of the learned facts, and no fewer than its parent."""
    threshold = config.min_recall
    num_candidate, num_parent = len(report.recall_candidate), len(report.recall_parent)
    if num_candidate == 0 or num_candidate != num_parent:
        reason = f"{num_candidate} answers of the candidate against {num_parent} of the parent: evaluate again"
        return make_result(RECALL, Verdict.INCONCLUSIVE, None, threshold, reason)
    candidate = sum(report.recall_candidate) / num_candidate
    parent = sum(report.recall_parent) / num_parent
    verdict = Verdict.PASS if candidate >= threshold and candidate >= parent else Verdict.FAIL
    told = f"{sum(report.recall_candidate)} of {num_candidate} facts, the parent {sum(report.recall_parent)}"
    return make_result(RECALL, verdict, candidate, threshold, told)


def gate_forgetting(report: EvaluationReport, config: GateConfig) -> GateResult:
    """G3: the worst domain of what the line has learned, by the relative rise of the loss.

    Below `forgetting_floor_nats` of parent loss the rise counts against the floor: a learned fact's loss is near zero,
    and a relative rise of nearly nothing says nothing.
    """
    threshold = config.max_forgetting
    if not report.earlier:
        return make_result(
            FORGETTING, Verdict.PASS, None, threshold, "no earlier lesson: nothing learned that could be forgotten"
        )
    results = [
        _gate_earlier(asked["domain"], asked["nll_candidate"], asked["nll_parent"], config) for asked in report.earlier
    ]
    return worst_of(results)


def _gate_earlier(
    domain: str, nll_candidate: Sequence[float], nll_parent: Sequence[float], config: GateConfig
) -> GateResult:
    threshold = config.max_forgetting
    candidate, parent = as_floats(nll_candidate), as_floats(nll_parent)
    what = f"questions of {domain}"
    if bad := unusable(FORGETTING, threshold, candidate=candidate, reference=parent, what=what):
        return bad
    rises = (candidate - parent) / max(float(parent.mean()), config.forgetting_floor_nats)
    return three_valued(FORGETTING, rises, threshold, config, f"relative rise of the loss on {domain}")


def gate_control(report: EvaluationReport, config: GateConfig, *, against: str) -> GateResult:
    """G3: perplexity on texts that nobody trained on, over that of the frozen original or of the parent.

    Against the original too, because a loss of 1 % per step passes for ever against the parent alone.
    """
    name, reference = (
        (CONTROL_BASE, report.control_nll_base)
        if against == "original"
        else (CONTROL_PARENT, report.control_nll_parent)
    )
    candidate, other = as_floats(report.control_nll_candidate), as_floats(reference)
    if bad := unusable(name, config.max_control_ratio, candidate=candidate, reference=other, what="control texts"):
        return bad
    return _gate_perplexity(name, candidate - other, config.max_control_ratio, config, against=against)


def gate_domains(report: EvaluationReport, config: GateConfig, *, against: str) -> GateResult:
    """G3: the same by domain; the worst decides, so that what is lost in one is not hidden by the others."""
    name = DOMAINS_BASE if against == "original" else DOMAINS_PARENT
    threshold = config.max_domain_ratio
    if not report.domains:
        reason = "no held-out texts by domain were scored: evaluate again"
        return make_result(name, Verdict.INCONCLUSIVE, None, threshold, reason)
    results = []
    for scores in report.domains:
        candidate = as_floats(scores["nll_candidate"])
        other = as_floats(scores["nll_base"] if against == "original" else scores["nll_parent"])
        what = f"texts of {scores['domain']}"
        bad = unusable(name, threshold, candidate=candidate, reference=other, what=what)
        results.append(
            bad or _gate_perplexity(name, candidate - other, threshold, config, against=against, what=f"{what}: ")
        )
    return worst_of(results)


def _gate_perplexity(
    name: str, rises: Floats, threshold: float, config: GateConfig, *, against: str, what: str = ""
) -> GateResult:
    logs = three_valued(name, rises, math.log(threshold), config, f"log perplexity over the {against}'s")
    ratio = math.exp(min(float(rises.mean()), 700.0))  # beyond it exp overflows
    told = f"{what}perplexity is {ratio:.3f} times the {against}'s; {logs.reason}"
    return make_result(name, logs.verdict, ratio, threshold, told)


def gate_probe_parity(report: EvaluationReport, replicas: Sequence[Sequence[float]], config: GateConfig) -> GateResult:
    """G5: each replica of the engine gives the probe text the log-probabilities that the trained adapter gives.

    `replicas` holds one list per replica, one number per token but the first. An engine that silently ignores an
    adapter answers as the base does, so each replica must also be nearer to the candidate than to the base.
    """
    threshold = config.max_probe_gap_nats
    candidate, base = as_floats(report.probe["candidate_logprobs"]), as_floats(report.probe["base_logprobs"])
    if len(candidate) == 0 or len(base) != len(candidate) or not replicas:
        reason = "no log-probabilities to compare: evaluate and load again"
        return make_result(PROBE, Verdict.INCONCLUSIVE, None, threshold, reason)
    if not np.isfinite(candidate).all():
        return make_result(PROBE, Verdict.FAIL, None, threshold, "a log-probability of the candidate is not finite")
    if not np.isfinite(base).all():
        reason = "a log-probability of the base is not finite: evaluate again"
        return make_result(PROBE, Verdict.INCONCLUSIVE, None, threshold, reason)
    results = [
        _gate_replica(f"replica {number}", as_floats(logprobs), candidate=candidate, base=base, threshold=threshold)
        for number, logprobs in enumerate(replicas)
    ]
    return worst_of(results)


def _gate_replica(replica: str, engine: Floats, *, candidate: Floats, base: Floats, threshold: float) -> GateResult:
    if len(engine) != len(candidate):
        verdict = Verdict.FAIL if len(engine) else Verdict.INCONCLUSIVE
        told = f"{replica} scored {len(engine)} tokens, the trainer {len(candidate)}"
        return make_result(PROBE, verdict, None, threshold, told)
    gap, gap_base = float(np.abs(engine - candidate).mean()), float(np.abs(engine - base).mean())
    if not gap <= threshold:  # so that a gap that is not a number fails too
        return make_result(
            PROBE, Verdict.FAIL, gap, threshold, f"{replica} does not compute the adapter that was trained"
        )
    if np.array_equal(candidate, base):
        told = "candidate and base score the probe text alike, so it cannot show that the adapter is loaded"
        return make_result(PROBE, Verdict.INCONCLUSIVE, gap, threshold, told)
    if gap_base <= gap:
        return make_result(
            PROBE, Verdict.FAIL, gap, threshold, f"{replica} answers as the base: the adapter is not applied"
        )
    told = f"mean gap of {replica}, {gap_base:.3f} to the base, nats per token"
    return make_result(PROBE, Verdict.PASS, gap, threshold, told)
