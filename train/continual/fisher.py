"""The diagonal of the Fisher information: how much each weight decides what a model says, of single samples.

In evaluation mode. `exact` sums over all classes by their probability; `sampled` draws one class per row from the model;
`empirical` takes the true one. The last two are close to zero where a classifier is always right. What is drawn follows from a
sample's key: it does not depend on the order of samples, on batches or on ranks.

A linear layer that sees one row per sample has the gradient outer(delta, input) there, so the sum of its squares over
samples is one product of squares (as in KFAC, arXiv:1503.05671); other weights of a classifier are differentiated by sample.
"""

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, vmap

from train.continual.buffer import ID
from train.continual.method import Learner, Samples
from train.continual.replay import replay_key
from train.continual.rows import Batch, Rows, evaluating, samples_of, trainable, with_weights

FisherKind = Literal["exact", "sampled", "empirical"]
GRADIENT_NUMBERS = 2**23
"""Numbers of the gradients of single samples that are held at once: 32 MB."""


def fisher_diagonal(
    learner: Learner, samples: Samples, *, kind: FisherKind | None, max_samples: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of the log-likelihood, of each trained weight; over all ranks' samples.

    A language model's sample is a sequence: its log-likelihood is that of all its tokens. Modes and buffers stay as they are.
    `max_samples`: those with the largest keys, of all ranks. Raises ValueError if there are no samples, and for the exact one
    of a language model.
    """
    model = learner.model
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in trainable(model).items()}
    kind = kind or ("exact" if learner.kind == "classifier" else "sampled")
    if kind == "exact" and learner.kind != "classifier":
        raise ValueError(
            "fisher = 'exact' of a language model needs a backward pass for each word of its vocabulary: take 'sampled'"
        )
    add_squares = _add_of_classifier if learner.kind == "classifier" else _add_of_writer
    least = None if max_samples is None else _least_key(learner, samples, max_samples=max_samples, seed=seed)

    def add() -> int:
        """On this rank; returns its number of samples."""
        count = 0
        for whole in samples():
            batch = whole
            if least is not None:
                chosen = torch.tensor([key >= least for key in _keys(whole, seed=seed)], dtype=torch.bool)
                batch = {name: value[chosen] for name, value in whole.items()}
            size = len(next(iter(batch.values())))
            if size:
                add_squares(total, learner, batch, kind=kind, seed=seed)
                count += size
        return count

    with evaluating(model):
        count = learner.together(add)
    num_samples = torch.tensor(float(count), dtype=torch.float64, device=learner.device)
    learner.sum_over_ranks(num_samples, *total.values())
    if not num_samples:
        raise ValueError("the task has no samples: the Fisher information needs some")
    return {name: one / float(num_samples) for name, one in total.items()}


def _add_of_writer(total: dict[str, Tensor], learner: Learner, batch: Batch, *, kind: FisherKind, seed: int) -> None:
    """Sequence by sequence."""
    for sample in samples_of(batch):
        with torch.enable_grad():
            rows = learner.rows_of(sample)
            if not len(rows.targets):
                continue
            drawn = _draw(rows, sample, seed=seed) if kind == "sampled" else rows.targets
            loss = Rows(rows.logits, drawn).loss_sum
            gradients = torch.autograd.grad(loss, list(trainable(learner.model).values()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float().square()


def _add_of_classifier(
    total: dict[str, Tensor], learner: Learner, batch: Batch, *, kind: FisherKind, seed: int
) -> None:
    """All classes of all samples."""
    with torch.enable_grad(), _linear_layers(learner.model) as layers, _uncached_autocast():
        rows = learner.rows_of(batch)
        log_probabilities = rows.decided.log_softmax(1)
    simple = _simple_layers(layers, learner, batch, log_probabilities)
    known = {name for layer in simple for name in (layer.weight, layer.bias) if name is not None}
    others = [name for name in total if name not in known]
    for one in _passes(rows, batch, kind=kind, seed=seed):
        if simple:
            loss = -(one.chances.sqrt() * log_probabilities[one.samples, one.targets]).sum()
            deltas = torch.autograd.grad(loss, [layer.edge for layer in simple], retain_graph=True)
            for layer, delta in zip(simple, deltas, strict=True):
                squares = delta.float().square()
                total[layer.weight].addmm_(squares.T, layer.inputs[0].float().square())
                if layer.bias is not None:
                    total[layer.bias] += squares.sum(0)
        if others:
            _add_by_sample(total, others, learner, batch, one)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Samples with a class each; a sample is there at most once."""

    samples: Int[Tensor, " n"]
    targets: Int[Tensor, " n"]
    chances: Float[Tensor, " n"]
    """What the squared gradient of each counts."""


def _passes(rows: Rows, batch: Batch, *, kind: FisherKind, seed: int) -> Iterator[_Pass]:
    """One per class, or a single one of the drawn or true classes."""
    if kind == "exact":
        probabilities = rows.decided.detach().softmax(1)
        for target in range(probabilities.shape[1]):
            samples = probabilities[:, target].nonzero().squeeze(1)
            if len(samples):
                yield _Pass(samples, torch.full_like(samples, target), probabilities[samples, target])
    else:
        targets = _draw(rows, batch, seed=seed) if kind == "sampled" else rows.targets
        yield _Pass(torch.arange(len(targets), device=targets.device), targets, torch.ones_like(targets).float())


@dataclass(slots=True)
class _LinearLayer:
    """What a forward pass showed of a layer."""

    module: nn.Linear
    weight: str
    """Names of its parameters."""
    bias: str | None
    inputs: list[Tensor]
    """Of each call, and its output's place in the graph, None where it has none."""
    outputs: list[GradientEdge | None]

    @property
    def edge(self) -> GradientEdge:
        """Of the first call's output."""
        edge = self.outputs[0]
        assert edge is not None
        return edge

    def has_rows(self, count: int) -> bool:
        """Whether it was called once, with so many rows."""
        return len(self.inputs) == 1 and self.inputs[0].shape[:-1] == (count,)


def _simple_layers(layers: list[_LinearLayer], learner: Learner, batch: Batch, value: Tensor) -> list[_LinearLayer]:
    """Those that `value` depends on through a single call with a row per sample, and through nothing else."""
    size = len(next(iter(batch.values())))
    if size == 1:
        return []
    with (
        torch.no_grad(),
        _linear_layers(learner.model) as of_one,
    ):  # rows that only happen to be as many stay one or more
        learner.rows_of(next(samples_of(batch)))
    uses = _count_uses(value)
    return [
        layer
        for layer, first in zip(layers, of_one, strict=True)
        if layer.has_rows(size) and first.has_rows(1) and layer.outputs[0] is not None
        and all(uses[one] == 1 for one in layer.module.parameters())
    ]  # fmt: skip


@contextlib.contextmanager
def _linear_layers(model: nn.Module) -> Iterator[list[_LinearLayer]]:
    """Records the calls, within the block, of linear layers whose parameters are all trained."""
    names: dict[Any, str] = {parameter: name for name, parameter in trainable(model).items()}
    layers, handles = [], []
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight not in names:  # nor one whose weight is made of others
            continue
        if module.bias is not None and module.bias not in names:
            continue
        bias = None if module.bias is None else names[module.bias]
        layer = _LinearLayer(module, names[module.weight], bias, [], [])

        def record(
            _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor, layer: _LinearLayer = layer
        ) -> None:
            layer.inputs.append((inputs[0] if inputs else named["input"]).detach())
            # not the output itself: what follows may change it in place
            layer.outputs.append(get_gradient_edge(output) if output.requires_grad else None)

        layers.append(layer)
        handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    """In the block each use of a weight under autocast is a use of its own."""
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)


