"""`autonomous down`: end every process of a system and verify that none is left. State stays in its home."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autonomous.safety.heartbeat import Heartbeat
from cluster.processes import end_processes, find_processes
from cluster.state import clear_state, read_state

GRACE_S = 20.0
"""The Ray head ends its children on SIGTERM; what is left then is killed."""


class NotUp(RuntimeError):
    """Nothing of this home is running."""


@dataclass(frozen=True)
class DownReport:
    """What `bring_down` did."""

    num_processes_ended: int
    seconds: float


def bring_down(home: Path, *, on_stage: Callable[[str, float | None], None]) -> DownReport:
    """End the system of `home`. Everything acknowledged is on disk already, so nothing is flushed here.

    Works on a crashed system too: whatever still carries this home in its environment is ended. Raises NotUp.
    """
    state = read_state(home)
    if state is None and not find_processes(home):
        clear_state(home)
        Heartbeat(home / "safety").remove()
        raise NotUp(f"nothing is running for {home}")
    start = time.monotonic()
    on_stage("ending processes", None)
    num_ended = end_processes(home, head_pid=state.head_pid if state else None, grace_s=GRACE_S)
    Heartbeat(home / "safety").remove()
    if state is not None:
        _keep_newest_sessions(Path(state.ray_temp_dir), keep=3)
    clear_state(home)
    seconds = time.monotonic() - start
    on_stage("ending processes", seconds)
    return DownReport(num_processes_ended=num_ended, seconds=seconds)


def _keep_newest_sessions(temp_dir: Path, *, keep: int) -> None:
    """Ray never removes its session folders; keep the logs of the last few."""
    sessions = sorted(path for path in temp_dir.glob("session_20*") if path.is_dir())
    for session in sessions[:-keep]:
        shutil.rmtree(session, ignore_errors=True)
