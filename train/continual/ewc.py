"""EWCRegularizer: weights that mattered for earlier tasks are held where they were, as strongly as they mattered.

    loss + lambda / 2 * sum over tasks k and weights i of F_i^k (w_i - w*_i^k)^2

F is the diagonal of the Fisher information (fisher.py). Online: one Fisher, F <- gamma F + F_new, held at the last weights.
Sources: arXiv:1612.00796; online: arXiv:1805.06370. Avalanche and Mammoth leave the 1/2 away: their lambda is half of ours.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.fisher import FisherKind, fisher_diagonal
from train.continual.method import ContinualMethod, Samples, Task
from train.continual.quadratic import Quadratic
from train.continual.rows import trainable

logger = logging.getLogger(__name__)

VANISHED = 1e-7
"""Mean Fisher information per weight below which next to nothing is held. Measured behind 30 epochs of two digits, with which
exact EWC holds and the others do not: exact 7e-7 and 4e-6, the others 7e-10 and 2e-8 (task- and class-incremental); a
single task of the exact one came to 7e-8."""
ADVICE = "The gradients of the true classes vanish then: for a classifier take fisher = 'exact'"


class EWCConfig(BaseModel):
    """How strongly, and by which information."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(5000.0, ge=0)
    """lambda."""
    fisher: FisherKind | None = None
    """None: exact for a classifier, sampled for a language model."""
    max_samples: int | None = Field(None, gt=0)
    """Samples of a task that the Fisher information is estimated on, over all ranks, drawn by their keys; None: all."""
    is_online: bool = False
    """All earlier information holds the last weights; else each task's holds those that it ended with."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Online: what is left of the earlier tasks' information at each new one."""
    seed: int = 0
    """Of the classes and the samples that are drawn."""


class EWCRegularizer(ContinualMethod):
    """Elastic Weight Consolidation."""

    holds_shared_weights = True

    def __init__(self, config: EWCConfig | None = None) -> None:
        self.config = config or EWCConfig()
        self.held = Quadratic()
        """Of all tasks: its curvature is the Fisher information."""
        self._task = 0

    def before_task(self, task: Task) -> None:
        """See ContinualMethod."""
        self._task = task.index

    def weights_penalty(self) -> Tensor | None:
        """See ContinualMethod."""
        value = self.held.value(trainable(self.learner.model))
        return None if value is None else self.config.strength / 2 * value

    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        learner, config = self.learner, self.config
        fisher = fisher_diagonal(
            learner, samples, kind=config.fisher, max_samples=config.max_samples, seed=config.seed + self._task
        )
        anchor = {name: weight.detach().clone() for name, weight in trainable(learner.model).items()}
        count = sum(one.numel() for one in fisher.values())
        mean = float(torch.stack([one.sum() for one in fisher.values()]).sum()) / count
        if mean < VANISHED:
            is_exact = learner.kind == "classifier" and config.fisher in (None, "exact")
            logger.warning(
                "EWC holds little of task %d: the mean Fisher information is %.1e, since the model is certain of nearly every "
                "sample. %s",
                self._task,
                mean,
                "Train the task for less long, or raise strength" if is_exact else ADVICE,
            )
        if config.is_online:  # the earlier information moves to the new place
            before, self.held = self.held.curvature, Quadratic()
            fisher = {
                name: one + config.gamma * before[name] if name in before else one for name, one in fisher.items()
            }
        self.held.add(fisher, anchor)

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {"held": self.held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self.held.load_state_dict(state["held"])
