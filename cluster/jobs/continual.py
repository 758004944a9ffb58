"""Go on with a pre-training run on new data, on a Ray cluster that runs already.

    ray job submit --working-dir . -- python -m cluster.jobs.continual --config configs/continual/german.toml

The run that goes on, token shards and the output lie on storage that every node reaches. Otherwise as cluster.jobs.pretrain.
"""

import logging
from pathlib import Path
from typing import Any

from cluster.jobs.pretrain import run_job
from train.continual.pretraining import continued_run, load_continual_config
from train.pretrain.config import PretrainingConfig

logger = logging.getLogger(__name__)


def load(path: Path, output: Path | None, changes: dict[str, Any]) -> PretrainingConfig:
    """The new run of a file; says how it is mixed."""
    settings, told = continued_run(load_continual_config(path, output=output, overrides=changes))
    logger.info(told)
    return settings


if __name__ == "__main__":
    run_job(__doc__, load=load)
