"""Gates of what must not be forgotten (G3): earlier lessons, the control texts and the domains."""

import math
from dataclasses import replace

import pytest

from autonomous.versions.gates import Verdict, decide_gates, gate_control, gate_domains, gate_forgetting
from autonomous.versions.report import DomainScores, EarlierQuestions
from tests.unit.autonomous.gate_reports import CONFIG, FAIL, GOOD, INCONCLUSIVE, NAN, PASS


def asked(parent: list[float], candidate: list[float], *, name: str = "v-1") -> EarlierQuestions:
    return EarlierQuestions(domain=name, nll_parent=parent, nll_candidate=candidate)


@pytest.mark.parametrize(
    ("earlier", "verdict"),
    [
        ([], PASS),
        ([asked([2.0, 2.0], [2.1, 2.1])], PASS),
        ([asked([2.0, 2.0], [2.3, 2.3])], FAIL),
        ([asked([0.05, 0.05], [0.06, 0.06])], PASS),
        ([asked([0.05, 0.05], [0.5, 0.5])], FAIL),
        ([asked([2.0, 2.0, 2.0], [2.0, 2.0, 2.5])], INCONCLUSIVE),
        ([asked([], [])], INCONCLUSIVE),
        ([asked([1.0], [1.0])], INCONCLUSIVE),
        ([asked([1.0, 1.0], [1.0])], INCONCLUSIVE),
        ([asked([1.0, NAN], [1.0, 1.0])], INCONCLUSIVE),
        ([asked([1.0, 1.0], [1.0, NAN])], FAIL),
    ],
)
def test_forgetting_is_judged_by_the_upper_bound_of_the_relative_rise(
    earlier: list[EarlierQuestions], verdict: Verdict
):
    assert gate_forgetting(replace(GOOD, earlier=earlier), CONFIG).verdict is verdict


def test_the_worst_domain_decides_and_not_the_mean():
    better, worse = asked([2.0, 2.0], [1.0, 1.0]), asked([2.0, 2.0], [2.5, 2.5], name="v-2")
    result = gate_forgetting(replace(GOOD, earlier=[better, worse, better]), CONFIG)
    assert (result.verdict, result.value, "v-2" in result.reason) == (FAIL, pytest.approx(0.25), True)


def test_of_passing_domains_the_worst_is_shown():
    result = gate_forgetting(
        replace(GOOD, earlier=[asked([2.0, 2.0], [2.1, 2.1]), asked([2.0, 2.0], [1.0, 1.0])]), CONFIG
    )
    assert result.value == pytest.approx(0.05)


@pytest.mark.parametrize("against", ["original", "parent"])
@pytest.mark.parametrize(
    ("rise", "verdict"),
    [
        ([0.05, 0.05, 0.05], PASS),
        ([0.10, 0.10, 0.10], FAIL),
        ([0.0, 0.0, 0.27], INCONCLUSIVE),
        ([0.0], INCONCLUSIVE),
        ([], INCONCLUSIVE),
        ([0.0, NAN], FAIL),
        ([0.0, 1e6], FAIL),
    ],
)
def test_the_control_perplexity_may_rise_by_ten_percent_over_the_original_and_over_the_parent(
    against: str, rise: list[float], verdict: Verdict
):
    reference = [2.0] * len(rise)
    report = replace(
        GOOD,
        control_nll_base=reference if against == "original" else [],
        control_nll_parent=reference if against == "parent" else [],
        control_nll_candidate=[2.0 + value for value in rise],
    )
    result = gate_control(report, CONFIG, against=against)
    assert result.verdict is verdict
    assert against in result.name
    if verdict is PASS:
        assert result.value == pytest.approx(math.exp(0.05))


def test_a_slow_drift_that_each_parent_lets_pass_fails_against_the_original():
    drift = math.log(1.02)
    report = replace(
        GOOD,
        control_nll_base=[2.0] * 5,
        control_nll_parent=[2.0 + 5 * drift] * 5,
        control_nll_candidate=[2.0 + 6 * drift] * 5,
    )
    verdicts = {result.name: result.verdict for result in decide_gates(report, CONFIG)}
    assert verdicts["G3 control against the parent"] is PASS
    assert verdicts["G3 control against the original"] is FAIL


def domain(name: str, rises: list[float]) -> DomainScores:
    return DomainScores(
        domain=name,
        nll_base=[2.0] * len(rises),
        nll_parent=[2.0] * len(rises),
        nll_candidate=[2.0 + rise for rise in rises],
    )


@pytest.mark.parametrize("against", ["original", "parent"])
@pytest.mark.parametrize(
    ("rises", "verdict"),
    [
        ({"code": [0.1, 0.1], "docs": [0.0, 0.0]}, PASS),
        ({"code": [-0.5, -0.5], "docs": [0.3, 0.3]}, FAIL),
        ({"code": [0.0, 0.0, 0.5], "docs": [0.0, 0.0]}, INCONCLUSIVE),
        ({"code": [0.0, 0.0], "docs": [0.0]}, INCONCLUSIVE),
        ({"code": [0.0, 0.0], "docs": [0.0, NAN]}, FAIL),
        ({}, INCONCLUSIVE),
    ],
)
def test_the_worst_domain_decides_against_the_original_and_against_the_parent(
    against: str, rises: dict[str, list[float]], verdict: Verdict
):
    report = replace(GOOD, domains=[domain(name, values) for name, values in rises.items()])
    result = gate_domains(report, CONFIG, against=against)
    assert result.verdict is verdict
    assert against in result.name
    if verdict is FAIL:
        assert "docs" in result.reason
