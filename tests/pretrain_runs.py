"""Tiny whole runs of the training loop: their token shards, their configuration, and the loop as ranks run it.

A rank can be told to kill itself, without a chance to clean up, before a step or some milliseconds after a save began.
"""

import json
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pretraining import SHAPE, SOFTMAX
from train.data.filesystem import resolve
from train.data.storage import HDF5Storage
from train.data.token_shard import TokenFormat
from train.pretrain.alone import run_alone
from train.pretrain.checkpoint_load import CheckpointReader
from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
from train.pretrain.config import PretrainingConfig
from train.pretrain.engine import PretrainingEngine
from train.pretrain.loop import RunEnd
from train.pretrain.run_log import RunLog, load_run

LENGTH, VOCABULARY, END = 16, 64, 0
STEPS = 12


def write_shards(folder: Path, *, num_shards: int = 4, sequences: int = 40, seed: int = 0) -> Path:
    """Shards of sequences that repeat themselves, so that there is something to learn."""
    filesystem, path = resolve(str(folder))
    generator = np.random.default_rng(seed)
    form = TokenFormat(
        sequence_length=LENGTH, vocab_size=VOCABULARY, end_of_document_id=END, tokenizer_sha256="ab" * 32
    )
    for index in range(num_shards):
        steps = generator.integers(1, 7, sequences * LENGTH + 1)
        tokens = 1 + np.cumsum(steps) % (VOCABULARY - 1)
        tokens[generator.random(len(tokens)) < 0.05] = END
        tokens[1:][(tokens[1:] == END) & (tokens[:-1] == END)] = 1
        with HDF5Storage(filesystem).writer(f"{path}/{index:02}.h5", token_format=form) as writer:
            writer.write(tokens)
    return folder


def tiny_run(folder: Path, **changes: Any) -> PretrainingConfig:
    """`STEPS` steps of eight sequences, with checkpoints and evaluations at every third and fourth step."""
    fields: dict[str, Any] = {
        "output": folder / "run",
        "model": SHAPE | {"router": SOFTMAX.model_dump(), "tie_word_embeddings": True, "num_shared_experts": 0},
        "data": {
            "sequence_length": LENGTH,
            "sources": [{"location": str(folder / "tokens"), "name": "walks", "held_out_every": 4}],
            "reservoir_size": 16,
        },
        "tokens": STEPS * 8 * LENGTH,
        "micro_batch": 2, "accumulation": "auto", "global_batch_size": 8,
        "optimizer": {"lr": 1e-2, "clip_norm": 0.5},
        "schedule": {"warmup_steps": 2},
        "precision": {"kind": "fp32"},
        "parallel": {"engine": "native", "timeout_s": 60},
        "checkpoint": {"every_steps": 3, "commit_timeout_s": 30},
        "evaluation": {"every_steps": 4, "num_sequences": 16},
        "log_every_steps": 1,
    }  # fmt: skip
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            fields[section] = fields.get(section, {}) | {field: value}
        else:
            fields[section] = value
    return PretrainingConfig.model_validate(fields)


def write_continuation(folder: Path) -> Path:
    """A finished tiny run in the folder `run`, and the file of one that goes on with it on fresh data, in `next`."""
    write_shards(folder / "tokens")
    write_shards(folder / "fresh", seed=1)
    previous = tiny_run(folder)
    run_alone(previous)
    path = folder / "next.toml"
    path.write_text(
        f'run = "run"\noutput = "next"\ntokens = {previous.tokens}\nsample_sequences = 64\n'
        '[[sources]]\nname = "fresh"\nlocation = "fresh"\nheld_out_every = 4\n[schedule]\nwarmup_steps = 2\n'
    )
    return path


@dataclass(frozen=True)
class Kill:
    """When which rank kills itself: before a step, or so long after its `save`-th save began."""

    rank: int = 0
    step: int | None = None
    save: int | None = None
    delay_ms: float = 0.0


def run_rank(rank: int, world: int, config: PretrainingConfig, kill: Kill = Kill(rank=-1)) -> RunEnd:
    """One rank's run."""
    engine: PretrainingEngine

    def stop_reason() -> None:
        if rank == kill.rank and engine.state.step + 1 == kill.step:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = PretrainingEngine(config, device=torch.device("cpu"), stop_reason=stop_reason)
    if rank == kill.rank and kill.save is not None:
        _kill_after_save(engine, kill.save, kill.delay_ms)
    return engine.run()


def _kill_after_save(engine: PretrainingEngine, number: int, delay_ms: float) -> None:
    save, count = engine.checkpoints.save, iter(range(1, 1000))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count) == number:
            threading.Timer(delay_ms / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return save(*arguments, **options)

    engine.checkpoints.save = counted  # type: ignore[method-assign]


def read_log(config: PretrainingConfig) -> RunLog:
    """What the run wrote."""
    return load_run(config.output / "metrics.jsonl", name="run")


def final_state(config: PretrainingConfig) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, whole."""
    info = CheckpointStore(config.output / CHECKPOINTS_NAME).latest()
    assert info is not None
    assert info.step == config.total_steps
    state = {}
    with CheckpointReader(info) as reader:
        for (kind, name), saved in reader.tensors.items():
            whole = torch.empty(saved.shape, dtype=saved.dtype)
            reader.read_into(whole, kind=kind, name=name, offsets=(0,) * len(saved.shape))
            state[f"{kind}/{name}"] = whole
    return state


def loader_state(config: PretrainingConfig) -> Any:
    """Of the last checkpoint."""
    info = CheckpointStore(config.output / CHECKPOINTS_NAME).latest()
    assert info is not None
    return json.loads(json.dumps(info.manifest.shared["loader"]))