def _count_uses(value: Tensor) -> Counter[Tensor]:
    """How often each leaf goes into what `value` was computed from."""
    uses: Counter[Tensor] = Counter()
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        for following, _ in () if node is None else node.next_functions:
            if following is None:
                continue
            if hasattr(following, "variable"):
                uses[following.variable] += 1
            elif following not in seen:
                seen.add(following)
                left.append(following)
    return uses


def _add_by_sample(total: dict[str, Tensor], names: list[str], learner: Learner, batch: Batch, one: _Pass) -> None:
    """Of the weights `names`, by the gradient of each sample, many at once."""
    model = learner.model
    fixed = {name: weight.detach() for name, weight in trainable(model).items()} | dict(model.named_buffers())
    weights = {name: fixed[name] for name in names}

    def loss_of(values: dict[str, Tensor], sample: Batch, target: Tensor) -> Tensor:
        single = {name: value.unsqueeze(0) for name, value in sample.items()}
        decided = learner.rows_of(single, forward=with_weights(model, fixed | values)).decided
        return decided.logsumexp(1).sum() - decided.gather(1, target.view(1, 1)).sum()

    per_sample = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="error")
    size = max(1, GRADIENT_NUMBERS // sum(weight.numel() for weight in weights.values()))
    for samples, targets, chances in zip(
        *(t.split(size) for t in (one.samples, one.targets, one.chances)), strict=True
    ):
        found = per_sample(weights, {name: value[samples] for name, value in batch.items()}, targets)
        for name, gradient in found.items():
            total[name] += torch.einsum("s,s...->...", chances, gradient.float().square())


def _draw(rows: Rows, batch: Batch, *, seed: int) -> Int[Tensor, " rows"]:
    """A class of each row, by the model's own probabilities; the samples of the batch have equally many rows each."""
    keys = _keys(batch, seed=seed)
    per_sample = len(rows.targets) // len(keys)
    uniform = np.concatenate([np.random.default_rng(int(key * 2**53)).random(per_sample) for key in keys])
    sums = rows.decided.detach().double().softmax(1).cumsum(1)
    wanted = torch.from_numpy(uniform).to(sums.device).unsqueeze(1) * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True).squeeze(1)


def _keys(batch: Batch, *, seed: int) -> list[float]:
    """Of the samples: uniform, from their ids, or from what they are where they have none."""
    if ID in batch:
        names = [str(number) for number in batch[ID].tolist()]
    else:
        fields = [batch[name].detach().cpu().contiguous() for name in sorted(batch)]
        rows = [value.view(len(value), -1).view(torch.uint8).numpy() for value in fields]
        names = [b"".join(row[place].tobytes() for row in rows).hex() for place in range(len(rows[0]))]
    return [replay_key(name, seed=seed) for name in names]


def _least_key(learner: Learner, samples: Samples, *, max_samples: int, seed: int) -> float:
    """From which on a sample is one of those with the largest keys, over all ranks."""
    keys = learner.together(
        lambda: heapq.nlargest(max_samples, (key for batch in samples() for key in _keys(batch, seed=seed)))
    )
    if learner.group is not None:
        found: list[list[float]] = [[]] * learner.group.size()
        dist.all_gather_object(found, keys, group=learner.group)
        keys = heapq.nlargest(max_samples, (key for one in found for key in one))
    return keys[-1] if keys else 0.0
