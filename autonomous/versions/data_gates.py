"""Gates on what was learned: G0 on the data of a batch, G4 on what the candidate believes afterwards.

In: an evaluation report, whose `training` holds what was measured of the batch ("data") and the margins of the belief probes
("beliefs"); both are bound to the version by the report's hash. Out: GateResult.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autonomous.data_gate import DataGateConfig, DataReport, find_beyond, find_unknown
from autonomous.versions.gate_results import BELIEFS, DATA, GateResult, Verdict
from autonomous.versions.report import EvaluationReport

DATA_KEY, BELIEFS_KEY = "data", "beliefs"
"""Of EvaluationReport.training."""


def gate_data(report: EvaluationReport, config: DataGateConfig) -> GateResult:
    """G0: no passage of the batch is beyond a bound, all of it was measured, and it agrees with itself.

    The value is how many passages are beyond a bound, or the agreement where that is what fails.
    """
    values = report.training.get(DATA_KEY)
    if values is None:
        reason = "nothing was measured of the batch: train again with the data gate"
        return GateResult(DATA, Verdict.INCONCLUSIVE, None, 0.0, reason)
    data = DataReport.from_dict(values)
    if not data.episodes:
        return GateResult(DATA, Verdict.INCONCLUSIVE, None, 0.0, "the batch is empty: nothing was measured")
    if failed := _failed(data, config):
        return failed
    if unknown := next((told for one in data.episodes if (told := find_unknown(one))), ""):
        return GateResult(DATA, Verdict.INCONCLUSIVE, None, 0.0, unknown)
    told = f"{len(data.episodes)} passages of {data.num_sources} sources, compared with {data.num_beliefs} beliefs"
    return GateResult(DATA, Verdict.PASS, 0.0, 0.0, told)


def _failed(data: DataReport, config: DataGateConfig) -> GateResult | None:
    beyond = [(one.episode_id, found) for one in data.episodes if (found := find_beyond(one, config))]
    if beyond:
        key, findings = beyond[0]
        rules = ", ".join(f"{one.rule} {one.value:g} against {one.threshold:g}" for one in findings)
        reason = f"{len(beyond)} of {len(data.episodes)} passages are beyond a bound; {key}: {rules}"
        return GateResult(DATA, Verdict.FAIL, float(len(beyond)), 0.0, reason)
    if data.num_sources < config.min_sources:
        reason = f"{data.num_sources} sources, and data.min_sources = {config.min_sources}"
        return GateResult(DATA, Verdict.FAIL, float(data.num_sources), float(config.min_sources), reason)
    agreement = data.label_agreement
    if agreement is not None and agreement < config.min_label_agreement:
        reason = f"the batch contradicts itself on {1 - agreement:.0%} of what it gives a value to"
        return GateResult(DATA, Verdict.FAIL, agreement, config.min_label_agreement, reason)
    return None


def gate_beliefs(report: EvaluationReport, config: DataGateConfig) -> GateResult:
    """G4: on no question does the candidate give up the answer of those who are trusted.

    Where a passage says the contrary, the candidate fails if it prefers the contrary and has moved towards it; where the
    other answer merely stands in the batch, only if its parent clearly preferred the trusted one and it clearly does not.
    The value is the largest loss of preference among the failed, else among all, nats per answer token.
    """
    threshold = config.max_belief_shift_nats
    rows: Sequence[Mapping[str, Any]] | None = report.training.get(BELIEFS_KEY)
    if rows is None:
        reason = "the belief probes were not asked: evaluate again"
        return GateResult(BELIEFS, Verdict.INCONCLUSIVE, None, threshold, reason)
    if not rows:
        reason = "the batch touches no belief that has a rival: there is nothing to ask"
        return GateResult(BELIEFS, Verdict.PASS, None, threshold, reason)
    parent = np.array([float(row["margin_parent"]) for row in rows])
    candidate = np.array([float(row["margin_candidate"]) for row in rows])
    is_contradicted = np.array([bool(row["is_contradicted"]) for row in rows])
    if not np.isfinite(candidate).all():
        return GateResult(BELIEFS, Verdict.FAIL, None, threshold, "a margin of the candidate is not finite")
    if not np.isfinite(parent).all():
        reason = "a margin of the parent is not finite: evaluate again"
        return GateResult(BELIEFS, Verdict.INCONCLUSIVE, None, threshold, reason)
    shift = parent - candidate
    is_lost = is_contradicted & (candidate < 0) & (shift > threshold)
    is_lost |= ~is_contradicted & (candidate < -threshold) & (parent > threshold)
    if is_lost.any():
        place = int(np.argmax(np.where(is_lost, shift, -np.inf)))
        reason = f"{int(is_lost.sum())} of {len(rows)} beliefs were given up, the most: {rows[place]['probe']}"
        return GateResult(BELIEFS, Verdict.FAIL, float(shift[place]), threshold, reason)
    return GateResult(BELIEFS, Verdict.PASS, float(shift.max()), threshold, f"{len(rows)} beliefs were kept")
