"""Run a scheduled job of the agent now, on a Ray cluster where it runs already, and wait for its end.

    ray job submit --working-dir . -- python -m cluster.jobs.retrain --by ann --reason "new manuals"
    ray job submit --working-dir . -- python -m cluster.jobs.retrain --schedule drill --by ann --reason "before the release"

The agent actor runs it, under its lock and the emergency stop: a job that is killed here goes on there. Submitted again while
it waits or runs, this waits for the same run.
"""

import argparse
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import ray

from actors.base import NAMESPACE
from actors.calls import ActorMissing, actor, retried

logger = logging.getLogger(__name__)

RESTART_TIMEOUT_S = 120.0
"""So long the agent may take to come back."""
POLL_S = 2.0
GOOD = ("done", "nothing", "inconclusive")


def main() -> None:
    """Connect to the cluster of this job, ask for the run, follow it, end with its outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="retrain", help="name of the scheduled job; default: retrain")
    parser.add_argument("--by", required=True, help="your name, for the audit log")
    parser.add_argument("--reason", required=True, help="why, for the audit log")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parser.parse_args()
    ray.init(namespace=NAMESPACE)
    key = f"job {secrets.token_hex(8)}"
    try:
        run = _ask("run_schedule", arguments.schedule, arguments.by, arguments.reason, key)
        ended = follow(run, lambda: _ask("schedule_runs", run["name"], 100), pause=time.sleep)
    except (ActorMissing, ValueError, LookupError, RuntimeError) as error:  # a sentence for who submitted the job
        raise SystemExit(f"error: {error}") from error
    if ended["outcome"] not in GOOD:
        raise SystemExit(f"error: {ended['name']} {ended['outcome']}: {ended['detail']}")


def follow(
    run: dict[str, Any], ask: Callable[[], list[dict[str, Any]]], *, pause: Callable[[float], None]
) -> dict[str, Any]:
    """Ask for the runs until this one has ended, and log each change. Raises LookupError if it is no longer among them."""
    told = ""
    while True:
        if (now := f"{run['state']}, attempt {run['attempt']}") != told:
            told = now
            logger.info("run %d of %s: %s", run["id"], run["name"], now)
        if run["state"] == "ended":
            logger.info("%s: %s", run["outcome"], run["detail"])
            return run
        pause(POLL_S)
        found = [one for one in ask() if one["id"] == run["id"]]
        if not found:
            raise LookupError(
                f"run {run['id']} of {run['name']} is no longer known: its job was taken out of the configuration"
            )
        run = found[0]


def _ask(method: str, *arguments: Any) -> Any:
    return retried(lambda: ray.get(getattr(actor("agent"), method).remote(*arguments)), timeout_s=RESTART_TIMEOUT_S)


if __name__ == "__main__":
    main()
