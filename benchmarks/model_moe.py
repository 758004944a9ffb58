"""The MoE layer, forward and backward, against transformers' experts, DeepSpeed's layer, and a dense part of equal FLOPs.

Run as a script it measures one variant in one shape; `run` starts such processes in turns. Hidden 512, top-2,
random weights, routes from a random router. Without `router` only the experts are timed, on the same given routes.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import (
    SpeedUp,
    VariantResult,
    bench_dtype,
    child_main,
    judge,
    judge_speed_up,
    measure_matmul_peak,
    run_variants,
    speed_up,
    time_repeats,
)
from train.allocator import TUNED_MALLOC

HIDDEN, TOP_K = 512, 2
SHAPES = ((4096, 8, 1536), (16384, 8, 1536), (4096, 64, 1024), (16384, 64, 1024))
"""Tokens, experts, width of an expert."""
ALLOCATORS: dict[str, dict[str, str]] = {"default malloc": {}, "tuned malloc": TUNED_MALLOC}
DENSE_TARGETS = {4096: 0.85, 1024: 0.7, 512: 0.6, 128: 0.4}
"""Rows per expert -> least speed relative to a dense part of equal FLOPs."""
PEAK_TARGETS = {8: 0.40, 64: 0.27}
"""Experts -> least share of the matmul peak at 16,384 tokens."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    shapes = SHAPES[::3] if context.quick else SHAPES
    for allocator, environment in ALLOCATORS.items():
        is_tuned = bool(environment)
        ratios, deepspeed = [], []
        for shape in shapes:
            context.note(f"{shape}, {allocator}")
            variants = ["ours", "transformers", *(["ours+router", "deepspeed", "dense"] if is_tuned else [])]
            arguments = dict(zip(("tokens", "experts", "width"), shape, strict=True))
            found = run_variants(
                Path(__file__), variants, arguments=arguments, rounds=rounds, environment=environment, note=context.note
            )
            ratios.append(speed_up(found["ours"], found["transformers"]))
            conditions = f"{_describe(shape)}, {allocator}, {rounds} rounds of processes in turns; "
            yield judge_speed_up("MoE layer vs transformers grouped_mm", ratios[-1], least=0.97, conditions=conditions)
            if is_tuned:
                deepspeed.append(speed_up(found["ours+router"], found["deepspeed"]))
                yield judge_speed_up(
                    "MoE layer vs DeepSpeed's, routers in both", deepspeed[-1], least=0.95, conditions=conditions
                )
                dense = speed_up(found["ours"], found["dense"])
                least = DENSE_TARGETS[shape[0] * TOP_K // shape[1]]
                yield judge_speed_up(
                    "MoE layer vs dense part of equal FLOPs", dense, least=least, conditions=conditions
                )
                if shape[0] == 16384:
                    yield _peak_claim(found["ours"], found["dense"], shape, conditions=conditions)
        least = 1.03 if is_tuned else 1.2
        yield _mean_claim("MoE layer vs transformers grouped_mm, average", ratios, least=least, allocator=allocator)
        if not is_tuned:
            long = [ratio for ratio, shape in zip(ratios, shapes, strict=True) if shape[0] == 16384]
            name = "MoE layer vs transformers grouped_mm, average at 16,384 tokens"
            yield _mean_claim(name, long, least=1.25, allocator=allocator)
        if deepspeed:
            yield _mean_claim("MoE layer vs DeepSpeed's, average", deepspeed, least=1.1, allocator=allocator)


def _mean_claim(name: str, found: Sequence[SpeedUp], *, least: float, allocator: str) -> Claim:
    mean = sum(one.ratio for one in found) / len(found)
    each = ", ".join(f"{one.ratio:.2f}" for one in found)
    return judge(name, f">= {least}x", mean, "x", is_met=mean >= least, conditions=f"{allocator}; in each: {each}")


def _peak_claim(ours: VariantResult, dense: VariantResult, shape: tuple[int, int, int], *, conditions: str) -> Claim:
    tokens, experts, width = shape
    flops = 3 * 2 * 3 * tokens * TOP_K * HIDDEN * width  # three matrices, forward and twice that backward
    share, dense_share = (
        float(np.median([flops / s / report["peak"] for s, report in zip(one.seconds, one.reports, strict=True)]))
        for one in (ours, dense)
    )
    peak = ours.median_of("peak") / 1e12
    return judge(
        "MoE layer, share of the matmul peak", f">= {PEAK_TARGETS[experts]:.0%}", share * 100, "%",
        is_met=share >= PEAK_TARGETS[experts],
        conditions=f"{conditions}peak of a 2048^3 matmul in the same processes {peak:.2f} TFLOP/s, of which the dense "
        f"part reaches {dense_share:.0%}",
    )  # fmt: skip


def _describe(shape: tuple[int, int, int]) -> str:
    tokens, experts, width = shape
    return f"{tokens} tokens, {experts} experts of {width}, {tokens * TOP_K // experts} rows per expert"


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a forward and backward pass of one variant, and the matmul peak of this process."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    tokens, experts, width = arguments["tokens"], arguments["experts"], arguments["width"]
    x = torch.randn(1, tokens, HIDDEN).to(bench_dtype()).requires_grad_()
    work, parameters = VARIANTS[variant](tokens, experts, width)
    gradient = torch.randn_like(x)

    def step() -> None:
        for leaf in (x, *parameters):
            leaf.grad = None
        work(x).backward(gradient)

    seconds = time_repeats(step, repeats=3 if tokens > 8192 else 7)
    return {"seconds": seconds, "peak": measure_matmul_peak()}


def _routes(tokens: int, experts: int) -> tuple[Any, Any]:
    import torch

    probs = (torch.randn(tokens, experts) * 0.5).softmax(-1)
    weights, ids = probs.topk(TOP_K, dim=-1)
    return ids, weights / weights.sum(-1, keepdim=True)


def _matrices(experts: int, width: int) -> tuple[Any, Any, Any]:
    import torch

    shapes = ((experts, width, HIDDEN), (experts, width, HIDDEN), (experts, HIDDEN, width))
    first, third, second = ((torch.randn(shape) * 0.02).to(bench_dtype()) for shape in shapes)
    return first, third, second


def _ours(tokens: int, experts: int, width: int) -> tuple[Callable[[Any], Any], list[Any]]:
    from train.model.experts import Experts

    ids, weights = _routes(tokens, experts)
    layer = Experts(HIDDEN, width, num_experts=experts, kernel="loop").to(bench_dtype())
    for parameter, value in zip((layer.w1, layer.w3, layer.w2), _matrices(experts, width), strict=True):
        parameter.data.copy_(value)
    weights.requires_grad_()
    return lambda x: layer(x[0], ids, weights).unsqueeze(0), [*layer.parameters(), weights]


def _transformers(tokens: int, experts: int, width: int) -> tuple[Callable[[Any], Any], list[Any]]:
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=width, num_local_experts=experts)
    config._experts_implementation = "grouped_mm"
    layer = MixtralExperts(config).to(bench_dtype())
    w1, w3, w2 = _matrices(experts, width)
    layer.gate_up_proj.data.copy_(torch.cat([w1, w3], dim=1))
    layer.down_proj.data.copy_(w2)
    ids, weights = _routes(tokens, experts)
    weights.requires_grad_()
    return lambda x: layer(x[0], ids, weights).unsqueeze(0), [*layer.parameters(), weights]


