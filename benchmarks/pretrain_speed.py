"""Optimizer steps of configs/models/small.toml's model: ours against transformers' Trainer, and against its model in bf16.

Same weights, batches, AdamW (fused), clipping at 1, and accumulation; float32 master weights here and in the Trainer, which
runs with `bf16=True`; the third variant holds weights and optimizer in bf16, without a Trainer. All in an allocator that
keeps memory (train/allocator.py), which helps the others as well. One process per variant and round.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import bench_dtype, child_main, judge, judge_speed_up, run_variants, speed_up
from cluster.config import REPOSITORY
from train.allocator import training_environment

ROWS, LENGTH, ACCUMULATION = 16, 512, 2
LEAST = {"Trainer, bf16=True": 1.4, "model in bf16": 1.2}
WARMUP, STEPS = 2, 4
LEARNING_RATE = 1e-4


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    folder = context.folder / "model"
    _write_model(folder)
    found = run_variants(
        Path(__file__), ["ours", *LEAST], arguments={"folder": str(folder)}, rounds=3 if context.quick else 5,
        environment=training_environment(), note=context.note,
    )  # fmt: skip
    tokens = ROWS * LENGTH * ACCUMULATION
    speeds = ", ".join(f"{name} {tokens / result.median_s:,.0f}" for name, result in found.items())
    conditions = f"{ACCUMULATION} passes of {ROWS} x {LENGTH} tokens, 2 threads; tokens/s: {speeds}; "
    for name, least in LEAST.items():
        ratio = speed_up(found["ours"], found[name])
        yield judge_speed_up(f"pre-training step vs transformers' {name}", ratio, least=least, conditions=conditions)
    losses = {name: result.median_of("loss") for name, result in found.items()}
    apart = max(abs(loss - losses["ours"]) for loss in losses.values())
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    yield judge(
        "pre-training step, losses of the last step apart", "<= 0.05 nats", apart, "nats", is_met=apart <= 0.05,
        conditions=told, needs_bfloat16=False,
    )  # fmt: skip


def _config() -> Any:
    from train.pretrain.config import load_pretraining_config

    overrides = {"parallel.engine": "native", "accumulation": ACCUMULATION, "micro_batch": ROWS}
    overrides["global_batch_size"] = ROWS * ACCUMULATION
    return load_pretraining_config(REPOSITORY / "configs/models/small.toml", overrides=overrides)


def _write_model(folder: Path) -> None:
    import torch

    from train.model.transformer import MoETransformer

    torch.manual_seed(0)
    MoETransformer(_config().model).save_pretrained(folder)


def _rows() -> Iterator[Any]:
    """Batches of a language in which frequent tokens are frequent: [rows, length]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = _config().model.vocab_size
    shares = 1 / torch.arange(1, vocabulary + 1)
    while True:
        yield torch.multinomial(shares, ROWS * LENGTH, replacement=True, generator=generator).view(ROWS, LENGTH)


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds of an optimizer step, and the last one's loss."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds, loss = VARIANTS[variant](Path(arguments["folder"]))
    return {"seconds": seconds, "loss": loss}


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    for _ in range(WARMUP):
        step()
    start = time.perf_counter()
    losses = [step() for _ in range(STEPS)]
    return (time.perf_counter() - start) / STEPS, losses[-1]


def _ours(folder: Path) -> tuple[float, float]:
    import torch
    import torch.distributed as dist

    from train.model.checkpoint_hf import load_model
    from train.model.loss import IGNORE, next_token_labels
    from train.pretrain.alone import in_a_group_of_one
    from train.pretrain.parallel import DistributedTrainer4D
    from train.pretrain.step import StepTotals

    with in_a_group_of_one("gloo", timeout_s=60):
        assert dist.get_world_size() == 1
        engine = DistributedTrainer4D(_config(), device=torch.device("cpu")).engine
        state = load_model(folder, dtype=torch.float32).state_dict()
        for piece in engine.pieces():
            if piece.kind == "weight":
                piece.tensor.copy_(state[piece.name])
        engine.weights_changed()
        rows = _rows()

        def step() -> float:
            batches = [{"input_ids": ids, "labels": next_token_labels(ids)} for ids in (next(rows), next(rows))]
            count = sum(int((batch["labels"] != IGNORE).sum()) for batch in batches)
            sums = engine.run(batches, StepTotals(count, 2 * ROWS * LENGTH))
            engine.update(lr=LEARNING_RATE, norm=engine.gradient_norm())
            return sums.loss

        return _timed(step)


def _pure_bf16(folder: Path) -> tuple[float, float]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=bench_dtype()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = _rows()

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for _ in range(ACCUMULATION):
            ids = next(rows)
            loss = model(ids, labels=ids).loss / ACCUMULATION
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    return _timed(step)


def _trainer(folder: Path) -> tuple[float, float]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = _rows()
    count = (WARMUP + STEPS) * ACCUMULATION * ROWS
    flat = torch.cat([next(rows) for _ in range((WARMUP + STEPS) * ACCUMULATION)])
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(count))

    settings = transformers.TrainingArguments(
        output_dir=str(folder.parent / "trainer"), per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATION, max_steps=WARMUP + STEPS, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0,
        bf16=bench_dtype() == torch.bfloat16, use_cpu=True, optim="adamw_torch_fused", logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    examples = [{"input_ids": row, "labels": row} for row in flat]
    trainer = InOrder(model=model, args=settings, train_dataset=examples, callbacks=[Clock()])
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return (times[-1] - times[WARMUP - 1]) / STEPS, float(logged[-1])


VARIANTS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "ours": _ours,
    "Trainer, bf16=True": _trainer,
    "model in bf16": _pure_bf16,
}

if __name__ == "__main__":
    child_main(measure)
