"""Compare ways to do the same work, each in processes of its own, taking turns.

In one process the variants share an allocator's state and each other's caches; side by side they looked up to twice as
slow as alone. So each measurement is a fresh process that runs the benchmark file as a script, warms up, repeats, and
prints one line of JSON; the rounds take turns, so that a drift of the machine hits all variants alike.

The targets are for bfloat16. A CPU that does not multiply it computes in float32 instead, and no target is judged there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench import Claim, ratio_interval
from train.dtype import has_fast_bfloat16, pick_dtype

DEFAULT_THREADS = 2
TIMEOUT_S = 600.0
PEAK_SIZE = 2048


@dataclass(frozen=True)
class VariantResult:
    """What one variant measured: per round, the seconds of one unit of work, and what else its process reported."""

    name: str
    seconds: tuple[float, ...]
    reports: tuple[dict[str, Any], ...]

    @property
    def median_s(self) -> float:
        """Median over the rounds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(high - low) / self.median_s

    def median_of(self, field: str) -> float:
        """Median over the rounds of a number that the process reported."""
        return float(np.median([report[field] for report in self.reports]))


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast `ours` is as `theirs`, with a 95 % bootstrap interval over the rounds."""

    ours: VariantResult
    theirs: VariantResult
    ratio: float
    low: float
    high: float

    def describe(self) -> str:
        """One line for a claim's conditions."""
        both = ", ".join(
            f"{one.name} {one.median_s * 1000:.1f} ms (IQR {one.spread:.0%})" for one in (self.ours, self.theirs)
        )
        return f"{both}, 95 % interval {self.low:.3f}-{self.high:.3f}"


def run_variants(
    script: Path,
    variants: Sequence[str],
    *,
    arguments: Mapping[str, Any],
    rounds: int,
    environment: Mapping[str, str] | None = None,
    num_threads: int = DEFAULT_THREADS,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, VariantResult]:
    """Run `script` as a process `rounds` times for each variant, in turns; the order turns round every time.

    The script calls `child_main`. Raises RuntimeError with the end of its output if a process fails.
    """
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in variants if turn % 2 == 0 else reversed(variants):
            reports[name].append(_run_child(script, name, arguments, environment or {}, num_threads=num_threads))
        note(
            f"  round {turn + 1} of {rounds}: "
            + ", ".join(f"{n} {r[-1]['seconds'] * 1000:.0f} ms" for n, r in reports.items())
        )
    return {
        name: VariantResult(name, tuple(report["seconds"] for report in found), tuple(found))
        for name, found in reports.items()
    }


def speed_up(ours: VariantResult, theirs: VariantResult) -> SpeedUp:
    """The ratio of the medians, theirs over ours: above 1, ours is faster."""
    low, high = ratio_interval(ours.seconds, theirs.seconds, seed=0)
    return SpeedUp(ours, theirs, theirs.median_s / ours.median_s, low, high)


def judge_speed_up(name: str, found: SpeedUp, *, least: float, conditions: str) -> Claim:
    """Met or missed by the ratio; says so where the interval holds both answers."""
    is_decided = found.low >= least or found.high < least
    note = "" if is_decided else "; the interval holds both answers"
    return judge(
        name,
        f">= {least}x",
        found.ratio,
        "x",
        is_met=found.ratio >= least,
        conditions=conditions + found.describe() + note,
    )


def judge(
    name: str,
    target: str,
    measured: float,
    unit: str,
    *,
    is_met: bool,
    conditions: str,
    needs_bfloat16: bool = True,
) -> Claim:
    """A claim. One that `needs_bfloat16`, as all speeds do, is undecided where this CPU computed in float32."""
    is_fast = has_fast_bfloat16()
    dtype = "bfloat16" if is_fast else "float32, since this CPU does not multiply bfloat16"
    verdict = is_met if is_fast or not needs_bfloat16 else None
    return Claim(name, target, round(measured, 3), unit, verdict, f"{dtype}; {conditions}")


def bench_dtype() -> Any:
    """torch's dtype that the variants compute in."""
    import torch

    return getattr(torch, pick_dtype("auto", device_type="cpu"))


def child_main(measure: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """The process side: takes {"variant", "arguments"} as JSON from the command line and prints what `measure` gives.

    `measure(variant, arguments)` returns at least "seconds".
    """
    request = json.loads(sys.argv[1])
    print(json.dumps(measure(request["variant"], request["arguments"])), flush=True)  # noqa: T201 - the answer


def time_repeats(work: Callable[[], object], *, repeats: int, warmup: int = 2) -> float:
    """Median wall time of one call, seconds."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure_matmul_peak() -> float:
    """Floating-point operations per second of a square matmul in `bench_dtype`, the best of 10, in this process."""
    import torch

    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(bench_dtype()) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    best = min(time_repeats(lambda: torch.mm(a, b, out=out), repeats=1, warmup=0) for _ in range(10))
    return float(2 * PEAK_SIZE**3 / best)


def _run_child(
    script: Path, variant: str, arguments: Mapping[str, Any], environment: Mapping[str, str], *, num_threads: int
) -> dict[str, Any]:
    request = json.dumps({"variant": variant, "arguments": dict(arguments)})
    done = subprocess.run(
        [sys.executable, str(script), request],
        env=os.environ | {"OMP_NUM_THREADS": str(num_threads)} | dict(environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(
            f"{script.stem}, variant {variant!r} ended with {done.returncode}: {done.stderr[-2000:].strip()}"
        )
    report: dict[str, Any] = json.loads(lines[-1])
    return report
