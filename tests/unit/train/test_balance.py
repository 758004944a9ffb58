"""Balancing: loss terms and metrics against hand calculations, the selection bias, and invariance to how a step is cut."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.router_config import router_config
from train.model.balance import (
    RouterBalance,
    auxiliary_loss,
    load_balancing_loss,
    router_z_loss,
    routing_metrics,
)
from train.model.config import MoEConfig, RouterConfig
from train.model.moe import ExpertRouter, RouterStats
from train.model.transformer import MoETransformer

Scope = Literal["micro_batch", "sequence", "global_batch"]
SCOPES: tuple[Scope, ...] = ("micro_batch", "sequence", "global_batch")


def _stats(
    counts: list[list[float]], probs: list[list[float]], tokens: list[float], *, z: float = 0.0, entropy: float = 0.0,
    dropped: float = 0.0,
) -> RouterStats:  # fmt: skip
    """Of a batch: one row per sequence. Routes are not looked at by balance.py."""
    routes = torch.zeros(len(counts), 1, 2, dtype=torch.long)
    numbers = (torch.tensor(values) for values in (counts, probs, tokens, z, entropy, dropped))
    return RouterStats(routes, *numbers)


# Two sequences of 3 and 1 tokens, 2 experts, top-1, two layers.
HAND = (
    _stats([[2, 1], [0, 1]], [[1.8, 1.2], [0.3, 0.7]], [3, 1]),
    _stats([[3, 0], [1, 0]], [[2.4, 0.6], [0.9, 0.1]], [3, 1]),
)
HAND_TERMS: dict[Scope, float] = {
    # per layer 2 * (f . P): f = (2, 2) / 4, P = (2.1, 1.9) / 4; f = (4, 0) / 4, P = (3.3, 0.7) / 4
    "micro_batch": (2 * (2 / 4 * 2.1 / 4 + 2 / 4 * 1.9 / 4) + 2 * (1 * 3.3 / 4)) / 2,
    # each sequence by its own f and P, weighted by its tokens
    "sequence": (
        (3 * 2 * (2 / 3 * 1.8 / 3 + 1 / 3 * 1.2 / 3) + 1 * 2 * (1 * 0.7)) / 4
        + (3 * 2 * (1 * 2.4 / 3) + 1 * 2 * (1 * 0.9)) / 4
    )
    / 2,
    # f of the last step, given below
    "global_batch": (2 * (0.9 * 2.1 / 4 + 0.1 * 1.9 / 4) + 2 * (0.2 * 3.3 / 4 + 0.8 * 0.7 / 4)) / 2,
}
LAST_LOAD = torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def _hand_config(scope: Scope, **router: Any) -> MoEConfig:
    return router_config(num_experts=2, num_experts_per_token=1, router=RouterConfig(aux_loss_scope=scope, **router))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_balance_term_equals_the_hand_calculation(scope: Scope):
    found = load_balancing_loss(HAND, config=_hand_config(scope), load_LE=LAST_LOAD)
    assert float(found) == pytest.approx(HAND_TERMS[scope], rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_tokens_of_the_whole_step_scale_the_term_of_a_micro_batch(scope: Scope):
    found = load_balancing_loss(HAND, config=_hand_config(scope), load_LE=LAST_LOAD, num_tokens=10)
    assert float(found) == pytest.approx(HAND_TERMS[scope] * 4 / 10, rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@settings(max_examples=20)
@given(top_k=st.integers(1, 6), experts=st.integers(6, 12), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_an_even_load_gives_top_k(scope: Scope, top_k: int, experts: int, lengths: list[int]):
    config = router_config(
        num_experts=experts, num_experts_per_token=top_k, router=RouterConfig(aux_loss_scope=scope, renormalise=False)
    )
    even = _stats(
        [[n * top_k / experts] * experts for n in lengths], [[n / experts] * experts for n in lengths], list(lengths)
    )
    for load in (None, torch.full((2, experts), top_k / experts)):
        assert float(load_balancing_loss([even, even], config=config, load_LE=load)) == pytest.approx(top_k, rel=1e-5)


def test_before_the_first_step_the_global_term_is_top_k_and_pushes_nothing():
    router = _router(_hand_config("global_batch"))
    _, stats = router(_tokens(1, 2, 9))
    term = load_balancing_loss([stats], config=_hand_config("global_batch"))
    term.backward()
    assert term.item() == pytest.approx(1, rel=1e-6)
    assert router.weight.grad.abs().max() < 1e-6


def test_pooled_layers_share_one_load_and_one_probability():
    found = load_balancing_loss(HAND, config=_hand_config("micro_batch"), pool_layers=True)
    assert float(found) == pytest.approx(2 * (6 / 8 * 5.4 / 8 + 2 / 8 * 2.6 / 8), rel=1e-6)


def _router(config: MoEConfig, *, seed: int = 0) -> ExpertRouter:
    router = ExpertRouter(config)
    with torch.no_grad():
        router.weight.copy_(_tokens(seed, config.num_experts, 1, width=config.hidden_size)[:, 0])
    return router


def _tokens(seed: int, batch: int, length: int, *, width: int = 16) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_padding_counts_in_no_term_and_no_metric(scope: Scope, score: Literal["softmax", "sigmoid"]):
    config = router_config(router=RouterConfig(score=score, aux_loss_scope=scope))
    router = _router(config)
    x, mask = _tokens(1, 2, 9), torch.ones(2, 9, dtype=torch.bool)
    x[0, :4] *= 100
    mask[0, :4] = False
    load = torch.tensor([[1.0, 0.5, 0.3, 0.2]])

    def found(*passes: RouterStats) -> tuple[Tensor, Tensor]:
        terms = [load_balancing_loss([stats], config=config, load_LE=load, num_tokens=14) for stats in passes]
        return sum(terms), sum(router_z_loss([stats], num_tokens=14) for stats in passes)

    _, padded = router(x, token_mask=mask)
    _, first = router(x[:1, 4:])
    _, second = router(x[1:])
    assert padded.num_tokens.tolist() == [5, 9]
    assert padded.counts.sum(1).tolist() == [10, 18]
    for name in ("counts", "prob_sum"):
        whole = torch.cat([getattr(first, name), getattr(second, name)])
        torch.testing.assert_close(getattr(padded, name), whole, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(padded.z_sum, first.z_sum + second.z_sum)
    torch.testing.assert_close(padded.entropy_sum, first.entropy_sum + second.entropy_sum)
    if scope != "micro_batch":  # whose load is of one pass, so two passes are another thing
        torch.testing.assert_close(found(padded), found(first, second))
    alone, _ = found(first)
    _, only_first = router(x[:1], token_mask=mask[:1])
    torch.testing.assert_close(found(only_first)[0], alone)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_pass_of_padding_alone_gives_finite_terms_of_zero(scope: Scope):
    config = router_config(router=RouterConfig(aux_loss_scope=scope, z_loss_coefficient=1e-3))
    router = _router(config)
    _, stats = router(_tokens(1, 2, 5), token_mask=torch.zeros(2, 5, dtype=torch.bool))
    loss = auxiliary_loss([stats], config=config)
    loss.backward()
    assert loss.item() == 0
    assert not router.weight.grad.any()
    (metrics,) = routing_metrics([stats], config=config)
    assert (metrics.max_over_mean, metrics.entropy, metrics.drop_rate) == (0, 0, 0)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_of_the_balance_term_flows_through_probabilities_alone(scope: Scope):
    """By hand: d term / d P_i is E f_i / tokens, with f a constant; then through the softmax."""
    config = router_config(router=RouterConfig(aux_loss_scope=scope))
    router = _router(config)
    x, load = _tokens(1, 2, 7), torch.tensor([[1.0, 0.5, 0.3, 0.2]])
    _, stats = router(x)
    assert not stats.counts.requires_grad
    load_balancing_loss([stats], config=config, load_LE=load).backward()
    f = {
        "micro_batch": stats.counts.sum(0).expand(2, 4) / 14,
        "sequence": stats.counts / 7,
        "global_batch": load.expand(2, 4),
    }[scope]
    with torch.no_grad():
        probs = (x @ router.weight.T).softmax(-1)
        slope = 4 * f.unsqueeze(1) / 14
        grad_logits = probs * (slope - (slope * probs).sum(-1, keepdim=True))
        expected = grad_logits.flatten(0, 1).T @ x.flatten(0, 1)
    torch.testing.assert_close(router.weight.grad, expected, atol=1e-6, rtol=1e-5)


def test_the_z_loss_is_the_mean_over_tokens_and_layers_of_the_squared_logsumexp():
    routers = [_router(router_config(), seed=seed) for seed in (3, 4)]
    x = _tokens(1, 2, 5)
    stats = [router(x)[1] for router in routers]
    expected = sum(
        math.log(sum(math.exp(float(logit)) for logit in router.weight.detach() @ token)) ** 2
        for router in routers
        for token in x.flatten(0, 1)
    )
    assert router_z_loss(stats).item() == pytest.approx(expected / 20, rel=1e-5)
    assert router_z_loss(stats, num_tokens=40).item() == pytest.approx(expected / 80, rel=1e-5)


@pytest.mark.parametrize(
    ("router", "weight_of_balance", "weight_of_z"),
    [
        ({"aux_loss_coefficient": 0.25}, 0.25, 0),
        ({"aux_loss_coefficient": 0.25, "z_loss_coefficient": 0.5}, 0.25, 0.5),
        ({"aux_loss_coefficient": 0.25, "balancing": "bias"}, 0.25, 0),
        ({"aux_loss_coefficient": 0.25, "z_loss_coefficient": 0.5, "balancing": "none"}, 0, 0.5),
        ({"aux_loss_coefficient": 0.0}, 0, 0),
    ],
)
def test_the_auxiliary_loss_is_the_sum_of_its_terms_with_their_coefficients(
    router: dict[str, Any], weight_of_balance: float, weight_of_z: float
):
    stats = [_stats([[2, 1], [0, 1]], [[1.8, 1.2], [0.3, 0.7]], [3, 1], z=6.0)]
    found = auxiliary_loss(stats, config=_hand_config("global_batch", **router), load_LE=LAST_LOAD[:1], num_tokens=10)
    balance = 2 * (0.9 * 2.1 + 0.1 * 1.9) / 10
    assert float(found) == pytest.approx(weight_of_balance * balance + weight_of_z * 6.0 / 10, rel=1e-6)


def test_a_dense_model_has_no_terms():
    config = router_config(num_experts=0, num_experts_per_token=0, router=RouterConfig(z_loss_coefficient=1.0))
    model = MoETransformer(config)
    stats = model(torch.zeros(1, 3, dtype=torch.long)).router_stats
    assert float(auxiliary_loss(stats, config=config)) == 0
    balance = RouterBalance(config)
    balance.record(stats)
    balance.finish_step(model)
    assert balance.state_dict() == {}


# Metrics.


def test_metrics_equal_the_hand_calculation():
    stats = _stats([[6, 1, 0, 0], [2, 0, 0, 1]], [[0.0] * 4] * 2, [4, 1], entropy=5 * 0.5 * math.log(4), dropped=3)
    (found,) = routing_metrics([stats], config=router_config())
    assert found.load == pytest.approx((0.8, 0.1, 0.0, 0.1))
    assert found.max_over_mean == pytest.approx(0.8 * 4)
    assert found.num_dead == 1
    assert found.entropy == pytest.approx(0.5)
    assert found.drop_rate == pytest.approx(0.3)
    assert set(found.to_dict()) == {"load", "max_over_mean", "num_dead", "entropy", "drop_rate"}


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_an_undecided_router_has_entropy_one_and_a_certain_one_zero(score: Literal["softmax", "sigmoid"]):
    config = router_config(router=RouterConfig(score=score))
    router = _router(config)
    torch.nn.init.zeros_(router.weight)
    (undecided,) = routing_metrics([router(_tokens(0, 2, 5))[1]], config=config)
    with torch.no_grad():
        router.weight.copy_(torch.full_like(router.weight, -50.0))
        router.weight[1] = 50.0
    (certain,) = routing_metrics([router(torch.ones(2, 5, 16))[1]], config=config)
    assert undecided.entropy == pytest.approx(1, abs=1e-6)
    assert certain.entropy == pytest.approx(0, abs=1e-6)
    assert certain.load[1] == 0.5
    assert certain.num_dead == 2


def test_each_layer_has_metrics_of_its_own():
    found = routing_metrics(HAND, config=_hand_config("micro_batch"))
    assert [layer.load for layer in found] == [(0.5, 0.5), (1.0, 0.0)]
    assert [layer.num_dead for layer in found] == [0, 1]
