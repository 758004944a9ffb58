"""A checkpoint of one division goes on there bit for bit; in any other, of either engine, within rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pretraining import CLIP_NORM, LEARNING_RATE, OPTIMIZER, ModelKind, build_engine, train
from tests.ranks import run_ranks
from train.model.plan import Engine, ParallelPlan
from train.pretrain.checkpoint import CheckpointConfig, CheckpointManager
from train.pretrain.optimizer import OptimizerConfig

TOLERANCE = 1e-5
"""Relative, of the losses and gradient norms that follow."""
MUON = OptimizerConfig(kind="muon", lr=LEARNING_RATE, clip_norm=CLIP_NORM, orthogonal_dtype="float32")

ONE = ParallelPlan(micro_batch=2, num_micro_batches=4)
ZERO_1, ZERO_2, ZERO_3 = (
    ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=1),
    ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=2),
    ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=3),
)
DP_4 = ParallelPlan(dp=4, ep=2, micro_batch=2, zero_stage=3)
EP_4 = ParallelPlan(dp=4, ep=4, micro_batch=2, zero_stage=2)
PIPELINE = ParallelPlan(pp=2, dp=2, ep=2, micro_batch=2, num_micro_batches=2, recomputation="full")
INTERLEAVED = ParallelPlan(pp=2, micro_batch=2, num_micro_batches=4, virtual_stages=2)
CONTEXT = ParallelPlan(cp=2, tp=2, ep=4, micro_batch=2, num_micro_batches=4)
FOLDED = ParallelPlan(pp=2, dp=2, tp=2, ep=4, micro_batch=2, num_micro_batches=2)
Place = tuple[Engine, ParallelPlan]


@dataclass(frozen=True)
class Exchange:
    """Who saves, who goes on with it, and what is trained."""

    saved: Place
    resumed: tuple[Place, ...]
    kind: ModelKind = "sigmoid"
    optimizer: OptimizerConfig = OPTIMIZER


EXCHANGES: dict[str, Exchange] = {
    "native to DeepSpeed": Exchange(("native", ONE), (("deepspeed", ZERO_1), ("deepspeed", PIPELINE))),
    "ZeRO-1": Exchange(("deepspeed", ZERO_1), (("native", ZERO_2), ("deepspeed", ZERO_3), ("deepspeed", EP_4))),
    "ZeRO-3": Exchange(("deepspeed", ZERO_3), (("native", ONE), ("deepspeed", ONE))),
    "pipeline": Exchange(("deepspeed", PIPELINE), (("deepspeed", ZERO_2), ("native", CONTEXT))),
    "tied, on all axes": Exchange(
        ("native", FOLDED), (("native", ONE), ("native", DP_4), ("native", CONTEXT), ("deepspeed", FOLDED)), kind="tied"
    ),
    "tied, to all axes": Exchange(("native", DP_4), (("native", FOLDED), ("native", INTERLEAVED)), kind="tied"),
    "Muon": Exchange(("native", FOLDED), (("native", ONE), ("native", DP_4), ("native", INTERLEAVED)), optimizer=MUON),
    "Muon, to all axes": Exchange(("native", ONE), (("native", FOLDED), ("native", CONTEXT)), optimizer=MUON),
}


def _manager(folder: Path, rank: int, world: int) -> CheckpointManager:
    config = CheckpointConfig(commit_timeout_s=60)
    return CheckpointManager(folder, config=config, rank=rank, world_size=world, attempt="a")


def _save_at_three(rank: int, world: int, place: Place, exchange: Exchange, folder: Path) -> dict[str, list[float]]:
    """The three steps after the save."""
    engine = build_engine(place[0], exchange.kind, place[1], optimizer=exchange.optimizer)
    train(engine, range(3))
    _manager(folder, rank, world).save_blocking(3, engine.pieces(), shared={"updates": engine.num_updates}, own={})
    return train(engine, range(3, 6))


def _resume(rank: int, world: int, place: Place, exchange: Exchange, folder: Path) -> dict[str, list[float]]:
    engine, manager = (
        build_engine(place[0], exchange.kind, place[1], optimizer=exchange.optimizer),
        _manager(folder, rank, world),
    )
    info = manager.latest()
    assert info is not None
    loaded = manager.load(info, engine.pieces())
    engine.weights_changed()
    engine.num_updates = loaded.shared["updates"]
    assert engine.num_updates == 3
    return train(engine, range(3, 6))


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_checkpoint_goes_on_bit_for_bit_in_its_plan_and_near_it_in_any_other(name: str, tmp_path: Path):
    exchange = EXCHANGES[name]

    def run(function: Callable[..., dict[str, list[float]]], place: Place) -> list[dict[str, list[float]]]:
        engine, plan = place
        return run_ranks(function, plan.world_size, place, exchange, tmp_path, needs_deepspeed=engine == "deepspeed")

    expected = run(_save_at_three, exchange.saved)
    assert run(_resume, exchange.saved) == expected
    for place in exchange.resumed:
        for found in run(_resume, place):
            assert found["loss"] == pytest.approx(expected[0]["loss"], rel=TOLERANCE)
            assert found["norm"] == pytest.approx(expected[0]["norm"], rel=TOLERANCE)
