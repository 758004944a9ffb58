"""Training in 16 and 8 bits stays beside float32, on one rank and sharded on two; an overflow of fp16 changes nothing."""

import math
from typing import Any

import pytest

from tests.pretraining import build_engine, micro_batches, packed_batch, totals_of, train
from tests.ranks import run_ranks
from train.model.plan import Engine, ParallelPlan
from train.pretrain.precision import MixedPrecisionManager, PrecisionConfig
from train.pretrain.step import TrainingEngine

STEPS = 20
TOLERANCES = {"bf16": 5e-3, "fp16": 5e-3, "fp8": 2e-2}
"""Relative, of each step's loss."""
PLANS = [ParallelPlan(micro_batch=4, num_micro_batches=2), ParallelPlan(dp=2, ep=2, micro_batch=4, zero_stage=3)]


def _build(
    name: Engine, kind: str, plan: ParallelPlan, *, scale: float
) -> tuple[TrainingEngine, MixedPrecisionManager]:
    config = PrecisionConfig.model_validate({"kind": kind, "initial_scale": scale})
    manager = MixedPrecisionManager(config, device_type="cpu")
    engine = build_engine(name, "softmax", plan, compute_dtype=manager.compute_dtype, prepare=manager.convert)
    return engine, manager


def _run(rank: int, world: int, name: Engine, kind: str, plan: ParallelPlan) -> dict[str, list[float]]:
    engine, manager = _build(name, kind, plan, scale=2.0**10)
    return train(engine, range(STEPS), scale=manager.scale)


@pytest.mark.parametrize(
    ("name", "kind", "plan"),
    [
        ("native", "bf16", PLANS[0]),
        ("native", "bf16", PLANS[1]),
        ("native", "bf16", ParallelPlan(pp=2, dp=2, ep=2, micro_batch=2, num_micro_batches=2)),
        ("native", "fp16", PLANS[1]),
        ("native", "fp8", PLANS[0]),
        ("native", "fp8", PLANS[1]),
        ("deepspeed", "fp8", PLANS[1]),
    ],
)
def test_losses_stay_beside_those_of_float32(name: Engine, kind: str, plan: ParallelPlan) -> None:
    expected = run_ranks(_run, 1, "native", "fp32", PLANS[0])[0]
    for found in run_ranks(_run, plan.world_size, name, kind, plan, needs_deepspeed=name == "deepspeed"):
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCES[kind])
        assert found["loss"] != expected["loss"]
        assert found["norm"] == pytest.approx(expected["norm"], rel=0.1)


def _overflow(rank: int, world: int) -> tuple[list[float], bool]:
    engine, manager = _build("native", "fp16", PLANS[0], scale=2.0**40)
    before = [piece.tensor.clone() for piece in engine.pieces()]
    scales: list[float] = []
    norm = math.inf
    while not math.isfinite(norm):
        batch = packed_batch(0)
        engine.run(micro_batches(batch, engine.mesh), totals_of(batch), scale=manager.scale)
        norm = engine.gradient_norm()
        scales.append(manager.scale)
        manager.finish_step(is_finite=math.isfinite(norm))
        if not math.isfinite(norm):
            engine.discard()
    pieces: list[Any] = engine.pieces()
    return scales, all(piece.tensor.equal(old) for piece, old in zip(pieces, before, strict=True))


def test_an_overflow_halves_the_scale_and_changes_nothing() -> None:
    ((scales, is_unchanged),) = run_ranks(_overflow, 1)
    assert len(scales) > 5
    assert scales == [2.0 ** (40 - place) for place in range(len(scales))]
    assert is_unchanged
