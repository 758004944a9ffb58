"""What stands around the training step: reading data and saving, as shares of the time; and Ray Train, over the bare loop.

Runs of configs/models/small.toml's model with a quarter of its batch, on token shards that are made for it: the same run in
one process and on Ray Train with one worker, in turns. Runs are a minute or two, so that both sides of a round meet the same
machine; a step of a second has what a step costs beside its arithmetic as a larger share than a real one's. Compared is the
median time of a step behind the first ones, so that starting workers (some 10 s) does not count. One thread trains, so that
Ray's own processes have a core: with two threads on two cores they and the training stand in each other's way.
"""

import os
import secrets
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_variants import child_main, judge, run_variants, speed_up
from cluster.config import REPOSITORY
from train.allocator import training_environment

WARMUP_STEPS = 10
THREADS = 1
SEQUENCES_PER_STEP = 8
SAVE_EVERY = 50
"""Steps; a checkpoint of 0.3 GB each minute."""
MOST_SHARE, MOST_OVERHEAD = 0.03, 0.02
SEQUENCES = 2048


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    steps = 60 if context.quick else 110
    tokens = context.folder / "tokens"
    _write_tokens(tokens)
    found = run_variants(
        Path(__file__), ["alone", "ray"],
        arguments={"tokens": str(tokens), "output": str(context.folder / "run"), "steps": steps},
        rounds=3 if context.quick else 6, environment=training_environment(), num_threads=THREADS, note=context.note,
    )  # fmt: skip
    share = found["alone"].median_of("share")
    conditions = f"{steps} steps, a checkpoint every {SAVE_EVERY}, {THREADS} thread; "
    yield judge(
        "reading data and saving, share of a run's steps", f"<= {MOST_SHARE:.0%}", round(100 * share, 2), "%",
        is_met=share <= MOST_SHARE, conditions=conditions + f"a step of {found['alone'].median_s:.2f} s",
    )  # fmt: skip
    ratio = speed_up(found["alone"], found["ray"])
    overhead = ratio.ratio - 1
    yield judge(
        "Ray Train over the bare loop, time of a step", f"<= {MOST_OVERHEAD:.0%}", round(100 * overhead, 2), "%",
        is_met=overhead <= MOST_OVERHEAD, conditions=f"{conditions}{ratio.describe()} of the ratio",
    )  # fmt: skip


def _write_tokens(folder: Path) -> None:
    import numpy as np

    from train.data.filesystem import resolve
    from train.data.storage import HDF5Storage
    from train.data.token_shard import TokenFormat

    config = _config(folder, folder, steps=100)
    length, vocabulary = config.data.sequence_length, config.model.vocab_size
    filesystem, path = resolve(str(folder))
    form = TokenFormat(sequence_length=length, vocab_size=vocabulary, end_of_document_id=0, tokenizer_sha256="00" * 32)
    shares = 1 / np.arange(1, vocabulary + 1)
    with HDF5Storage(filesystem).writer(f"{path}/shard.h5", token_format=form) as writer:
        size = SEQUENCES * length + 1
        writer.write(1 + np.random.default_rng(0).choice(vocabulary - 1, size, p=shares[1:] / shares[1:].sum()))


def _config(tokens: Path, output: Path, *, steps: int) -> Any:
    from train.pretrain.config import load_pretraining_config

    changes: dict[str, Any] = {
        "data.sources": [{"location": str(tokens), "name": "tokens"}], "parallel.engine": "native",
        "checkpoint.every_steps": SAVE_EVERY, "evaluation.prompts": [], "evaluation.bigram_tokens": 0,
        "workers.threads": THREADS, "schedule.warmup_steps": 10, "micro_batch": SEQUENCES_PER_STEP, "accumulation": 1,
        "global_batch_size": SEQUENCES_PER_STEP,
    }  # fmt: skip
    path = REPOSITORY / "configs/models/small.toml"
    config = load_pretraining_config(path, output=output, overrides=changes)
    return config.model_copy(update={"tokens": steps * config.tokens_per_step})


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a step, and the share of reading and saving."""
    output = Path(arguments["output"])
    shutil.rmtree(output, ignore_errors=True)
    config = _config(Path(arguments["tokens"]), output, steps=arguments["steps"])
    VARIANTS[variant](config)
    from train.pretrain.run_log import load_run
    from train.pretrain.run_writer import METRICS_NAME

    steps = load_run(output / METRICS_NAME, name="run").steps[WARMUP_STEPS:]
    tokens = steps[-1].tokens / steps[-1].step
    around = sum(step.seconds.get("data", 0.0) + step.seconds.get("checkpoint", 0.0) for step in steps)
    whole = sum(sum(step.seconds.values()) for step in steps)
    seconds = statistics.median(tokens / step.tokens_per_s for step in steps if step.tokens_per_s)
    return {"seconds": seconds, "share": around / whole}


def _alone(config: Any) -> None:
    from train.pretrain.alone import run_alone

    run_alone(config)


def _ray(config: Any) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # before Ray is imported
    import ray

    from train.launch import run_training

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    run_training(config)
    ray.shutdown()


VARIANTS = {"alone": _alone, "ray": _ray}

if __name__ == "__main__":
    child_main(measure)
