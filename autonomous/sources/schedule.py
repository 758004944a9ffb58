"""Which source is read next, and when one that fails is tried again. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_BACKOFF_S = 3600.0
"""A source that cannot be read is tried at least so often."""
MIN_BACKOFF_S = 1.0
IDLE_S = 60.0
"""Longest wait while there is nothing to read: something may be added."""


@dataclass(frozen=True, slots=True)
class Turn:
    """When a source is due, seconds of one clock; `served` is the number of its last turn; `num_failures` in a row."""

    due_at: float = 0.0
    served: int = 0
    num_failures: int = 0


def choose_next(turns: Mapping[str, Turn], *, now: float) -> str | None:
    """Of the sources that are due, the one that has waited longest since its last turn: a flood delays nobody."""
    due = [key for key, turn in turns.items() if turn.due_at <= now]
    return min(due, key=lambda key: (turns[key].served, key), default=None)


def wait_s(turns: Mapping[str, Turn], *, now: float) -> float:
    """Until a source is due."""
    return max(0.0, min([turn.due_at - now for turn in turns.values()], default=IDLE_S))


def after_batch(*, served: int, now: float, is_exhausted: bool, interval_s: float) -> Turn:
    """A source with more to read stays due, behind those that wait longer."""
    return Turn(due_at=now + interval_s if is_exhausted else now, served=served)


def after_failure(turn: Turn, *, served: int, now: float, interval_s: float) -> Turn:
    """Twice as late with each failure in a row."""
    delay_s = backoff_s(turn.num_failures, first_s=max(MIN_BACKOFF_S, min(interval_s, MAX_BACKOFF_S)))
    return Turn(due_at=now + delay_s, served=served, num_failures=turn.num_failures + 1)


def backoff_s(num_failures: int, *, first_s: float = MIN_BACKOFF_S, most_s: float = MAX_BACKOFF_S) -> float:
    """The delay behind the failure that follows so many others."""
    return float(min(most_s, first_s * 2.0 ** min(num_failures, 32)))
