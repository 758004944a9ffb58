"""What a sequence of tasks did to a model: an accuracy or a loss matrix, and the numbers that are read off it.

In: R[i][j], the score on task j after task i was learned. Out: average accuracy, learning accuracy, backward and forward
transfer, forgetting. Sources: GEM (arXiv:1706.08840), Chaudhry et al. (arXiv:1801.10112). Forgetting is counted from the best
score in the task's history, its last one included, so it is never negative; Avalanche counts from the first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "tasks tasks"]
PerTask = Float[np.ndarray, " tasks"]


@dataclass(frozen=True)
class AccuracyMatrix:
    """R, between 0 and 1. What was not measured (tasks to come) may be NaN, but for what a number needs."""

    scores: Matrix
    """Row: tasks learned; column: task that is scored."""
    untrained: PerTask | None = None
    """Scores of a random initialisation."""

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
            raise ValueError(f"scores has shape {list(shape)}: give one row and one column per task")
        if np.isnan(self.scores[np.tril_indices(len(self.scores))]).any():
            raise ValueError("scores lacks a task that was learned already: score all of them after each task")

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], *, untrained: Sequence[float] | None = None) -> "AccuracyMatrix":
        """From rows that may end where the tasks end that were learned."""
        size = len(rows)
        scores = np.full((size, size), np.nan)
        for index, row in enumerate(rows):
            scores[index, : len(row)] = row
        return cls(scores, None if untrained is None else np.asarray(untrained, np.float64))

    @property
    def average(self) -> float:
        """Mean over all tasks after the last one (ACC)."""
        return float(self.scores[-1].mean())

    @property
    def learning(self) -> float:
        """Mean score of each task right after it was learned (LA): low forgetting means little where this is low."""
        return float(np.diag(self.scores).mean())

    @property
    def backward_transfer(self) -> float:
        """How the later tasks changed the earlier ones' scores, on average (BWT); 0 for a single task."""
        change = self.scores[-1, :-1] - np.diag(self.scores)[:-1]
        return float(change.mean()) if change.size else 0.0

    @property
    def forward_transfer(self) -> float:
        """How the earlier tasks changed the scores of those to come against a random start, on average (FWT).

        Raises ValueError where tasks to come, or the random start, were not scored.
        """
        before = np.diag(self.scores, 1)
        if self.untrained is None or np.isnan(before).any():
            raise ValueError("forward transfer needs the scores of tasks to come, and `untrained`")
        change = before - self.untrained[1:]
        return float(change.mean()) if change.size else 0.0

    @property
    def forgetting_per_task(self) -> Float[np.ndarray, " earlier"]:
        """Of each task but the last: its best score since it was learned, less its last one."""
        last = len(self.scores) - 1
        best = np.asarray([self.scores[task:, task].max() for task in range(last)], np.float64)
        lost: Float[np.ndarray, " earlier"] = best - self.scores[-1, :last]
        return lost

    @property
    def forgetting(self) -> float:
        """Mean over the earlier tasks; 0 for a single one."""
        return float(self.forgetting_per_task.mean()) if len(self.scores) > 1 else 0.0

    @property
    def worst_forgetting(self) -> float:
        """Of the task that lost most."""
        return float(self.forgetting_per_task.max()) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class LossMatrix:
    """R in nats per token: lower is better. Relative to the best loss of each domain since it was learned."""

    losses: Matrix
    untrained: PerTask
    """Of the model before the first domain."""

    def __post_init__(self) -> None:
        if self.losses.shape != (len(self.untrained),) * 2 or np.isnan(self.losses).any():
            raise ValueError(
                f"losses has shape {list(self.losses.shape)} for {len(self.untrained)} domains: score every domain after each"
            )

    @property
    def average(self) -> float:
        """Mean loss over all domains after the last one."""
        return float(self.losses[-1].mean())

    @property
    def backward_transfer(self) -> float:
        """Nats that the later domains took off the earlier ones' losses, on average; below 0 they were forgotten. 0 for a
        single domain."""
        change = np.diag(self.losses)[:-1] - self.losses[-1, :-1]
        return float(change.mean()) if change.size else 0.0

    @property
    def forward_transfer(self) -> float:
        """Nats that the earlier domains took off the losses of those to come, against the model before, on average."""
        change = self.untrained[1:] - np.diag(self.losses, 1)
        return float(change.mean()) if change.size else 0.0

    @property
    def drop_per_domain(self) -> Float[np.ndarray, " earlier"]:
        """Of each domain but the last: how much its loss has risen, relative to its best one. Never negative."""
        last = len(self.losses) - 1
        best = np.asarray([self.losses[domain:, domain].min() for domain in range(last)], np.float64)
        risen: Float[np.ndarray, " earlier"] = (self.losses[-1, :last] - best) / best
        return risen

    @property
    def worst_drop(self) -> float:
        """Of the domain that lost most; 0 for a single one."""
        return float(self.drop_per_domain.max()) if len(self.losses) > 1 else 0.0

    @property
    def learned(self) -> PerTask:
        """Nats per token that each domain's loss had fallen right after it was learned, against before the first domain: what
        learning accuracy is for accuracies."""
        gained: PerTask = self.untrained - np.diag(self.losses)
        return gained


def recovered_fraction(ours: LossMatrix, naive: LossMatrix) -> float:
    """Of what naive fine-tuning forgets, the share that `ours` does not: 1 forgets nothing, 0 as much, below 0 more.

    Raises ValueError if naive fine-tuning forgets nothing.
    """
    lost = float(naive.drop_per_domain.mean())
    if lost <= 0:
        raise ValueError("naive fine-tuning forgets nothing on these domains: the fraction has no meaning")
    return 1 - float(ours.drop_per_domain.mean()) / lost
