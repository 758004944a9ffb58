"""DeepSpeed's ZeRO under every division that its engine runs gives the losses and gradient norms of one process.

That one process is the native engine, which is held against a plain loop of torch (test_pretrain_native.py).
"""

import math
from functools import cache
from typing import Any

import pytest
import torch

from tests.pretraining import (
    CLIP_NORM,
    OPTIMIZER,
    ModelKind,
    build_engine,
    micro_batches,
    packed_batch,
    tiny_config,
    totals_of,
    train,
    train_and_evaluate,
)
from tests.ranks import run_ranks
from train.model.generate import SamplingConfig
from train.model.plan import Engine, ParallelPlan
from train.pretrain.mesh import RankMesh
from train.pretrain.step import TrainingEngine

STEPS = 20
TOLERANCE = 2e-6
"""Relative, over 20 steps, float32."""
BFLOAT16_TOLERANCE = 5e-3
"""Relative, of losses in bfloat16 to those in float32."""
ONE = ParallelPlan(micro_batch=2, num_micro_batches=4)
PLANS: dict[str, ParallelPlan] = {
    "ZeRO-2, no accumulation": ParallelPlan(micro_batch=8, zero_stage=2),
    "ZeRO-1, selective recomputation": ONE.model_copy(update={"recomputation": "selective"}),
    "dp 2, ZeRO-1": ParallelPlan(dp=2, micro_batch=2, num_micro_batches=2),
    "dp 2, ZeRO-3, full recomputation": ParallelPlan(
        dp=2, micro_batch=2, num_micro_batches=2, zero_stage=3, recomputation="full"
    ),
    "cp 2, ZeRO-1": ParallelPlan(cp=2, micro_batch=2, num_micro_batches=4),
    "cp 2, tp 2, more than key-value heads": ParallelPlan(cp=2, tp=2, micro_batch=2, num_micro_batches=4),
    "tp 2, ZeRO-1": ParallelPlan(tp=2, micro_batch=2, num_micro_batches=4),
    "dp 2, tp 2, ZeRO-2": ParallelPlan(dp=2, tp=2, micro_batch=4, zero_stage=2),
    "dp 2 = ep 2, ZeRO-1": ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2),
    "dp 2 = ep 2, ZeRO-2": ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=2),
    "dp 2 = ep 2, ZeRO-3": ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=3),
    "dp 4, ep 2, ZeRO-2": ParallelPlan(dp=4, ep=2, micro_batch=1, num_micro_batches=2, zero_stage=2),
    "dp 4, ep 2, ZeRO-3": ParallelPlan(dp=4, ep=2, micro_batch=2, zero_stage=3),
    "pp 2": ParallelPlan(pp=2, micro_batch=2, num_micro_batches=4),
    "pp 2, dp 2 = ep 2": ParallelPlan(pp=2, dp=2, ep=2, micro_batch=2, num_micro_batches=2, recomputation="full"),
    "pp 2, dp 2, tp 2, ep 4": ParallelPlan(pp=2, dp=2, tp=2, ep=4, micro_batch=2, num_micro_batches=2),
}
"""A pipeline is one of ZeRO-1."""
CASES: list[tuple[ModelKind, str]] = [
    ("sigmoid", "ZeRO-2, no accumulation"),
    ("sigmoid", "ZeRO-1, selective recomputation"),
    ("sigmoid", "dp 2, ZeRO-1"),
    ("sigmoid", "cp 2, ZeRO-1"),
    ("dense", "cp 2, tp 2, more than key-value heads"),
    ("sigmoid", "dp 2 = ep 2, ZeRO-1"),
    ("sigmoid", "dp 2 = ep 2, ZeRO-2"),
    ("sigmoid", "dp 4, ep 2, ZeRO-3"),
    ("sigmoid", "pp 2, dp 2 = ep 2"),
    ("softmax", "dp 4, ep 2, ZeRO-2"),
    ("dense", "tp 2, ZeRO-1"),
    ("dense", "dp 2, tp 2, ZeRO-2"),
    ("dense", "pp 2"),
    ("tied", "dp 2, ZeRO-3, full recomputation"),
    ("tied", "pp 2, dp 2, tp 2, ep 4"),
]


def _train(rank: int, world: int, name: Engine, kind: ModelKind, plan: ParallelPlan) -> dict[str, list[float]]:
    return train_and_evaluate(name, kind, plan, steps=STEPS)


@cache
def _one_process(kind: ModelKind) -> dict[str, list[float]]:
    return run_ranks(_train, 1, "native", kind, ONE)[0]


@pytest.mark.parametrize(("kind", "plan"), CASES)
def test_losses_and_gradient_norms_equal_those_of_one_native_process(kind: ModelKind, plan: str):
    chosen, expected = PLANS[plan], _one_process(kind)
    for found in run_ranks(_train, chosen.world_size, "deepspeed", kind, chosen, needs_deepspeed=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert found["auxiliary"] == pytest.approx(expected["auxiliary"], rel=TOLERANCE, abs=1e-7)
        assert found["norm"] == pytest.approx(expected["norm"], rel=TOLERANCE)
        assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=TOLERANCE)
        assert min(found["norm"]) > CLIP_NORM  # every step was clipped


# Steps that are left out, and what gradients are multiplied with.


def _values(engine: TrainingEngine) -> list[torch.Tensor]:
    return [piece.tensor.clone() for piece in engine.pieces()]


