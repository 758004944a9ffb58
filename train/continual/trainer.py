"""ContinualTrainer: tasks one after the other, with whatever methods hold on to the earlier ones.

In: a model, and for each task a function that gives the batch of a step. Out: the trained model; the methods keep what they
need for the next task. A run may be cut off after any step: the state goes into a file and comes back exactly.

Several ranks train as one: each has a share of every batch, gradients are sums over ranks divided by the rows of all of them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.rows import Batch, Kind, Rows, evaluating, trainable

logger = logging.getLogger(__name__)

LITTLE = 0.02
"""Share of its loss that a task has to lose."""
Source = Callable[[int], Batch]
"""The batch of a step, counted from 0: the same whenever it is asked for."""
BuildOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Of one step, before it was taken: nats per row."""

    loss: float
    """Of the task, its methods' changes of the batch included."""
    penalty: float
    """What methods added."""


class ContinualTrainer:
    """The loop of one process."""

    def __init__(
        self,
        model: nn.Module,
        kind: Kind,
        *,
        methods: Sequence[ContinualMethod],
        optimizer: BuildOptimizer,
        group: ProcessGroup | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`optimizer` is built anew for each task, of the parameters that are trained then. `group`: the ranks that share each
        batch; all begin with the same weights. `compute_dtype`: see Learner."""
        self.learner, self.methods = Learner(model, kind, group, compute_dtype), list(methods)
        self._build_optimizer = optimizer
        self._optimizer: Optimizer | None = None
        self._step: int | None = None
        """Steps of the present task that are done; None: between tasks."""
        self._num_tasks = 0
        """That were begun."""

    def learn(
        self,
        task: Task,
        source: Source,
        *,
        num_steps: int,
        samples: Samples,
        on_step: Callable[[int, StepRecord], None] = lambda *_: None,
    ) -> None:
        """Train a task, or what is left of it when its state was loaded. `samples`: the task once through, for methods that
        look at it at its end. Raises ValueError for a task without steps, and what methods raise; earlier tasks stay as they
        were."""
        if num_steps < 1:
            raise ValueError(f"task {task.name!r} has {num_steps} steps: give it data, at least one batch")
        if self._step is None:
            for method in self.methods:
                method.grow(self.learner, num_tasks=task.index + 1)
            for method in self.methods:
                method.before_task(task, self.learner)
            self._num_tasks = task.index + 1
            self._optimizer, self._step = self._build_optimizer(list(trainable(self.learner.model).values())), 0
        losses: list[float] = []
        is_whole, is_held = self._step == 0, False
        extra = max((method.retrain_steps(num_steps) for method in self.methods), default=0)
        while self._step < num_steps + extra:
            if self._step == num_steps:
                for method in self.methods:
                    method.before_retraining()
            record = self._take_step(source(self._step))
            self._step += 1
            losses.append(record.loss)
            is_held |= record.penalty > 0
            on_step(self._step, record)
        if not extra:
            for method in self.methods:
                method.before_retraining()
        if is_whole and is_held:
            _warn_if_little_was_learned(task, losses)
        for method in self.methods:
            method.after_task(samples)
        self._step = self._optimizer = None

    def _take_step(self, batch: Batch) -> StepRecord:
        learner = self.learner
        for method in self.methods:
            batch = method.change_batch(batch)
        weights = trainable(learner.model)
        learner.model.train()
        rows = learner.rows_of(batch)
        num_rows = torch.tensor(float(len(rows.targets)), device=rows.logits.device)
        learner.sum_over_ranks(num_rows)
        if not num_rows:
            raise ValueError("a batch has no rows with a label: leave it out")
        self._check_labels(rows)
        weight = 1.0
        for method in self.methods:
            weight *= method.loss_weight
        loss = weight * rows.loss_sum / num_rows
        of_rows = _sum([method.rows_penalty(batch, rows) for method in self.methods])
        of_rows = None if of_rows is None else of_rows / num_rows
        of_weights = _sum([method.weights_penalty() for method in self.methods])
        if any(method.sees_gradients for method in self.methods):
            gradients = self._over_ranks(_gradients(loss, weights, keeps_graph=of_rows is not None))
            for method in self.methods:
                method.see_gradients(dict(zip(weights, gradients, strict=True)))
            if of_rows is not None or learner.group is not None:  # another rank may have a term where this one has none
                more = self._over_ranks(_gradients(of_rows, weights))
                gradients = list(torch._foreach_add(gradients, more))
        else:
            gradients = self._over_ranks(_gradients(loss if of_rows is None else loss + of_rows, weights))
        if of_weights is not None:
            held = torch.autograd.grad(of_weights, list(weights.values()), allow_unused=True)
            for index, one in enumerate(held):
                if one is not None:
                    gradients[index] = gradients[index] + one
        for parameter, gradient in zip(weights.values(), gradients, strict=True):
            parameter.grad = gradient
        assert self._optimizer is not None
        self._optimizer.step()
        self._optimizer.zero_grad()
        for method in self.methods:
            method.after_step()
        told = torch.stack([loss.detach(), torch.zeros_like(loss) if of_rows is None else of_rows.detach()])
        learner.sum_over_ranks(told)
        return StepRecord(float(told[0]), float(told[1]) + (0.0 if of_weights is None else float(of_weights.detach())))

    def _check_labels(self, rows: Rows) -> None:
        """Before anything is changed: a class that the model has no output for, or that the row may not be of."""
        if self.learner.kind != "classifier" or not len(rows.targets):
            return
        num_classes, largest = rows.logits.shape[1], int(rows.targets.max())
        if largest >= num_classes or int(rows.targets.min()) < 0:
            raise ValueError(
                f"a batch has label {largest}, and the model tells 0 to {num_classes - 1}: widen its output"
            )
        if rows.allowed is not None and not bool(rows.allowed.gather(1, rows.targets.unsqueeze(1)).all()):
            raise ValueError(
                "a batch has a label that its `allowed` leaves out: give the classes of the sample's own task"
            )

    def _over_ranks(self, gradients: list[Tensor]) -> list[Tensor]:
        """Their sums."""
        if self.learner.group is None:
            return gradients
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self.learner.group)
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    @contextlib.contextmanager
    def serving(self, task: int | None) -> Iterator[None]:
        """In the block the model computes as the methods serve a task, in evaluation mode. See ContinualMethod."""
        with contextlib.ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.serving(task))
            stack.enter_context(evaluating(self.learner.model))
            yield

    # The state.

    def state_dict(self) -> dict[str, Any]:
        """After any step: model, optimizer, methods, place in the task."""
        return {
            "model": self.learner.model.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "methods": [method.state_dict() for method in self.methods],
            "step": self._step,
            "num_tasks": self._num_tasks,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, task: Task | None = None) -> None:
        """Into a trainer with the same model and methods. `task`: the one in whose midst the state was saved.

        Raises ValueError without it, or for a state of other methods.
        """
        if len(state["methods"]) != len(self.methods):
            raise ValueError(
                f"the state is of {len(state['methods'])} methods, and there are {len(self.methods)}: build the same ones"
            )
        if (state["step"] is None) != (task is None):
            raise ValueError("task: name the task in whose midst the state was saved, and none between two")
        self._num_tasks = state["num_tasks"]
        for method in self.methods if self._num_tasks else ():
            method.grow(self.learner, num_tasks=self._num_tasks)
        if task is not None:  # methods meet their model; what that changes is overwritten below
            for method in self.methods:
                method.before_task(task, self.learner)
        self.learner.model.load_state_dict(state["model"])
        for method, saved in zip(self.methods, state["methods"], strict=True):
            method.load_state_dict(saved)
        self._step = state["step"]
        if task is not None:
            self._optimizer = self._build_optimizer(list(trainable(self.learner.model).values()))
            self._optimizer.load_state_dict(state["optimizer"])


def _gradients(loss: Tensor | None, weights: Mapping[str, nn.Parameter], *, keeps_graph: bool = False) -> list[Tensor]:
    """On this rank; zeros for a weight that the loss does not reach, and for no loss."""
    parameters = list(weights.values())
    if loss is None:
        return [torch.zeros_like(weight) for weight in parameters]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=keeps_graph)
    return [
        torch.zeros_like(weight) if gradient is None else gradient
        for weight, gradient in zip(parameters, found, strict=True)
    ]


def _warn_if_little_was_learned(task: Task, losses: Sequence[float]) -> None:
    """A method that forgets nothing may be one that learns nothing."""
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    if len(losses) > 1 and last > (1 - LITTLE) * first:
        logger.warning(
            "Task %r was hardly learned: its loss went from %.4f to %.4f while methods held the weights. Look at the learning "
            "accuracy, and lower their strength (lambda, c, alpha)",
            task.name,
            first,
            last,
        )


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    found = [term for term in terms if term is not None]
    return torch.stack(found).sum() if found else None
