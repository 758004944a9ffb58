"""ContinualMethod: what every way not to forget plugs into the training loop with (trainer.py).

Four hooks, in this order: before a task; in each step a change of the batch and penalties on the loss; after each step; after
a task. A method that needs none of them for a thing leaves it as it is here. Methods combine: the loop calls each hook of all
of them, in turn.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from train.continual.rows import ROWS, Batch, Forward, Kind, Rows
from train.pretrain.agreement import raise_together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to learn."""

    name: str
    index: int
    """Of how many came before it."""
    classes: tuple[int, ...] | None = None
    """That are new in it; None: those that there are (domains; language models)."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained, as methods see it."""

    model: nn.Module
    kind: Kind
    """What it is: a classifier has a row of logits per sample, a causal language model one per token with a label."""
    group: ProcessGroup | None = None
    """Ranks with a share of each batch; None: alone."""
    compute_dtype: torch.dtype | None = None
    """Of the matmuls; None: that of the weights. What is trained should be float32: small steps get lost in 16 bits."""

    @property
    def device(self) -> torch.device:
        """Of the weights, or of a buffer while there are none."""
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def rows_of(self, batch: Batch, *, forward: Forward | None = None) -> Rows:
        """Of the model, or of the model with other weights (`forward`)."""
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, dtype=self.compute_dtype, enabled=self.compute_dtype is not None):
            return ROWS[self.kind](self.model if forward is None else forward, batch)

    def sum_over_ranks(self, *tensors: Tensor) -> None:
        """Each becomes the sum over all ranks."""
        if self.group is not None:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)

    def together(self, work: Callable[[], T]) -> T:
        """What `work`, which has no collectives, gives on this rank. Raises on all ranks where it raises on one of them: see
        agreement.raise_together."""
        if self.group is None:
            return work()
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # whatever it is, the others have to know
            error = caught
        failed = torch.tensor(float(error is not None), device=self.device)
        self.sum_over_ranks(failed)
        if failed:  # what it is travels only if there is something
            raise_together(error, group=self.group)
        return cast(T, result)


Samples = Callable[[], Iterable[Batch]]
"""This rank's samples of a task, once through, in batches."""


class ContinualMethod:
    """A method that does nothing: what others change."""

    has_weights_per_task = False
    """Whether each task trains weights of its own (adapters, columns)."""
    holds_shared_weights = False
    """Whether it needs that all tasks train the same weights, which it holds where they were."""
    _learner: Learner | None = None

    def attach(self, learner: Learner) -> None:
        """Meet what is trained: once, before everything else. Raises ValueError for what the method cannot work on."""
        self._learner = learner

    @property
    def learner(self) -> Learner:
        """What is trained. Raises RuntimeError before `attach`."""
        if self._learner is None:
            raise RuntimeError(f"{type(self).__name__} was not attached: give it to a ContinualTrainer")
        return self._learner

    @property
    def loss_weight(self) -> float:
        """Factor on the task's loss."""
        return 1.0

    def check_samples(self, task: Task, batch: Batch, *, first: Batch) -> None:
        """Some samples of a task that is about to begin, and its first ones. Raises ValueError if they cannot be learned;
        changes nothing."""

    def grow(self, *, num_tasks: int) -> None:
        """Give the model the parts that it has once `num_tasks` tasks were begun: before a task, and before a saved state is
        loaded. New weights may differ between ranks: the trainer makes them those of the first."""

    def shrink(self, *, num_tasks: int) -> None:
        """Take away what `grow` gave it beyond that."""

    def before_task(self, task: Task) -> None:
        """Before the first step of a task. Raises ValueError if it cannot be learned, and changes nothing then."""

    def change_batch(self, batch: Batch, *, num_samples: int) -> Batch:
        """What is trained on instead; the model is in training mode. `num_samples`: of all ranks' batches."""
        return batch

    def undo_batch(self) -> None:
        """The step of the last `change_batch` failed before the weights moved: forget it, it is taken again."""

    def see_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Of the task's loss alone, over all ranks, before the weights move. They may be kept: nothing changes them."""

    def rows_penalty(self, batch: Batch, rows: Rows) -> Tensor | None:
        """A term that depends on the batch, summed over its rows: the loop divides by the rows of all ranks."""
        return None

    def weights_penalty(self) -> Tensor | None:
        """A term that depends on the weights alone, the same on all ranks."""
        return None

    def put_back(self) -> None:
        """The optimizer has moved the weights: undo that where they may not move."""

    def after_step(self) -> None:
        """The weights have moved, and stay as they are now."""

    def retrain_steps(self, num_steps: int) -> int:
        """Steps of training that follow the `num_steps` of a task, behind `before_retraining`."""
        return 0

    def before_retraining(self) -> None:
        """The steps of the task are done; those of `retrain_steps` follow."""

    def after_task(self, samples: Samples) -> None:
        """All steps of the task are done. Where it raises nothing has changed: it may be called again."""

    def abandon_task(self) -> None:
        """The task is given up, before `after_task` of any method: be as before `before_task`. The trainer restores the
        weights."""

    @contextlib.contextmanager
    def serving(self, task: int | None) -> Iterator[None]:
        """In the block the model computes as it serves a task, counted from 0; None: an input of no task that is known."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers, texts, lists and dicts of them. Tensors are those of the
        method itself: write or copy them before it goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, its tensors on the device of the weights."""

    def saved(self) -> None:
        """The last `state_dict` is on disk: no earlier one will be loaded."""

    @property
    def sees_gradients(self) -> bool:
        """Whether `see_gradients` is needed: it costs a second backward pass where there are penalties."""
        return type(self).see_gradients is not ContinualMethod.see_gradients
