"""Balancing: loss terms and metrics against hand calculations, the selection bias, and invariance to how a step is cut."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.model.balance import (
    RouterBalance,
    auxiliary_loss,
    load_balancing_loss,
    router_z_loss,
    routing_metrics,
    updated_bias,
)
from train.model.config import MoEConfig, RouterConfig
from train.model.moe import ExpertRouter, MoELayer, RouterStats
from train.model.transformer import MoETransformer, Recomputation

Scope = Literal["micro_batch", "sequence", "global_batch"]
SCOPES: tuple[Scope, ...] = ("micro_batch", "sequence", "global_batch")


def _config(**fields: Any) -> MoEConfig:
    values = {
        "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_token": 2, "initializer_range": 0.3,
    }  # fmt: skip
    return MoEConfig.model_validate(values | fields)


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
    return _config(num_experts=2, num_experts_per_token=1, router=RouterConfig(aux_loss_scope=scope, **router))


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
    config = _config(
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
    config = _config(router=RouterConfig(score=score, aux_loss_scope=scope))
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
    config = _config(router=RouterConfig(aux_loss_scope=scope, z_loss_coefficient=1e-3))
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
    config = _config(router=RouterConfig(aux_loss_scope=scope))
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
    routers = [_router(_config(), seed=seed) for seed in (3, 4)]
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
    config = _config(num_experts=0, num_experts_per_token=0, router=RouterConfig(z_loss_coefficient=1.0))
    model = MoETransformer(config)
    stats = model(torch.zeros(1, 3, dtype=torch.long)).router_stats
    assert float(auxiliary_loss(stats, config=config)) == 0
    balance = RouterBalance(config)
    balance.record(stats)
    balance.finish_step(model)
    assert balance.state_dict() == {}


# The selection bias.

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=64)


@given(counts=COUNTS, rate=st.floats(1e-4, 1e-1), seed=st.integers(0, 99))
def test_a_zero_mean_bias_stays_zero_mean(counts: list[int], rate: float, seed: int):
    bias = torch.randn(len(counts), generator=torch.Generator().manual_seed(seed)) * 0.1
    bias -= bias.mean()
    for _ in range(5):
        bias = updated_bias(bias, torch.tensor(counts, dtype=torch.float32), rate=rate)
    assert abs(float(bias.mean())) < 1e-6


@given(counts=COUNTS, rate=st.floats(1e-4, 1e-1))
def test_the_bias_rises_for_idle_experts_and_falls_for_busy_ones(counts: list[int], rate: float):
    change = updated_bias(torch.zeros(len(counts)), torch.tensor(counts, dtype=torch.float32), rate=rate)
    mean = sum(counts) / len(counts)
    signs = [(mean > count) - (mean < count) for count in counts]
    expected = [rate * (sign - sum(signs) / len(signs)) for sign in signs]
    torch.testing.assert_close(change, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    for value, sign in zip(change.tolist(), signs, strict=True):
        assert value * sign >= 0


def _model(**router: Any) -> MoETransformer:
    torch.manual_seed(0)
    return MoETransformer(_config(dense_layers=(0,), num_hidden_layers=3, router=RouterConfig(**router)))


def _biases(model: MoETransformer) -> Tensor:
    return torch.stack([layer.mlp.gate.bias for layer in model.layers if isinstance(layer.mlp, MoELayer)]).clone()


def _ids(batch: int, length: int, *, seed: int) -> Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_bias_moves_once_per_optimizer_step_by_the_counts_of_all_its_micro_batches():
    model = _model(balancing="bias", bias_update_rate=0.01)
    balance, before = RouterBalance(model.config), _biases(model)
    counts = torch.zeros(2, 4)
    for seed in range(3):
        output = model(_ids(2, 7, seed=seed))
        balance.record(output.router_stats)
        counts += torch.stack([stats.counts.sum(0) for stats in output.router_stats])
        assert torch.equal(_biases(model), before)
    balance.finish_step(model)
    expected = torch.stack([updated_bias(torch.zeros(4), layer, rate=0.01) for layer in counts])
    assert expected.any()
    assert torch.equal(_biases(model), expected)
    torch.testing.assert_close(balance.load, counts / 42)
    torch.testing.assert_close(balance.load.sum(1), torch.full((2,), 2.0))


def test_the_next_step_counts_from_zero():
    model = _model()
    balance = RouterBalance(model.config)
    balance.record(model(_ids(2, 7, seed=0)).router_stats)
    balance.finish_step(model)
    first = balance.load
    balance.record(model(_ids(3, 5, seed=1)).router_stats)
    balance.finish_step(model)
    second = balance.load
    alone = RouterBalance(model.config)
    alone.record(model(_ids(3, 5, seed=1)).router_stats)
    alone.finish_step(model)
    assert torch.equal(second, alone.load)
    assert not torch.equal(second, first)


def test_without_bias_balancing_a_step_moves_no_weight():
    model = _model(balancing="aux_loss")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    balance = RouterBalance(model.config)
    balance.record(model(_ids(2, 7, seed=0)).router_stats)
    balance.finish_step(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_without_a_recorded_pass_is_refused_the_first_and_every_later_time():
    model = _model(balancing="bias")
    balance = RouterBalance(model.config)
    with pytest.raises(RuntimeError, match="without a recorded pass: call record"):
        balance.finish_step(model)
    balance.record(model(_ids(1, 4, seed=0)).router_stats)
    balance.finish_step(model)
    moved = _biases(model)
    with pytest.raises(RuntimeError, match="without a recorded pass"):
        balance.finish_step(model)
    assert torch.equal(_biases(model), moved)


def test_the_bias_evens_the_load_of_the_tokens_it_sees():
    model, tokens = _model(balancing="bias", bias_update_rate=0.01), _ids(4, 16, seed=0)
    balance, widest = RouterBalance(model.config), []
    for _ in range(60):
        with torch.no_grad():
            stats = model(tokens).router_stats
        widest.append(max(layer.max_over_mean for layer in routing_metrics(stats, config=model.config)))
        balance.record(stats)
        balance.finish_step(model)
    assert widest[0] > 1.2
    assert min(widest[-10:]) < 1 + (widest[0] - 1) / 2


def test_the_state_returns_as_it_was_saved():
    model = _model()
    balance = RouterBalance(model.config)
    assert balance.state_dict() == {}
    balance.record(model(_ids(2, 7, seed=0)).router_stats)
    balance.finish_step(model)
    again = RouterBalance(model.config)
    again.load_state_dict(balance.state_dict())
    assert torch.equal(again.load, balance.load)
    again.load_state_dict({})
    assert again.load is None


def test_the_state_of_a_model_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"load has shape \[3, 4\].*\[2, 4\]"):
        RouterBalance(_model().config).load_state_dict({"load": torch.zeros(3, 4)})


# Invariance: a step's balance gradient does not depend on how the step is cut.

LENGTHS = (3, 11, 6, 1, 8, 5)
Rows = list[int]


def _batch(rows: Rows, *, left: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of the step, left-padded to their longest and `left` slots more, and their mask."""
    width = max(LENGTHS[row] for row in rows) + left
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for slot, row in enumerate(rows):
        ids[slot, width - LENGTHS[row] :] = _ids(1, LENGTHS[row], seed=seed + row)
        mask[slot, width - LENGTHS[row] :] = 1
    return ids, mask


