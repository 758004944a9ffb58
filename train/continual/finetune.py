"""ContinualFineTuning: a low-rank adapter for each task, on a base that never changes.

routed  each task is served by its own adapter alone, which no later task touches: its outputs stay the same bit for bit. From
        an input's embedding the router (router.py) tells which one that is, or that the base should answer alone.
summed  O-LoRA (arXiv:2310.14152): each adapter is trained on top of the earlier ones, in directions orthogonal to theirs, and
        all together serve every input:  loss + lambda sum over layers and earlier tasks j of |A_j A_t'|^2

It combines with replay. Methods that hold weights where they were (EWC, SI, LwF) need one adapter for all tasks:
train.adapt.lora.attach_adapter. The adapters are PEFT's.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from train.adapt.lora import LoRAConfig, add_adapter, attach_adapter, save_adapter
from train.continual.method import ContinualMethod, Learner, Task
from train.continual.router import AdapterRouter, Embeddings, RouterConfig

SUMMED = "summed"
"""Folder of adapters in one."""


class FineTuningConfig(BaseModel):
    """The adapters, and how they serve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoRAConfig = LoRAConfig()
    """Shape of each adapter."""
    router: RouterConfig = RouterConfig()
    """When an input is taken for none of the tasks."""
    composition: Literal["routed", "summed"] = "routed"
    """Which adapters an input meets: that of its task, or all."""
    starts_from: Literal["previous", "fresh"] = "previous"
    """What an adapter of a routed task begins as: a copy of the last task's, so that it goes on from what that had learned, or
    one that changes nothing. Summed ones are always fresh."""
    orthogonality: float = Field(0.5, ge=0)
    """lambda, of summed adapters; 0: they may overlap."""


class ContinualFineTuning(ContinualMethod):
    """Adapters of tasks. `model` is what the trainer trains; the base inside it stays untouched."""

    has_weights_per_task = True

    def __init__(self, base: nn.Module, config: FineTuningConfig | None = None) -> None:
        """`base`: a causal language model of transformers or ours. Its layers are wrapped in place."""
        self.config = config or FineTuningConfig()
        self.model: Any = attach_adapter(base, self.config.lora, name=adapter_name(0), is_float32=True)
        self.router = AdapterRouter(self.config.router)
        self.num_tasks = 1
        self._task = 0

    def teach_router(self, task: int, inputs: Embeddings) -> None:
        """Embeddings of a task's inputs, by which it is known from then on. Raises ValueError as AdapterRouter.add."""
        self.router.add(adapter_name(task), inputs)

    def route(self, inputs: Embeddings) -> list[int | None]:
        """The task of each input, for `serving`; None: of no task. Raises ValueError if the router was taught none."""
        numbers = {adapter_name(index): index for index in range(self.num_tasks)}
        return [None if route.task is None else numbers[route.task] for route in self.router.route(inputs)]

    def attach(self, learner: Learner) -> None:
        """Raises ValueError for another model than `model`."""
        if learner.model is not self.model:
            raise ValueError("the trainer's model is not ContinualFineTuning.model: train that one")
        super().attach(learner)

    def grow(self, *, num_tasks: int) -> None:
        """See ContinualMethod."""
        while self.num_tasks < num_tasks:
            config = self.config.lora
            fresh = config.model_copy(update={"seed": config.seed + self.num_tasks})
            add_adapter(self.model, fresh, name=adapter_name(self.num_tasks), is_float32=True)
            self.num_tasks += 1

    def shrink(self, *, num_tasks: int) -> None:
        """See ContinualMethod. The first adapter stays."""
        first, end = max(num_tasks, 1), self.num_tasks
        self.num_tasks, self._task = first, first - 1
        self._activate(self._task)
        for index in range(first, end):
            self.model.delete_adapter(adapter_name(index))

    def before_task(self, task: Task) -> None:
        """See ContinualMethod."""
        self._task = task.index
        if task.index and self.config.composition == "routed" and self.config.starts_from == "previous":
            copy_adapter(self.model, source=adapter_name(task.index - 1), target=adapter_name(task.index))
        self._activate(task.index)

    def weights_penalty(self) -> Tensor | None:
        """See ContinualMethod."""
        if self.config.composition == "routed" or not self.config.orthogonality or not self._task:
            return None
        return self.config.orthogonality * overlap(self.model, task=self._task)

    @contextlib.contextmanager
    def serving(self, task: int | None) -> Iterator[None]:
        """In the block the model computes with a task's adapter; None: as the base alone. Summed adapters serve all tasks as
        they have learned so far. Raises ValueError for a task to come."""
        if task is not None and not 0 <= task < self.num_tasks:
            raise ValueError(f"task {task} was not learned: there are {self.num_tasks}, counted from 0")
        try:
            if task is None:
                with self.model.disable_adapter():
                    yield
            else:
                self._activate(self._task if self.config.composition == "summed" else task)
                yield
        finally:
            self._activate(self._task)  # PEFT has made the earlier ones of several trainable

    def save(self, folder: Path, *, base_name: str) -> list[Path]:
        """Folders in the format that vLLM loads: one per task in their order; of summed adapters one with the rank of all."""
        names = [adapter_name(index) for index in range(self.num_tasks)]
        if self.config.composition == "summed":
            self.model.add_weighted_adapter(names, [1.0] * len(names), SUMMED, combination_type="cat")
            names = [SUMMED]
        try:
            for name in names:
                save_adapter(self.model, folder=folder / name, base_name=base_name, name=name)
        finally:
            if SUMMED in self.model.peft_config:
                self.model.delete_adapter(SUMMED)
                self._activate(self._task)
        return [folder / name for name in names]

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod. The weights are in the model's own state."""
        return {"task": self._task, "router": self.router.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self._task = state["task"]
        self.router.load_state_dict(state["router"])
        self._activate(self._task)

    def _activate(self, task: int) -> None:
        """The adapter of a task, trained; summed: on top of those before it, which are frozen."""
        first = 0 if self.config.composition == "summed" else task
        self.model.base_model.set_adapter([adapter_name(index) for index in range(first, task + 1)])
        for index in range(first, task):
            self.model.set_requires_grad(adapter_name(index), requires_grad=False)


@torch.no_grad()
def copy_adapter(adapted: nn.Module, *, source: str, target: str) -> None:
    """Give an adapter the weights of another one of the same shape."""
    for module in adapted.modules():
        for part in ("lora_A", "lora_B"):
            layers = getattr(module, part, None)
            if isinstance(layers, nn.ModuleDict) and target in layers:
                layers[target].load_state_dict(layers[source].state_dict())


def adapter_name(task: int) -> str:
    """Of a task's adapter in PEFT."""
    return f"task-{task}"


def overlap(adapted: nn.Module, *, task: int) -> Tensor:
    """sum over layers and earlier tasks j of |A_j A_t'|^2: 0 where the inputs that the adapters read are orthogonal."""
    total: Tensor | None = None
    for module in adapted.modules():
        downs = getattr(module, "lora_A", None)
        if not isinstance(downs, nn.ModuleDict) or adapter_name(task) not in downs:
            continue
        layers = cast(dict[str, nn.Linear], downs)
        weights = [layers[adapter_name(index)].weight for index in range(task + 1)]
        earlier = torch.cat([weight.detach() for weight in weights[:-1]]).float()
        term = (earlier @ weights[-1].float().T).square().sum()
        total = term if total is None else total + term
    if total is None:
        raise ValueError(f"the model has no adapter {adapter_name(task)!r}: attach one")
    return total
