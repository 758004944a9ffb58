"""What a continual learner is trained on, whether it classifies or writes: rows of logits, each with the class that is right.

In: a batch, tensors by name whose first dimension counts samples. Out: Rows. A classifier has a row per sample; a causal
language model one per token that has a label, and its classes are the vocabulary. All methods of this package see rows alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from train.model.loss import IGNORE

Batch = dict[str, Tensor]
Forward = Callable[..., Any]
"""A model, or one with other weights."""
Kind = Literal["classifier", "causal"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Of one batch."""

    logits: Float[Tensor, "rows classes"]
    """As the model gives them, no class left out."""
    targets: Int[Tensor, " rows"]
    allowed: Bool[Tensor, "rows classes"] | None = None
    """Classes among which a row is decided (task-incremental); None: all."""

    @property
    def decided(self) -> Float[Tensor, "rows classes"]:
        """Logits, float32; -inf for classes that are not allowed."""
        logits = self.logits.float()
        return logits if self.allowed is None else logits.masked_fill(~self.allowed, -torch.inf)

    @property
    def loss_sum(self) -> Float[Tensor, ""]:
        """Cross-entropy in nats, summed over the rows."""
        return F.cross_entropy(self.decided, self.targets, reduction="sum")


RowsOf = Callable[[Forward, Batch], Rows]


def classify(forward: Forward, batch: Batch) -> Rows:
    """Of a batch with `x` [batch, ...], `y` [batch] and, task-incremental, `allowed` [batch, classes]."""
    return Rows(forward(batch["x"]), batch["y"], batch.get("allowed"))


def write(forward: Forward, batch: Batch) -> Rows:
    """Of a batch with `input_ids` and `labels` [batch, seq], the labels already shifted, and whatever else the model takes.

    The model is one of ours, of transformers or of PEFT: its output has `logits` [batch, seq, vocab].
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "id")}
    logits, labels = forward(**inputs).logits, batch["labels"]
    has_label = labels != IGNORE
    return Rows(logits[has_label], labels[has_label])


ROWS: dict[Kind, RowsOf] = {"classifier": classify, "causal": write}
FIELDS: dict[Kind, tuple[str, str]] = {"classifier": ("x", "y"), "causal": ("input_ids", "labels")}
"""Of a batch, that there have to be: inputs and labels."""


def labels_of(kind: Kind, batch: Batch) -> Int[Tensor, " rows"]:
    """Of the rows of a batch. Raises ValueError for a batch without inputs or labels."""
    if missing := [name for name in FIELDS[kind] if name not in batch]:
        raise ValueError(
            f"a batch for a {kind} model needs a field {missing[0]!r}; it has {', '.join(batch) or 'none'}"
        )
    labels = batch[FIELDS[kind][1]]
    return labels if kind == "classifier" else labels[labels != IGNORE]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In the block the model is in evaluation mode: no dropout, and statistics of norms stay as they are. Behind it each
    module is in the mode that it was in before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name that are trained; one that is in two places is there once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes: trained parameters, and buffers."""
    kept = dict(trainable(model)) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Forward:
    """The model as a function, with these tensors in place of its own."""
    return lambda *arguments, **options: functional_call(model, dict(weights), arguments, options)


def samples_of(batch: Batch) -> Iterator[Batch]:
    """Batches of one sample each."""
    for row in range(len(next(iter(batch.values())))):
        yield {name: value[row : row + 1] for name, value in batch.items()}


def join(batches: list[Batch]) -> Batch:
    """One batch of several. Raises ValueError where they have not the same fields."""
    first, *others = (batch.keys() for batch in batches)
    if different := [name for one in others for name in first ^ one]:
        raise ValueError(
            f"new and old samples differ in the field {different[0]!r}: give the same fields in every task"
        )
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
