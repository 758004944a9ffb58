"""LearningWithoutForgetting: on the new task's samples, the model keeps saying of the old classes what it said before.

    (1 - alpha) CE + alpha T^2 KL(softmax(z_old / T) || softmax(z / T)), over the old classes only

z_old are the logits of the weights before the task. Task-incremental, each earlier task's classes are one distribution.
Source: arXiv:1606.09282, in the form of Hinton et al. (arXiv:1503.02531). Avalanche has CE + alpha KL without T^2. The
price is plasticity: the higher alpha, the less of the new task is learned.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.method import ContinualMethod, Samples, Task
from train.continual.rows import Batch, Rows, evaluating, snapshot, with_weights


class LwFConfig(BaseModel):
    """Temperature and share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(2.0, gt=0)
    """T."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the old model's say in the loss."""
    scales_with_temperature: bool = True
    """Whether the term is multiplied by T^2, which keeps its gradient's size for any T."""
    splits_tasks: bool = False
    """Task-incremental: one distribution per earlier task instead of one over all old classes."""


class LearningWithoutForgetting(ContinualMethod):
    """Distillation from the model before the task."""

    holds_shared_weights = True

    def __init__(self, config: LwFConfig | None = None) -> None:
        self.config = config or LwFConfig()
        self.old_classes: list[tuple[int, ...]] = []
        """Of each task that was learned."""
        self._teacher: dict[str, Tensor] = {}
        self._classes: tuple[int, ...] | None = None

    @property
    def loss_weight(self) -> float:
        """See ContinualMethod."""
        return 1 - self.config.alpha if self._teacher else 1.0

    def before_task(self, task: Task) -> None:
        """See ContinualMethod."""
        self._classes = task.classes

    def rows_penalty(self, batch: Batch, rows: Rows) -> Tensor | None:
        """See ContinualMethod."""
        if not self._teacher:
            return None
        learner, config = self.learner, self.config
        with evaluating(learner.model), torch.no_grad():
            teacher = with_weights(learner.model, self._teacher)
            before = learner.rows_of(batch, forward=teacher).logits.float()
        total = rows.logits.new_zeros((), dtype=torch.float32)
        for classes in self._groups(rows.logits.shape[1], rows.logits.device):
            wanted = F.log_softmax(before[:, classes] / config.temperature, dim=1)
            found = F.log_softmax(rows.logits.float()[:, classes] / config.temperature, dim=1)
            total = total + F.kl_div(found, wanted, reduction="sum", log_target=True)
        return config.alpha * (config.temperature**2 if config.scales_with_temperature else 1.0) * total

    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        self._teacher = snapshot(self.learner.model)
        if self._classes is not None:
            self.old_classes.append(self._classes)

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {"teacher": self._teacher, "old_classes": [list(classes) for classes in self.old_classes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self._teacher = dict(state["teacher"])
        self.old_classes = [tuple(classes) for classes in state["old_classes"]]

    def _groups(self, num_classes: int, device: torch.device) -> list[Tensor]:
        """Indices of the classes of each distribution: all, where tasks bring no classes of their own."""
        groups = self.old_classes or [tuple(range(num_classes))]
        if not self.config.splits_tasks:
            groups = [tuple(index for classes in groups for index in classes)]
        return [torch.tensor(classes, device=device) for classes in groups]
