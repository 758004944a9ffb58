"""One step of continual learning, over all ranks: batch, loss, penalties, gradients, weights.

In: a learner, its methods and optimizer, the place in a task. Out: moved weights, and what the step cost before. A rank may
have no rows, or a term that others do not have; what one of them meets before the weights move is raised on all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from train.continual.checks import check_classes, check_labels
from train.continual.method import ContinualMethod, Learner
from train.continual.progress import Progress
from train.continual.rows import Batch, labels_of, trainable

AS_BEFORE = "All is as it was before it: lower the learning rate, or the methods' strength (lambda, c, alpha)"
Source = Callable[[int], Batch]
"""The batch of a step, counted from 0: the same whenever it is asked for."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Of one step, before it was taken: nats per row."""

    loss: float
    """Of the task, its methods' changes of the batch included."""
    penalty: float
    """What methods added."""


class Diverged(ValueError):
    """The loss or the penalties are no numbers any more: the task was given up."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a batch costs, summed over this rank's rows but for the last one."""

    num_rows: float
    loss: Tensor
    of_rows: Tensor | None
    of_weights: Tensor | None


def take_step(
    learner: Learner, methods: Sequence[ContinualMethod], optimizer: Optimizer, progress: Progress, source: Source
) -> StepRecord:
    """The next one of a task. One that fails before the weights moved leaves all as it was, on all ranks.

    Raises ValueError for a batch without labels, or with one that the task or the model does not have; Diverged; what
    `source` and methods raise.
    """
    weights = trainable(learner.model)
    learner.model.train()
    batch = learner.together(lambda: _new_batch(learner, progress, source))
    num_samples = torch.tensor(float(len(next(iter(batch.values())))), device=learner.device)
    learner.sum_over_ranks(num_samples)
    try:
        terms = learner.together(lambda: _forward(learner, methods, progress, batch, num_samples=int(num_samples)))
        num_rows = torch.tensor(terms.num_rows, device=learner.device)
        learner.sum_over_ranks(num_rows)
        if not num_rows:
            raise ValueError("a batch has no rows with a label: leave it out")
        loss = terms.loss / num_rows
        of_rows = None if terms.of_rows is None else terms.of_rows / num_rows
        record = _record(learner, progress, loss, of_rows, terms.of_weights)
        gradients = _all_gradients(learner, methods, weights, loss, of_rows, terms.of_weights)
    except Exception:
        for method in methods:
            method.undo_batch()
        raise
    for parameter, gradient in zip(weights.values(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    for method in methods:
        method.put_back()
    for method in methods:
        method.after_step()
    return record


def _new_batch(learner: Learner, progress: Progress, source: Source) -> Batch:
    batch = source(progress.step)
    check_classes(progress.task, labels_of(learner.kind, batch))
    return batch


def _forward(
    learner: Learner, methods: Sequence[ContinualMethod], progress: Progress, batch: Batch, *, num_samples: int
) -> _Terms:
    """Of the batch as methods change it."""
    for method in methods:
        batch = method.change_batch(batch, num_samples=num_samples)
    rows = learner.rows_of(batch)
    check_labels(rows, progress.labels)
    weight = math.prod(method.loss_weight for method in methods)
    return _Terms(
        num_rows=float(len(rows.targets)),
        loss=weight * rows.loss_sum,
        of_rows=_sum([method.rows_penalty(batch, rows) for method in methods]),
        of_weights=_sum([method.weights_penalty() for method in methods]),
    )


def _all_gradients(  # noqa: PLR0917 - the terms of a loss
    learner: Learner,
    methods: Sequence[ContinualMethod],
    weights: Mapping[str, nn.Parameter],
    loss: Tensor,
    of_rows: Tensor | None,
    of_weights: Tensor | None,
) -> list[Tensor]:
    """Of all terms, over all ranks."""
    if any(method.sees_gradients for method in methods):
        gradients = _over_ranks(learner, _gradients(loss, weights, keeps_graph=of_rows is not None))
        for method in methods:
            method.see_gradients(dict(zip(weights, gradients, strict=True)))
        # another rank may have a term where this one has none
        if of_rows is not None or learner.group is not None:
            more = _over_ranks(learner, _gradients(of_rows, weights))
            gradients = list(torch._foreach_add(gradients, more))
    else:
        gradients = _over_ranks(learner, _gradients(loss if of_rows is None else loss + of_rows, weights))
    if of_weights is not None:
        held = torch.autograd.grad(of_weights, list(weights.values()), allow_unused=True)
        for index, one in enumerate(held):
            if one is not None:
                gradients[index] = gradients[index] + one
    return gradients


def _record(
    learner: Learner, progress: Progress, loss: Tensor, of_rows: Tensor | None, of_weights: Tensor | None
) -> StepRecord:
    told = torch.stack([loss.detach(), torch.zeros_like(loss) if of_rows is None else of_rows.detach()])
    learner.sum_over_ranks(told)
    loss_value, penalty = told.tolist()
    penalty += 0.0 if of_weights is None else float(of_weights.detach())
    if not math.isfinite(loss_value + penalty):
        raise Diverged(
            f"task {progress.task.name!r} diverged: after {progress.step} steps its loss is {loss_value:.4g} and the "
            f"penalty {penalty:.4g}. {AS_BEFORE}"
        )
    return StepRecord(loss_value, penalty)


def _over_ranks(learner: Learner, gradients: list[Tensor]) -> list[Tensor]:
    """Their sums."""
    if learner.group is None:
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=learner.group)
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


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


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    found = [term for term in terms if term is not None]
    return torch.stack(found).sum() if found else None
