"""The learning-rate schedule: against transformers, and what holds of every one."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from train.pretrain.schedule import ScheduleConfig, check_schedule, learning_rate

PEAK = 3e-4


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def _theirs(scheduler: torch.optim.lr_scheduler.LambdaLR, *, steps: int) -> list[float]:
    """Their rates of updates 1 to `steps`."""
    return [PEAK * scheduler.lr_lambdas[0](step) for step in range(1, steps + 1)]


def _ours(config: ScheduleConfig, *, total_steps: int, steps: int) -> list[float]:
    return [learning_rate(step, peak_lr=PEAK, total_steps=total_steps, config=config) for step in range(steps)]


@pytest.mark.parametrize(("warmup", "total", "ratio"), [(0, 50, 0.1), (10, 50, 0.1), (10, 50, 0.0), (7, 101, 0.3)])
def test_cosine_is_that_of_transformers_one_step_later(warmup: int, total: int, ratio: float):
    config = ScheduleConfig(kind="cosine", warmup_steps=warmup, min_lr_ratio=ratio)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(_optimizer(), warmup, total, min_lr_rate=ratio)
    assert _ours(config, total_steps=total, steps=total) == pytest.approx(
        _theirs(theirs, steps=total), rel=1e-12, abs=1e-18
    )


@pytest.mark.parametrize("shape", ["1-sqrt", "linear"])
@pytest.mark.parametrize(
    ("warmup", "decay", "total", "ratio"), [(0, 10, 50, 0.1), (10, 20, 50, 0.1), (7, 94, 101, 0.3)]
)
def test_wsd_is_that_of_transformers_one_step_later_from_the_end_of_the_warmup_on(
    shape: str, warmup: int, decay: int, total: int, ratio: float
):
    config = ScheduleConfig(kind="wsd", warmup_steps=warmup, decay_steps=decay, decay_shape=shape, min_lr_ratio=ratio)
    theirs = get_wsd_schedule(
        _optimizer(), warmup, decay, num_training_steps=total, decay_type=shape, min_lr_ratio=ratio
    )
    ours, others = _ours(config, total_steps=total, steps=total + 5), _theirs(theirs, steps=total + 5)
    first = max(0, warmup - 1)
    assert ours[first:] == pytest.approx(others[first:], rel=1e-12)


def test_the_warmup_of_wsd_is_that_of_transformers_where_it_begins_at_zero():
    config = ScheduleConfig(kind="wsd", warmup_steps=10, decay_steps=20, min_lr_ratio=0)
    theirs = get_wsd_schedule(_optimizer(), 10, 20, num_training_steps=50, decay_type="1-sqrt", min_lr_ratio=0)
    assert _ours(config, total_steps=50, steps=50) == pytest.approx(_theirs(theirs, steps=50), rel=1e-12, abs=1e-18)


@given(
    form=st.sampled_from([("cosine", 0), ("wsd", 0), ("constant", 0), ("infinite", 0), ("infinite", 15)]),
    shape=st.sampled_from(["1-sqrt", "linear"]), warmup=st.integers(0, 40), total=st.integers(1, 200), ratio=st.floats(0, 1),
)  # fmt: skip
def test_the_rate_rises_to_the_peak_and_then_only_falls_to_its_end(
    form: tuple[str, int], shape: str, warmup: int, total: int, ratio: float
):
    kind, cooldown = form
    assume(kind != "infinite" or 0.01 < ratio < 0.5)
    config = ScheduleConfig(
        kind=kind, decay_shape=shape, warmup_steps=warmup, min_lr_ratio=ratio, cooldown_steps=cooldown
    )
    needed = warmup + config.cooldown_steps + (max(1, round(0.2 * total)) if kind in ("wsd", "infinite") else 0)
    assume(needed < total)
    rates = _ours(config, total_steps=total, steps=total + 10)
    end = PEAK if kind == "constant" else PEAK * ratio
    assert all(rate > 0 for rate in rates[: total - 1])
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    after = rates[max(0, warmup - 1) :]
    assert all(a >= b - 1e-18 for a, b in pairwise(after))
    if warmup:
        assert rates[warmup - 1] == PEAK
        assert rates[0] == pytest.approx(PEAK / warmup)
    assert rates[total - 1 :] == pytest.approx([end] * 11, abs=1e-18)


def test_infinite_cools_down_stays_and_falls_exponentially():
    config = ScheduleConfig(
        kind="infinite", warmup_steps=10, cooldown_steps=20, constant_lr_ratio=0.5, min_lr_ratio=0.125, decay_steps=30
    )
    rates = [rate / PEAK for rate in _ours(config, total_steps=100, steps=100)]
    assert rates[9] == 1
    assert rates[19] == pytest.approx(0.75)  # half way down the cosine
    assert rates[29:70] == pytest.approx([0.5] * 41)
    assert rates[84] == pytest.approx(0.25)  # half of the fall from 1/2 to 1/8, in logarithms
    assert rates[99] == pytest.approx(0.125)


def test_a_run_that_goes_on_before_the_fall_of_infinite_has_the_same_constant_rate():
    first = ScheduleConfig(kind="infinite", warmup_steps=10, cooldown_steps=20, decay_steps=20)
    later = ScheduleConfig(kind="infinite", warmup_steps=0, decay_steps=20)
    before = learning_rate(79, peak_lr=PEAK, total_steps=100, config=first)
    assert learning_rate(0, peak_lr=PEAK, total_steps=50, config=later) == before == PEAK / 2


def test_an_exponential_fall_to_zero_is_refused():
    with pytest.raises(ValueError, match=r"schedule\.min_lr_ratio = 0\.0 with schedule\.kind = 'infinite'"):
        ScheduleConfig(kind="infinite", min_lr_ratio=0.0)


def test_wsd_falls_in_the_last_fifth_unless_told_otherwise():
    rates = _ours(ScheduleConfig(kind="wsd", warmup_steps=0), total_steps=100, steps=100)
    assert rates[:80] == [PEAK] * 80
    assert rates[80] < PEAK
    assert rates[84] == pytest.approx(PEAK * ((1 - math.sqrt(0.25)) * 0.9 + 0.1))


@pytest.mark.parametrize(
    "config", [ScheduleConfig(warmup_steps=51), ScheduleConfig(kind="wsd", warmup_steps=41, decay_steps=10)]
)
def test_a_schedule_longer_than_the_run_is_refused(config: ScheduleConfig):
    with pytest.raises(
        ValueError, match=r"schedule\.warmup_steps = \d+, .* and \d+ steps of decay do not fit into .* 50 steps"
    ):
        check_schedule(config, total_steps=50)
    with pytest.raises(ValueError, match="do not fit"):
        learning_rate(0, peak_lr=PEAK, total_steps=50, config=config)
    check_schedule(config, total_steps=51)


def test_decay_steps_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"schedule\.decay_steps = 5 has no effect with schedule\.kind = 'cosine'"):
        ScheduleConfig(decay_steps=5)
    with pytest.raises(
        ValueError, match=r"schedule\.cooldown_steps = 5 has no effect .* set schedule\.kind = 'infinite'"
    ):
        ScheduleConfig(kind="wsd", cooldown_steps=5)
