"""Balancing the experts' load: loss terms, the selection bias, and metrics; all from RouterStats.

Scale: the balance term of an even load is `num_experts_per_token`, as in transformers (Megatron's is 1). Per layer it is
E * sum_i f_i * P_i, with f_i the choices of expert i per token (they add up to top_k) and P_i its mean probability; the
gradient goes through P alone; layers are averaged. Padding counts nowhere.

Which tokens f_i is taken over is `aux_loss_scope`:
- micro_batch: those of this pass; forces each micro-batch to be even (Switch Transformer, arXiv:2101.03961).
- sequence: of each sequence apart (DeepSeek-V3, arXiv:2412.19437, eq. 17-20).
- global_batch: of a whole optimizer step, all ranks and micro-batches (arXiv:2501.11873): the *last finished* one. The
  counts of the step in progress are not known before its last micro-batch, and running counts would make the term depend
  on how the batch is split; with the last step's the sum over micro-batches is the same for any accumulation, recompu-
  tation, padding and number of ranks. Before the first step the load counts as even, which has no gradient.

Sources as named; z-loss: ST-MoE (arXiv:2202.08906, eq. 5); selection bias: arXiv:2408.15664, made zero-mean.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from train.model.config import MoEConfig
from train.model.moe import MoELayer, RouterStats
from train.model.transformer import MoETransformer


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Metrics of one layer over the tokens of some passes."""

    load: tuple[float, ...]
    """Share of the choices that each expert got; even is 1 / experts."""
    max_over_mean: float
    """Largest load over the even one; 1 is even."""
    num_dead: int
    """Experts without a single token."""
    entropy: float
    """Mean entropy of a token's probabilities over log(experts): 1 is undecided, 0 is certain."""
    drop_rate: float
    """Share of the choices that capacity dropped."""

    def to_dict(self) -> dict[str, Any]:
        """For a log line."""
        return asdict(self)


def load_balancing_loss(
    stats: Sequence[RouterStats],
    *,
    config: MoEConfig,
    load_LE: Float[Tensor, "layers experts"] | None = None,
    num_tokens: Float[Tensor, ""] | float | None = None,
    num_layers: int | None = None,
    pool_layers: bool = False,
) -> Float[Tensor, ""]:
    """The balance term of one pass, before its coefficient; 0 for a dense model.

    `load_LE`: choices per token of the last step (RouterBalance.load), for global_batch; None is the even load.
    `num_tokens`: tokens of the whole optimizer step, so that the terms of its micro-batches add up; None: of this pass.
    `num_layers`: layers that the term is the mean of, where `stats` are some of them; None: those of `stats`.
    `pool_layers`: f and P over all layers together, which is transformers' `load_balancing_loss_func`.
    """
    if not stats:
        return torch.zeros(())
    num_layers = num_layers or len(stats)
    total = stats[0].num_tokens.sum().clamp(min=1) if num_tokens is None else num_tokens
    scope = config.router.aux_loss_scope
    if scope == "sequence":
        tokens_B = stats[0].num_tokens.clamp(min=1).unsqueeze(1)
        products = torch.stack([layer.counts / tokens_B * layer.prob_sum for layer in stats])
        return config.num_experts * products.sum() / (total * num_layers)
    probs_LE = torch.stack([layer.prob_sum.sum(0) for layer in stats])
    if scope == "micro_batch":
        tokens = stats[0].num_tokens.sum().clamp(min=1)
        load_LE = torch.stack([layer.counts.sum(0) for layer in stats]) / tokens
    elif load_LE is None:
        load_LE = torch.full_like(probs_LE, config.num_experts_per_token / config.num_experts)
    if pool_layers:
        load_LE, probs_LE, num_layers = load_LE.mean(0, keepdim=True), probs_LE.mean(0, keepdim=True), 1
    return config.num_experts * (load_LE.to(probs_LE.device) * probs_LE).sum() / (total * num_layers)


