"""The parity of the probe (G5), and the decision over all gates."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autonomous.data_gate import DataGateConfig
from autonomous.versions.data_gates import gate_beliefs, gate_data
from autonomous.versions.gates import (
    REQUIRED_GATES,
    Decision,
    GateResult,
    Verdict,
    decide_gates,
    decide_promotion,
    gate_probe_parity,
)
from autonomous.versions.report import EvaluationReport, ProbeScores
from tests.unit.autonomous.gate_reports import CONFIG, FAIL, GOOD, INCONCLUSIVE, NAN, PASS

# -- G5


@pytest.mark.parametrize(
    ("replicas", "verdict", "told"),
    [
        ([[-1.0, -0.1]], PASS, "replica 0"),
        ([[-1.0, -0.1], [-1.1, -0.2]], PASS, "replica 1"),
        ([[-1.0, -0.1], [-1.0, -6.0]], FAIL, "replica 1 does not compute"),
        ([[-1.0, NAN]], FAIL, "does not compute"),
        ([[-1.0]], FAIL, "scored 1 tokens"),
        ([[-1.0, -0.1], []], INCONCLUSIVE, "scored 0 tokens"),
        ([], INCONCLUSIVE, "no log-probabilities"),
    ],
)
def test_every_replica_must_compute_the_adapter_that_was_trained(
    replicas: list[list[float]], verdict: Verdict, told: str
):
    result = gate_probe_parity(GOOD, replicas, CONFIG)
    assert (result.verdict, told in result.reason) == (verdict, True), result


def test_an_engine_that_ignores_the_adapter_fails_even_where_the_adapter_changes_little():
    report = replace(GOOD, probe=ProbeScores(text="x", candidate_logprobs=[-1.0], base_logprobs=[-1.1]))
    result = gate_probe_parity(report, [[-1.09]], CONFIG)
    assert (result.verdict, "answers as the base" in result.reason) == (FAIL, True)


@pytest.mark.parametrize(
    ("candidate", "base", "verdict"),
    [
        ([-1.0], [-1.0], INCONCLUSIVE),
        ([NAN], [-1.0], FAIL),
        ([-1.0], [NAN], INCONCLUSIVE),
        ([], [], INCONCLUSIVE),
        ([-1.0], [], INCONCLUSIVE),
    ],
)
def test_a_probe_that_cannot_tell_candidate_from_base_is_inconclusive(
    candidate: list[float], base: list[float], verdict: Verdict
):
    report = replace(GOOD, probe=ProbeScores(text="x", candidate_logprobs=candidate, base_logprobs=base))
    assert gate_probe_parity(report, [[-1.0]], CONFIG).verdict is verdict


# -- all together


def test_the_same_report_always_gives_the_same_verdict():
    assert decide_gates(GOOD, CONFIG) == decide_gates(GOOD, CONFIG)


def all_gates(report: EvaluationReport) -> list[GateResult]:
    data = DataGateConfig()
    return [
        gate_data(report, data),
        *decide_gates(report, CONFIG),
        gate_beliefs(report, data),
        gate_probe_parity(report, [[-1.0, -0.1]], CONFIG),
    ]


def test_a_good_report_passes_every_required_gate_and_goes():
    gates = all_gates(GOOD)
    assert [gate.name for gate in gates] == list(REQUIRED_GATES)
    assert decide_promotion(gates) is Decision.GO
    assert decide_promotion(gates) == "go"


def test_a_report_of_an_earlier_program_is_read_and_pauses_until_it_is_evaluated_again():
    new = {"domains", "sentinel_safety", "privacy", "told_secrets", "leaks", "code_sha256", "rotation"}
    old = {name: value for name, value in GOOD.to_dict().items() if name not in new}
    gates = all_gates(EvaluationReport.from_dict(old))
    assert {gate.name for gate in gates if gate.verdict is not PASS} == {
        "G0 evaluation leaks",
        "G3 worst domain against the original",
        "G3 worst domain against the parent",
        "G4 sentinel safety",
        "G4 secrets",
    }
    assert {gate.verdict for gate in gates} == {PASS, INCONCLUSIVE}
    assert decide_promotion(gates) is Decision.PAUSE


def test_an_empty_report_passes_nothing_but_forgetting_and_pauses():
    gates = [*decide_gates(EvaluationReport(), CONFIG), gate_probe_parity(EvaluationReport(), [], CONFIG)]
    assert {gate.name for gate in gates if gate.verdict is not INCONCLUSIVE} == {"G3 forgetting"}
    assert decide_promotion(gates) is Decision.PAUSE


@given(st.lists(st.tuples(st.sampled_from(REQUIRED_GATES), st.sampled_from(list(Verdict)))))
def test_one_failed_gate_quarantines_and_a_missing_or_inconclusive_one_pauses(verdicts: list[tuple[str, Verdict]]):
    gates = [GateResult(name, verdict, None, None, "") for name, verdict in verdicts]
    decision = decide_promotion(gates)
    if FAIL in {verdict for _, verdict in verdicts}:
        assert decision is Decision.QUARANTINE
    else:
        passed = {name for name, verdict in verdicts if verdict is PASS}
        is_complete = passed == set(REQUIRED_GATES) and INCONCLUSIVE not in {verdict for _, verdict in verdicts}
        assert (decision is Decision.GO) == is_complete


def test_a_gate_result_survives_json():
    for gate in all_gates(GOOD):
        assert GateResult.from_dict(json.loads(json.dumps(gate.to_dict()))) == gate
