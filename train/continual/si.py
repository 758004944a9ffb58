"""SynapticIntelligence: each weight's part in the fall of the loss, counted while it happens, tells how firmly to hold it.

    omega_i = sum over steps of -g_i dw_i,  Omega_i += max(0, omega_i) / (Dw_i^2 + xi),  loss + c sum_i Omega_i (w_i - w*_i)^2

g is the gradient of the task's loss alone, dw what the optimizer really did in the step, Dw what the task did in all.
Source: arXiv:1703.04200. There xi is 0.1; on small problems that lets most be forgotten, and 1e-3 is the default here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.method import ContinualMethod, Samples, Task
from train.continual.quadratic import Quadratic
from train.continual.rows import trainable


class SIConfig(BaseModel):
    """How strongly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(1.0, ge=0)
    """c."""
    damping: float = Field(1e-3, gt=0)
    """xi: bounds the importance of weights that hardly moved."""


class SynapticIntelligence(ContinualMethod):
    """Importance by the path integral of the gradient."""

    holds_shared_weights = True

    def __init__(self, config: SIConfig | None = None) -> None:
        self.config = config or SIConfig()
        self.held = Quadratic()
        """Its curvature is Omega, of all tasks so far, its centre the weights behind the last one."""
        self.path: dict[str, Tensor] = {}
        """omega, of the present task."""
        self._start: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def before_task(self, task: Task) -> None:
        """See ContinualMethod."""
        self._start = self._weights()
        self.path = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in self._start.items()}

    def see_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """See ContinualMethod."""
        self._gradients = {name: gradient.detach() for name, gradient in gradients.items()}
        self._before = self._weights()

    def weights_penalty(self) -> Tensor | None:
        """See ContinualMethod."""
        value = self.held.value(trainable(self.learner.model))
        return None if value is None else self.config.strength * value

    @torch.no_grad()
    def after_step(self) -> None:
        """See ContinualMethod."""
        weights = trainable(self.learner.model)
        moved = torch._foreach_sub(list(weights.values()), [self._before[name] for name in weights])
        gained = torch._foreach_mul([self._gradients[name].float() for name in weights], [one.float() for one in moved])
        torch._foreach_sub_([self.path[name] for name in weights], gained)

    @torch.no_grad()
    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        now = self._weights()
        for name, path in self.path.items():
            moved = (now[name] - self._start[name]).float()
            gained = path.clamp(min=0) / (moved.square() + self.config.damping)
            self.held.curvature[name] = self.held.curvature.get(name, torch.zeros_like(gained)) + gained
            self.held.centre[name] = now[name]

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {"held": self.held.state_dict(), "path": self.path, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self.held.load_state_dict(state["held"])
        self.path, self._start = dict(state["path"]), dict(state["start"])

    def _weights(self) -> dict[str, Tensor]:
        """Copies of those that are trained now."""
        weights = trainable(self.learner.model)
        copies = [torch.empty_like(weight) for weight in weights.values()]
        torch._foreach_copy_(copies, [weight.detach() for weight in weights.values()])
        return dict(zip(weights, copies, strict=True))
