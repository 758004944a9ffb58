"""Every way of the native engine to divide a training step gives the losses and gradient norms of one process.

The one process is itself held against a plain loop of the model, torch's AdamW and torch's clipping.
"""

from functools import cache

import pytest
import torch

from tests.pretraining import (
    CLIP_NORM,
    LEARNING_RATE,
    ROWS,
    ModelKind,
    build_engine,
    packed_batch,
    tiny_config,
    totals_of,
    train,
    train_and_evaluate,
)
from tests.ranks import run_ranks
from train.model.balance import RouterBalance, auxiliary_loss
from train.model.plan import ParallelPlan
from train.model.transformer import MoETransformer
from train.pretrain.initialise import initialise
from train.pretrain.optimizer import OptimizerConfig
from train.pretrain.pieces import TensorPiece

STEPS = 20
TOLERANCE = 2e-6
"""Relative, over 20 steps, float32."""
MUON_TOLERANCE = 2e-5
"""Making a matrix orthogonal divides by its small singular values, and so multiplies rounding."""
ONE = ParallelPlan(micro_batch=2, num_micro_batches=4)
PLANS: dict[str, ParallelPlan] = {
    "no accumulation": ParallelPlan(micro_batch=8),
    "full recomputation": ONE.model_copy(update={"recomputation": "full"}),
    "selective recomputation": ONE.model_copy(update={"recomputation": "selective"}),
    "dp 2, ZeRO-1": ParallelPlan(dp=2, micro_batch=2, num_micro_batches=2, zero_stage=1),
    "dp 2, ZeRO-2": ParallelPlan(dp=2, micro_batch=2, num_micro_batches=2, zero_stage=2),
    "dp 2, ZeRO-3": ParallelPlan(dp=2, micro_batch=2, num_micro_batches=2, zero_stage=3, recomputation="full"),
    "tp 2": ParallelPlan(tp=2, micro_batch=2, num_micro_batches=4),
    "cp 2": ParallelPlan(cp=2, micro_batch=2, num_micro_batches=4),
    "cp 4, more than key-value heads": ParallelPlan(cp=4, micro_batch=2, num_micro_batches=4),
    "pp 2": ParallelPlan(pp=2, micro_batch=2, num_micro_batches=4),
    "pp 2, interleaved": ParallelPlan(pp=2, micro_batch=2, num_micro_batches=4, virtual_stages=2),
}
EXPERT_PLANS: dict[str, ParallelPlan] = {
    "dp 2 = ep 2": ParallelPlan(dp=2, ep=2, micro_batch=2, num_micro_batches=2, zero_stage=2),
    "dp 4, ep 2, ZeRO-3": ParallelPlan(dp=4, ep=2, micro_batch=1, num_micro_batches=2, zero_stage=3),
    "tp 2 = ep 2": ParallelPlan(tp=2, ep=2, micro_batch=2, num_micro_batches=4, recomputation="selective"),
    "cp 2, tp 2, ep 4": ParallelPlan(cp=2, tp=2, ep=4, micro_batch=2, num_micro_batches=4),
    "pp 2, dp 2, tp 2, ep 4": ParallelPlan(pp=2, dp=2, tp=2, ep=4, micro_batch=1, num_micro_batches=4, zero_stage=3),
}
CASES: list[tuple[ModelKind, str]] = [
    *((kind, name) for kind in ("sigmoid", "dense") for name in PLANS),
    *(("sigmoid", name) for name in EXPERT_PLANS),
    ("softmax", "dp 4, ep 2, ZeRO-3"),
    ("softmax", "pp 2, dp 2, tp 2, ep 4"),
    ("tied", "tp 2"),
    ("tied", "dp 2, ZeRO-3"),
    ("tied", "pp 2"),
    ("tied", "pp 2, dp 2, tp 2, ep 4"),
]


def _run(rank: int, world: int, kind: ModelKind, plan: ParallelPlan) -> dict[str, list[float]]:
    return train_and_evaluate("native", kind, plan, steps=STEPS)


@cache
def _one_process(kind: ModelKind) -> dict[str, list[float]]:
    return run_ranks(_run, 1, kind, ONE)[0]


@pytest.mark.parametrize(("kind", "plan"), CASES)
def test_losses_and_gradient_norms_equal_those_of_one_process(kind: ModelKind, plan: str):
    chosen = (PLANS | EXPERT_PLANS)[plan]
    expected = _one_process(kind)
    for found in run_ranks(_run, chosen.world_size, kind, chosen):
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert found["auxiliary"] == pytest.approx(expected["auxiliary"], rel=TOLERANCE, abs=1e-7)
        assert found["norm"] == pytest.approx(expected["norm"], rel=TOLERANCE)
        assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax", "tied", "dense"])
def test_one_process_equals_a_plain_loop_with_torchs_optimizer_and_clipping(kind: ModelKind):
    config = tiny_config(kind)
    model = MoETransformer(config).train()
    weights = [
        TensorPiece("weight", name, tuple(value.shape), (0,) * value.dim(), value.data, True)
        for name, value in model.named_parameters()
    ]
    initialise(weights, seed=1, std=config.initializer_range)
    named = dict(model.named_parameters())
    decayed = [value for name, value in named.items() if value.dim() > 1 and name != "model.embed_tokens.weight"]
    others = [value for value in named.values() if not any(value is one for one in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    balance, expected = RouterBalance(config), _one_process(kind)
    for step in range(STEPS):
        batch = packed_batch(step)
        totals = totals_of(batch)
        optimizer.zero_grad()
        output = model(**batch)
        assert len(batch["input_ids"]) == ROWS
        loss = output.loss_sum / totals.num_loss_tokens
        terms = auxiliary_loss(output.router_stats, config=config, load_LE=balance.load, num_tokens=totals.num_tokens)
        (loss + terms).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        balance.record(output.router_stats)
        balance.finish_step(model)
        assert norm > CLIP_NORM
        assert expected["loss"][step] == pytest.approx(float(loss.detach()), rel=TOLERANCE)
        assert expected["norm"][step] == pytest.approx(float(norm), rel=TOLERANCE)


def _run_muon(rank: int, world: int, plan: ParallelPlan) -> dict[str, list[float]]:
    optimizer = OptimizerConfig(kind="muon", lr=LEARNING_RATE, clip_norm=CLIP_NORM, orthogonal_dtype="float32")
    return train(build_engine("native", "sigmoid", plan, optimizer=optimizer), range(STEPS))


@pytest.mark.parametrize(
    "plan", ["dp 2, ZeRO-3", "tp 2", "pp 2", "dp 2 = ep 2", "dp 4, ep 2, ZeRO-3", "pp 2, dp 2, tp 2, ep 4"]
)
def test_muon_makes_whole_matrices_of_divided_ones(plan: str):
    chosen = (PLANS | EXPERT_PLANS)[plan]
    expected = run_ranks(_run_muon, 1, ONE)[0]
    for found in run_ranks(_run_muon, chosen.world_size, chosen):
        assert found["loss"] == pytest.approx(expected["loss"], rel=MUON_TOLERANCE)
        assert found["norm"] == pytest.approx(expected["norm"], rel=MUON_TOLERANCE)