def _discard_a_step(rank: int, world: int, plan: ParallelPlan) -> None:
    plain, other = (build_engine("deepspeed", "sigmoid", plan) for _ in range(2))
    for engine in (plain, other):
        train(engine, range(2))
    before, batch = _values(other), packed_batch(7)
    for scale in (1.0, math.inf):
        other.run(micro_batches(batch, other.mesh), totals_of(batch), scale=scale)
        assert math.isfinite(other.gradient_norm()) == (scale == 1.0)
        other.discard()
    assert all(map(torch.equal, before, _values(other)))
    assert other.num_updates == 2
    assert train(plain, range(2, 4)) == train(other, range(2, 4))
    assert all(map(torch.equal, _values(plain), _values(other)))
    assert not all(map(torch.equal, before, _values(other)))


@pytest.mark.parametrize("plan", [*(f"dp 2 = ep 2, ZeRO-{stage}" for stage in (1, 2, 3)), "pp 2"])
def test_discarded_steps_leave_no_trace_not_even_those_that_overflowed(plan: str):
    run_ranks(_discard_a_step, 2, PLANS[plan], needs_deepspeed=True)


def _look_between_steps(rank: int, world: int, plan: ParallelPlan) -> None:
    plain, other = (build_engine("deepspeed", "sigmoid", plan) for _ in range(2))
    expected = train(plain, range(4))
    first = train(other, range(2))
    assert other.expert_load().sum(1) == pytest.approx(tiny_config("sigmoid").num_experts_per_token)
    evaluations = [other.evaluate(micro_batches(packed_batch(9), other.mesh)) for _ in range(2)]
    texts = [engine.generate([[1, 2, 3], [4]], SamplingConfig(max_new_tokens=3)) for engine in (other, other)]
    second = train(other, range(2, 4))
    assert evaluations[0] == evaluations[1]
    assert texts[0] == texts[1]
    assert {name: first[name] + second[name] for name in first} == expected


@pytest.mark.parametrize("plan", ["dp 2 = ep 2, ZeRO-2", "dp 2 = ep 2, ZeRO-3"])
def test_evaluations_and_texts_between_steps_change_nothing(plan: str):
    run_ranks(_look_between_steps, 2, PLANS[plan], needs_deepspeed=True)


def _train_scaled(rank: int, world: int, plan: ParallelPlan) -> list[dict[str, list[float]]]:
    return [train(build_engine("deepspeed", "sigmoid", plan), range(4), scale=scale) for scale in (1.0, 1024.0)]


@pytest.mark.parametrize("plan", ["dp 2 = ep 2, ZeRO-2", "dp 2 = ep 2, ZeRO-3", "pp 2"])
def test_a_scale_of_gradients_changes_neither_norms_nor_steps(plan: str):
    plain, scaled = run_ranks(_train_scaled, 2, PLANS[plan], needs_deepspeed=True)[0]
    assert plain == scaled


def _train_in(rank: int, world: int, plan: ParallelPlan, dtype: torch.dtype) -> dict[str, list[float]]:
    engine = build_engine("deepspeed", "sigmoid", plan, compute_dtype=dtype)
    assert all(piece.tensor.dtype == torch.float32 for piece in engine.pieces())
    return train(engine, range(STEPS))


@pytest.mark.parametrize("plan", ["dp 2 = ep 2, ZeRO-1", "dp 2 = ep 2, ZeRO-3", "pp 2"])
def test_bfloat16_keeps_float32_masters_and_stays_near_float32(plan: str):
    found = run_ranks(_train_in, 2, PLANS[plan], torch.bfloat16, needs_deepspeed=True)[0]
    expected = _one_process("sigmoid")
    assert found["loss"] == pytest.approx(expected["loss"], rel=BFLOAT16_TOLERANCE)
    assert found["loss"] != pytest.approx(expected["loss"], rel=TOLERANCE)


def _largest_weight(rank: int, world: int, plan: ParallelPlan) -> int:
    engine: Any = build_engine("deepspeed", "tied", plan)
    train(engine, range(2))
    return max(weight.numel() for weight in engine.stage.parameters())


def test_between_steps_zero_3_holds_nothing_whole_but_norms():
    found = run_ranks(_largest_weight, 2, PLANS["dp 2 = ep 2, ZeRO-3"], needs_deepspeed=True)
    assert found == [tiny_config("tied").hidden_size] * 2


# What is refused.


def _refusal(rank: int, world: int, plan: ParallelPlan, changes: dict[str, Any]) -> str:
    from train.pretrain.deepspeed_engine import DeepSpeedEngine

    mesh = RankMesh.build(plan, device_type="cpu", is_tied=False)
    options: dict[str, Any] = {"device": torch.device("cpu"), "optimizer": OPTIMIZER, "sequence_length": 16}
    try:
        DeepSpeedEngine(tiny_config("dense"), mesh, **(options | changes))
    except ValueError as error:
        return str(error)
    return "nothing was refused"


@pytest.mark.parametrize(
    ("changes", "plan", "reason"),
    [
        ({"optimizer": OPTIMIZER.model_copy(update={"kind": "muon"})}, ONE, "optimizer.kind = 'muon'"),
        ({"device": torch.device("cuda")}, ONE, "set the environment variable DS_ACCELERATOR=cuda"),
        (
            {},
            ONE.model_copy(update={"zero_stage": 3, "recomputation": "selective"}),
            "selective recomputation with ZeRO-3",
        ),
        ({}, ONE.model_copy(update={"zero_stage": 2, "pp": 2}), "zero_stage = 2 with pp = 2"),
    ],
)
def test_what_it_does_not_run_is_refused_with_the_field_and_the_way_out(
    changes: dict[str, Any], plan: ParallelPlan, reason: str
):
    assert reason in run_ranks(_refusal, plan.world_size, plan, changes, needs_deepspeed=True)[0]
