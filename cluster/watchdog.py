"""Starts the watchdog of a home: a process outside Ray that outlives whoever starts it. `autonomous down` ends it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from autonomous.safety.heartbeat import BEAT_S, Heartbeat
from cluster.config import REPOSITORY
from cluster.processes import HOME_VARIABLE

MODULE = "autonomous.safety.watchdog"
START_TIMEOUT_S = 20.0


class WatchdogProblem(RuntimeError):
    """It did not begin to beat: says where its log is."""


def start_watchdog(home: Path) -> bool:
    """See that a watchdog beats for this home on this machine; False if one did already. Raises WatchdogProblem."""
    safety, log_path = home / "safety", home / "logs" / "watchdog.log"
    heartbeat = Heartbeat(safety)
    if heartbeat.lives():
        return False
    for folder in (safety, log_path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    heartbeat.expect()
    environment = os.environ | {HOME_VARIABLE: str(home), "PYTHONPATH": str(REPOSITORY)}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(safety)],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, cwd=home, env=environment,
        )  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        if heartbeat.lives():
            return True
    raise WatchdogProblem(f"the watchdog did not start; see {log_path}")


def is_watchdog(process: psutil.Process) -> bool:
    """Whether a process is one: it may run before and behind everything else of its system."""
    try:
        return MODULE in process.cmdline()
    except psutil.Error:
        return False
