"""AdapterRouter: which task's adapter an input is for, or none, by how like it is to what the tasks were taught on.

In: embeddings. Out: a Route each: the task whose mean is most like the input, unless it is less like that than nearly all of
the task's own inputs are; then the router abstains, and the base answers alone. On four domains of text (docs/continual.md)
means told more inputs right than nearest neighbours and than a linear discriminant with shrinkage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Embeddings = Float[Tensor, "inputs width"]
MIN_INPUTS = 8


class RouterConfig(BaseModel):
    """When no task is alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    abstain_share: float = Field(0.05, ge=0, lt=1)
    """Share of a task's own inputs that are less like its other ones than what the router takes for it."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one input goes."""

    task: str | None
    """None: the router abstains."""
    nearest: str
    """The task that is most alike, taken or not."""
    similarity: float
    """Cosine to the mean of that task's inputs."""
    threshold: float
    """From which on the task is taken."""


class AdapterRouter:
    """A mean and a threshold for each task. On one thread."""

    def __init__(self, config: RouterConfig | None = None) -> None:
        self.config = config or RouterConfig()
        self._means: dict[str, Float[Tensor, " width"]] = {}
        self._thresholds: dict[str, float] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that were added, in their order."""
        return tuple(self._means)

    def add(self, task: str, inputs: Embeddings) -> None:
        """A task, or one anew. Raises ValueError for too few inputs, for another width, and for zeros."""
        inputs = self._unit(inputs)
        if len(inputs) < MIN_INPUTS:
            raise ValueError(f"task {task!r} has {len(inputs)} inputs: the router needs at least {MIN_INPUTS}")
        total = inputs.sum(0)
        others = torch.nn.functional.normalize(total - inputs, dim=1)  # the mean without the input itself
        self._means[task] = total / total.norm()
        self._thresholds[task] = float((inputs * others).sum(1).quantile(self.config.abstain_share))

    def route(self, inputs: Embeddings) -> list[Route]:
        """Of each input. Raises ValueError if no task was added."""
        if not self._means:
            raise ValueError("the router knows no task: add one")
        likeness = self._unit(inputs) @ torch.stack(list(self._means.values())).T
        routes = []
        for similarity, index in zip(*(values.tolist() for values in likeness.max(1)), strict=True):
            nearest = self.tasks[index]
            threshold = self._thresholds[nearest]
            routes.append(Route(nearest if similarity >= threshold else None, nearest, similarity, threshold))
        return routes

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts."""
        return {"means": dict(self._means), "thresholds": dict(self._thresholds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._means = {task: mean.cpu() for task, mean in state["means"].items()}
        self._thresholds = dict(state["thresholds"])

    def _unit(self, inputs: Embeddings) -> Embeddings:
        inputs = inputs.detach().float().cpu()
        width = next((len(mean) for mean in self._means.values()), inputs.shape[-1])
        norms = inputs.norm(dim=-1, keepdim=True)
        is_usable = inputs.dim() == 2 and inputs.shape[1] == width and bool(((norms > 0) & norms.isfinite()).all())
        if not is_usable:
            raise ValueError(
                f"inputs have shape {list(inputs.shape)}: give finite vectors other than zero, [inputs, {width}]"
            )
        unit: Embeddings = inputs / norms
        return unit
