"""ContinualTrainer: tasks one after the other, with whatever methods hold on to the earlier ones.

In: a model, and for each task a function that gives the batch of a step. Out: the trained model; the methods keep what they
need for the next task. A run may be cut off after any step: the state goes into a file and comes back exactly
(checkpoints.py). What cannot be learned is refused before anything changes, and a task can be given up.

Several ranks train as one: each has a share of every batch, gradients are sums over ranks divided by the rows of all of them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from train.continual.checks import check_classes, check_statistics, check_together
from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.progress import Progress
from train.continual.rows import Batch, Kind, evaluating, labels_of, snapshot, trainable
from train.continual.step import AS_BEFORE, Diverged, Source, StepRecord, take_step
from train.pretrain.random_state import random_state, set_random_state

logger = logging.getLogger(__name__)

LITTLE = 0.02
"""Share of its loss that a task has to lose."""
BuildOptimizer = Callable[[list[nn.Parameter]], Optimizer]


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
        check_together(self.methods)
        if group is not None and group.size() > 1:
            check_statistics(model)
        for method in self.methods:
            method.attach(self.learner)
        self._build_optimizer = optimizer
        self._optimizer: Optimizer | None = None
        self._progress: Progress | None = None
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
        and when all its steps were taken: load a saved state then."""
        progress = self._progress
        if progress is None or progress.is_trained:
            raise RuntimeError("no task to give up" if progress is None else "the task is trained: learn it to its end")
        self._undo(progress, self.methods)
        self._num_tasks -= 1
        self._progress = self._optimizer = None

    def _undo(self, progress: Progress, begun: Sequence[ContinualMethod]) -> None:
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
        progress = Progress(task, labels, kept=snapshot(self.learner.model), random=random_state())
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
        """The least and the largest label of the task."""
        least, largest, count = 0, 0, 0

        def look() -> None:
            nonlocal least, largest, count
            first: Batch | None = None
            for batch in samples():
                labels = labels_of(self.learner.kind, batch)
                if not len(labels):
                    continue
                count, first = count + len(labels), first or batch
                least, largest = min(least, int(labels.min())), max(largest, int(labels.max()))
                check_classes(task, labels)
                for method in self.methods:
                    method.check_samples(task, batch, first=first)

        self.learner.together(look)
        found = torch.tensor([count, -least, largest], device=self.learner.device)
        if self.learner.group is not None:
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.learner.group)
        most, least, largest = found.tolist()
        if not most:
            raise ValueError(f"task {task.name!r} has no samples with a label: give it data")
        return -least, largest

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
        self, progress: Progress, source: Source, *, num_steps: int, on_step: Callable[[int, StepRecord], None]
    ) -> None:
        extra = max((method.retrain_steps(num_steps) for method in self.methods), default=0)
        while progress.step < num_steps + extra:
            if progress.step == num_steps:
                self._begin_retraining(progress)
            assert self._optimizer is not None
            record = take_step(self.learner, self.methods, self._optimizer, progress, source)
            progress.step += 1
            progress.losses.append(record.loss)
            progress.is_held |= record.penalty > 0
            on_step(progress.step, record)
        self._begin_retraining(progress)
        if not all(bool(weight.isfinite().all()) for weight in trainable(self.learner.model).values()):
            raise Diverged(f"task {progress.task.name!r} diverged in its last step. {AS_BEFORE}")
        if progress.is_held:
            _warn_if_little_was_learned(progress.task, progress.losses)

    def _begin_retraining(self, progress: Progress) -> None:
        if progress.is_retraining:
            return
        for method in self.methods:
            method.before_retraining()
        progress.is_retraining = True

    def saved(self) -> None:
        """The last `state_dict` is on disk: no earlier one will be loaded."""
        for method in self.methods:
            method.saved()

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
        progress = None if state["progress"] is None else Progress.of_state(state["progress"])
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
