"""A tiny training run for the parity tests of engines: its models, its batches, and its loop over a plan."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from train.model.config import MoEConfig, RouterConfig
from train.model.loss import IGNORE, next_token_labels
from train.model.plan import Engine, ParallelPlan
from train.model.transformer import MoETransformer
from train.pretrain.initialise import initialise
from train.pretrain.mesh import RankMesh
from train.pretrain.native import NativeEngine
from train.pretrain.optimizer import OptimizerConfig
from train.pretrain.step import StepTotals, TrainingEngine

ROWS, LENGTH, VOCABULARY = 8, 16, 64
CLIP_NORM = 0.5
"""Below the norms of these runs: every step is clipped."""
LEARNING_RATE = 1e-3
OPTIMIZER = OptimizerConfig(lr=LEARNING_RATE, clip_norm=CLIP_NORM)
ModelKind = Literal["sigmoid", "softmax", "tied", "dense"]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 8,
    "num_experts_per_token": 2, "dense_layers": (1,), "num_shared_experts": 1, "max_position_embeddings": 64,
    "initializer_range": 0.1, "qk_norm": "head",
}  # fmt: skip
SIGMOID = RouterConfig(
    score="sigmoid", balancing="bias", aux_loss_scope="sequence", aux_loss_coefficient=0.05, z_loss_coefficient=1e-3
)
SOFTMAX = RouterConfig(aux_loss_coefficient=0.05, z_loss_coefficient=1e-3)


def tiny_config(kind: ModelKind) -> MoEConfig:
    """Four layers: experts with a selection bias and sequence balance, or global balance; a tied head; or all dense."""
    changes: dict[str, dict[str, Any]] = {
        "sigmoid": {"router": SIGMOID},
        "softmax": {"router": SOFTMAX},
        "tied": {"router": SOFTMAX, "tie_word_embeddings": True},
        "dense": {"num_experts": 0, "num_experts_per_token": 0, "num_shared_experts": 0, "dense_layers": ()},
    }
    return MoEConfig(**(SHAPE | changes[kind]))


def packed_batch(step: int) -> dict[str, Tensor]:
    """Rows of two documents each, most with padding at the end."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    documents = torch.zeros(ROWS, LENGTH, dtype=torch.int32)
    cuts = torch.randint(1, LENGTH - 4, (ROWS,), generator=generator).tolist()
    ends = torch.randint(LENGTH - 4, LENGTH + 1, (ROWS,), generator=generator).tolist()
    for row, (cut, end) in enumerate(zip(cuts, ends, strict=True)):
        documents[row, cut:] = 1
        documents[row, end:] = -1
    return {"input_ids": ids, "labels": next_token_labels(ids, documents), "document_ids": documents}


def totals_of(batch: dict[str, Tensor]) -> StepTotals:
    """Of a whole step's rows."""
    return StepTotals(int((batch["labels"] != IGNORE).sum()), int((batch["document_ids"] >= 0).sum()))


def micro_batches(batch: dict[str, Tensor], mesh: RankMesh) -> list[dict[str, Tensor]]:
    """The part of these rows that this data parallel rank has, cut."""
    plan = mesh.plan
    per_rank, size = ROWS // plan.dp, plan.micro_batch
    first = mesh.place("dp") * per_rank
    return [
        {name: rows[start : start + size] for name, rows in batch.items()}
        for start in range(first, first + per_rank, size)
    ]


def build_engine(
    name: Engine,
    kind: ModelKind,
    plan: ParallelPlan,
    *,
    compute_dtype: torch.dtype = torch.float32,
    prepare: Callable[[MoETransformer], None] = lambda _: None,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> TrainingEngine:
    """An engine with the initial weights. That of DeepSpeed is imported only where it is asked for."""
    config = tiny_config(kind)
    mesh = RankMesh.build(plan, device_type="cpu", is_tied=config.tie_word_embeddings)
    options: dict[str, Any] = {
        "device": torch.device("cpu"), "optimizer": optimizer, "sequence_length": LENGTH, "compute_dtype": compute_dtype,
        "prepare": prepare,
    }  # fmt: skip
    engine: TrainingEngine
    if name == "native":
        engine = NativeEngine(config, mesh, **options)
    else:
        from train.pretrain.deepspeed_engine import DeepSpeedEngine

        engine = DeepSpeedEngine(config, mesh, **options)
    initialise(engine.pieces(), seed=1, std=config.initializer_range)
    engine.weights_changed()
    return engine


def train(engine: TrainingEngine, steps: range, *, scale: float = 1.0) -> dict[str, list[float]]:
    """Loss, balance terms and gradient norm of each step."""
    found: dict[str, list[float]] = {"loss": [], "auxiliary": [], "norm": []}
    for step in steps:
        batch = packed_batch(step)
        loss, auxiliary = engine.run(micro_batches(batch, engine.mesh), totals_of(batch), scale=scale)
        norm = engine.gradient_norm()
        engine.update(lr=LEARNING_RATE, norm=norm)
        for name, value in (("loss", loss), ("auxiliary", auxiliary), ("norm", norm)):
            found[name].append(value)
    return found


def train_and_evaluate(name: Engine, kind: ModelKind, plan: ParallelPlan, *, steps: int) -> dict[str, list[float]]:
    """What `train` gives, and the sum of losses of an evaluation at the end."""
    engine = build_engine(name, kind, plan)
    found = train(engine, range(steps))
    evaluation = engine.evaluate(micro_batches(packed_batch(steps), engine.mesh))
    return found | {"evaluation": [evaluation]}
