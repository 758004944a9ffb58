"""That a run learns: configs/models/small.toml against a dense model of equal active FLOPs and a bigram model, equal tokens.

Both runs are started as a user starts them and leave their folders under the configuration's output; runs that are there
already, finished or not, are gone on with. Needs the tokens of configs/data/small.toml. In full: 20M tokens, some 100 minutes
on two cores; --quick: 1M tokens in a temporary folder, where no model beats a bigram yet.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from cluster.bench import BenchContext, Claim
from cluster.config import REPOSITORY
from train.allocator import training_environment

CONFIG = REPOSITORY / "configs/models/small.toml"
QUICK_TOKENS = 1_000_000


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    from train.model.costs import count_costs
    from train.pretrain.config import load_pretraining_config
    from train.pretrain.report import write_report
    from train.pretrain.run_log import load_run
    from train.pretrain.run_writer import METRICS_NAME

    moe = load_pretraining_config(CONFIG)
    dense = {
        "model.num_experts": 0, "model.num_experts_per_token": 0,
        "model.intermediate_size": moe.model.num_experts_per_token * moe.model.moe_intermediate_size,
    }  # fmt: skip
    folder = context.folder if context.quick else moe.output.parent
    outputs = {"experts": folder / moe.output.name, "dense": folder / f"{moe.output.name}-dense"}
    common = {"tokens": QUICK_TOKENS, "schedule.warmup_steps": 10} if context.quick else {}
    logs, flops, hours = {}, {}, {}
    for name, changes in (("experts", common), ("dense", common | dense | {"evaluation.bigram_tokens": 0})):
        context.note(f"training {name} in {outputs[name]}")
        _train(outputs[name], changes)
        config = load_pretraining_config(CONFIG, output=outputs[name], overrides=changes)
        logs[name] = load_run(outputs[name] / METRICS_NAME, name=name, config=config.model_dump(mode="json"))
        flops[name] = count_costs(config.model, name=name, context=config.data.sequence_length).flops_per_token
        hours[name] = sum(sum(step.seconds.values()) for step in logs[name].steps) / 3600
    report = folder / "learns.html"
    write_report(list(logs.values()), path=report, title="A small Mixture-of-Experts, its dense twin, a bigram model")
    losses = {name: log.evaluations[-1].loss for name, log in logs.items()}
    tokens = logs["experts"].steps[-1].tokens
    told = (
        f"held-out nats per token after {tokens:,} tokens: experts {losses['experts']:.4f}, dense {losses['dense']:.4f}; "
        f"active FLOPs {flops['experts'] / flops['dense']:.3f} of the dense model's; "
        f"{hours['experts']:.2f} and {hours['dense']:.2f} hours"
    )
    bigram = logs["experts"].baselines["bigram"]
    for name, other in (("a bigram model's", bigram), ("the dense twin's", losses["dense"])):
        gain = other - losses["experts"]
        is_met = None if context.quick else gain > 0
        yield Claim(
            f"held-out loss below {name}", "> 0", round(gain, 4), "nats", is_met, f"{told}; bigram {bigram:.4f}"
        )
    is_met = None if context.quick else hours["experts"] < 1
    yield Claim("time of 20M tokens", "< 1 hour", round(hours["experts"], 2), "hours", is_met, told)
    if not context.quick:
        context.note(f"plot: {report}")


def _train(output: Path, changes: dict[str, object]) -> None:
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "cluster.cli", "train", "pretrain", "--config", str(CONFIG)]
    subprocess.run(
        [*command, "--driver", "local", "--output", str(output), *sets], check=True, cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, env=os.environ | training_environment(),
    )  # fmt: skip
