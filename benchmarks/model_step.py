"""A whole training step of the `small` preset, against transformers' model of the same weights, with the same optimizer.

Forward, backward, AdamW. Ours compiles norm + attention + norm and never holds all logits; transformers runs as its Trainer
does by default on a CPU (sdpa, grouped_mm experts). One process per variant and round, tuned malloc for all. `ours eager`
is ours without compiling.
"""

import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import (
    VariantResult,
    bench_dtype,
    child_main,
    judge,
    judge_speed_up,
    run_variants,
    speed_up,
    time_repeats,
)
from train.allocator import TUNED_MALLOC
from train.model.presets import preset

SHAPES = {(2, 512): 1.2, (8, 1024): 1.3}
"""Batch and length -> least speed relative to transformers."""
LEARNING_RATE = 1e-4


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    folder = context.folder / "small"
    _write_model(folder)
    for (batch, length), least in SHAPES.items():
        context.note(f"{batch} x {length} tokens")
        found = run_variants(
            Path(__file__),
            ["ours", "ours eager", "transformers"],
            arguments={"batch": batch, "length": length, "folder": str(folder)},
            rounds=rounds,
            environment=TUNED_MALLOC,
            note=context.note,
        )
        tokens = batch * length
        conditions = f"{batch} x {length}, tuned malloc, {rounds} rounds of processes in turns; "
        name = f"training step of `small`, {batch} x {length}"
        ratio = speed_up(found["ours"], found["transformers"])
        speeds = ", ".join(f"{one} {tokens / result.median_s:,.0f}" for one, result in found.items())
        yield judge_speed_up(
            f"{name}, vs transformers", ratio, least=least, conditions=f"{conditions}tokens/s: {speeds}; "
        )
        yield _memory_claim(f"{name}, peak memory over transformers'", found["ours"], found["transformers"], conditions)
        apart = abs(found["ours"].median_of("loss") - found["transformers"].median_of("loss"))
        yield judge(
            f"{name}, losses apart", "<= 0.01 nats", apart, "nats", is_met=apart <= 0.01, needs_bfloat16=False,
            conditions=f"{conditions}the last step's",
        )  # fmt: skip


def _memory_claim(name: str, ours: VariantResult, theirs: VariantResult, conditions: str) -> Claim:
    mine, other = ours.median_of("peak_bytes"), theirs.median_of("peak_bytes")
    sizes = f"{mine / 1e6:,.0f} and {other / 1e6:,.0f} MB of resident memory beyond the process's before the model"
    return judge(name, "<= 1x", mine / other, "x", is_met=mine <= other, conditions=conditions + sizes)


def _write_model(folder: Path) -> None:
    import torch

    from train.model.transformer import MoETransformer

    torch.manual_seed(0)
    MoETransformer(preset("small")).save_pretrained(folder)


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a step, the last loss, and how far resident memory rose above that of the imports."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    shape = (arguments["batch"], arguments["length"])
    tokens = torch.randint(0, preset("small").vocab_size, shape)
    build = VARIANTS[variant]
    import transformers  # noqa: F401 - before the baseline, in every variant: its import alone takes 150 MB

    import train.model.checkpoint_hf  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters, loss_of = build(Path(arguments["folder"]), tokens)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    seconds = time_repeats(step, repeats=5 if shape[0] == 2 else 3)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "loss": losses[-1], "peak_bytes": peak}


def _ours(folder: Path, tokens: Any, *, is_compiled: bool = True) -> tuple[list[Any], Callable[[], Any]]:
    from train.model.checkpoint_hf import load_model
    from train.model.loss import next_token_labels

    model = load_model(folder, dtype=bench_dtype()).train()
    if is_compiled:
        model.compile_regions()
    labels = next_token_labels(tokens)
    return list(model.parameters()), lambda: model(tokens, labels=labels).loss


def _ours_eager(folder: Path, tokens: Any) -> tuple[list[Any], Callable[[], Any]]:
    return _ours(folder, tokens, is_compiled=False)


def _transformers(folder: Path, tokens: Any) -> tuple[list[Any], Callable[[], Any]]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=bench_dtype()).train()
    return list(model.parameters()), lambda: model(tokens, labels=tokens).loss


VARIANTS: dict[str, Callable[[Path, Any], tuple[list[Any], Callable[[], Any]]]] = {
    "ours": _ours,
    "ours eager": _ours_eager,
    "transformers": _transformers,
}

if __name__ == "__main__":
    child_main(measure)
