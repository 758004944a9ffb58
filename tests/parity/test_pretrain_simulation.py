"""A rank of 1,024 in a fake process group: what it holds and what it sends are the planner's numbers, byte for byte.

The first rank of a stage runs real layers, forward and backward, on this CPU; collectives move nothing and are counted. Layers
are narrow, degrees are those of 1,024 GPUs, and routing is even, as the planner takes it. How many parameters a rank holds is
compared at the full size of `1t`, where nothing is allocated.
"""

import contextlib
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.ranks import run_ranks
from train.model import moe
from train.model.config import MoEConfig
from train.model.costs import count_costs, split_stages, stage_ranges
from train.model.estimate import StepFormulas
from train.model.plan import Assumptions, ParallelPlan, gpu
from train.model.presets import preset
from train.model.ranks import split_of
from train.model.transformer import MoETransformer
from train.pretrain.mesh import RankMesh
from train.pretrain.native import NativeEngine
from train.pretrain.optimizer import OptimizerConfig
from train.pretrain.step import StepTotals

WORLD, CONTEXT = 1024, 128
LAYERS = 8
CONFIG = MoEConfig(
    vocab_size=512, hidden_size=128, num_hidden_layers=LAYERS, num_attention_heads=16, num_key_value_heads=8,
    head_dim=64, intermediate_size=256, moe_intermediate_size=512, num_experts=128, num_experts_per_token=2,
    num_shared_experts=1, max_position_embeddings=CONTEXT, qk_norm="head", expert_kernel="loop",
)  # fmt: skip
"""Widths that all degrees divide, so that no shard is filled up."""
BASE = ParallelPlan(pp=4, dp=32, tp=8, ep=128, micro_batch=8, num_micro_batches=4)
PLANS: dict[str, ParallelPlan] = {
    "tp 8, ep 128 folded, ZeRO-1": BASE,
    "ZeRO-3": BASE.model_copy(update={"zero_stage": 3}),
    "ZeRO-3, full recomputation": BASE.model_copy(update={"zero_stage": 3, "recomputation": "full"}),
    "selective recomputation": BASE.model_copy(update={"recomputation": "selective"}),
    "cp 2, tp 4": BASE.model_copy(update={"dp": 32, "cp": 2, "tp": 4}),
    "cp 2, more ranks than key-value heads": BASE.model_copy(update={"dp": 16, "cp": 2}),
    "cp 4, tp 4, selective": BASE.model_copy(update={"dp": 16, "cp": 4, "tp": 4, "recomputation": "selective"}),
    "ep 64, four replicas": BASE.model_copy(update={"ep": 64, "zero_stage": 3}),
}
CASES = [
    *((name, 1, False) for name in PLANS),
    ("ZeRO-3", 0, False), ("ZeRO-3", 3, False), ("cp 4, tp 4, selective", 0, True), ("cp 4, tp 4, selective", 3, True),
]  # fmt: skip
"""Plan, pipeline stage (0 has the embedding, and rank 0 of the world; 3 the head), whether head and embedding are one."""


