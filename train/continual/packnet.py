"""PackNet: each task gets half of the weights that are still free, and no later task can touch them.

After a task half of its weights, the smallest of each layer, are given back, and what is left is trained on for a while and
frozen. A later task computes with the frozen weights and moves the free ones alone. Biases, norms and buffers are frozen after
the first task. A task is served with the weights of the tasks up to it: its outputs stay the same bit for bit.
Not the gradient is masked but the update: momentum and weight decay move a weight whose gradient is zero. Modules with buffers
(batch norm) train later tasks in evaluation mode: with the statistics that they serve them with.
Source: arXiv:1711.05769.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.rows import Batch, trainable

State = Literal["idle", "training", "retraining"]
FREE = 0
MIN_FREE = 0.01
"""Share of the weights that a task needs."""


class PackNetConfig(BaseModel):
    """How much a task gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prune: float = Field(0.5, gt=0, lt=1)
    """Share of the free weights of each layer that a task gives back."""
    retrain: float = Field(0.5, ge=0)
    """Steps of training after pruning, as a share of those before it."""
    redraw_std: float = Field(0.05, ge=0)
    """Free weights are drawn anew for a task, with this deviation."""
    seed: int = 0
    """Of these draws."""


class PackNet(ContinualMethod):
    """Weights that belong to tasks."""

    holds_shared_weights = True

    def __init__(self, config: PackNetConfig | None = None) -> None:
        self.config = config or PackNetConfig()
        self.owner: dict[str, Tensor] = {}
        """Of each weight of a matrix: 0 free, k of the k-th task."""
        self.num_tasks = 0
        self.state: State = "idle"
        self._kept: dict[str, Tensor] = {}

    @property
    def free_share(self) -> float:
        """Of all weights of matrices."""
        total = sum(owner.numel() for owner in self.owner.values())
        return sum(int((owner == FREE).sum()) for owner in self.owner.values()) / total if total else 1.0

    def attach(self, learner: Learner) -> None:
        """See ContinualMethod."""
        super().attach(learner)
        self.owner = {
            name: torch.zeros(one.shape, dtype=torch.uint8, device=one.device)
            for name, one in trainable(learner.model).items()
            if one.dim() > 1
        }

    def before_task(self, task: Task) -> None:
        """Raises ValueError where hardly a weight is free, RuntimeError in the midst of a task."""
        self._expect("idle")
        weights = trainable(self.learner.model)
        if self.free_share < MIN_FREE:
            raise ValueError(
                f"task {task.name!r}: {self.free_share:.2%} of the weights are free after {self.num_tasks} tasks, each of "
                f"which kept {1 - self.config.prune:.0%} of what it found: make the model wider, or prune more of each task"
            )
        generator = torch.Generator().manual_seed(self.config.seed + task.index)
        with torch.no_grad():
            for name, owner in self.owner.items() if self.num_tasks else ():
                drawn = torch.normal(0.0, self.config.redraw_std, owner.shape, generator=generator)
                weights[name].copy_(torch.where(owner == FREE, drawn.to(weights[name]), weights[name]))
        self._remember()
        self.num_tasks += 1
        self.state = "training"

    def retrain_steps(self, num_steps: int) -> int:
        """See ContinualMethod."""
        return round(self.config.retrain * num_steps)

    def change_batch(self, batch: Batch, *, num_samples: int) -> Batch:
        """The same. See ContinualMethod."""
        if self.num_tasks > 1:
            for module in self.learner.model.modules():
                if any(True for _ in module.buffers(recurse=False)):
                    module.training = False  # not its children
        return batch

    @torch.no_grad()
    def before_retraining(self) -> None:
        """Give the smallest weights back."""
        self._expect("training")
        weights = trainable(self.learner.model)
        for name, owner in self.owner.items():
            weight = weights[name]
            free = (owner == FREE).flatten().nonzero().squeeze(1)
            num_kept = len(free) - int(len(free) * self.config.prune)
            largest = weight.flatten()[free].abs().topk(num_kept).indices
            owner.view(-1)[free[largest]] = self.num_tasks
            weight.masked_fill_(owner == FREE, 0.0)
        self._remember()
        self.state = "retraining"

    @torch.no_grad()
    def put_back(self) -> None:
        """What this task may not move."""
        moves = FREE if self.state == "training" else self.num_tasks
        for name, weight in trainable(self.learner.model).items():
            if name in self.owner:
                weight.copy_(torch.where(self.owner[name] == moves, weight, self._kept[name]))
            elif self.num_tasks > 1:
                weight.copy_(self._kept[name])
        if self.num_tasks > 1:
            for name, buffer in self.learner.model.named_buffers():
                buffer.copy_(self._kept[name])

    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        self._expect("retraining")
        self.state = "idle"

    @torch.no_grad()
    def abandon_task(self) -> None:
        """See ContinualMethod."""
        for owner in self.owner.values():
            owner[owner == self.num_tasks] = FREE
        self.num_tasks -= 1
        self.state = "idle"

    @contextlib.contextmanager
    def serving(self, task: int | None) -> Iterator[None]:
        """In the block the model computes as a task was left; in its midst, and for None, with all weights. Raises ValueError
        for one to come."""
        if task is None or (task == self.num_tasks - 1 and self.state != "idle"):
            yield
            return
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"task {task} was not learned: there are {self.num_tasks}, counted from 0")
        weights = trainable(self.learner.model)
        before = {name: weights[name].detach().clone() for name in self.owner}
        with torch.no_grad():
            for name, owner in self.owner.items():
                weights[name].masked_fill_((owner == FREE) | (owner > task + 1), 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in before.items():
                    weights[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {"owner": self.owner, "num_tasks": self.num_tasks, "state": self.state, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for masks of another model."""
        found, known = (
            {name: tuple(owner.shape) for name, owner in table.items()} for table in (self.owner, state["owner"])
        )
        if found != known:
            name = next(name for name in found | known if found.get(name) != known.get(name))
            raise ValueError(
                f"the masks are of another model: {name} has shape {known.get(name)} there and {found.get(name)} here; load "
                "those that were saved with this model"
            )
        self.owner, self._kept = dict(state["owner"]), dict(state["kept"])
        self.num_tasks, self.state = state["num_tasks"], state["state"]

    def _remember(self) -> None:
        model = self.learner.model
        kept = dict(trainable(model)) | dict(model.named_buffers())
        self._kept = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def _expect(self, state: State) -> None:
        if self.state != state:
            raise RuntimeError(
                f"PackNet is {self.state}, not {state}: tasks are trained, pruned, retrained, in this order"
            )
