"""ExpertRouter and MoELayer: each token goes to its top-k experts, and what routing did is returned beside the output.

Scores and weights are float32. Equal to the blocks of Mixtral, Qwen3-MoE, OLMoE (softmax) and GLM-4.5, DeepSeek-V3 with
one group (sigmoid, selection bias, shared experts): tests/parity/test_model_moe.py. Losses, bias updates and metrics are
made from RouterStats in balance.py.
Shape letters: B batch, S sequence, T = B * S tokens, D width, E experts, K experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import register_dataclass

from train.model.collectives import gather_sequence, scatter_sequence
from train.model.config import MoEConfig
from train.model.dispatch import dispatch_to_experts
from train.model.experts import Experts
from train.model.layers import compiled, silu_product
from train.model.ranks import ALONE, ModelRanks, check_division

NO_EXPERT = -1
"""Expert id of a padded token, and of a choice that capacity dropped."""


@dataclass(frozen=True, slots=True)
class RouterStats:
    """What one layer's routing did in one pass. Padding counts nowhere; counts are taken before drops."""

    expert_ids: Int[Tensor, "batch seq top_k"]
    """The routes; -1 at padding."""
    counts: Float[Tensor, "batch experts"]
    """Choices of each expert per sequence, without gradient."""
    prob_sum: Float[Tensor, "batch experts"]
    """Sum over tokens of the probabilities (sigmoid: scores divided by their sum), with gradient."""
    num_tokens: Float[Tensor, " batch"]
    """Tokens of each sequence."""
    z_sum: Float[Tensor, ""]
    """Sum over tokens of logsumexp(logits)^2, with gradient."""
    entropy_sum: Float[Tensor, ""]
    """Sum over tokens of the entropy of the probabilities, nats, without gradient."""
    num_dropped: Float[Tensor, ""]
    """Choices that found their expert full."""


register_dataclass(RouterStats)  # so that hooks on a layer's outputs (FSDP2) see its tensors


@dataclass(frozen=True, slots=True)
class Routing:
    """Where each token goes: ids (-1: nowhere) and weights."""

    expert_ids: Int[Tensor, "tokens top_k"]
    weights: Float[Tensor, "tokens top_k"]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). With `tp` a rank holds its share of the width."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, tp: ProcessGroup | None = None) -> None:
        super().__init__()
        self.tp, self.is_compiled = tp, False
        intermediate_size //= 1 if tp is None else tp.size()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Same shape as `x`."""
        product = compiled(silu_product) if self.is_compiled else silu_product
        if self.tp is not None:
            x = gather_sequence(x, self.tp)
        out: Tensor = self.down_proj(product(self.gate_proj(x), self.up_proj(x)))
        return out if self.tp is None else scatter_sequence(out, self.tp)