def _ours_with_router(tokens: int, experts: int, width: int) -> tuple[Callable[[Any], Any], list[Any]]:
    from train.model.config import MoEConfig
    from train.model.moe import MoELayer

    config = MoEConfig(
        hidden_size=HIDDEN, num_experts=experts, num_experts_per_token=TOP_K, moe_intermediate_size=width
    )
    layer = MoELayer(config).to(bench_dtype())
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.02)
    return lambda x: layer(x)[0], list(layer.parameters())


def _deepspeed(tokens: int, experts: int, width: int) -> tuple[Callable[[Any], Any], list[Any]]:
    """DeepSpeed's native layer on one rank, without dropping: the same SwiGLU as expert."""
    import tempfile

    logging.disable(logging.WARNING)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops
    import torch.distributed as dist
    from deepspeed.moe.layer import MoE

    from train.model.moe import FeedForward

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # otherwise a compile, with a lock that may hang
    store = dist.FileStore(tempfile.mktemp(), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    deepspeed.init_distributed("gloo")
    layer = MoE(
        HIDDEN, FeedForward(HIDDEN, width), num_experts=experts, k=TOP_K, drop_tokens=False, use_residual=False
    ).to(bench_dtype())
    layer.set_deepspeed_parallelism()
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.02)
    return lambda x: layer(x)[0], list(layer.parameters())


def _dense(tokens: int, experts: int, width: int) -> tuple[Callable[[Any], Any], list[Any]]:
    """One SwiGLU part of top_k times the width: the FLOPs of the active experts."""
    from train.model.moe import FeedForward

    layer = FeedForward(HIDDEN, TOP_K * width).to(bench_dtype())
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.02)
    return layer, list(layer.parameters())


VARIANTS: dict[str, Callable[[int, int, int], tuple[Callable[[Any], Any], list[Any]]]] = {
    "ours": _ours,
    "transformers": _transformers,
    "ours+router": _ours_with_router,
    "deepspeed": _deepspeed,
    "dense": _dense,
}

if __name__ == "__main__":
    child_main(measure)
