"""What a checkpoint of over 1 GB costs the training loop: in the background against blocking, on the slowest of two ranks.

Two processes train a model of 91M parameters with the native engine (ZeRO-2, gloo, a thread each) and save weights and
optimizer: as the loop does, with the next step's forward and backward pass between `save` and `finish_staging`; and blocking.
They take turns in one run. A stall is the time in which the loop stands still; steps beside a save are compared with others.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.config import REPOSITORY

RANKS = 2
EXPERTS = 36
"""Of each layer: 91M parameters, 1.1 GB of state."""
LEAST = 5.0
WARMUP_STEPS = 2
THREADS = {"OMP_NUM_THREADS": "1"}
PLAIN, ASYNCHRONOUS, BLOCKING = "plain", "asynchronous", "blocking"


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 2 if context.quick else 4
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(context.folder), str(rounds)], env=os.environ | THREADS
        )
        for rank in range(RANKS)
    ]
    ends = [rank.wait() for rank in ranks]
    if any(ends):
        raise RuntimeError("a rank failed: its error is above")
    found = [json.loads((context.folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    slowest = {
        kind: statistics.median(max(of_ranks) for of_ranks in zip(*(one["stalls"][kind] for one in found), strict=True))
        for kind in (ASYNCHRONOUS, BLOCKING)
    }
    size = sum(one["bytes"] for one in found)
    steps = {kind: statistics.median(found[0]["steps"][kind]) for kind in (PLAIN, ASYNCHRONOUS)}
    write_s = max(statistics.median(one["write_s"]) for one in found)
    conditions = (
        f"{size / 1e9:.2f} GB of state on {RANKS} ranks, {rounds} saves of each kind in turns, slowest rank: "
        f"stall {slowest[ASYNCHRONOUS]:.3f} s in the background, {slowest[BLOCKING]:.2f} s blocking"
    )
    ratio = slowest[BLOCKING] / slowest[ASYNCHRONOUS]
    yield Claim(
        "stall of a blocking save over one in the background", f">= {LEAST}x", round(ratio, 1), "x", ratio >= LEAST,
        conditions,
    )  # fmt: skip
    slower = steps[ASYNCHRONOUS] / steps[PLAIN] - 1
    yield Claim(
        "a step beside a save, slower than another", "reported", round(100 * slower, 1), "%", None,
        f"steps of {steps[PLAIN]:.2f} s; the save writes and hashes for {write_s:.2f} s",
    )  # fmt: skip


def _config(folder: str) -> Any:
    from train.pretrain.config import load_pretraining_config

    overrides = {
        "parallel.engine": "native", "parallel.zero_stage": 2, "workers.num_workers": RANKS, "accumulation": 1,
        "micro_batch": 4, "global_batch_size": 4 * RANKS, "model.num_experts": EXPERTS, "schedule.warmup_steps": 0,
    }  # fmt: skip
    return load_pretraining_config(
        REPOSITORY / "configs/models/small.toml", output=Path(folder) / "run", overrides=overrides
    )


def _rank(rank: int, folder: str, rounds: int) -> None:
    """One process: trains, saves in turns, and writes what it measured."""
    import torch
    import torch.distributed as dist

    from train.pretrain.checkpoint import CheckpointConfig, CheckpointManager
    from train.pretrain.initialise import initialise
    from train.pretrain.parallel import DistributedTrainer4D
    from train.pretrain.step import StepTotals

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    config = _config(folder)
    engine = DistributedTrainer4D(config, device=torch.device("cpu")).engine
    initialise(engine.pieces(), seed=0, std=0.02)
    manager = CheckpointManager(
        Path(folder) / "checkpoints", config=CheckpointConfig(keep_last=1), rank=rank, world_size=RANKS, attempt="a"
    )
    ids = torch.randint(2, config.model.vocab_size, (4, config.data.sequence_length))
    batch, totals = {"input_ids": ids, "labels": ids}, StepTotals(ids.numel() * RANKS, ids.numel() * RANKS)
    stalls: dict[str, list[float]] = {ASYNCHRONOUS: [], BLOCKING: []}
    steps: dict[str, list[float]] = {PLAIN: [], ASYNCHRONOUS: []}
    write_s: list[float] = []

    def step() -> float:
        start = time.perf_counter()
        engine.run([batch], totals)
        norm = engine.gradient_norm()
        manager.finish_staging()
        engine.update(lr=1e-4, norm=norm)
        return time.perf_counter() - start

    for _ in range(WARMUP_STEPS):
        step()
    number = 0
    manager.save_blocking(number, engine.pieces(), shared={}, own={})  # takes the memory of the copy
    for _ in range(rounds):
        steps[PLAIN] += [step(), step()]
        number += 1
        manager.save(number, engine.pieces(), shared={}, own={})
        steps[ASYNCHRONOUS].append(step())
        manager.wait()
        assert manager.timings is not None
        stalls[ASYNCHRONOUS].append(manager.timings.stall_s)
        write_s.append(manager.timings.write_s)
        steps[PLAIN].append(step())
        number += 1
        dist.barrier()
        start = time.perf_counter()
        manager.save_blocking(number, engine.pieces(), shared={}, own={})
        stalls[BLOCKING].append(time.perf_counter() - start)
    assert manager.timings is not None
    report = {"stalls": stalls, "steps": steps, "write_s": write_s, "bytes": manager.timings.size_bytes}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
