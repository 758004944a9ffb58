"""The planner against published training runs: predicted over measured, with one set of assumptions. Measures nothing here."""

from collections.abc import Iterable

from cluster.bench import BenchContext, Claim
from train.model.published import PUBLISHED

MAX_ERROR = 0.20


def run(_context: BenchContext) -> Iterable[Claim]:
    """One claim for the speed of each run, one for its memory where that was published."""
    for run_ in PUBLISHED:
        found = run_.predict()
        error = run_.speed_error()
        per_gpu = found.tokens_per_s / run_.plan.world_size
        yield Claim(
            f"planner, speed: {run_.name}", f"within {MAX_ERROR:.0%}", round(error * 100, 1), "% off", abs(error) <= MAX_ERROR,
            f"{per_gpu:,.0f} predicted, {run_.measured_tokens_per_s():,.0f} tokens/s per GPU measured; "
            f"{run_.plan.describe()}, {run_.precision}; {run_.source}",
        )  # fmt: skip
        memory_error = run_.memory_error()
        if memory_error is not None:
            assert run_.memory_bytes is not None
            yield Claim(
                f"planner, memory: {run_.name}", f"within {MAX_ERROR:.0%}", round(memory_error * 100, 1), "% off",
                abs(memory_error) <= MAX_ERROR,
                f"{found.memory.total / 1e9:.0f} predicted, {run_.memory_bytes / 1e9:.0f} GB measured",
            )  # fmt: skip
