"""One MoE layer against transformers' blocks, DeepSpeed's router and gate, and experts computed token by token."""

import math
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from tests.experts_reference import (
    CLOSE,
    EXPERT_WIDTH,
    NUM_EXPERTS,
    WIDTH,
    experts_token_by_token,
    layer_config,
    matrices_of,
    random_tensor,
)
from train.model.balance import routing_metrics
from train.model.config import MoEConfig, RouterConfig
from train.model.moe import NO_EXPERT, ExpertRouter, MoELayer

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed picks its accelerator when it is imported
from deepspeed.moe.ep_router import TokenChoiceTopKRouter
from deepspeed.moe.sharded_moe import topkgating


def _layer(config: MoEConfig) -> MoELayer:
    layer = MoELayer(config)
    with torch.no_grad():
        for seed, weight in enumerate(layer.parameters()):
            weight.copy_(random_tensor(*weight.shape, seed=seed, std=0.3))
    return layer


BLOCKS: dict[str, tuple[type, str, dict[str, Any], MoEConfig]] = {
    "mixtral": (
        MixtralSparseMoeBlock, "MixtralConfig",
        {"intermediate_size": EXPERT_WIDTH, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2},
        layer_config()),
    "qwen3_moe": (
        Qwen3MoeSparseMoeBlock, "Qwen3MoeConfig",
        {"moe_intermediate_size": EXPERT_WIDTH, "num_experts": NUM_EXPERTS, "num_experts_per_tok": 3,
         "norm_topk_prob": True},
        layer_config(num_experts_per_token=3)),
    "qwen3_moe unnormalised": (
        Qwen3MoeSparseMoeBlock, "Qwen3MoeConfig",
        {"moe_intermediate_size": EXPERT_WIDTH, "num_experts": NUM_EXPERTS, "num_experts_per_tok": 3,
         "norm_topk_prob": False},
        layer_config(num_experts_per_token=3, router=RouterConfig(renormalise=False))),
    "olmoe": (
        OlmoeSparseMoeBlock, "OlmoeConfig",
        {"intermediate_size": EXPERT_WIDTH, "num_experts": NUM_EXPERTS, "num_experts_per_tok": 4,
         "norm_topk_prob": False},
        layer_config(num_experts_per_token=4, router=RouterConfig(renormalise=False))),
    "deepseek_v3": (
        DeepseekV3MoE, "DeepseekV3Config",
        {"moe_intermediate_size": EXPERT_WIDTH, "n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": 3, "n_group": 1,
         "topk_group": 1, "n_shared_experts": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        layer_config(num_experts_per_token=3, num_shared_experts=2,
                router=RouterConfig(score="sigmoid", balancing="bias", scaling_factor=2.5))),
    "deepseek_v3 unnormalised": (
        DeepseekV3MoE, "DeepseekV3Config",
        {"moe_intermediate_size": EXPERT_WIDTH, "n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": 2, "n_group": 1,
         "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": False},
        layer_config(num_shared_experts=1,
                router=RouterConfig(score="sigmoid", balancing="bias", renormalise=False, scaling_factor=1.5))),
}  # fmt: skip


@pytest.fixture(params=BLOCKS)
def blocks(request: pytest.FixtureRequest) -> tuple[Any, MoELayer]:
    """transformers' block with random weights, and ours with the same."""
    block, config_name, fields, ours_config = BLOCKS[request.param]
    config = getattr(transformers, config_name)(hidden_size=WIDTH, **fields)
    config._experts_implementation = "eager"
    theirs = block(config)
    with torch.no_grad():
        for index, weight in enumerate([*theirs.parameters(), *theirs.buffers()]):
            weight.copy_(random_tensor(*weight.shape, seed=index, std=0.3))
    ours = MoELayer(ours_config)
    with torch.no_grad():
        for name, weight in [*ours.named_parameters(), *ours.named_buffers()]:
            weight.copy_(_in_our_place(name, dict([*theirs.named_parameters(), *theirs.named_buffers()])))
    return theirs, ours


def _in_our_place(name: str, theirs: dict[str, Tensor]) -> Tensor:
    if name.startswith("experts."):
        gate, up = theirs["experts.gate_up_proj"].chunk(2, dim=1)
        return {"w1": gate, "w3": up, "w2": theirs["experts.down_proj"]}[name.removeprefix("experts.")]
    return theirs["gate.e_score_correction_bias" if name == "gate.bias" else name]


def test_output_and_every_gradient_equal_transformers_block(blocks: tuple[Any, MoELayer]):
    theirs, ours = blocks
    x_theirs = random_tensor(2, 9, WIDTH, seed=100).requires_grad_()
    x_ours = x_theirs.detach().clone().requires_grad_()
    upstream = random_tensor(2, 9, WIDTH, seed=101)
    expected = theirs(x_theirs)
    found, stats = ours(x_ours)
    assert len(stats.expert_ids.unique()) > ours.gate.top_k
    torch.testing.assert_close(found, expected, **CLOSE)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, **CLOSE)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        assert weight.grad is not None
        assert weight.grad.any(), name
        wanted = _in_our_place(name, gradients)
        torch.testing.assert_close(weight.grad, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_the_selection_bias_of_the_deepseek_pair_changes_the_choice():
    """Otherwise the parity above would say nothing about the bias."""
    router = ExpertRouter(BLOCKS["deepseek_v3"][3])
    with torch.no_grad():
        router.weight.copy_(random_tensor(NUM_EXPERTS, WIDTH, seed=0, std=0.3))
        without = router(random_tensor(2, 9, WIDTH, seed=100))[1].counts
        router.bias.copy_(random_tensor(NUM_EXPERTS, seed=1, std=0.3))
        assert not torch.equal(router(random_tensor(2, 9, WIDTH, seed=100))[1].counts, without)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_choices_and_weights_equal_deepspeeds_router(score: str, renormalise: bool, has_bias: bool):
    theirs = TokenChoiceTopKRouter(
        WIDTH, NUM_EXPERTS, None, None, top_k=3, score_func=score, route_norm=renormalise, route_scale=1.7, gate_bias=False
    )  # fmt: skip
    ours = ExpertRouter(
        layer_config(
            num_experts_per_token=3,
            router=RouterConfig(score=score, renormalise=renormalise, scaling_factor=1.7, balancing="bias"),
        )
    )
    ours.weight.copy_(random_tensor(NUM_EXPERTS, WIDTH, seed=0, std=0.3))
    theirs.gate.weight.copy_(ours.weight)
    bias = random_tensor(NUM_EXPERTS, seed=1, std=0.2) if has_bias else torch.zeros(NUM_EXPERTS)
    ours.bias.copy_(bias)
    x = random_tensor(2, 40, WIDTH, seed=2)
    weights, ids, counts = theirs(x.flatten(0, 1), expert_bias=bias if has_bias else None)
    routing, stats = ours(x)
    theirs_order, ours_order = ids.argsort(1), routing.expert_ids.argsort(1)  # neither promises an order of the k
    assert torch.equal(routing.expert_ids.gather(1, ours_order), ids.gather(1, theirs_order))
    torch.testing.assert_close(routing.weights.gather(1, ours_order), weights.gather(1, theirs_order), **CLOSE)
    assert torch.equal(stats.counts.sum(0), counts.float())


@pytest.mark.parametrize("is_autocast", [True, False])
def test_scores_and_weights_stay_float32_for_bfloat16_tokens(is_autocast: bool):
    router = _layer(layer_config()).gate
    x = random_tensor(1, 20, WIDTH, seed=0).bfloat16()
    expected, _ = router(x.float())
    with torch.autocast("cpu", enabled=is_autocast):
        found, stats = router(x)
    assert found.weights.dtype == stats.prob_sum.dtype == stats.z_sum.dtype == torch.float32
    assert torch.equal(found.expert_ids, expected.expert_ids)
    assert torch.equal(found.weights, expected.weights)


def test_padded_tokens_pass_no_routed_expert_and_change_no_other_token():
    layer = _layer(layer_config())
    x, mask = random_tensor(2, 9, WIDTH, seed=3), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    found, stats = layer(x, token_mask=mask)
    alone, _ = layer(x[:1, 4:])
    assert not found[0, :4].any()
    assert (stats.expert_ids[0, :4] == NO_EXPERT).all()
    torch.testing.assert_close(found[0, 4:], alone[0], **CLOSE)


# Capacity. The logits are the tokens themselves: the router's weight is the identity.


def _identity_router(*, top_k: int, num_experts: int, **router: Any) -> ExpertRouter:
    config = layer_config(
        hidden_size=num_experts, num_attention_heads=1, num_key_value_heads=1, head_dim=2, num_experts=num_experts,
        num_experts_per_token=top_k, router=RouterConfig(**router),
    )  # fmt: skip
    gate = ExpertRouter(config)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(num_experts))
    return gate


