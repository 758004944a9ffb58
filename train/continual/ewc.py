"""EWCRegularizer: weights that mattered for earlier tasks are held where they were, as strongly as they mattered.

    loss + lambda / 2 * sum over tasks k and weights i of F_i^k (w_i - w*_i^k)^2

F is the diagonal of the Fisher information, of single samples, in evaluation mode. `exact` sums over all classes by their
probability; `sampled` draws one class per row from the model; `empirical` takes the true one. Both are close to zero where a
classifier is always right, and then hold nothing. Online: one Fisher, F <- gamma F + F_new, held at the last weights.
Sources: arXiv:1612.00796; online: arXiv:1805.06370. Avalanche and Mammoth leave the 1/2 away: their lambda is half of ours.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import grad, vmap

from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.quadratic import Quadratic
from train.continual.rows import Batch, Rows, evaluating, samples_of, trainable, with_weights

logger = logging.getLogger(__name__)

FisherKind = Literal["exact", "sampled", "empirical"]
VANISHED = 1e-7
"""Mean Fisher information per weight below which next to nothing is held. Measured behind 30 epochs of two digits, with which
exact EWC holds and the others do not: exact 7e-7 and 4e-6, the others 7e-10 and 2e-8 (task- and class-incremental); a
single task of the exact one came to 7e-8."""
GRADIENT_NUMBERS = 2**23
"""Numbers of the gradients of single samples that are held at once: 32 MB."""
ADVICE = "The gradients of the true classes vanish then: for a classifier take fisher = 'exact'"


class EWCConfig(BaseModel):
    """How strongly, and by which information."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(5000.0, ge=0)
    """lambda."""
    fisher: FisherKind | None = None
    """None: exact for a classifier, sampled for a language model."""
    max_samples: int | None = Field(None, gt=0)
    """Samples of a task that the Fisher information is estimated on, on each rank; None: all."""
    is_online: bool = False
    """All earlier information holds the last weights; else each task's holds those that it ended with."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Online: what is left of the earlier tasks' information at each new one."""
    seed: int = 0
    """Of the classes that are drawn."""


class EWCRegularizer(ContinualMethod):
    """Elastic Weight Consolidation."""

    def __init__(self, config: EWCConfig | None = None) -> None:
        self.config = config or EWCConfig()
        self.held = Quadratic()
        """Of all tasks: its curvature is the Fisher information."""
        self._learner: Learner | None = None
        self._task = 0

    def before_task(self, task: Task, learner: Learner) -> None:
        """See ContinualMethod."""
        self._learner, self._task = learner, task.index

    def weights_penalty(self) -> Tensor | None:
        """See ContinualMethod."""
        assert self._learner is not None
        value = self.held.value(trainable(self._learner.model))
        return None if value is None else self.config.strength / 2 * value

    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        learner, config = self._learner, self.config
        assert learner is not None
        fisher = fisher_diagonal(
            learner, samples, kind=config.fisher, max_samples=config.max_samples, seed=config.seed + self._task
        )
        anchor = {name: weight.detach().clone() for name, weight in trainable(learner.model).items()}
        count = sum(one.numel() for one in fisher.values())
        mean = float(torch.stack([one.sum() for one in fisher.values()]).sum()) / count
        if mean < VANISHED:
            is_exact = learner.kind == "classifier" and config.fisher in (None, "exact")
            logger.warning(
                "EWC holds little of task %d: the mean Fisher information is %.1e, since the model is certain of nearly every "
                "sample. %s",
                self._task,
                mean,
                "Train the task for less long, or raise strength" if is_exact else ADVICE,
            )
        if config.is_online:  # the earlier information moves to the new place
            before, self.held = self.held.curvature, Quadratic()
            fisher = {
                name: one + config.gamma * before[name] if name in before else one for name, one in fisher.items()
            }
        self.held.add(fisher, anchor)

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {"held": self.held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self.held.load_state_dict(state["held"])


def fisher_diagonal(
    learner: Learner, samples: Samples, *, kind: FisherKind | None, max_samples: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of the log-likelihood, of each trained weight; over all ranks' samples.

    A language model's sample is a sequence: its log-likelihood is that of all its tokens. Modes and buffers stay as they are.
    Raises ValueError if there are no samples, and for the exact one of a language model.
    """
    model = learner.model
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in trainable(model).items()}
    count = 0
    kind = kind or ("exact" if learner.kind == "classifier" else "sampled")
    if kind == "exact" and learner.kind != "classifier":
        raise ValueError(
            "fisher = 'exact' of a language model needs a backward pass for each word of its vocabulary: take 'sampled'"
        )
    add_squares = _add_of_classifier if learner.kind == "classifier" else _add_of_writer
    generator = torch.Generator(device=next(iter(total.values())).device).manual_seed(seed)
    with evaluating(model):
        for whole in samples():
            room = None if max_samples is None else max_samples - count
            batch = {name: value[:room] for name, value in whole.items()}
            size = len(next(iter(batch.values())))
            if not size:
                break
            add_squares(total, learner, batch, kind=kind, generator=generator)
            count += size
    num_samples = torch.tensor(float(count), dtype=torch.float64, device=next(iter(total.values())).device)
    learner.sum_over_ranks(num_samples, *total.values())
    if not num_samples:
        raise ValueError("the task has no samples: the Fisher information needs some")
    return {name: one / float(num_samples) for name, one in total.items()}


def _add_of_writer(
    total: dict[str, Tensor], learner: Learner, batch: Batch, *, kind: FisherKind, generator: torch.Generator
) -> None:
    """Sequence by sequence."""
    for sample in samples_of(batch):
        with torch.enable_grad():
            rows = learner.rows_of(sample)
            if not len(rows.targets):
                continue
            drawn = _draw(rows, generator) if kind == "sampled" else rows.targets
            loss = Rows(rows.logits, drawn).loss_sum
            gradients = torch.autograd.grad(loss, list(trainable(learner.model).values()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float().square()


def _add_of_classifier(
    total: dict[str, Tensor], learner: Learner, batch: Batch, *, kind: FisherKind, generator: torch.Generator
) -> None:
    """Pairs of a sample and a class, many at once."""
    model = learner.model
    weights = {name: weight.detach() for name, weight in trainable(model).items()}
    buffers = dict(model.named_buffers())

    def loss_of(values: dict[str, Tensor], sample: Batch, target: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in sample.items()}
        decided = learner.rows_of(one, forward=with_weights(model, values | buffers)).decided
        return decided.logsumexp(1).sum() - decided.gather(1, target.view(1, 1)).sum()

    per_sample = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="error")
    with torch.no_grad():
        rows = learner.rows_of(batch)
    if kind == "exact":
        probabilities = rows.decided.softmax(1)
        samples, targets = probabilities.nonzero().unbind(1)
        chances = probabilities[samples, targets]
    else:
        targets = _draw(rows, generator) if kind == "sampled" else rows.targets
        samples, chances = (
            torch.arange(len(targets), device=targets.device),
            torch.ones_like(targets, dtype=torch.float32),
        )
    size = max(1, GRADIENT_NUMBERS // sum(weight.numel() for weight in weights.values()))
    for part, target, chance in zip(samples.split(size), targets.split(size), chances.split(size), strict=True):
        found = per_sample(weights, {name: value[part] for name, value in batch.items()}, target)
        for name, gradient in found.items():
            total[name] += torch.einsum("s,s...->...", chance, gradient.float().square())


def _draw(rows: Rows, generator: torch.Generator) -> Tensor:
    """A class of each row, by the model's own probabilities."""
    return torch.multinomial(rows.decided.softmax(1), 1, generator=generator).squeeze(1)
