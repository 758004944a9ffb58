"""Attention of short rows in bfloat16 on a CPU, forward and backward: blocks of plain products against PyTorch's fused kernel.

16,384 and 8,192 tokens of rows of 512 and 1,024, 4 query heads and 2 key-value heads of 64, in processes that take turns.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import bench_dtype, child_main, judge_speed_up, run_variants, speed_up, time_repeats

HEADS, KEY_VALUE_HEADS, DIM = 4, 2, 64
LEAST = {(32, 512): 1.5, (8, 1024): 1.2}
"""Rows and length -> how many times as fast as the fused kernel, at least."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 7
    for (rows, length), least in LEAST.items():
        context.note(f"{rows} rows of {length}")
        found = run_variants(
            Path(__file__),
            ["blocks", "fused"],
            arguments={"rows": rows, "length": length},
            rounds=rounds,
            note=context.note,
        )
        yield judge_speed_up(
            f"attention of rows of {length}, vs the fused kernel", speed_up(found["blocks"], found["fused"]), least=least,
            conditions=f"{rows} rows, {HEADS} query heads and {KEY_VALUE_HEADS} key-value heads of {DIM}, {rounds} rounds; ",
        )  # fmt: skip


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a pass forward and backward."""
    import torch

    from train.model.attention_blocks import attend_blocks

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    rows, length = arguments["rows"], arguments["length"]
    shapes = [(rows, heads, length, DIM) for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)]
    q, k, v = (torch.randn(shape).to(bench_dtype()).requires_grad_() for shape in shapes)

    def fused() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def work() -> None:
        out = attend_blocks(q, k, v) if variant == "blocks" else fused()
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return {"seconds": time_repeats(work, repeats=7)}


if __name__ == "__main__":
    child_main(measure)
