"""A whole system whose Ray control plane is frozen, and how long a kill of everything takes then."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.processes import registered
from cluster.bench import BenchContext
from cluster.processes import find_processes, is_alive
from cluster.up import wait_until_ready

GCS = "gcs_server"
READY_TIMEOUT_S = 180.0
GIVE_UP_S = 20.0


def kill_without_control_plane(context: BenchContext, *, count: int, note: Callable[[int, float], None]) -> list[float]:
    """Seconds from the trigger until every registered process is gone by pid, once for each kill.

    Between two kills the control plane goes on, a person resets the stop, and the system has to answer again.
    """
    seconds = []
    with context.running_system({}) as (client, config):
        safety = config.home / "safety"
        monitor = SafetyMonitor(Latch.open(safety / "latch"), audit=lambda **_: None)
        for number in range(count):
            with _frozen(config.home):
                pids = [one.pid for one in registered(safety).values() if one is not None]
                start = time.monotonic()
                monitor.kill(reason="trial", by="bench", scope="all")
                while any(map(is_alive, pids)) and time.monotonic() - start < GIVE_UP_S:
                    time.sleep(0.005)
                seconds.append(time.monotonic() - start if pids else float("inf"))
            monitor.reset(reason="trial over", by="bench person")
            wait_until_ready(client.base_url, timeout_s=READY_TIMEOUT_S)
            note(number, seconds[-1])
    return seconds


@contextmanager
def _frozen(home: Path) -> Iterator[None]:
    found = [process.pid for process in find_processes(home) if GCS in process.name()]
    if not found:
        raise RuntimeError(f"no {GCS} of {home} runs: its control plane cannot be frozen")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)
