"""Expert parallelism over gloo: ranks that hold a share of the experts each equal one process that holds all of them.

Each world of ranks is started once and runs every case; the tests then compare what its ranks returned.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from tests.ranks import run_ranks
from train.model.balance import RouterBalance, auxiliary_loss, load_balancing_loss
from train.model.checkpoint_hf import load_model
from train.model.config import MoEConfig, RouterConfig
from train.model.loss import IGNORE, next_token_labels
from train.model.moe import MoELayer
from train.model.ranks import ModelRanks
from train.model.transformer import MoETransformer, Recomputation

NUM_EXPERTS, ROWS_PER_RANK, LENGTH = 8, 2, 10
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": NUM_EXPERTS, "num_experts_per_token": 2,
    "dense_layers": (1,), "num_shared_experts": 1, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
ROUTERS = {
    "softmax": RouterConfig(aux_loss_scope="global_batch", aux_loss_coefficient=0.1, z_loss_coefficient=0.01),
    "sigmoid": RouterConfig(
        score="sigmoid", balancing="bias", bias_update_rate=0.05, aux_loss_scope="sequence", aux_loss_coefficient=0.1
    ),
    "capacity": RouterConfig(capacity_factor=0.75, aux_loss_coefficient=0.1),
}


# What is computed: the same functions in the ranks, with their rows, and in this process, with all rows.


@dataclass(frozen=True)
class Case:
    """A batch, [rows, slots], and how it is run."""

    tokens: Tensor
    mask: Tensor | None = None
    routes: Tensor | None = None
    recomputation: Recomputation = "none"

    @property
    def labels(self) -> Tensor:
        return next_token_labels(self.tokens, None if self.mask is None else self.mask - 1)

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel() if self.mask is None else int(self.mask.sum())

    def rows_of(self, rank: int) -> "Case":
        rows = slice(rank * ROWS_PER_RANK, (rank + 1) * ROWS_PER_RANK)
        return replace(
            self,
            tokens=self.tokens[rows],
            mask=None if self.mask is None else self.mask[rows],
            routes=None if self.routes is None else self.routes[:, rows],
        )


def _tokens(world: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (world * ROWS_PER_RANK, LENGTH), generator=generator)


def _left_padded(world: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    padding = torch.randint(0, LENGTH, (world * ROWS_PER_RANK, 1), generator=generator)
    return (torch.arange(LENGTH) >= padding).long()


def _plain(world: int) -> Case:
    return Case(_tokens(world, 1))


def _padded(world: int) -> Case:
    return Case(_tokens(world, 2), _left_padded(world, 2))


def _last_rank_only_padding(world: int) -> Case:
    mask = _left_padded(world, 3)
    mask[-ROWS_PER_RANK:] = 0
    return Case(_tokens(world, 3), mask)


def _first_rank_has_all_chosen_experts(world: int) -> Case:
    held = NUM_EXPERTS // world
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(2, world * ROWS_PER_RANK, LENGTH, held, generator=generator)
    return Case(_tokens(world, 4), routes=scores.topk(2).indices)


def _recomputed(world: int) -> Case:
    return Case(_tokens(world, 5), _left_padded(world, 5), recomputation="full")


CASES: dict[str, Callable[[int], Case]] = {
    "plain": _plain,
    "left padding": _padded,
    "last rank only padding": _last_rank_only_padding,
    "first rank has all chosen experts": _first_rank_has_all_chosen_experts,
    "left padding, recomputed": _recomputed,
}
LOAD = torch.tensor([[0.7, 0.1, 0.2, 0.3, 0.05, 0.15, 0.4, 0.1], [0.1, 0.6, 0.2, 0.2, 0.3, 0.1, 0.2, 0.3]])
"""Load of a step before, of both layers with experts."""


def _pass(model: MoETransformer, part: Case, *, whole: Case) -> dict[str, Tensor]:
    """The losses of a part of the step, and their gradients."""
    model.zero_grad()
    model.train().set_recomputation(part.recomputation)  # capacity drops in training alone
    output = model(part.tokens, attention_mask=part.mask, labels=part.labels, replay_routes=part.routes)
    kwargs: dict[str, Any] = {"config": model.config, "load_LE": LOAD, "num_tokens": whole.num_tokens}
    loss = output.loss_sum / int((whole.labels != IGNORE).sum())
    auxiliary = auxiliary_loss(output.router_stats, **kwargs)
    (loss + auxiliary).backward()
    found = {"loss": loss, "auxiliary": auxiliary, "balance": load_balancing_loss(output.router_stats, **kwargs)}
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # zeros too, or a reduction would wait for this rank
        gradients[f"grad {name}"] = parameter.grad
    return {name: value.detach().clone() for name, value in (found | gradients).items()}


def _two_steps(model: MoETransformer, parts: list[Case], *, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Load and biases after two optimizer steps, each of both parts as its micro-batches."""
    balance, found = RouterBalance(model.config), {}
    for step in range(2):
        for part in parts:
            with torch.no_grad():
                balance.record(model(part.tokens, attention_mask=part.mask).router_stats)
        balance.finish_step(model, group=group)
        assert balance.load is not None
        found[f"load {step}"] = balance.load
        for name, buffer in model.named_buffers():
            if name.endswith("gate.bias"):
                found[f"bias {step} {name}"] = buffer.clone()
    return found


