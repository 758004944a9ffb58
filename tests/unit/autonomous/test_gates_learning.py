"""Gates of what was learned: a healthy training (G1), the gain on the batch's questions and their recall (G2)."""

from dataclasses import replace
from typing import Any

import pytest

from autonomous.versions.gates import Verdict, gate_gain, gate_recall, gate_training_health
from tests.unit.autonomous.gate_reports import CONFIG, FAIL, GOOD, INCONCLUSIVE, INF, NAN, PASS, training

# -- G1


def test_a_healthy_run_passes():
    assert gate_training_health(GOOD).verdict is PASS


@pytest.mark.parametrize("name", ["losses", "grad_norms", "kls"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF, None])
def test_a_number_of_the_training_that_is_not_finite_fails_and_the_step_is_named(name: str, bad: float | None):
    result = gate_training_health(training(**{name: [1.0, bad, 0.1]}))
    assert (result.verdict, name in result.reason, "step 2" in result.reason) == (FAIL, True, True)


@pytest.mark.parametrize(
    "changes", [{"losses": []}, {"grad_norms": []}, {"kls": None}, {"num_steps": 0}, {"num_steps": None}]
)
def test_a_training_without_data_is_inconclusive(changes: dict[str, Any]):
    assert gate_training_health(training(**changes)).verdict is INCONCLUSIVE


def test_no_training_summary_at_all_is_inconclusive():
    assert gate_training_health(replace(GOOD, training={})).verdict is INCONCLUSIVE


@pytest.mark.parametrize("losses", [[1.0, 1.0], [1.0, 2.0, 3.0], [0.5, 0.1, 0.6]])
def test_a_loss_that_ends_no_lower_than_it_began_fails(losses: list[float]):
    assert gate_training_health(training(losses=losses)).verdict is FAIL


def test_a_single_step_shows_no_trend_and_passes_if_finite():
    assert gate_training_health(training(losses=[1.0], num_steps=1)).verdict is PASS


# -- G2


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        ([0.5, 0.5, 0.5], PASS),
        ([0.9, 0.9, 0.9], FAIL),
        ([1.2, 1.3, 1.1], FAIL),
        ([0.0, 1.0, 1.0], INCONCLUSIVE),
        ([0.5], INCONCLUSIVE),
        ([], INCONCLUSIVE),
        ([0.5, 0.5], INCONCLUSIVE),
        ([0.5, NAN, 0.5], FAIL),
        ([0.5, INF, 0.5], FAIL),
    ],
)
def test_gain_passes_only_when_its_lower_bound_exceeds_the_threshold(candidate: list[float], verdict: Verdict):
    report = replace(GOOD, question_nll_candidate=candidate, question_nll_parent=[1.0, 1.0, 1.0])
    assert gate_gain(report, CONFIG).verdict is verdict


def test_a_gain_in_one_of_two_metrics_counts_at_the_level_that_holm_leaves_it():
    gains = [1.0, 1.0, 1.0, -0.5]  # resampled, the loss comes up three times or more, and the mean is low, in 5.1 %
    parent = [2.0] * 4
    report = replace(
        GOOD,
        question_nll_parent=parent,
        question_nll_candidate=[nll - gain for nll, gain in zip(parent, gains, strict=True)],
        recall_candidate=[True] * 4,
        recall_parent=[True] * 4,
    )
    lenient = CONFIG.model_copy(update={"confidence": 0.92})
    alone = replace(report, recall_candidate=[], recall_parent=[])
    assert gate_gain(alone, lenient).verdict is PASS
    assert gate_gain(report, lenient).verdict is INCONCLUSIVE


def test_the_number_of_questions_that_would_decide_is_told():
    report = replace(GOOD, question_nll_candidate=[0.0, 1.0, 1.0], question_nll_parent=[1.0, 1.0, 1.0])
    assert "such items would decide" in gate_gain(report, CONFIG).reason


def test_a_broken_measurement_of_the_parent_is_inconclusive():
    report = replace(GOOD, question_nll_parent=[1.0, NAN, 1.0, 1.0])
    assert gate_gain(report, CONFIG).verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("candidate", "parent", "verdict"),
    [
        ([True, False], [False, False], PASS),
        ([True, False, False], [False, False, False], FAIL),
        ([True, False, True], [True, True, True], FAIL),
        ([True, True], [True, True], PASS),
        ([], [], INCONCLUSIVE),
        ([True], [True, False], INCONCLUSIVE),
    ],
)
def test_recall_needs_half_of_the_facts_and_no_fewer_than_the_parent(
    candidate: list[bool], parent: list[bool], verdict: Verdict
):
    assert gate_recall(replace(GOOD, recall_candidate=candidate, recall_parent=parent), CONFIG).verdict is verdict
