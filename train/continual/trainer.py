"""ContinualTrainer: tasks one after the other, with whatever methods hold on to the earlier ones.

In: a model, and for each task a function that gives the batch of a step. Out: the trained model; the methods keep what they
need for the next task. A run may be cut off after any step: the state goes into a file and comes back exactly
(checkpoints.py). What cannot be learned is refused before anything changes, and a task can be given up.

Several ranks train as one: each has a share of every batch, gradients are sums over ranks divided by the rows of all of them.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.rows import Batch, Kind, Rows, evaluating, labels_of, snapshot, trainable
from train.pretrain.random_state import random_state, set_random_state

logger = logging.getLogger(__name__)

LITTLE = 0.02
"""Share of its loss that a task has to lose."""
AS_BEFORE = "All is as it was before it: lower the learning rate, or the methods' strength (lambda, c, alpha)"
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


class Diverged(ValueError):
    """The loss or the penalties are no numbers any more: the task was given up."""


@dataclass(slots=True)
class _Progress:
    """In the midst of a task."""

    task: Task
    labels: tuple[int, int]
    """The least and the largest of the task's samples."""
    kept: dict[str, Tensor]
    """Weights and buffers that the task's training changes, as they were before."""
    random: dict[str, Any]
    """The random states before."""
    step: int = 0
    """Steps that are done."""
    losses: list[float] = field(default_factory=list)
    """Of each of them."""
    is_held: bool = False
    """Whether a penalty was above 0."""
    is_retraining: bool = False
    """Whether `before_retraining` was called."""
    is_trained: bool = False
    """Whether all steps were taken: from then on it cannot be given up."""
    num_finished: int = 0
    """Methods whose `after_task` was called."""

    def state_dict(self) -> dict[str, Any]:
        """See ContinualTrainer."""
        task = {
            "name": self.task.name, "index": self.task.index,
            "classes": None if self.task.classes is None else list(self.task.classes),
        }  # fmt: skip
        others = {name: getattr(self, name) for name in self.__slots__ if name != "task"}
        return others | {"task": task, "labels": list(self.labels)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "_Progress":
        """What `state_dict` gave."""
        task, classes = state["task"], state["task"]["classes"]
        whole = Task(task["name"], task["index"], classes=None if classes is None else tuple(classes))
        return cls(**{**state, "task": whole, "labels": tuple(state["labels"]), "losses": list(state["losses"])})


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a batch costs, summed over this rank's rows but for the last one."""

    num_rows: float
    loss: Tensor
    of_rows: Tensor | None
    of_weights: Tensor | None


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
        batch; all begin with the same weights. `compute_dtype`: see Learner. Raises ValueError for methods that do not go
        together, and what they raise about the model."""
        self.learner, self.methods = Learner(model, kind, group, compute_dtype), list(methods)
        _check_together(self.methods)
        if group is not None and group.size() > 1:
            _check_statistics(model)
        for method in self.methods:
            method.attach(self.learner)
        self._build_optimizer = optimizer
        self._optimizer: Optimizer | None = None
        self._progress: _Progress | None = None
        """Of the present task; None: between tasks."""
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
        """Train a task, or what is left of it: when its state was loaded, and when an error cut it off.

        `samples`: the task once through, looked at before the first step and by methods behind the last one. A task that is
        refused, fails before its first step is taken, or diverges is given up: all is as it was before. Another error leaves
        the trainer in its midst: learn it again to go on, or `abandon` it.
        Raises ValueError for a task without steps or samples, out of turn, with labels that it or the model does not have;
        Diverged; what methods raise.
        """
        if num_steps < 1:
            raise ValueError(f"task {task.name!r} has {num_steps} steps: give it data, at least one batch")
        if self._progress is None:
            self._begin(task, samples)
        progress = self._progress
        assert progress is not None
        if progress.task != task:
            raise ValueError(
                f"task {task.name!r} is to be learned in the midst of task {progress.task.name!r}, which has done "
                f"{progress.step} steps: learn that one to its end, or abandon() it"
            )
        try:
            self._train(progress, source, num_steps=num_steps, on_step=on_step)
        except Exception as error:
            if not progress.step or isinstance(error, Diverged):
                self.abandon()
            raise
        progress.is_trained = True
        while progress.num_finished < len(self.methods):
            self.methods[progress.num_finished].after_task(samples)
            progress.num_finished += 1
        self._progress = self._optimizer = None

    def abandon(self) -> None:
        """Give up the task in whose midst the trainer is: all is as it was before it. Raises RuntimeError between two tasks,
        and when all its steps were taken."""
        progress = self._progress
        if progress is None or progress.is_trained:
            told = (
                "there is no task to give up" if progress is None else "the task is trained: learn it again to its end"
            )
            raise RuntimeError(told)
        self._undo(progress, self.methods)
        self._num_tasks -= 1
        self._progress = self._optimizer = None

    def _undo(self, progress: _Progress, begun: Sequence[ContinualMethod]) -> None:
        for method in begun:
            method.abandon_task()
        for method in self.methods:
            method.shrink(num_tasks=progress.task.index)
        model = self.learner.model
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name in progress.kept:
                    tensor.copy_(progress.kept[name])
        set_random_state(progress.random)

    def _begin(self, task: Task, samples: Samples) -> None:
        if task.index != self._num_tasks:
            raise ValueError(
                f"task {task.name!r} has index {task.index}, and {self._num_tasks} tasks were begun: give it index "
                f"{self._num_tasks}"
            )
        labels = self._check_samples(task, samples)
        progress = _Progress(task, labels, kept=snapshot(self.learner.model), random=random_state())
        begun: list[ContinualMethod] = []
        try:
            self._grow(task.index + 1)
            for method in self.methods:
                method.before_task(task)
                begun.append(method)
            self._optimizer = self._build_optimizer(list(trainable(self.learner.model).values()))
        except Exception:
            self._undo(progress, begun)
            raise
        self._num_tasks, self._progress = task.index + 1, progress

    def _check_samples(self, task: Task, samples: Samples) -> tuple[int, int]:
        """The least and the largest label of the task, of this rank."""
        least, largest, count = 0, 0, 0

        def look() -> None:
            nonlocal least, largest, count
            for batch in samples():
                labels = labels_of(self.learner.kind, batch)
                if not len(labels):
                    continue
                count += len(labels)
                least, largest = min(least, int(labels.min())), max(largest, int(labels.max()))
                _check_classes(task, labels)
                for method in self.methods:
                    method.check_samples(task, batch)

        self.learner.together(look)
        total = torch.tensor(float(count), device=self.learner.device)
        self.learner.sum_over_ranks(total)
        if not total:
            raise ValueError(f"task {task.name!r} has no samples with a label: give it data")
        return least, largest

    def _grow(self, num_tasks: int) -> None:
        """New weights are the first rank's."""
        model, group = self.learner.model, self.learner.group
        known = set(model.state_dict())
        for method in self.methods:
            method.grow(num_tasks=num_tasks)
        if group is not None:
            for name, tensor in model.state_dict().items():
                if name not in known:
                    dist.broadcast(tensor, group=group, group_src=0)

    def _train(
        self, progress: _Progress, source: Source, *, num_steps: int, on_step: Callable[[int, StepRecord], None]
    ) -> None:
        extra = max((method.retrain_steps(num_steps) for method in self.methods), default=0)
        while progress.step < num_steps + extra:
            if progress.step == num_steps:
                self._begin_retraining(progress)
            record = self._take_step(progress, source)
            progress.step += 1
            progress.losses.append(record.loss)
            progress.is_held |= record.penalty > 0
            on_step(progress.step, record)
        self._begin_retraining(progress)
        if not all(bool(weight.isfinite().all()) for weight in trainable(self.learner.model).values()):
            raise Diverged(f"task {progress.task.name!r} diverged in its last step. {AS_BEFORE}")
        if progress.is_held:
            _warn_if_little_was_learned(progress.task, progress.losses)

    def _begin_retraining(self, progress: _Progress) -> None:
        if progress.is_retraining:
            return
        for method in self.methods:
            method.before_retraining()
        progress.is_retraining = True

    def _take_step(self, progress: _Progress, source: Source) -> StepRecord:
        """A step that fails before the weights moved leaves all as it was."""
        learner = self.learner
        weights = trainable(learner.model)
        learner.model.train()
        batch = learner.together(lambda: self._new_batch(progress, source))
        num_samples = torch.tensor(float(len(next(iter(batch.values())))), device=learner.device)
        learner.sum_over_ranks(num_samples)
        try:
            terms = learner.together(lambda: self._forward(progress, batch, num_samples=int(num_samples)))
            num_rows = torch.tensor(terms.num_rows, device=learner.device)
            learner.sum_over_ranks(num_rows)
            if not num_rows:
                raise ValueError("a batch has no rows with a label: leave it out")
            loss = terms.loss / num_rows
            of_rows = None if terms.of_rows is None else terms.of_rows / num_rows
            record = self._record(progress, loss, of_rows, terms.of_weights)
            gradients = self._gradients(weights, loss, of_rows, terms.of_weights)
        except Exception:
            for method in self.methods:
                method.undo_batch()
            raise
        for parameter, gradient in zip(weights.values(), gradients, strict=True):
            parameter.grad = gradient
        assert self._optimizer is not None
        self._optimizer.step()
        self._optimizer.zero_grad()
        for method in self.methods:
            method.put_back()
        for method in self.methods:
            method.after_step()
        return record

    def _new_batch(self, progress: _Progress, source: Source) -> Batch:
        batch = source(progress.step)
        _check_classes(progress.task, labels_of(self.learner.kind, batch))
        return batch

    def _forward(self, progress: _Progress, batch: Batch, *, num_samples: int) -> _Terms:
        """Of the batch as methods change it."""
        for method in self.methods:
            batch = method.change_batch(batch, num_samples=num_samples)
        rows = self.learner.rows_of(batch)
        _check_labels(rows, progress.labels)
        weight = math.prod(method.loss_weight for method in self.methods)
        return _Terms(
            num_rows=float(len(rows.targets)),
            loss=weight * rows.loss_sum,
            of_rows=_sum([method.rows_penalty(batch, rows) for method in self.methods]),
            of_weights=_sum([method.weights_penalty() for method in self.methods]),
        )

    def _gradients(
        self, weights: Mapping[str, nn.Parameter], loss: Tensor, of_rows: Tensor | None, of_weights: Tensor | None
    ) -> list[Tensor]:
        """Of all terms, over all ranks."""
        if any(method.sees_gradients for method in self.methods):
            gradients = self._over_ranks(_gradients(loss, weights, keeps_graph=of_rows is not None))
            for method in self.methods:
                method.see_gradients(dict(zip(weights, gradients, strict=True)))
            if (
                of_rows is not None or self.learner.group is not None
            ):  # another rank may have a term where this has none
                more = self._over_ranks(_gradients(of_rows, weights))
                gradients = list(torch._foreach_add(gradients, more))
        else:
            gradients = self._over_ranks(_gradients(loss if of_rows is None else loss + of_rows, weights))
        if of_weights is not None:
            held = torch.autograd.grad(of_weights, list(weights.values()), allow_unused=True)
            for index, one in enumerate(held):
                if one is not None:
                    gradients[index] = gradients[index] + one
        return gradients

    def _record(
        self, progress: _Progress, loss: Tensor, of_rows: Tensor | None, of_weights: Tensor | None
    ) -> StepRecord:
        told = torch.stack([loss.detach(), torch.zeros_like(loss) if of_rows is None else of_rows.detach()])
        self.learner.sum_over_ranks(told)
        loss_value, penalty = told.tolist()
        penalty += 0.0 if of_weights is None else float(of_weights.detach())
        if not math.isfinite(loss_value + penalty):
            raise Diverged(
                f"task {progress.task.name!r} diverged: after {progress.step} steps its loss is {loss_value:.4g} and the "
                f"penalty {penalty:.4g}. {AS_BEFORE}"
            )
        return StepRecord(loss_value, penalty)

    def saved(self) -> None:
        """The last `state_dict` is on disk: no earlier one will be loaded."""
        for method in self.methods:
            method.saved()

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
        """After any step: model, optimizer, methods, place in the task, random states. Tensors are those of the trainer
        itself: write or copy them before it goes on. `methods` and `random` are this rank's own, the rest is that of all."""
        return {
            "model": self.learner.model.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "progress": None if self._progress is None else self._progress.state_dict(),
            "num_tasks": self._num_tasks,
            "names": _names(self.methods),
            "methods": [method.state_dict() for method in self.methods],
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into a new trainer with the same model and methods. Raises ValueError for a state of other methods, and for a
        trainer that has learned."""
        if self._num_tasks:
            raise ValueError("the trainer has begun tasks already: load the state into a new one")
        if state["names"] != _names(self.methods):
            raise ValueError(
                f"the state is of the methods {state['names']}, and these are {_names(self.methods)}: build the same ones"
            )
        for method in self.methods if state["num_tasks"] else ():
            method.grow(num_tasks=state["num_tasks"])
        self._num_tasks = state["num_tasks"]
        progress = None if state["progress"] is None else _Progress.of_state(state["progress"])
        if progress is not None:  # what methods change here is overwritten below
            for method in self.methods:
                method.before_task(progress.task)
        self.learner.model.load_state_dict(state["model"])
        for method, saved in zip(self.methods, _to(self.learner.device, state["methods"]), strict=True):
            method.load_state_dict(saved)
        self._progress = progress
        if progress is not None:
            self._optimizer = self._build_optimizer(list(trainable(self.learner.model).values()))
            self._optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])


def _names(methods: Sequence[ContinualMethod]) -> list[str]:
    return [type(method).__name__ for method in methods]


def _to(device: torch.device, value: Any) -> Any:
    """With all tensors there."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(device, one) for key, one in value.items()}
    return [_to(device, one) for one in value] if isinstance(value, list | tuple) else value


def _check_statistics(model: nn.Module) -> None:
    """Raises ValueError for norms whose statistics would be of each rank's part."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is {type(module).__name__}, whose statistics would be of each rank's part of a batch: convert the "
                "model (torch.nn.SyncBatchNorm.convert_sync_batchnorm), or take a norm without statistics"
            )


def _check_together(methods: Sequence[ContinualMethod]) -> None:
    apart = next((type(one).__name__ for one in methods if one.has_weights_per_task), None)
    shared = next((type(one).__name__ for one in methods if one.holds_shared_weights), None)
    if apart is not None and shared is not None:
        raise ValueError(
            f"{shared} holds weights that all tasks train, and with {apart} each task trains its own: leave one of them away; "
            "to hold an adapter's weights train a single one (train.adapt.lora.attach_adapter)"
        )


def _check_classes(task: Task, labels: Tensor) -> None:
    """Raises ValueError for a label that is not of the task."""
    if task.classes is None or not len(labels):
        return
    found = torch.isin(labels, torch.tensor(task.classes, device=labels.device))
    if not found.all():
        raise ValueError(
            f"task {task.name!r} has the classes {list(task.classes)}, and a sample has label {int(labels[~found][0])}: "
            "leave the sample out, or name its class"
        )


def _check_labels(rows: Rows, of_task: tuple[int, int]) -> None:
    """Raises ValueError for a class that the model has no output for, or that the row may not be of."""
    if not len(rows.targets):
        return
    num_classes = rows.logits.shape[1]
    least, largest = min(of_task[0], int(rows.targets.min())), max(of_task[1], int(rows.targets.max()))
    if largest >= num_classes or least < 0:
        wrong = largest if largest >= num_classes else least
        raise ValueError(f"a sample has label {wrong}, and the model tells 0 to {num_classes - 1}: widen its output")
    if rows.allowed is not None and not bool(rows.allowed.gather(1, rows.targets.unsqueeze(1)).all()):
        raise ValueError("a batch has a label that its `allowed` leaves out: give the classes of the sample's own task")


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
