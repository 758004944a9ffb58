"""RouterBalance: the selection bias, its state, and invariance to how an optimizer step is cut."""

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
    routing_metrics,
    updated_bias,
)
from train.model.config import RouterConfig
from train.model.moe import MoELayer
from train.model.transformer import MoETransformer, Recomputation

Scope = Literal["micro_batch", "sequence", "global_batch"]


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
    return MoETransformer(router_config(dense_layers=(0,), num_hidden_layers=3, router=RouterConfig(**router)))


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
    return MoETransformer(router_config(router=router))


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


@pytest.mark.slow
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


def test_the_bias_stays_float32_when_the_model_moves_to_bfloat16():
    """A step of 1e-3 on a bias of 1 is below bfloat16's resolution."""
    config = router_config(router=RouterConfig(balancing="bias"))
    model = MoETransformer(config)
    gate = model.layers[0].mlp.gate
    gate.bias += 1 + 1e-3
    before = gate.bias.clone()
    model.bfloat16()
    assert gate.weight.dtype == torch.bfloat16
    assert torch.equal(gate.bias, before)
    described = MoETransformer(config, device="meta").bfloat16().to_empty(device="cpu")
    assert described.layers[0].mlp.gate.bias.dtype == torch.float32