# The ranks.


def _compute_as_rank(rank: int, world: int, folder: Path) -> tuple[dict[str, Tensor], str]:
    group, found = dist.group.WORLD, {}
    assert group is not None
    for router in ROUTERS:
        for case, build in CASES.items():
            model, whole = load_model(folder / router, ranks=ModelRanks(ep=group)), build(world)
            results = _pass(model, whole.rows_of(rank), whole=whole)
            shared = [value for name, value in results.items() if ".mlp.experts." not in name]
            flat = torch.cat([value.flatten() for value in shared])
            dist.all_reduce(flat)
            for value, total in zip(shared, flat.split([value.numel() for value in shared]), strict=True):
                value.copy_(total.view_as(value))
            found |= {f"{router}, {case}: {name}": value for name, value in results.items()}
        parts = [build(world).rows_of(rank) for build in (_plain, _last_rank_only_padding)]
        steps = _two_steps(load_model(folder / router, ranks=ModelRanks(ep=group)), parts, group=group)
        found |= {f"{router}: {name}": value for name, value in steps.items()}
    try:
        MoELayer(MoEConfig.model_validate(SHAPE | {"num_experts": world + 1}), ranks=ModelRanks(ep=group))
    except ValueError as error:
        return found, str(error)
    return found, ""


# The comparison.


@dataclass(frozen=True)
class World:
    """Models and results of `size` ranks."""

    size: int
    folder: Path
    ranks: list[dict[str, Tensor]]
    refusals: list[str]


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    size, folder = request.param, tmp_path_factory.mktemp("world")
    for seed, (name, router) in enumerate(ROUTERS.items()):
        torch.manual_seed(seed)
        model = MoETransformer(MoEConfig.model_validate(SHAPE | {"router": router}))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("gate.bias"):
                buffer.normal_(std=0.1)
        model.save_pretrained(folder / name)
    found, refusals = zip(*run_ranks(_compute_as_rank, size, folder), strict=True)
    return World(size, folder, list(found), list(refusals))


def _assert_equal(found: Tensor, expected: Tensor, *, name: str, tolerance: float = 2e-6) -> None:
    """Up to `tolerance` of the largest value."""
    assert found.shape == expected.shape, name
    scale, error = expected.abs().max().item(), (found - expected).abs().max().item()
    assert error <= tolerance * scale, f"{name}: differs by {error} where the largest value is {scale}"


@pytest.fixture(params=ROUTERS)
def router(request: pytest.FixtureRequest) -> str:
    return request.param


def _passes_of_one_process(whole: Case, *, router: str) -> list[Case]:
    """An expert's capacity is of one pass, so with one a single process goes through the ranks' rows in turn."""
    ranks = range(len(whole.tokens) // ROWS_PER_RANK)
    return [whole.rows_of(rank) for rank in ranks] if router == "capacity" else [whole]


@pytest.mark.parametrize("case", CASES)
def test_losses_balance_term_and_all_gradients_equal_one_process(world: World, router: str, case: str):
    whole, model = CASES[case](world.size), load_model(world.folder / router)
    terms = [_pass(model, part, whole=whole) for part in _passes_of_one_process(whole, router=router)]
    expected = {name: torch.stack([term[name] for term in terms]).sum(0) for name in terms[0]}
    assert any(".mlp.experts." in name for name in expected)
    for name, value in expected.items():
        found = [rank[f"{router}, {case}: {name}"] for rank in world.ranks]
        if ".mlp.experts." in name:
            assert all(len(share) == NUM_EXPERTS // world.size for share in found), name
            found = [torch.cat(found)]
        for one in found:
            _assert_equal(one, value, name=name)
        assert value.any(), name


def test_ranks_whose_experts_get_no_token_have_gradients_of_zero(world: World, router: str):
    case = "first rank has all chosen experts"
    for number, rank in enumerate(world.ranks):
        gradients = {
            name: value for name, value in rank.items() if f"{router}, {case}: " in name and "experts.w" in name
        }
        assert len(gradients) == 6
        for name, gradient in gradients.items():
            assert bool(gradient.any()) == (number == 0), name


def test_load_and_biases_after_two_steps_equal_one_process(world: World, router: str):
    """Two micro-batches a step; in the second one, a rank has only padding."""
    wholes = [build(world.size) for build in (_plain, _last_rank_only_padding)]
    parts = [part for whole in wholes for part in _passes_of_one_process(whole, router=router)]
    expected = _two_steps(load_model(world.folder / router), parts, group=None)
    assert len(expected) == (6 if router == "sigmoid" else 2)
    for rank in world.ranks:
        for name, value in expected.items():
            assert torch.equal(rank[f"{router}: {name}"], value), name


def test_experts_that_do_not_divide_by_the_ranks_are_refused_with_both_numbers(world: World):
    for refusal in world.refusals:
        assert f"num_experts = {world.size + 1} is not divisible by the {world.size} ranks" in refusal