def _kept(expert_ids_TK: Tensor, *, num_experts: int) -> Tensor:
    """Bool [tokens, experts]."""
    return F.one_hot(expert_ids_TK + 1, num_experts + 1).sum(1)[:, 1:].bool()


def _deepspeed_keeps(logits_TE: Tensor, *, top_k: int, factor: float, policy: str) -> Tensor:
    _, combine_TEC, *_ = topkgating(logits_TE, top_k, factor, min_capacity=0, drop_policy=policy)
    return combine_TEC.any(-1)


def _brute_force_keeps(ids_TK: Tensor, weights_TK: Tensor, *, factor: float, num_experts: int) -> Tensor:
    """Each expert in turn takes its choices of largest weight, the earlier of equal ones, up to the capacity."""
    capacity = math.ceil(factor * int((ids_TK != NO_EXPERT).sum()) / num_experts)
    kept = torch.zeros(len(ids_TK), num_experts, dtype=torch.bool)
    for expert in range(num_experts):
        choices = [
            (-float(weights_TK[token, k]), token)
            for token in range(len(ids_TK))
            for k in range(ids_TK.shape[1])
            if ids_TK[token, k] == expert
        ]
        for _, token in sorted(choices)[:capacity]:
            kept[token, expert] = True
    return kept


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 1.25])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@torch.no_grad()
def test_kept_choices_equal_deepspeeds_gate_by_probability_where_weights_are_probabilities(top_k: int, factor: float):
    """Without renormalisation both rank an expert's choices by their softmax probability."""
    gate = _identity_router(top_k=top_k, num_experts=6, renormalise=False, capacity_factor=factor)
    logits = random_tensor(30, 6, seed=top_k) + torch.linspace(
        0, 2, 6
    )  # uneven, so that the largest capacity drops too
    routing, stats = gate(logits.unsqueeze(0))
    found = _kept(routing.expert_ids, num_experts=6)
    assert torch.equal(found, _deepspeed_keeps(logits, top_k=top_k, factor=factor, policy="probs"))
    assert int(stats.num_dropped) == 30 * top_k - int(found.sum()) > 0


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
@torch.no_grad()
def test_renormalised_top_1_keeps_the_earlier_tokens_as_deepspeeds_gate_by_position(factor: float):
    """One choice renormalised weighs 1, so all are equal, and ties go to the earlier token."""
    gate = _identity_router(top_k=1, num_experts=6, renormalise=True, capacity_factor=factor)
    logits = random_tensor(30, 6, seed=0)
    routing, _ = gate(logits.unsqueeze(0))
    expected = _deepspeed_keeps(logits, top_k=1, factor=factor, policy="position")
    assert torch.equal(_kept(routing.expert_ids, num_experts=6), expected)


