"""Upcycling and growth leave the function as it was, and what is new can learn."""

import pytest
import torch

from train.model.balance import RouterBalance
from train.model.config import MoEConfig
from train.model.loss import next_token_labels
from train.model.transformer import MoETransformer
from train.model.upcycle import add_experts, upcycle

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
TOKENS = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense() -> MoETransformer:
    torch.manual_seed(0)
    return MoETransformer(_dense_config())


def _dense_config(**fields: object) -> MoEConfig:
    return MoEConfig.model_validate(SHAPE | {"num_experts": 0, "num_experts_per_token": 0} | fields)


def _sparse(**router: object) -> MoETransformer:
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 16, "dense_layers": [0]}
    return MoETransformer(MoEConfig.model_validate(SHAPE | experts | {"router": router}))


@torch.no_grad()
@pytest.mark.parametrize(
    ("experts", "top_k", "granularity"), [(4, 1, 1), (4, 2, 1), (8, 2, 2), (24, 9, 3), (16, 16, 4)]
)
def test_upcycled_logits_equal_the_dense_ones(dense: MoETransformer, experts: int, top_k: int, granularity: int):
    sparse = upcycle(dense, num_experts=experts, num_experts_per_token=top_k, granularity=granularity)
    assert sparse.config.moe_layers == (0, 1)
    torch.testing.assert_close(sparse(TOKENS).logits, dense(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_upcycled_experts_part_ways_in_one_step(dense: MoETransformer):
    sparse = upcycle(dense, num_experts=4, num_experts_per_token=1)
    sparse(TOKENS, labels=next_token_labels(TOKENS)).loss.backward()
    gradient = sparse.layers[0].mlp.experts.w1.grad
    assert not torch.allclose(gradient[0], gradient[1])


@torch.no_grad()
@pytest.mark.parametrize(
    "router",
    [{}, {"balancing": "bias"}, {"score": "sigmoid"}, {"score": "sigmoid", "renormalise": False, "balancing": "bias"}],
)
def test_added_experts_leave_the_logits_and_the_routes(router: dict[str, object]):
    model = _sparse(**router)
    if model.config.router.balancing == "bias" and model.config.router.score == "sigmoid":
        model.layers[1].mlp.gate.bias.copy_(torch.tensor([0.2, -0.3, 0.0, 0.1]))
    grown = add_experts(model, 3, noise_std=0.1)
    before, after = model(TOKENS), grown(TOKENS)
    assert grown.config.num_experts == 7
    assert torch.equal(after.routes, before.routes)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)


def test_bias_balancing_brings_added_experts_into_use():
    model = _sparse(balancing="bias", bias_update_rate=0.05)
    grown = add_experts(model, 2, noise_std=0.1)
    balance = RouterBalance(grown.config)
    used = []
    for _ in range(40):
        with torch.no_grad():
            output = grown(TOKENS)
        used.append(set(output.routes.flatten().tolist()))
        balance.record(output.router_stats)
        balance.finish_step(grown)
    assert used[0] <= {0, 1, 2, 3}
    assert {4, 5} <= set().union(*used)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_experts": 6, "num_experts_per_token": 2, "granularity": 4}, "num_experts = 6.*granularity = 4"),
        ({"num_experts": 8, "num_experts_per_token": 3, "granularity": 2}, "num_experts_per_token = 3"),
        ({"num_experts": 10, "num_experts_per_token": 5, "granularity": 5}, "granularity = 5.*intermediate_size = 48"),
    ],
)
def test_upcycling_that_cannot_be_exact_is_refused(dense: MoETransformer, arguments: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        upcycle(dense, **arguments)


def test_upcycling_with_a_capacity_is_refused_and_dense_layers_of_a_dense_model_mean_nothing():
    capped = MoETransformer(_dense_config(router={"capacity_factor": 0.5}))
    with pytest.raises(ValueError, match=r"router\.capacity_factor.*set it to null"):
        upcycle(capped, num_experts=4, num_experts_per_token=2)
    named = upcycle(MoETransformer(_dense_config(dense_layers=(0,))), num_experts=4, num_experts_per_token=2)
    assert named.config.moe_layers == (0, 1)


def test_growth_that_cannot_be_exact_is_refused(dense: MoETransformer):
    with pytest.raises(ValueError, match="upcycle"):
        add_experts(dense, 1)
    with pytest.raises(ValueError, match="count = 0"):
        add_experts(_sparse(), 0)
    with pytest.raises(ValueError, match="renormalise"):
        add_experts(_sparse(renormalise=False), 1)
    biased = _sparse(balancing="bias")
    biased.layers[1].mlp.gate.bias[0] = 0.1
    with pytest.raises(ValueError, match="zero the bias first"):
        add_experts(biased, 1)
    with pytest.raises(ValueError, match="capacity_factor"):
        add_experts(_sparse(capacity_factor=2.0), 1)
    with pytest.raises(ValueError, match="add_experts"):
        upcycle(_sparse(), num_experts=4, num_experts_per_token=1)
