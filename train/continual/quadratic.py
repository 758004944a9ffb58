"""Quadratic: a sum of pulls on weights towards where they were, kept as one whatever their number.

    sum over k of F_i^k (w_i - a_i^k)^2  =  A_i (w_i - m_i)^2 + c,   A = sum of F, m = mean of a weighted by F, c the rest

so that the cost of a penalty does not grow with the tasks. A weight without any pull keeps the last place as its centre.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Quadratic:
    """Pulls on weights by name. Weights that are not named are free."""

    def __init__(self) -> None:
        self.curvature: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.least = 0.0
        """The value where every weight is at its centre."""

    def value(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """None if none of these weights is held."""
        held = [name for name in weights if name in self.curvature]
        if not held:
            return None
        curvatures, centres = ([table[name] for name in held] for table in (self.curvature, self.centre))
        pulls: Tensor = _Pulls.apply(curvatures, centres, *(weights[name] for name in held))  # type: ignore[no-untyped-call]
        return pulls + self.least

    @torch.no_grad()
    def add(self, curvature: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> None:
        """One more pull on each of these weights; curvatures of at least 0."""
        for name, new in curvature.items():
            if name not in self.curvature:
                self.curvature[name], self.centre[name] = new.clone(), centre[name].clone()
                continue
            old, middle = self.curvature[name], self.centre[name]
            total = old + new
            share = torch.where(total > 0, new / total, 1.0)
            away = centre[name] - middle
            self.least += float((old * share * away.square()).sum())
            self.curvature[name], self.centre[name] = total, middle + share * away

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number."""
        return {"curvature": self.curvature, "centre": self.centre, "least": self.least}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.curvature, self.centre, self.least = dict(state["curvature"]), dict(state["centre"]), state["least"]


class _Pulls(torch.autograd.Function):
    """sum A (w - m)^2, whose gradient 2 A (w - m) is known: a third of the time that autograd takes over small weights."""

    @staticmethod
    def forward(ctx: Any, curvatures: list[Tensor], centres: list[Tensor], *weights: Tensor) -> Tensor:
        away = torch._foreach_sub(list(weights), centres)
        pulls = torch._foreach_mul(away, curvatures)
        ctx.save_for_backward(*pulls)
        return torch.stack([(one * pull).sum() for one, pull in zip(away, pulls, strict=True)]).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(list(ctx.saved_tensors), 2 * grad_value)
