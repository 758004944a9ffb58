"""Canary and soak: who goes on, who is withdrawn, and how often a version that is no worse is withdrawn by chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from autonomous.config import RolloutConfig
from autonomous.versions.confidence import always_valid_interval
from autonomous.versions.gates import Verdict
from autonomous.versions.rollout import (
    ArmCounts,
    Move,
    Outcome,
    compare_arms,
    decide_canary,
    decide_soak,
)

STEPS = RolloutConfig(canary_percents=(1, 5, 25, 50), min_requests=50, max_excess=0.03)
GOOD = ArmCounts(num_requests=2000, num_errors=4, num_slow=20)


@given(hits=st.integers(0, 400), misses=st.integers(0, 400), confidence=st.sampled_from([0.9, 0.95, 0.999]))
def test_interval_ends_where_the_mixture_martingale_reaches_its_limit(
    hits: int, misses: int, confidence: float
) -> None:
    """Oracle: scipy's beta function, and its root finder on the defining equation."""

    def excess(p: float) -> float:
        likelihood = special.xlogy(hits, p) + special.xlog1py(misses, -p)
        return float(special.betaln(hits + 1, misses + 1) - likelihood + math.log1p(-confidence))

    found = always_valid_interval(hits, hits + misses, confidence=confidence)
    trials = hits + misses
    if hits and excess(1e-300) > 0:
        assert found.low == pytest.approx(optimize.brentq(excess, 1e-300, hits / trials, xtol=1e-14), abs=1e-9)
    if misses and trials and excess(1 - 1e-16) > 0:
        assert found.high == pytest.approx(optimize.brentq(excess, hits / trials, 1 - 1e-16, xtol=1e-14), abs=1e-9)
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.slow
def test_interval_misses_the_truth_at_any_time_in_fewer_streams_than_it_says() -> None:
    rng = np.random.default_rng(7)
    truth, num_streams, num_missed = 0.05, 300, 0
    for _ in range(num_streams):
        hits = np.cumsum(rng.random(500) < truth)
        intervals = (always_valid_interval(int(hits[n]), n + 1, confidence=0.8) for n in range(0, 500, 7))
        num_missed += any(not one.low <= truth <= one.high for one in intervals)
    assert 0 < num_missed < 0.2 * num_streams  # 0 would be an interval that says nothing


@pytest.mark.parametrize(("hits", "trials", "confidence"), [(2, 1, 0.9), (-1, 3, 0.9), (0, 1, 1.0), (0, 1, 0.0)])
def test_impossible_counts_are_refused(hits: int, trials: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"num_hits|confidence"):
        always_valid_interval(hits, trials, confidence=confidence)


def test_canary_climbs_its_steps_and_is_promoted_when_it_is_surely_no_worse() -> None:
    percent, seen, moves = 1.0, ArmCounts(), []
    for _ in range(100):
        seen = seen.plus([Outcome("v", 0.5)] * 50, slow_s=3.0)
        decision = decide_canary(seen, GOOD, percent=percent, at_step=50, elapsed_s=60, config=STEPS)
        moves.append(decision.move)
        if decision.move is Move.PROMOTE:
            break
        percent = decision.percent or percent
    assert moves[:3] == [Move.STEP] * 3
    assert percent == 50
    assert moves[-1] is Move.PROMOTE
    assert decision.gate.verdict is Verdict.PASS
    assert len(moves) > 4, "200 requests are too few for the bound, and the first 50 of a step do not promote"


def test_a_step_waits_for_its_requests() -> None:
    canary = ArmCounts(num_requests=49)
    assert decide_canary(canary, GOOD, percent=1, at_step=49, elapsed_s=60, config=STEPS).move is Move.STAY


@pytest.mark.parametrize("what", ["num_errors", "num_slow", "num_masked"])
def test_canary_that_serves_worse_is_withdrawn_at_any_step(what: str) -> None:
    bad = ArmCounts(num_requests=20, **{what: 12})
    decision = decide_canary(bad, GOOD, percent=1, at_step=20, elapsed_s=1, config=STEPS)
    assert decision.move is Move.WITHDRAW
    assert decision.gate.verdict is Verdict.FAIL
    assert "12 of 20" in decision.gate.reason


def test_a_machine_on_which_every_version_is_slow_blames_none() -> None:
    slow = ArmCounts(num_requests=400, num_slow=390)
    assert decide_canary(slow, slow, percent=50, at_step=400, elapsed_s=1, config=STEPS).move is Move.STAY


def test_canary_that_nobody_asks_is_withdrawn_without_a_verdict() -> None:
    decision = decide_canary(ArmCounts(), GOOD, percent=1, at_step=0, elapsed_s=86_401, config=STEPS)
    assert (decision.move, decision.gate.verdict) == (Move.WITHDRAW, Verdict.INCONCLUSIVE)
    assert "24.0 hours with 0 requests" in decision.gate.reason


def test_without_another_arm_only_requests_that_mostly_fail_are_a_verdict() -> None:
    assert compare_arms("x", ArmCounts(40, 36), ArmCounts(), STEPS).verdict is Verdict.FAIL
    for arm in (ArmCounts(2, 0, 2), ArmCounts(3, 2), ArmCounts(400, 0, 400), ArmCounts(2000, 0)):
        assert compare_arms("x", arm, ArmCounts(), STEPS).verdict is Verdict.INCONCLUSIVE


def test_versions_that_are_alike_are_rarely_withdrawn_though_they_are_judged_at_every_request() -> None:
    rng = np.random.default_rng(3)
    num_withdrawn = 0
    for _ in range(60):
        arms = (rng.random((2, 400)) < 0.04).cumsum(axis=1)  # both above the limit of 2 %
        num_withdrawn += any(
            decide_canary(
                ArmCounts(n + 1, int(arms[0, n])),
                ArmCounts(n + 1, int(arms[1, n])),
                percent=50,
                at_step=n,
                elapsed_s=1,
                config=STEPS,
            ).move
            is Move.WITHDRAW
            for n in range(0, 400, 20)
        )
    assert num_withdrawn <= 3  # 5 % of 60


def test_soak_fails_at_once_and_ends_when_its_time_is_over() -> None:
    config = RolloutConfig(soak_s=100)
    bad = ArmCounts(num_requests=20, num_errors=12)
    failed = decide_soak(bad, GOOD, elapsed_s=1, config=config)
    assert failed is not None
    assert failed.verdict is Verdict.FAIL
    assert decide_soak(GOOD, GOOD, elapsed_s=99, config=config) is None
    passed = decide_soak(GOOD, GOOD, elapsed_s=100, config=config)
    assert passed is not None
    assert passed.verdict is Verdict.PASS
    unknown = decide_soak(ArmCounts(), GOOD, elapsed_s=100, config=config)
    assert unknown is not None
    assert unknown.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("percents", [(5, 1), (1, 1), (0, 5), (50, 100)])
def test_shares_that_do_not_rise_are_refused(percents: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rising shares"):
        RolloutConfig(canary_percents=percents)
