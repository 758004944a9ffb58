"""Failure arithmetic: published rates, the interval that loses least, and its limits."""

import numpy as np
import pytest

from train.model.failures import FailureAssumptions, estimate_failures


def test_the_rate_is_that_of_the_published_run() -> None:
    assert 54 * 24 / estimate_failures(16_384, state_bytes=1e9).hours_between_failures == pytest.approx(419)
    assert estimate_failures(1_024, state_bytes=1e9).hours_between_failures == pytest.approx(16 * 54 * 24 / 419)


def test_the_interval_loses_least_of_all_intervals_that_can_be_written() -> None:
    assumptions = FailureAssumptions(storage_bytes_per_s=1e10)
    found = estimate_failures(1_024, state_bytes=12e9, assumptions=assumptions)
    mtbf_s = found.hours_between_failures * 3600
    intervals = np.linspace(found.write_s, 20 * found.interval_s, 100_000)
    losses = found.stall_s / intervals + (intervals / 2 + found.write_s + assumptions.restart_s) / mtbf_s
    assert found.interval_s == pytest.approx(intervals[losses.argmin()], rel=1e-2)
    assert found.goodput == pytest.approx(1 - losses.min(), rel=1e-6)


def test_no_save_begins_before_the_one_before_it_is_written() -> None:
    slow = FailureAssumptions(storage_bytes_per_s=1e6)
    found = estimate_failures(1_024, state_bytes=12e9, assumptions=slow)
    assert found.interval_s == found.write_s == pytest.approx(12_000)


def test_a_simulation_of_failures_agrees_with_the_goodput() -> None:
    """Poisson failures over many of them; each loses what was not written, and the restart."""
    assumptions = FailureAssumptions(gpu_hours_per_failure=500.0, restart_s=60.0, storage_bytes_per_s=1e9)
    found = estimate_failures(100, state_bytes=5e9, assumptions=assumptions)
    generator = np.random.default_rng(0)
    useful = total = 0.0
    cycle = found.interval_s + found.stall_s
    for wait in generator.exponential(found.hours_between_failures * 3600, 20_000):
        written = max(0.0, (wait - found.write_s) // cycle)
        useful += written * found.interval_s
        total += wait + assumptions.restart_s
    assert useful / total == pytest.approx(found.goodput, abs=0.01)
