"""Decisions about steps: what is not finite never changes weights, spikes are caught, noise is not, and there is an end."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.pretrain.anomaly import AnomalyConfig, AnomalyState, Decision, StepEvent, decide

CONFIG = AnomalyConfig()


def _feed(losses: list[float], *, norms: list[float] | None = None, config: AnomalyConfig = CONFIG) -> list[str]:
    state, kinds = AnomalyState(), []
    for step, loss in enumerate(losses, start=1):
        decision, state = decide(state, StepEvent(step, loss, 1.0 if norms is None else norms[step - 1]), config)
        kinds.append(decision.kind)
    return kinds


def _curve(steps: int, *, seed: int, noise: float) -> list[float]:
    """A loss that falls from 9 to about 3 like a power law."""
    generator = np.random.default_rng(seed)
    found: list[float] = (3 + 6 * (1 + np.arange(steps) / 20) ** -0.7 + generator.normal(0, noise, steps)).tolist()
    return found


@given(
    losses=st.lists(st.floats(0, 12), max_size=40),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    is_norm=st.booleans(),
)
def test_what_is_not_finite_never_proceeds(losses: list[float], bad: float, is_norm: bool) -> None:
    state = AnomalyState()
    for step, loss in enumerate(losses, start=1):
        _, state = decide(state, StepEvent(step, loss, 1.0), CONFIG)
    event = StepEvent(len(losses) + 1, 3.0 if is_norm else bad, bad if is_norm else 1.0)
    decision, after = decide(state, event, CONFIG)
    assert decision.kind != "proceed"
    assert (after.losses, after.norms) == (state.losses, state.norms)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_noise_around_a_falling_loss_is_no_anomaly(noise: float) -> None:
    kinds = [kind for seed in range(10) for kind in _feed(_curve(2000, seed=seed, noise=noise))]
    assert kinds.count("proceed") == len(kinds)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_a_loss_that_jumps_by_one_nat_is_skipped_and_the_next_one_is_taken(noise: float) -> None:
    for seed in range(10):
        losses = _curve(1000, seed=seed, noise=noise)
        losses[700] += 1.0
        kinds = _feed(losses)
        assert kinds[700] == "skip"
        assert kinds.count("proceed") == 999


def test_a_gradient_norm_far_beyond_the_others_is_skipped() -> None:
    norms = [1.0] * 300
    norms[250] = 30.0
    assert [step for step, kind in enumerate(_feed([3.0] * 300, norms=norms)) if kind == "skip"] == [250]


def test_early_steps_may_jump() -> None:
    losses = [9.0, 12.0, 8.0, 20.0] * 10
    assert set(_feed(losses)) == {"proceed"}


def test_a_loss_that_stays_bad_goes_back_and_at_last_stops() -> None:
    kinds = _feed([3.0] * 100 + [math.nan] * 40)[100:]
    round_ = ["skip"] * 3 + ["rewind"]
    assert kinds[:16] == round_ * 3 + ["skip"] * 3 + ["stop"]


def test_rewinds_that_are_long_ago_do_not_count() -> None:
    state = AnomalyState(losses=(3.0,) * 64, norms=(1.0,) * 64, num_skips=3, rewinds=(10, 20, 30))
    assert decide(state, StepEvent(1000, math.nan, 1.0), CONFIG)[0].kind == "stop"
    decision, after = decide(state, StepEvent(2000, math.nan, 1.0), CONFIG)
    assert decision.kind == "rewind"
    assert after.rewinds == (2000,)


def test_overflows_of_scaled_gradients_lower_the_scale_until_there_are_too_many() -> None:
    state, kinds = AnomalyState(), []
    for step in range(1, 26):
        event = StepEvent(step, 3.0, math.inf, is_overflow_expected=True)
        decision, state = decide(state, event, CONFIG)
        kinds.append(decision.kind)
    assert kinds == ["skip"] * 23 + ["rewind", "skip"]
    assert decide(AnomalyState(), StepEvent(1, math.nan, 1.0, is_overflow_expected=True), CONFIG)[1].num_skips == 1


def test_the_state_goes_through_json_and_a_reason_names_the_step() -> None:
    state = AnomalyState(losses=(1.5, 2.0), norms=(1.0, 1.0), num_skips=2, rewinds=(7,))
    assert AnomalyState.model_validate_json(state.model_dump_json()) == state
    assert decide(state, StepEvent(8, math.nan, 1.0), CONFIG)[0] == Decision("skip", "the loss of step 8 is nan")
