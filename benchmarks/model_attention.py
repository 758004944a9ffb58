"""Attention's time and memory over the length: window and sinks to 1M tokens, block-sparse to 128K, full to 64K.

One layer's core, 4 query heads and 1 key-value head of 64, batch 1. Every length is a process of its own that reports the
time and how far its resident memory rose.
"""

import math
import os
import resource
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import VariantResult, bench_dtype, child_main, judge, run_variants, time_repeats

HEADS, KEY_VALUE_HEADS, DIM = 4, 1, 64
WINDOW, SINKS = 1024, 64
K = 1024
TRAINED = (16 * K, 32 * K, 64 * K, 128 * K)
"""Lengths forward and backward."""
LONGEST = 1024 * K
FULL = (4 * K, 8 * K, 16 * K, 32 * K, 64 * K)
MAX_DOUBLING = 2.1
MAX_BYTES_AT_1M = 2e9
MAX_EXPONENT = 1.1


SHAPE = f"{HEADS} query heads and {KEY_VALUE_HEADS} key-value head of {DIM}, window {WINDOW}, {SINKS} sinks; "


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    for kind, direction, lengths in (
        ("sliding", "backward", TRAINED), ("sparse", "backward", TRAINED), ("sliding", "forward", (512 * K, LONGEST)),
    ):  # fmt: skip
        found = _measure_lengths(f"{kind} {direction}", lengths, rounds=rounds, context=context)
        conditions = (
            f"{SHAPE}{'forward and ' * (direction == 'backward')}{direction}, {rounds} rounds of processes in turns; "
        )
        yield from _doubling_claims(f"{kind} attention, {direction}", found, conditions)
    yield _longest_claim(found[LONGEST])
    full = _measure_lengths("full forward", FULL, rounds=1, context=context)
    growth = full[FULL[-1]].median_of("peak_bytes") / full[FULL[0]].median_of("peak_bytes")
    exponent = math.log(growth) / math.log(FULL[-1] / FULL[0])
    sizes = ", ".join(f"{length // K}K {found.median_of('peak_bytes') / 1e6:.0f} MB" for length, found in full.items())
    yield judge(
        "full attention, growth of memory 4K to 64K", f"exponent <= {MAX_EXPONENT}", exponent, "exponent",
        is_met=exponent <= MAX_EXPONENT, needs_bfloat16=False,
        conditions=f"{HEADS} query heads, {KEY_VALUE_HEADS} key-value head of {DIM}, forward, all tensors included; {sizes}",
    )  # fmt: skip


def _longest_claim(found: VariantResult) -> Claim:
    peak = found.median_of("peak_bytes")
    return judge(
        "sliding attention, forward at 1M tokens, memory", f"<= {MAX_BYTES_AT_1M / 1e9:.0f} GB", peak / 1e9, "GB",
        is_met=peak <= MAX_BYTES_AT_1M, conditions=f"{SHAPE}inputs and output included",
    )  # fmt: skip


def _measure_lengths(
    variant: str, lengths: tuple[int, ...], *, rounds: int, context: BenchContext
) -> dict[int, VariantResult]:
    """The lengths take turns as variants do."""
    names = {f"{variant} {length}": length for length in lengths}
    context.note(f"{variant}, {', '.join(f'{length // K}K' for length in lengths)}")
    found = run_variants(Path(__file__), list(names), arguments={}, rounds=rounds, note=context.note)
    return {names[name]: result for name, result in found.items()}


def _doubling_claims(name: str, found: dict[int, VariantResult], conditions: str) -> Iterable[Claim]:
    for what, value in (("time", lambda one: one.median_s), ("memory", lambda one: one.median_of("peak_bytes"))):
        values = [value(one) for one in found.values()]
        factors = [after / before for before, after in pairwise(values)]
        each = ", ".join(
            f"{length // K}K {size:.2f} s" if what == "time" else f"{length // K}K {size / 1e6:.0f} MB"
            for length, size in zip(found, values, strict=True)
        )
        yield judge(
            f"{name}: doubling the length costs, {what}", f"<= {MAX_DOUBLING}x", max(factors), "x",
            is_met=max(factors) <= MAX_DOUBLING, needs_bfloat16=False, conditions=conditions + each,
        )  # fmt: skip


def measure(variant: str, _arguments: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a pass and how far resident memory rose above that before the inputs."""
    import torch

    from train.model.attention_kernels import attend
    from train.model.config import AttentionConfig

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    kind, direction, length = variant.split()
    config = AttentionConfig(pattern=(kind,), window=WINDOW, num_sinks=SINKS)
    is_trained = direction == "backward"
    torch.ones(8, 8) @ torch.ones(8, 8)  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shapes = [(1, heads, int(length), DIM) for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)]
    dtype = bench_dtype()
    inputs = [torch.empty(shape, dtype=dtype).normal_().requires_grad_(is_trained) for shape in shapes]

    def work() -> None:
        out = attend(*inputs, kind=kind, config=config, segments=None)
        if is_trained:
            out.backward(torch.ones_like(out))
            for tensor in inputs:
                tensor.grad = None

    with torch.set_grad_enabled(is_trained):
        is_long = kind != "sliding" or int(length) >= 512 * K
        seconds = time_repeats(work, repeats=1 if is_long else 3, warmup=0 if is_long else 1)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    child_main(measure)
