"""Compiled regions compute what eager ones do: losses and gradients, with packed documents, experts, recomputation, shards."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretraining import build_engine, packed_batch, tiny_config, train
from tests.ranks import run_ranks
from train.model import attention_blocks
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


def _of_long_rows(rank: int, world: int, is_compiled: bool, in_blocks: bool) -> tuple[Tensor, int]:
    """Gradients of rows that attention takes in blocks, as on a CPU that multiplies bfloat16; breaks of compiled regions."""
    attention_blocks.HAS_FAST_BFLOAT16 = in_blocks
    config = tiny_config("dense").replace(max_position_embeddings=512)
    torch.manual_seed(0)
    model = MoETransformer(config).to(torch.bfloat16).train()
    if is_compiled:
        model.compile_regions()
    ids = torch.randint(0, config.vocab_size, (2, 2 * attention_blocks.BLOCK + 40))
    loss = model(ids, labels=ids).loss
    assert loss is not None
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([one.float().flatten() for one in gradients]), sum(
        torch._dynamo.utils.counters["graph_break"].values()
    )


def test_attention_in_blocks_is_part_of_a_compiled_region_and_has_the_gradients_of_the_fused_kernel() -> None:
    (fused, _), (eager, _), (compiled, breaks) = (
        run_ranks(_of_long_rows, 1, *flags)[0] for flags in ((False, False), (False, True), (True, True))
    )
    assert breaks == 0
    for found in (eager, compiled):
        assert 0 < (found - fused).norm() < 0.03 * fused.norm()


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
