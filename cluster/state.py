"""What is running for a home: one JSON file, `run.json`, written after everything is up and removed when it is down."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

FILE = "run.json"


@dataclass(frozen=True)
class RunningState:
    """One running system. `head_created_at` (seconds since the epoch) guards against a reused pid."""

    url: str
    dashboard_url: str
    ray_address: str
    ray_temp_dir: str
    token_path: str
    head_pid: int
    head_created_at: float
    started_at: float
    config_path: str
    session_dir: str

    def is_alive(self) -> bool:
        """True if the Ray head that this file names is still that process."""
        try:
            process = psutil.Process(self.head_pid)
            return abs(process.create_time() - self.head_created_at) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def write_state(home: Path, state: RunningState) -> None:
    """Atomically replace home/run.json."""
    temporary = home / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
    os.replace(temporary, home / FILE)


def read_state(home: Path) -> RunningState | None:
    """The running system of this home, or None. A file left by a crashed system counts as None."""
    try:
        state = RunningState(**json.loads((home / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return state if state.is_alive() else None


def clear_state(home: Path) -> None:
    """Forget the running system; idempotent."""
    (home / FILE).unlink(missing_ok=True)
