"""Run the token pipeline on a Ray cluster that runs already.

    ray job submit --working-dir . -- python -m cluster.jobs.data --config configs/data/example.toml --output /shared/tokens

Sources and output lie on storage that every node reaches: a shared folder, or a URI such as s3://bucket/folder. A job that is
killed and submitted again goes on where it stood.
"""

import argparse
import logging
from pathlib import Path

import ray

from cluster.cli_data import DriverName
from train.data.config import load_pipeline_config
from train.data.pipeline import DataPipeline

logger = logging.getLogger(__name__)


def main() -> None:
    """Connect to the cluster of this job, run, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file, relative to the working directory")
    parser.add_argument("--output", help="folder or URI instead of the file's `output`")
    parser.add_argument("--driver", choices=[name.value for name in DriverName if name != "local"], default="ray")
    parser.add_argument("--workers", type=_positive, help="Ray tasks at once; default: the cluster's CPUs")
    parser.add_argument("--restart", action="store_true", help="delete what the output folder holds of a run")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parser.parse_args()
    try:
        config = load_pipeline_config(arguments.config, output=arguments.output)
        ray.init()
        pipeline = DataPipeline(config, driver=arguments.driver, num_workers=arguments.workers)
        report = pipeline.run(restart=arguments.restart, on_progress=_log_progress)
    except (ValueError, OSError) as error:  # a sentence for who submitted the job
        raise SystemExit(f"error: {error}") from error
    logger.info("%d tokens of %d documents in %s", report.tokens_out, report.documents_out, config.output)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of Ray tasks; give 1 or more")
    return int(text)


def _log_progress(label: str, done: int, total: int) -> None:
    logger.info("%s: %d/%d", label, done, total)


if __name__ == "__main__":
    main()