class _Sent(TorchDispatchMode):
    """Bytes that this rank sends, by what and in groups of how many, as the best algorithms of each collective send them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = str(func).partition(".")
        if space == "c10d":
            tensors = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
            largest = max(tensors, key=lambda one: one.numel())
            size = _group_of(args).size()
            times = 2 if name.startswith("allreduce") else 1  # scattered, then gathered
            sent = times * largest.numel() * largest.element_size() * (size - 1) // size
            self.bytes[name.split(".")[0], size] += sent
        return func(*args, **(kwargs or {}))


def _group_of(arguments: Any) -> dist.ProcessGroup:
    for one in arguments:
        if isinstance(one, torch.ScriptObject):
            with contextlib.suppress(RuntimeError):  # a kind of reduction
                return dist.ProcessGroup.unbox(one)
    raise AssertionError("a collective without a group")


def _even_routes(self: moe.ExpertRouter, scores: torch.Tensor) -> torch.Tensor:
    count = len(scores) * self.top_k
    return (torch.arange(count) % self.num_experts).view(len(scores), self.top_k)


def _simulate(rank: int, world: int, plan: ParallelPlan, stage_index: int, is_tied: bool) -> dict[str, float]:
    dist.destroy_process_group()
    first_of_stage = WORLD // plan.pp * stage_index
    config = CONFIG.replace(tie_word_embeddings=is_tied)
    dist.init_process_group("fake", rank=first_of_stage, world_size=WORLD, store=FakeStore())
    mesh = RankMesh.build(plan, device_type="cpu", is_tied=is_tied)
    engine = NativeEngine(
        config, mesh, device=torch.device("cpu"), optimizer=OptimizerConfig(), compute_dtype=torch.bfloat16,
        sequence_length=CONTEXT,
    )  # fmt: skip
    for piece in engine.pieces():
        piece.tensor.zero_()
    exchange = dist.all_to_all_single

    def exchange_evenly(output: torch.Tensor, given: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        result = exchange(output, given, *arguments, **options)
        if output.is_floating_point():
            output.zero_()
        else:
            output.copy_(given)  # counts of rows: even, so what is sent is what comes
        return result

    dist.all_to_all_single = exchange_evenly
    moe.ExpertRouter._choose = _even_routes  # type: ignore[method-assign]
    (stage,) = engine.stages
    stage.train()
    stage.totals = StepTotals(1, 1)
    part = len(range(CONTEXT)[mesh.ranks.token_part(CONTEXT)])
    tokens = torch.zeros(plan.micro_batch, CONTEXT, dtype=torch.long)
    hidden = torch.zeros(plan.micro_batch, part, CONFIG.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with _Sent() as sent:
        out = stage(tokens if stage.model.is_first else hidden, labels=tokens)
        out.backward(torch.zeros_like(out))
        engine._add_up_shared_gradients()
    found: Counter[str] = Counter()
    kinds = {plan.tp: "tensor", plan.dp * plan.cp: "data", mesh.expert_shard.size(): "data"}
    for (name, size), count in sent.bytes.items():
        if name.startswith("alltoall"):
            kind = "expert" if size == plan.ep else "context"
        else:
            kind = "pipeline" if name.startswith("allreduce") and size != plan.tp else kinds[size]
        scatter = " scattered" if kind == "data" and name.startswith("_reduce_scatter") else ""
        found[kind + scatter] += count
    found["parameters"] = sum(master.shard.numel() for master in engine.masters)
    return dict(found)


@pytest.mark.parametrize(("plan", "stage", "is_tied"), CASES)
def test_a_rank_of_1024_sends_what_the_planner_says_byte_for_byte(plan: str, stage: int, is_tied: bool) -> None:
    chosen = PLANS[plan]
    (found,) = run_ranks(_simulate, 1, chosen, stage, is_tied)
    costs = count_costs(CONFIG.replace(tie_word_embeddings=is_tied), name="narrow", context=CONTEXT)
    step = StepFormulas(costs, chosen, gpu("h100-80gb"), Assumptions(), "bf16")
    layers = split_stages(costs, chosen.pp)[stage]
    each, once = step.micro_batch_traffic(layers, stage), step.once_per_step(layers, stage, hide_s=0.0)[1]
    for kind in ("tensor", "expert", "context"):
        assert found.get(kind, 0) == each[kind] + once.get(kind, 0), kind  # type: ignore[literal-required, call-overload]
    assert found.get("pipeline", 0) == once["pipeline"]  # what stages hand on is not counted here
    gathered = each["data"] if chosen.zero_stage == 3 else once["data"] / 3  # 2 of 4 + 2 bytes
    scattered = once["data"] if chosen.zero_stage == 3 else once["data"] * 2 / 3
    assert found["data"] == gathered
    assert found["data scattered"] == scattered
    shared, experts = step.local_params(layers, stage)
    assert found["parameters"] == shared / step.shared_replicas + experts / step.expert_replicas


def _count_parameters(rank: int, world: int, plan: ParallelPlan) -> list[int]:
    """Of each pipeline stage: parameters of its first rank at the full size, before ZeRO."""
    config, found = preset("1t"), []
    dist.destroy_process_group()
    for stage, layers in enumerate(stage_ranges(config.num_hidden_layers, plan.pp)):
        dist.init_process_group("fake", rank=WORLD // plan.pp * stage, world_size=WORLD, store=FakeStore())
        ranks = RankMesh.build(plan, device_type="cpu", is_tied=False).ranks
        model = MoETransformer(config, device="meta", ranks=ranks, layers=layers)
        assert any(split_of(name) for name, _ in model.named_parameters())
        found.append(sum(one.numel() for one in model.parameters()))
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    return found


@pytest.mark.parametrize(
    "plan",
    [
        ParallelPlan(dp=128, cp=8, ep=8, zero_stage=3),
        ParallelPlan(pp=4, dp=32, tp=8, ep=128, num_micro_batches=4),
        ParallelPlan(pp=8, dp=16, tp=4, cp=2, ep=128, num_micro_batches=8),
    ],
    ids=ParallelPlan.describe,
)
def test_the_parameters_of_a_rank_of_1t_are_the_planners_at_full_size(plan: ParallelPlan) -> None:
    (found,) = run_ranks(_count_parameters, 1, plan)
    costs = count_costs(preset("1t"), name="1t", context=131_072)
    step = StepFormulas(costs, plan, gpu("h100-80gb"), Assumptions(), "bf16")
    for stage, (layers, count) in enumerate(zip(split_stages(costs, plan.pp), found, strict=True)):
        assert count == sum(step.local_params(layers, stage))
