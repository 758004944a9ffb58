"""Paired statistics: scores of two models on the same items in, bounds and exact probabilities out. Pure and seeded.

Sources: percentile bootstrap, Efron and Tibshirani 1993, chapter 13, with the p value of Davison and Hinkley 1997, equation
4.11; sign test and McNemar's exact test, which are the same binomial test (Dietterich 1998); Holm 1979; the upper bound of a
share of which none was seen, Clopper and Pearson 1934.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BOOTSTRAP_SEED = 20_250_101
MIN_PAIRS = 2
"""A bound needs at least two items: one says nothing about its spread."""


def bootstrap_lower_bound(differences: Iterable[float], *, confidence: float, samples: int) -> float:
    """One-sided lower bound of the mean of paired differences, percentile method. Needs at least one difference."""
    return float(np.quantile(_resampled_means(differences, samples=samples), 1 - confidence))


def bootstrap_upper_bound(differences: Iterable[float], *, confidence: float, samples: int) -> float:
    """The mirror image of `bootstrap_lower_bound`."""
    return 0.0 - bootstrap_lower_bound(-as_floats(differences), confidence=confidence, samples=samples)


def bootstrap_p_value(differences: Iterable[float], *, above: float, samples: int) -> float:
    """Of the hypothesis that the mean of the differences is not above `above`: share of resamples that are not, plus one.

    Never below 1 / (samples + 1). Needs at least one difference.
    """
    means = _resampled_means(differences, samples=samples)
    return float((1 + (means <= above).sum()) / (1 + samples))


def sign_test(num_gained: int, num_lost: int) -> float:
    """One-sided exact p value that gains are no likelier than losses; 1 without either.

    For binary items this is McNemar's exact test: `num_gained` items only the candidate has right, `num_lost` only the other.
    """
    total = num_gained + num_lost
    num_ways: int = sum(math.comb(total, count) for count in range(num_gained, total + 1))
    return float(num_ways / 2**total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: each below alpha is significant, with a family-wise error of at most alpha."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda row: p_values[row])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def share_upper_bound(num_trials: int, *, confidence: float) -> float:
    """Exact upper bound of a share of which none of `num_trials` showed one; 1 without trials."""
    return 1.0 - (1.0 - confidence) ** (1.0 / num_trials) if num_trials else 1.0


def wilson_interval(num_hits: int, num_trials: int, *, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a share (Wilson 1927, without continuity correction); from 0 to 1 without trials."""
    if num_trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = num_hits / num_trials, 1 + z * z / num_trials
    centre = (share + z * z / (2 * num_trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_trials + (z / (2 * num_trials)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def items_needed(differences: Iterable[float], *, threshold: float, confidence: float, samples: int) -> int | None:
    """About how many such items would bring the bound of the mean to the threshold, as its width falls with their square
    root; None where the mean is at the threshold, so that no number would.
    """
    values = as_floats(differences)
    mean = float(values.mean())
    width = bootstrap_upper_bound(values, confidence=confidence, samples=samples) - mean
    distance = abs(threshold - mean)
    if distance == 0 or not math.isfinite(width):
        return None
    return math.ceil(len(values) * (width / distance) ** 2)


def as_floats(values: Iterable[float | None]) -> Floats:
    """As float64; None, which JSON writers use for numbers that are not finite, is not a number."""
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _resampled_means(differences: Iterable[float], *, samples: int) -> Floats:
    values = as_floats(differences)
    if len(values) == 0:
        raise ValueError("differences is empty: a bound of no data does not exist")
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means: Floats = values[rng.integers(0, len(values), size=(samples, len(values)))].mean(axis=1)
    return means