class ExpertRouter(nn.Module):
    """Top-k choice of experts. `bias`, where balancing is by bias, moves the choice and never the weights."""

    bias: Tensor | None

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config.router
        self.top_k, self.num_experts = config.num_experts_per_token, config.num_experts
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        bias = torch.zeros(config.num_experts, dtype=torch.float32) if config.router.balancing == "bias" else None
        self.register_buffer("bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves like any module, but the bias stays float32: in bfloat16 its small steps would be lost."""
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None and self.bias is not None and self.bias.dtype != torch.float32:
            self.bias = self.bias.float() if bias.is_meta else bias.to(self.bias.device)
        return self

    def forward(
        self,
        x_BSD: Float[Tensor, "batch seq width"],
        *,
        token_mask: Bool[Tensor, "batch seq"] | None = None,
        replay: Int[Tensor, "batch seq top_k"] | None = None,
    ) -> tuple[Routing, RouterStats]:
        """Routes of all tokens. `replay` gives the experts; their weights come from the scores of now.

        Non-finite logits are not looked for: they reach the loss, where the training loop does.
        """
        with torch.autocast(x_BSD.device.type, enabled=False):
            logits_TE = F.linear(x_BSD.flatten(0, 1).float(), self.weight.float())
        scores_TE = logits_TE.softmax(-1) if self.config.score == "softmax" else logits_TE.sigmoid()
        expert_ids = self._choose(scores_TE) if replay is None else replay.flatten(0, 1)
        is_chosen = expert_ids != NO_EXPERT
        weights = scores_TE.gather(1, expert_ids.clamp(min=0)) * is_chosen
        if self.config.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * self.config.scaling_factor
        if token_mask is not None:
            expert_ids = expert_ids.masked_fill(~token_mask.flatten().unsqueeze(1), NO_EXPERT)
        routes = expert_ids.view(*x_BSD.shape[:2], -1)
        if self.config.capacity_factor is not None and self.training:
            expert_ids = self._drop(expert_ids, weights.detach(), self.config.capacity_factor)
        num_dropped = ((expert_ids == NO_EXPERT).sum() - (routes == NO_EXPERT).sum()).float()
        stats = self._stats(routes, logits_TE, scores_TE, token_mask, num_dropped)
        return Routing(expert_ids, weights), stats

    def _choose(self, scores_TE: Tensor) -> Tensor:
        choice = scores_TE.detach()
        if self.bias is not None:
            choice = choice + self.bias
        return choice.topk(self.top_k, dim=-1).indices

    def _drop(self, expert_ids_TK: Tensor, weights_TK: Tensor, factor: float) -> Tensor:
        """Each expert keeps the choices of largest weight up to its capacity; ties go to the earlier token."""
        flat = expert_ids_TK.flatten()
        by_weight = weights_TK.flatten().argsort(descending=True, stable=True)
        order = by_weight[flat[by_weight].argsort(stable=True)]
        counts = (flat + 1).bincount(minlength=self.num_experts + 1)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(flat), device=flat.device) - starts[flat[order] + 1]
        num_choices = (flat != NO_EXPERT).sum()
        capacity = torch.ceil(factor * num_choices / self.num_experts)
        kept = flat.clone()
        kept[order[rank >= capacity]] = NO_EXPERT
        return kept.view_as(expert_ids_TK)

    def _stats(
        self, routes: Tensor, logits_TE: Tensor, scores_TE: Tensor, token_mask: Tensor | None, num_dropped: Tensor
    ) -> RouterStats:
        batch, seq, _ = routes.shape
        probs_TE = scores_TE
        if self.config.score == "sigmoid":
            probs_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)
        z_T = logits_TE.logsumexp(-1).square()
        probs = probs_TE.view(batch, seq, -1)
        if token_mask is None:
            num_tokens = torch.full((batch,), float(seq), device=routes.device)
        else:
            num_tokens = token_mask.sum(1).float()
            z_T = z_T * token_mask.flatten()
            probs = probs * token_mask.unsqueeze(-1)
        with torch.no_grad():
            counts = torch.zeros(batch, self.num_experts + 1, device=routes.device)
            flat = (routes + 1).flatten(1)
            counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
            entropy = -torch.xlogy(probs, probs).sum()
        return RouterStats(routes, counts[:, 1:], probs.sum(1), num_tokens, z_T.sum(), entropy, num_dropped)


class MoELayer(nn.Module):
    """Router, experts and, where configured, shared experts that every token passes."""

    def __init__(self, config: MoEConfig, *, ranks: ModelRanks = ALONE) -> None:
        """Under expert parallelism each rank holds its share of the experts. Raises ValueError if they do not divide."""
        super().__init__()
        check_division(config, tp=ranks.tp_size, cp=ranks.cp_size, ep=ranks.ep_size)
        self.ep = ranks.ep
        self.gate = ExpertRouter(config)
        self.experts = Experts(
            config.hidden_size, config.moe_intermediate_size,
            num_experts=config.num_experts // ranks.ep_size, kernel=config.expert_kernel,
        )  # fmt: skip
        self.shared_experts: FeedForward | None = None
        if config.num_shared_experts:
            width = config.num_shared_experts * config.moe_intermediate_size
            self.shared_experts = FeedForward(config.hidden_size, width, tp=ranks.tp)

    def forward(
        self,
        x_BSD: Float[Tensor, "batch seq width"],
        *,
        token_mask: Bool[Tensor, "batch seq"] | None = None,
        replay: Int[Tensor, "batch seq top_k"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq width"], RouterStats]:
        """The layer's output and its routing. Padded tokens pass no routed expert."""
        routing, stats = self.gate(x_BSD, token_mask=token_mask, replay=replay)
        x_TD = x_BSD.flatten(0, 1)
        if self.ep is None:
            out_TD = self.experts(x_TD, routing.expert_ids, routing.weights)
        else:
            out_TD = dispatch_to_experts(x_TD, routing.expert_ids, routing.weights, self.experts, self.ep)
        out_BSD = out_TD.view_as(x_BSD)
        if self.shared_experts is not None:
            out_BSD = out_BSD + self.shared_experts(x_BSD)
        return out_BSD, stats
