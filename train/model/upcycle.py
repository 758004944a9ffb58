"""Upcycling and growth: a dense model becomes a Mixture of Experts, an MoE gets more experts; at first the same function.

`upcycle` copies the dense feed-forward part into every expert (sparse upcycling, arXiv:2212.05055). With granularity G
each copy is cut into G experts of 1/G of the width; the G slices of a copy share their row of the router, so that top-k
always takes whole copies, and their output is scaled by G, because each gets 1/G of the copy's weight (virtual groups,
arXiv:2410.07524). `add_experts` appends copies of experts that are never chosen at first: a selection bias below every
possible score keeps them out, and bias balancing then lets them in at bias_update_rate per step.
"""

import torch
from torch import Tensor

from train.model.config import MoEConfig
from train.model.moe import FeedForward, MoELayer
from train.model.transformer import DecoderLayer, MoETransformer

BELOW_EVERY_SCORE = -1.0
"""Scores lie in (0, 1) for softmax and sigmoid alike, so a bias this far below the lowest one is never chosen."""


def upcycle(
    dense: MoETransformer,
    *,
    num_experts: int,
    num_experts_per_token: int,
    granularity: int = 1,
    router_std: float = 0.02,
    seed: int = 0,
) -> MoETransformer:
    """A Mixture of Experts whose logits equal those of `dense` (fp32: up to rounding). `dense` stays as it is.

    `num_experts` copies-times-granularity experts, of which a token takes `num_experts_per_token`; both are multiples of
    `granularity`. Router rows are random with `router_std`, so the copies part ways as soon as they are trained.
    Raises ValueError naming the argument and the fix.
    """
    config = dense.config
    _check_whole(dense)
    if config.moe_layers:
        raise ValueError(f"dense has experts in {len(config.moe_layers)} layers already; use add_experts to have more")
    for name, value in (("num_experts", num_experts), ("num_experts_per_token", num_experts_per_token)):
        if granularity < 1 or value % granularity or value < granularity:
            raise ValueError(f"{name} = {value} is not a multiple of granularity = {granularity}; choose one that is")
    if config.intermediate_size % granularity:
        raise ValueError(
            f"granularity = {granularity} does not divide the dense width intermediate_size = {config.intermediate_size}"
        )
    if config.router.capacity_factor is not None:
        raise ValueError("router.capacity_factor: dropped choices would change the function; set it to null to upcycle")
    grown = config.replace(
        num_experts=num_experts, num_experts_per_token=num_experts_per_token, dense_layers=(),
        moe_intermediate_size=config.intermediate_size // granularity,
        router=config.router.model_copy(update={"score": "softmax", "renormalise": True, "scaling_factor": 1.0}),
    )  # fmt: skip
    sparse = _empty_like(dense, grown)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for old, new in zip(dense.layers, sparse.layers, strict=True):
            assert isinstance(old.mlp, FeedForward)
            assert isinstance(new.mlp, MoELayer)
            new.self_attn.load_state_dict(old.self_attn.state_dict())
            new.input_layernorm.load_state_dict(old.input_layernorm.state_dict())
            new.post_attention_layernorm.load_state_dict(old.post_attention_layernorm.state_dict())
            experts, copies = new.mlp.experts, num_experts // granularity
            experts.w1.copy_(_slices(old.mlp.gate_proj.weight, granularity).repeat(copies, 1, 1))
            experts.w3.copy_(_slices(old.mlp.up_proj.weight, granularity).repeat(copies, 1, 1))
            down = torch.stack(old.mlp.down_proj.weight.chunk(granularity, dim=1)) * granularity
            experts.w2.copy_(down.repeat(copies, 1, 1))
            rows = torch.randn(copies, config.hidden_size, generator=generator) * router_std
            new.mlp.gate.weight.copy_(rows.repeat_interleave(granularity, dim=0))
        _copy_ends(dense, sparse)
    return sparse.train(dense.training)


def add_experts(model: MoETransformer, count: int, *, noise_std: float = 0.0, seed: int = 0) -> MoETransformer:
    """A model with `count` more experts per layer, the same routes and logits (up to rounding). `model` stays as it is.

    New expert j copies expert j (in turn), plus normal noise. Balancing becomes "bias", which brings the new ones in
    over 1 / bias_update_rate steps. Raises ValueError where the new experts would change the scores of the old ones.
    """
    config = model.config
    _check_whole(model)
    if not config.moe_layers:
        raise ValueError("model is dense; use upcycle to give it experts")
    if count < 1:
        raise ValueError(f"count = {count}: add at least one expert")
    if config.router.score == "softmax" and not config.router.renormalise:
        raise ValueError(
            "router.renormalise = false with softmax: new experts would lower the weights of the old ones; set it to true or "
            "use router.score = 'sigmoid'"
        )
    if config.router.score == "softmax" and any(map(_has_bias, model.layers)):
        raise ValueError(
            "router.score = 'softmax' with a selection bias: new experts lower the scores but not the bias, so routes would "
            "change; zero the bias first, or use router.score = 'sigmoid'"
        )
    if config.router.capacity_factor is not None:
        raise ValueError(
            "router.capacity_factor: an expert's capacity falls as experts are added; set it to null to grow"
        )
    grown = config.replace(
        num_experts=config.num_experts + count, router=config.router.model_copy(update={"balancing": "bias"})
    )
    larger = _empty_like(model, grown)
    generator = torch.Generator().manual_seed(seed)

    def appended(weights_E: Tensor) -> Tensor:
        copies = weights_E[torch.arange(count) % config.num_experts]
        noise = torch.randn(copies.shape, generator=generator) * noise_std
        return torch.cat([weights_E, copies + noise.to(copies)])

    with torch.no_grad():
        for old, new in zip(model.layers, larger.layers, strict=True):
            if not isinstance(old.mlp, MoELayer):
                new.load_state_dict(old.state_dict())
                continue
            assert isinstance(new.mlp, MoELayer)
            state = old.state_dict()
            for name in ("mlp.experts.w1", "mlp.experts.w2", "mlp.experts.w3", "mlp.gate.weight"):
                state[name] = appended(state[name])
            bias = state.get("mlp.gate.bias", torch.zeros(config.num_experts))
            below = bias.min() + BELOW_EVERY_SCORE - torch.finfo(torch.float32).eps
            state["mlp.gate.bias"] = torch.cat([bias, below.expand(count)])
            new.load_state_dict(state)
        _copy_ends(model, larger)
    return larger.train(model.training)


def _check_whole(model: MoETransformer) -> None:
    if not model.is_whole:
        raise ValueError("this process holds only a part of the model; load the folder without ranks first")


def _has_bias(layer: DecoderLayer) -> bool:
    """Whether a selection bias that is not zero moves the routes of a layer."""
    return isinstance(layer.mlp, MoELayer) and layer.mlp.gate.bias is not None and bool(layer.mlp.gate.bias.any())


def _slices(weight: Tensor, granularity: int) -> Tensor:
    """[I, D] -> [G, I / G, D]."""
    return torch.stack(weight.chunk(granularity, dim=0))


def _empty_like(model: MoETransformer, config: MoEConfig) -> MoETransformer:
    return MoETransformer(config, device=model.device, dtype=model.model.embed_tokens.weight.dtype)


def _copy_ends(source: MoETransformer, target: MoETransformer) -> None:
    target.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    target.model.norm.load_state_dict(source.model.norm.state_dict())
    target.lm_head.load_state_dict(source.lm_head.state_dict())
