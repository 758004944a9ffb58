"""Start the agent on a Ray cluster that runs already.

    ray job submit --working-dir . -- python -m cluster.jobs.agent --config configs/laptop.toml

The actors and the Serve application are detached: they go on after the job has ended. Running the job again adopts what
runs the same code and settings and replaces the rest. On several nodes `home` and the model folder lie on shared
storage.
"""

import argparse
import logging
from pathlib import Path

import ray

from actors.base import NAMESPACE
from cluster.config import load_config
from cluster.up import BringUpError, StageClock, deploy, prepare_model
from memory.store import StoreFull

logger = logging.getLogger(__name__)


def main() -> None:
    """Connect to the cluster of this job, deploy, say where it answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file, relative to the working directory")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        start(parser.parse_args().config)
    except (BringUpError, StoreFull, ValueError, OSError) as error:  # a sentence for who submitted the job
        raise SystemExit(f"error: {error}") from error


def start(config_path: Path) -> None:
    """Deploy what the file says. Raises ConfigError, ValueError for a port that nobody can know, BringUpError, OSError."""
    config = load_config(config_path)
    if config.http.port == 0:
        raise ValueError("http.port = 0 needs a port that others can know; set http.port to a fixed number")
    clock = StageClock(_log_stage)
    with clock("model"):
        model_folder = prepare_model(config)
    ray.init(namespace=NAMESPACE)
    pids = deploy(config, model_folder=model_folder, http_port=config.http.port, clock=clock)
    logger.info("up at http://%s:%d with actors %s", config.http.host, config.http.port, pids)


def _log_stage(stage: str, seconds: float | None) -> None:
    logger.info("%s: %s", stage, "begins" if seconds is None else f"{seconds:.1f} s")


if __name__ == "__main__":
    main()