def _two_steps(
    model: MoETransformer, cuts: list[Rows], *, left: int, recomputation: Recomputation, with_evaluation: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Load of the first step; gradients and load of the second, whose balance term uses that load."""
    model.set_recomputation(recomputation)
    balance = RouterBalance(model.config)
    parameters = list(model.parameters())
    first: Tensor | None = None
    for seed in (0, 100):
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for rows in cuts:
            if with_evaluation:
                with torch.no_grad():
                    model(_ids(2, 9, seed=7))
            ids, mask = _batch(rows, left=left, seed=seed)
            stats = model(ids, attention_mask=mask).router_stats
            balance.record(stats)
            term = auxiliary_loss(stats, config=model.config, load_LE=balance.load, num_tokens=sum(LENGTHS))
            parts = torch.autograd.grad(term, parameters, allow_unused=True)
            gradients = [g if part is None else g + part for g, part in zip(gradients, parts, strict=True)]
        balance.finish_step(model)
        first = balance.load if first is None else first
    assert first is not None
    assert balance.load is not None
    return first, gradients, balance.load


def _scoped(scope: Scope) -> MoETransformer:
    torch.manual_seed(0)
    router = RouterConfig(aux_loss_scope=scope, aux_loss_coefficient=1.0, z_loss_coefficient=0.1)
    return MoETransformer(_config(router=router))


@pytest.fixture(scope="module", params=["global_batch", "sequence"])
def one_by_one(request: pytest.FixtureRequest) -> tuple[MoETransformer, tuple[Tensor, list[Tensor], Tensor]]:
    """Each sequence alone, without padding, recomputation or evaluation."""
    model = _scoped(request.param)
    cuts = [[row] for row in range(len(LENGTHS))]
    expected = _two_steps(model, cuts, left=0, recomputation="none", with_evaluation=False)
    assert max(float(gradient.abs().max()) for gradient in expected[1]) > 0.01
    return model, expected


@st.composite
def _cuts(draw: st.DrawFn) -> list[Rows]:
    """The sequences in any order, cut into any micro-batches."""
    rows = draw(st.permutations(range(len(LENGTHS))))
    ends = sorted(draw(st.sets(st.integers(1, len(rows) - 1))))
    return [list(rows[start:stop]) for start, stop in zip([0, *ends], [*ends, len(rows)], strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    cuts=_cuts(),
    left=st.integers(0, 4),
    recomputation=st.sampled_from(["none", "selective", "full"]),
    with_evaluation=st.booleans(),
)
def test_a_steps_balance_gradient_and_load_are_the_same_for_any_cut_padding_and_recomputation(
    one_by_one: tuple[MoETransformer, tuple[Tensor, list[Tensor], Tensor]],
    cuts: list[Rows],
    left: int,
    recomputation: Recomputation,
    with_evaluation: bool,
):
    model, (first, gradients, second) = one_by_one
    found = _two_steps(model, cuts, left=left, recomputation=recomputation, with_evaluation=with_evaluation)
    assert torch.equal(found[0], first)
    assert torch.equal(found[2], second)
    for gradient, expected in zip(found[1], gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=2e-6, rtol=1e-4)


def test_the_micro_batch_scope_does_depend_on_the_cut():
    """So the invariance above is a property of the scopes, not of the test."""
    model = _scoped("micro_batch")
    whole, halves = (
        _two_steps(model, cuts, left=0, recomputation="none", with_evaluation=False)
        for cuts in ([[0, 1, 2, 3, 4, 5]], [[0, 1, 2], [3, 4, 5]])
    )
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(whole[1], halves[1], strict=True))


# Metrics.


def test_metrics_equal_the_hand_calculation():
    stats = _stats([[6, 1, 0, 0], [2, 0, 0, 1]], [[0.0] * 4] * 2, [4, 1], entropy=5 * 0.5 * math.log(4), dropped=3)
    (found,) = routing_metrics([stats], config=_config())
    assert found.load == pytest.approx((0.8, 0.1, 0.0, 0.1))
    assert found.max_over_mean == pytest.approx(0.8 * 4)
    assert found.num_dead == 1
    assert found.entropy == pytest.approx(0.5)
    assert found.drop_rate == pytest.approx(0.3)
    assert set(found.to_dict()) == {"load", "max_over_mean", "num_dead", "entropy", "drop_rate"}


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_an_undecided_router_has_entropy_one_and_a_certain_one_zero(score: Literal["softmax", "sigmoid"]):
    config = _config(router=RouterConfig(score=score))
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


def test_the_bias_stays_float32_when_the_model_moves_to_bfloat16():
    """A step of 1e-3 on a bias of 1 is below bfloat16's resolution."""
    config = _config(router=RouterConfig(balancing="bias"))
    model = MoETransformer(config)
    gate = model.layers[0].mlp.gate
    gate.bias += 1 + 1e-3
    before = gate.bias.clone()
    model.bfloat16()
    assert gate.weight.dtype == torch.bfloat16
    assert torch.equal(gate.bias, before)
    described = MoETransformer(config, device="meta").bfloat16().to_empty(device="cpu")
    assert described.layers[0].mlp.gate.bias.dtype == torch.float32
