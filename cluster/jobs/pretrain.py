"""Pre-train on a Ray cluster that runs already.

    ray job submit --working-dir . -- python -m cluster.jobs.pretrain --config configs/models/small.toml

Token shards and the output lie on storage that every node reaches. A job that is killed and submitted again goes on from its
last committed checkpoint. A file named `stop` in the output folder, and the system's emergency stop, end it behind one;
`ray job stop` as well, if the checkpoint is written before Ray kills the job (RAY_JOB_STOP_WAIT_TIME_S, 3 seconds).
"""

import argparse
import logging
from pathlib import Path

import ray

from cluster.cli_train import parse_changes
from cluster.pretraining import interrupts, stop_of
from train.launch import run_training
from train.pretrain.config import load_pretraining_config
from train.pretrain.loop import TrainingFailed

logger = logging.getLogger(__name__)


def main() -> None:
    """Connect to the cluster of this job, train, say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file, relative to the working directory")
    parser.add_argument("--output", type=Path, help="folder instead of the file's `output`")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field")
    parser.add_argument("--home", type=Path, help="folder of the system whose emergency stop ends the run")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parser.parse_args()
    try:
        config = load_pretraining_config(
            arguments.config, output=arguments.output, overrides=parse_changes(arguments.set)
        )
        ray.init()
        stop = stop_of(config, arguments.home)
        with interrupts(stop):
            end = run_training(config, stop_reason=stop)  # the workers log the steps
    except (ValueError, OSError, TrainingFailed) as error:  # a sentence for who submitted the job
        raise SystemExit(f"error: {error}") from error
    logger.info("%s after %d steps and %d tokens: %s", end.ending, end.step, end.tokens, config.output)


if __name__ == "__main__":
    main()
