"""Pre-train on a Ray cluster that runs already.

    ray job submit --working-dir . -- python -m cluster.jobs.pretrain --config configs/models/small.toml

Token shards and the output lie on storage that every node reaches. A job that is killed and submitted again goes on from its
last committed checkpoint. A file named `stop` in the output folder, and the system's emergency stop, end it behind one;
`ray job stop` as well, if the checkpoint is written before Ray kills the job (RAY_JOB_STOP_WAIT_TIME_S, 3 seconds).
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from cluster.cli_train import parse_changes
from cluster.pretraining import interrupts, stop_of
from train.launch import run_training
from train.pretrain.config import PretrainingConfig, load_pretraining_config
from train.pretrain.loop import TrainingFailed

logger = logging.getLogger(__name__)


Load = Callable[[Path, Path | None, dict[str, Any]], PretrainingConfig]
"""The run of a file, a folder instead of the file's `output`, and changes of fields."""


def run_job(description: str, *, load: Load) -> None:
    """Connect to the cluster of this job, train, say how it ended."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file, relative to the working directory")
    parser.add_argument("--output", type=Path, help="folder instead of the file's `output`")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field")
    parser.add_argument("--home", type=Path, help="folder of the system whose emergency stop ends the run")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, arguments.output, parse_changes(arguments.set))
        ray.init()
        stop = stop_of(config, arguments.home)
        with interrupts(stop):
            end = run_training(config, stop_reason=stop)  # the workers log the steps
    except (ValueError, OSError, TrainingFailed) as error:  # a sentence for who submitted the job
        raise SystemExit(f"error: {error}") from error
    logger.info("%s after %d steps and %d tokens: %s", end.ending, end.step, end.tokens, config.output)


if __name__ == "__main__":
    run_job(__doc__, load=lambda path, output, changes: load_pretraining_config(path, output=output, overrides=changes))