@torch.no_grad()
def test_renormalised_choices_are_kept_by_weight_where_deepspeed_goes_by_probability():
    """The one rule that differs: DeepSpeed renormalises after it drops, we rank by the weights that are applied."""
    gate = _identity_router(top_k=2, num_experts=6, renormalise=True, capacity_factor=0.5)
    logits = random_tensor(30, 6, seed=0)
    routing, stats = gate(logits.unsqueeze(0))
    found = _kept(routing.expert_ids, num_experts=6)
    routes = stats.expert_ids.flatten(0, 1)
    by_weight = _brute_force_keeps(routes, routing.weights, factor=0.5, num_experts=6)
    by_probability = _brute_force_keeps(routes, logits.softmax(-1).gather(1, routes), factor=0.5, num_experts=6)
    assert torch.equal(found, by_weight)
    assert torch.equal(_deepspeed_keeps(logits, top_k=2, factor=0.5, policy="probs"), by_probability)
    assert not torch.equal(by_weight, by_probability)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 24),
    experts=st.integers(2, 6),
    top_k=st.integers(1, 3),
    factor=st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 4.0]),
    router=st.sampled_from(
        [{"score": "sigmoid"}, {"score": "sigmoid", "renormalise": False}, {}, {"renormalise": False}]
    ),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
@torch.no_grad()
def test_an_expert_keeps_its_heaviest_choices_up_to_its_capacity(
    *, tokens: int, experts: int, top_k: int, factor: float, router: dict[str, Any], padding: int, seed: int
):
    """Against a brute force; whole logits give equal weights often. Padding fills no place and raises no capacity."""
    top_k, padding = min(top_k, experts), min(padding, tokens)
    gate = _identity_router(top_k=top_k, num_experts=experts, capacity_factor=factor, **router)
    free = _identity_router(top_k=top_k, num_experts=experts, **router)
    logits = random_tensor(tokens, experts, seed=seed).round().unsqueeze(0)
    mask = (torch.arange(tokens) >= padding).unsqueeze(0)
    routing, stats = gate(logits, token_mask=mask)
    unlimited, without = free(logits, token_mask=mask)
    found = _kept(routing.expert_ids, num_experts=experts)
    routes = stats.expert_ids.flatten(0, 1)
    assert torch.equal(found, _brute_force_keeps(routes, routing.weights, factor=factor, num_experts=experts))
    assert torch.equal(stats.expert_ids, without.expert_ids)
    assert torch.equal(stats.counts, without.counts)
    assert torch.equal(routing.weights, unlimited.weights)
    num_choices = (tokens - padding) * top_k
    assert int(stats.num_dropped) == num_choices - int(found.sum())
    assert int(without.num_dropped) == 0
    (metrics,) = routing_metrics([stats], config=layer_config(num_experts=experts, num_experts_per_token=top_k))
    assert metrics.drop_rate == pytest.approx(int(stats.num_dropped) / max(num_choices, 1))


def test_a_dropped_choice_adds_nothing_and_the_weights_of_the_others_stay():
    layer = _layer(layer_config(router=RouterConfig(capacity_factor=0.5)))
    x = random_tensor(2, 12, WIDTH, seed=4)
    found, stats = layer(x)
    routing, _ = layer.gate(x)
    assert 0 < stats.num_dropped < 48
    expected = experts_token_by_token(x.flatten(0, 1), routing.expert_ids, routing.weights, matrices_of(layer.experts))
    torch.testing.assert_close(found.flatten(0, 1), expected, **CLOSE)
