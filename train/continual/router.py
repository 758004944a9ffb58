"""AdapterRouter: which task's adapter an input is for, or none, by how like it is to what the tasks were taught on.

In: embeddings. Out: a Route each: the task whose nearest exemplars are most like the input, unless they are less like it than
nearly all of the task's own inputs are like each other; then the router abstains, and the base answers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Embeddings = Float[Tensor, "inputs width"]


class RouterConfig(BaseModel):
    """How inputs are compared, and when none is alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_neighbours: int = Field(5, gt=0)
    """The nearest exemplars of a task, whose mean similarity counts."""
    abstain_share: float = Field(0.05, ge=0, lt=1)
    """Share of a task's own inputs that are less like the others of it than what the router takes for it."""
    max_exemplars: int = Field(1000, gt=1)
    """Inputs of a task that are kept; a uniform draw."""
    seed: int = 0
    """Of this draw."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one input goes."""

    task: str | None
    """None: the router abstains."""
    nearest: str
    """The task that is most alike, taken or not."""
    similarity: float
    """Mean cosine to the nearest exemplars of that task."""
    threshold: float
    """From which on the task is taken."""


class AdapterRouter:
    """Exemplars of each task. On one thread."""

    def __init__(self, config: RouterConfig | None = None) -> None:
        self.config = config or RouterConfig()
        self._exemplars: dict[str, Embeddings] = {}
        self._thresholds: dict[str, float] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that were added, in their order."""
        return tuple(self._exemplars)

    def add(self, task: str, inputs: Embeddings) -> None:
        """A task, or one anew. Raises ValueError for too few inputs, for another width, and for zeros."""
        inputs = self._unit(inputs)
        config = self.config
        if len(inputs) <= config.num_neighbours:
            raise ValueError(
                f"task {task!r} has {len(inputs)} inputs: the router needs more than num_neighbours = {config.num_neighbours}"
            )
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(config.seed))
        kept = inputs[order[: config.max_exemplars].sort().values]
        likeness = (kept @ kept.T).fill_diagonal_(-torch.inf)
        own = likeness.topk(config.num_neighbours, dim=1).values.mean(1)
        self._exemplars[task] = kept
        self._thresholds[task] = float(own.quantile(config.abstain_share))

    def route(self, inputs: Embeddings) -> list[Route]:
        """Of each input. Raises ValueError if no task was added."""
        if not self._exemplars:
            raise ValueError("the router knows no task: add one")
        inputs = self._unit(inputs)
        found = torch.stack(
            [
                (inputs @ kept.T).topk(self.config.num_neighbours, dim=1).values.mean(1)
                for kept in self._exemplars.values()
            ]
        )
        routes = []
        for similarity, index in zip(*(values.tolist() for values in found.max(0)), strict=True):
            nearest = self.tasks[index]
            threshold = self._thresholds[nearest]
            routes.append(Route(nearest if similarity >= threshold else None, nearest, similarity, threshold))
        return routes

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts."""
        return {"exemplars": dict(self._exemplars), "thresholds": dict(self._thresholds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._exemplars, self._thresholds = dict(state["exemplars"]), dict(state["thresholds"])

    def _unit(self, inputs: Embeddings) -> Embeddings:
        inputs = inputs.detach().float().cpu()
        width = next((kept.shape[1] for kept in self._exemplars.values()), inputs.shape[-1])
        norms = inputs.norm(dim=-1, keepdim=True)
        if (
            inputs.dim() != 2
            or inputs.shape[1] != width
            or not bool((norms > 0).all())
            or not bool(norms.isfinite().all())
        ):
            raise ValueError(
                f"inputs have shape {list(inputs.shape)}: give finite vectors other than zero, [inputs, {width}]"
            )
        unit: Embeddings = inputs / norms
        return unit
