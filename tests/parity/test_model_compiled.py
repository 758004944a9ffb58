"""Compiled regions compute what eager ones do: losses and gradients, with packed documents, experts, recomputation, shards."""

from typing import Any

import pytest
import torch

from tests.pretraining import build_engine, packed_batch, tiny_config, train
from tests.ranks import run_ranks
from train.model.plan import Engine, ParallelPlan
from train.model.transformer import MoETransformer

PLANS: dict[str, tuple[Engine, ParallelPlan]] = {
    "one": ("native", ParallelPlan(micro_batch=2, num_micro_batches=4)),
    "one, selective": ("native", ParallelPlan(micro_batch=2, num_micro_batches=4, recomputation="selective")),
    "one, full": ("native", ParallelPlan(micro_batch=2, num_micro_batches=4, recomputation="full")),
    "tp 2 = ep 2": ("native", ParallelPlan(tp=2, ep=2, micro_batch=2, num_micro_batches=4)),
    "DeepSpeed, dp 2 = ep 2, ZeRO-3": (
        "deepspeed", ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=3)
    ),
}  # fmt: skip


def _compile(model: MoETransformer) -> None:
    model.compile_regions()


def _losses(rank: int, world: int, name: str, dtype: torch.dtype, is_compiled: bool) -> dict[str, list[float]]:
    engine, plan = PLANS[name]
    options: dict[str, Any] = {"prepare": _compile} if is_compiled else {}
    return train(build_engine(engine, "sigmoid", plan, compute_dtype=dtype, **options), range(4))


@pytest.mark.parametrize("name", PLANS)
def test_a_compiled_run_has_the_losses_and_norms_of_an_eager_one(name: str) -> None:
    engine, plan = PLANS[name]
    options: dict[str, Any] = {"needs_deepspeed": engine == "deepspeed"}
    expected = run_ranks(_losses, plan.world_size, name, torch.float32, False, **options)[0]
    found = run_ranks(_losses, plan.world_size, name, torch.float32, True, **options)[0]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-6)
    assert found["norm"] == pytest.approx(expected["norm"], rel=2e-6)


def test_in_bfloat16_too_it_stays_near() -> None:
    eager, compiled = (run_ranks(_losses, 1, "one", torch.bfloat16, flag)[0] for flag in (False, True))
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=5e-3)


def _count_kernels(rank: int, world: int) -> list[int]:
    model = MoETransformer(tiny_config("sigmoid")).compile_regions().train()
    counts = []
    for step in range(6):
        batch = {name: rows[: 2 + step] for name, rows in packed_batch(step).items()}
        model(**batch).loss.backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return counts


def test_batches_of_many_sizes_share_their_kernels() -> None:
    """Of no row, one and more: torch makes a kernel each."""
    (counts,) = run_ranks(_count_kernels, 1)
    assert 0 < counts[2] == counts[-1]