def router_z_loss(
    stats: Sequence[RouterStats],
    *,
    num_tokens: Float[Tensor, ""] | float | None = None,
    num_layers: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over tokens and layers of logsumexp(logits)^2, before its coefficient. `num_tokens`, `num_layers` as above."""
    if not stats:
        return torch.zeros(())
    total = stats[0].num_tokens.sum().clamp(min=1) if num_tokens is None else num_tokens
    return torch.stack([layer.z_sum for layer in stats]).sum() / (total * (num_layers or len(stats)))


def auxiliary_loss(
    stats: Sequence[RouterStats],
    *,
    config: MoEConfig,
    load_LE: Float[Tensor, "layers experts"] | None = None,
    num_tokens: Float[Tensor, ""] | float | None = None,
    num_layers: int | None = None,
) -> Float[Tensor, ""]:
    """What to add to the language-modelling loss: the configured terms with their coefficients."""
    router = config.router
    total = torch.zeros(())
    of: dict[str, Any] = {"num_tokens": num_tokens, "num_layers": num_layers}
    if router.balancing != "none" and router.aux_loss_coefficient:
        balance = load_balancing_loss(stats, config=config, load_LE=load_LE, **of)
        total = total.to(balance.device) + router.aux_loss_coefficient * balance
    if router.z_loss_coefficient:
        total = total + router.z_loss_coefficient * router_z_loss(stats, **of)
    return total


class RouterBalance:
    """Counts of the optimizer step in progress, the load of the last one, and the update of the selection biases.

    The training loop calls `record` once per training pass, after its forward, and `finish_step` once per optimizer step.
    Of a model in stages each process has one for its own layers.
    """

    def __init__(self, config: MoEConfig, *, num_layers: int | None = None) -> None:
        """`num_layers`: those with experts that are here; None is all."""
        self.config = config
        self.num_layers = len(config.moe_layers) if num_layers is None else num_layers
        self.load: Float[Tensor, "layers experts"] | None = None
        """Choices per token in the last finished step over all ranks; None before the first."""
        self._counts: Tensor | None = None
        self._tokens = torch.zeros(())

    def record(self, stats: Sequence[RouterStats]) -> None:
        """Count a pass. Evaluation passes are not recorded."""
        if not stats:
            return
        counts = torch.stack([layer.counts.sum(0) for layer in stats])
        tokens = stats[0].num_tokens.sum()
        self._counts = counts if self._counts is None else self._counts + counts
        self._tokens = self._tokens.to(tokens.device) + tokens

    @torch.no_grad()
    def finish_step(self, model: MoETransformer, *, group: ProcessGroup | None = None) -> None:
        """Add up the counts of all ranks, move the biases once, and begin the next step.

        `group`: the ranks that hold these layers for other tokens.

        Raises RuntimeError, on every rank, if none has recorded a pass: then nothing would balance the experts.
        """
        if not self.num_layers:
            return
        counts = self._counts
        if counts is None:  # an idle rank still takes part
            counts = torch.zeros(self.num_layers, self.config.num_experts, device=model.device)
        tokens = self._tokens.to(counts.device)
        num_recorded = torch.tensor(float(self._counts is not None), device=counts.device)
        if group is not None:
            for total in (counts, tokens, num_recorded):
                dist.all_reduce(total, group=group)
        if not num_recorded:
            raise RuntimeError(
                "finish_step without a recorded pass: call record(output.router_stats) after each forward"
            )
        self.load = counts / tokens.clamp(min=1)
        if self.config.router.balancing == "bias":
            layers = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoELayer)]
            for layer, layer_counts in zip(layers, counts, strict=True):
                bias = layer.gate.bias
                assert bias is not None
                bias.copy_(updated_bias(bias, layer_counts.to(bias.device), rate=self.config.router.bias_update_rate))
        self.discard_step()

    def discard_step(self) -> None:
        """Forget what was recorded since the last step: load and biases stay."""
        self._counts, self._tokens = None, torch.zeros(())

    def state_dict(self) -> dict[str, Tensor]:
        """The load of the last step; a checkpoint is taken between steps, so nothing is in progress."""
        return {} if self.load is None else {"load": self.load}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`. Raises ValueError if it is of a model of another shape."""
        load = state.get("load")
        shape = (self.num_layers, self.config.num_experts)
        if load is not None and tuple(load.shape) != shape:
            raise ValueError(f"load has shape {list(load.shape)}, this model has {list(shape)} layers and experts")
        self.load = load


def updated_bias(
    bias_E: Float[Tensor, " experts"], counts_E: Float[Tensor, " experts"], *, rate: float
) -> Float[Tensor, " experts"]:
    """The selection bias after a step: up by `rate` for experts below the mean load, down above, then made zero-mean.

    Source: arXiv:2408.15664, algorithm 1; the mean is taken off the change as torchtitan does, so a bias cannot drift.
    """
    change = rate * torch.sign(counts_E.mean() - counts_E)
    return bias_E + (change - change.mean()).to(bias_E.dtype)


def routing_metrics(stats: Sequence[RouterStats], *, config: MoEConfig) -> list[LayerRouting]:
    """Metrics of each layer with experts, over one pass."""
    found = []
    for layer in stats:
        counts = layer.counts.sum(0).detach().cpu()
        choices, tokens = max(float(counts.sum()), 1.0), max(float(layer.num_tokens.sum()), 1.0)
        load = counts / choices
        widest = float(torch.tensor(float(max(config.num_experts, 2))).log())
        found.append(
            LayerRouting(
                load=tuple(load.tolist()),
                max_over_mean=float(load.max()) * config.num_experts,
                num_dead=int((counts == 0).sum()),
                entropy=float(layer.entropy_sum) / tokens / widest,
                drop_rate=float(layer.num_dropped) / choices,
            )
        )
    return found
