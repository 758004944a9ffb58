"""Confidence intervals that hold at every instant, so that whoever looks at each request is not fooled by looking often.

In: successes of trials that came one after another. Out: bounds of the success probability. Source: the beta mixture of
Robbins (1970, Annals of Mathematical Statistics 41), as in Howard et al. 2021 (Annals of Statistics 49): with a uniform
mixture M_n(p) = B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k)) is a martingale under p, so by Ville's inequality the set of all p
with M_n(p) < 1 / alpha holds the true p at all n together, with probability 1 - alpha.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

BISECTIONS = 60
"""Halvings of [0, 1]: beyond float64's precision."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a probability."""

    low: float
    high: float


def always_valid_interval(num_hits: int, num_trials: int, *, confidence: float) -> Interval:
    """Two-sided interval of a success probability, valid at all numbers of trials together. Without trials [0, 1].

    Raises ValueError for more hits than trials, and for a confidence outside (0, 1).
    """
    if not 0 <= num_hits <= num_trials:
        raise ValueError(f"num_hits is {num_hits} of num_trials = {num_trials}: count hits among the trials")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a probability between 0 and 1")
    if num_trials == 0:
        return Interval(0.0, 1.0)
    num_misses = num_trials - num_hits
    limit = -math.log1p(-confidence)
    log_beta = math.lgamma(num_hits + 1) + math.lgamma(num_misses + 1) - math.lgamma(num_trials + 2)

    def is_outside(p: float) -> bool:
        return log_beta - _times_log(num_hits, p) - _times_log(num_misses, 1 - p) >= limit

    estimate = num_hits / num_trials  # the martingale is least here, and rises to both sides
    low = 0.0 if num_hits == 0 else _edge(is_outside, outside=0.0, inside=estimate)
    high = 1.0 if num_misses == 0 else _edge(is_outside, outside=1.0, inside=estimate)
    return Interval(low, high)


def _times_log(count: int, p: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(p) if p > 0 else -math.inf


def _edge(is_outside: Callable[[float], bool], *, outside: float, inside: float) -> float:
    for _ in range(BISECTIONS):
        middle = (outside + inside) / 2
        if is_outside(middle):
            outside = middle
        else:
            inside = middle
    return outside
