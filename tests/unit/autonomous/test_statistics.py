"""Paired statistics against closed forms and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autonomous.statistics import (
    bootstrap_lower_bound,
    bootstrap_p_value,
    bootstrap_upper_bound,
    holm,
    items_needed,
    share_upper_bound,
    sign_test,
    wilson_interval,
)


def bound(differences: list[float], *, confidence: float = 0.95) -> float:
    return bootstrap_lower_bound(differences, confidence=confidence, samples=2000)


# -- the bootstrap


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
def test_the_bound_of_constant_differences_is_the_difference(difference: float, num: int):
    assert bound([difference] * num) == pytest.approx(difference)


def test_the_bound_of_two_values_is_their_minimum_because_a_quarter_of_the_resamples_is_twice_the_minimum():
    assert bound([0.0, 1.0]) == 0.0


def test_the_bound_of_two_values_at_sixty_percent_is_their_mean_because_half_of_the_resamples_is_one_of_each():
    assert bound([0.0, 1.0], confidence=0.6) == 0.5


def test_the_bound_of_many_values_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=2000)
    expected = values.mean() - 1.6449 * values.std() / math.sqrt(len(values))
    assert bound(list(values)) == pytest.approx(expected, abs=0.005)


def test_the_bound_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = sum(bootstrap_lower_bound(rng.normal(size=60), confidence=0.9, samples=400) <= 0 for _ in range(400))
    assert 0.84 < covered / 400 < 0.94


def test_the_upper_bound_is_the_mirror_image_of_the_lower_one():
    values = [0.1, 0.5, -0.3, 2.0]
    mirrored = bootstrap_upper_bound([-value for value in values], confidence=0.95, samples=2000)
    assert mirrored == -bound(values)


def test_the_bound_agrees_with_the_percentile_method_of_scipy():
    values = np.random.default_rng(3).exponential(size=40)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.90, n_resamples=20_000, method="percentile", random_state=4
    )
    ours = bootstrap_lower_bound(values, confidence=0.95, samples=20_000)
    assert ours == pytest.approx(theirs.confidence_interval.low, abs=0.01)


def test_the_bound_of_no_data_is_an_error():
    with pytest.raises(ValueError, match="differences is empty"):
        bound([])


# -- p values


def test_a_p_value_is_below_alpha_exactly_where_the_bound_is_above_the_threshold():
    rng = np.random.default_rng(5)
    for mean in np.linspace(-0.2, 0.6, 30):
        values = rng.normal(mean, 0.6, size=25)
        p_value = bootstrap_p_value(values, above=0.1, samples=2000)
        lower = bootstrap_lower_bound(values, confidence=0.95, samples=2000)
        if abs(p_value - 0.05) > 0.002:  # the quantile interpolates between two resamples
            assert (p_value < 0.05) == (lower > 0.1), (p_value, lower)


def test_the_p_value_of_two_values_is_the_share_of_resamples_that_are_twice_the_lower_one():
    assert bootstrap_p_value([0.0, 1.0], above=0.0, samples=20_000) == pytest.approx(0.25, abs=0.01)


def test_no_p_value_is_zero():
    assert bootstrap_p_value([1.0, 1.0], above=0.0, samples=999) == 1 / 1000


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_one_sided_binomial_test_of_scipy(num_gained: int, num_lost: int):
    total = num_gained + num_lost
    theirs = stats.binomtest(num_gained, total, alternative="greater").pvalue if total else 1.0
    assert sign_test(num_gained, num_lost) == pytest.approx(theirs)


# -- Holm


def test_holm_gives_the_textbook_adjusted_values_in_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_rejects_what_its_step_down_rule_rejects(p_values: list[float], alpha: float):
    adjusted = holm(p_values)
    rejected: set[int] = set()
    for step, row in enumerate(sorted(range(len(p_values)), key=lambda row: p_values[row])):
        if (len(p_values) - step) * p_values[row] > alpha:
            break
        rejected.add(row)
    assert {row for row, value in enumerate(adjusted) if value <= alpha} == rejected


def test_holm_keeps_the_family_wise_error_at_its_level_where_nothing_is_true():
    rng = np.random.default_rng(7)
    num_wrong = sum(min(holm(list(rng.uniform(size=6)))) <= 0.05 for _ in range(4000))
    assert num_wrong / 4000 < 0.06


# -- sizes


@pytest.mark.parametrize("num_trials", [1, 16, 30, 300])
def test_the_bound_of_a_share_that_was_never_seen_is_that_of_clopper_and_pearson(num_trials: int):
    theirs = stats.binomtest(0, num_trials, alternative="less").proportion_ci(0.95, method="exact").high
    assert share_upper_bound(num_trials, confidence=0.95) == pytest.approx(theirs)


def test_without_trials_any_share_is_possible():
    assert share_upper_bound(0, confidence=0.95) == 1.0


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0.8, 0.9, 0.99]))
def test_the_interval_of_a_share_is_the_one_of_scipy(num_hits: int, num_trials: int, confidence: float):
    num_hits = min(num_hits, num_trials)
    theirs = stats.binomtest(num_hits, num_trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(num_hits, num_trials, confidence=confidence) == pytest.approx(tuple(theirs), abs=1e-9)


def test_as_many_items_as_are_said_to_be_needed_decide_and_half_as_many_do_not():
    rng = np.random.default_rng(8)
    population = rng.normal(0.05, 0.2, size=200_000)
    needed = items_needed(population[:40], threshold=0.1, confidence=0.95, samples=2000)
    assert needed is not None
    means = [np.mean(rng.choice(population, needed)) for _ in range(300)]
    assert np.quantile(means, 0.95) == pytest.approx(0.1, abs=0.05)
    width = {
        num: bootstrap_upper_bound(population[:num], confidence=0.95, samples=2000) - population[:num].mean()
        for num in (400, 1600)
    }
    assert width[400] / width[1600] == pytest.approx(2, rel=0.15)  # the law by which the number is told


def test_a_mean_at_the_threshold_is_never_decided():
    assert items_needed([0.0, 0.2], threshold=0.1, confidence=0.95, samples=200) is None
    assert math.isfinite(items_needed([0.0, 0.1], threshold=0.1, confidence=0.95, samples=200) or math.inf)
