"""DriftMonitor: planted drifts of each kind, false alarms, the test's law, resumption."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from train.continual.drift import (
    Drift,
    DriftConfig,
    DriftMonitor,
    Observation,
    draw_permutations,
    gaussian_kernel,
    mmd_p_value,
)

PLANTED = 400
"""Where the drift begins, inside a window."""
WIDTH = 16


def stream(kind: str | None, *, seed: int, length: int = 800) -> Iterator[Observation]:
    """Inputs and outputs around a mean, two languages, errors of a tenth; from PLANTED on one thing is another."""
    rng = np.random.default_rng(seed)
    for index in range(length):
        new = kind if index >= PLANTED else None
        yield Observation(
            inputs=rng.normal(0.7 if new == "domain" else 0.0, 1.0, WIDTH),
            outputs=rng.normal(0.7 if new in ("task", "domain") else 0.0, 1.0, WIDTH),
            language=str(rng.choice(["en", "de"], p=[0.4, 0.6] if new == "language" else [0.9, 0.1])),
            error=float(rng.random() < (0.4 if new else 0.1)),
        )


def drifts(kind: str | None, *, seed: int, length: int = 800) -> list[Drift]:
    """What a monitor finds."""
    monitor = DriftMonitor(DriftConfig(seed=seed))
    return [drift for one in stream(kind, seed=seed, length=length) if (drift := monitor.update(one)) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["language", "domain", "task", "temporal"])
def test_a_planted_drift_is_found_once_with_its_kind_and_soon(kind: str) -> None:
    windows = 4 if kind == "temporal" else 2  # a risen error waits for what may have caused it
    for seed in range(5):
        found = drifts(kind, seed=seed)
        assert [one.kind for one in found] == [kind]
        assert PLANTED < found[0].end <= PLANTED + windows * DriftConfig().window
        assert found[0].begin <= found[0].end - DriftConfig().window


@pytest.mark.slow
def test_a_stream_without_drift_raises_hardly_an_alarm() -> None:
    windows = 10 * (2000 - 128) // 64
    alarms = sum(len(drifts(None, seed=seed, length=2000)) for seed in range(10))
    expected = windows * 3 * DriftConfig().significance  # of three tests; ADWIN's bound is far from tight
    assert alarms <= stats.poisson.ppf(0.999, expected)


def test_a_falling_error_is_no_drift() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor()
    errors = [float(rng.random() < 0.9 - 0.8 * (index > 500)) for index in range(1500)]
    assert not [one for error in errors if (one := monitor.update(Observation(error=error)))]


def test_the_p_value_is_that_of_scipy_s_permutation_test() -> None:
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(0, 1, (12, 3)), rng.normal(0.6, 1, (9, 3))])
    kernel = gaussian_kernel(points)

    def statistic(first: np.ndarray, second: np.ndarray) -> float:
        a, b = first.astype(int), second.astype(int)
        return float(kernel[np.ix_(a, a)].mean() + kernel[np.ix_(b, b)].mean() - 2 * kernel[np.ix_(a, b)].mean())

    theirs = stats.permutation_test(
        (np.arange(12), np.arange(12, 21)), statistic, n_resamples=20_000, alternative="greater", rng=2
    )
    ours = mmd_p_value(kernel, draw_permutations(12, 9, count=20_000, seed=3))
    assert ours == pytest.approx(theirs.pvalue, abs=4 * np.sqrt(2 * ours * (1 - ours) / 20_000))


def test_p_values_of_equal_distributions_are_uniform() -> None:
    rng = np.random.default_rng(3)
    permutations = draw_permutations(20, 10, count=200, seed=4)
    found = [mmd_p_value(gaussian_kernel(rng.normal(size=(30, 4))), permutations) for _ in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_a_resumed_monitor_goes_on_exactly() -> None:
    observations = list(stream("temporal", seed=4))
    whole = DriftMonitor(DriftConfig(error_memory=128))
    wanted = [whole.update(one) for one in observations]
    for cut in (100, 399, 470, 500):
        first = DriftMonitor(DriftConfig(error_memory=128))
        found = [first.update(one) for one in observations[:cut]]
        second = DriftMonitor(DriftConfig(error_memory=128))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert found + [second.update(one) for one in observations[cut:]] == wanted
        assert second.state_dict() == whole.state_dict()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="inputs has values that are no numbers: leave the observation out"):
        DriftMonitor().update(Observation(inputs=np.array([0.5, np.nan])))
    with pytest.raises(ValueError, match="nothing to compare"):
        DriftMonitor().update(Observation())
    with pytest.raises(ValueError, match="error = nan"):
        DriftMonitor().update(Observation(error=float("nan")))
    with pytest.raises(ValueError, match="at least 1000"):
        DriftConfig(num_permutations=500)
    with pytest.raises(ValueError, match="version 7"):
        DriftMonitor().load_state_dict({"version": 7})
