"""One whole system, started and ended through the command line as a user would; driven by HTTP."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.processes import find_processes
from tests.waiting import until

AUTONOMOUS = Path(sys.executable).parent / "autonomous"
CONFIG = """
home = "{home}"
[http]
port = 0
[ray]
dashboard_port = 0
[engine]
num_replicas = 2
max_model_len = 1024
kv_cache_bytes = 134217728
[agent]
human_oversight_required = false
[agent.learning]
interval_s = 0
max_batch_items = 24
"""


class System:
    """A home, its configuration, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.config = folder / "system.toml"
        self.config.write_text(CONFIG.format(home=self.home), encoding="utf-8")

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`autonomous ARGUMENTS --config ...`; raises with the output when it fails."""
        result = subprocess.run(
            [AUTONOMOUS, *arguments, "--config", str(self.config)],
            capture_output=True, text=True, timeout=580, cwd=self.home.parent, check=False,
        )  # fmt: skip
        if check and result.returncode != 0:
            raise AssertionError(f"autonomous {' '.join(arguments)} failed:\n{result.stdout}\n{result.stderr}")
        return result

    @property
    def url(self) -> str:
        return str(json.loads((self.home / "run.json").read_text())["url"])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300)

    def get(self, path: str, **params: Any) -> Any:
        with self.client() as client:
            response = client.get(path, params=params)
        assert response.status_code < 300, f"GET {path}: {response.status_code} {response.text}"
        return response.json()

    def post(self, path: str, body: Any = None) -> Any:
        with self.client() as client:
            response = client.post(path, json={} if body is None else body)
        assert response.status_code < 300, f"POST {path}: {response.status_code} {response.text}"
        return response.json()

    def add(self, *documents: dict[str, Any]) -> list[dict[str, Any]]:
        return list(self.post("/v1/knowledge", {"documents": list(documents)})["documents"])

    def ask(self, question: str, *, model: str = "v2", retrieval: bool = True, max_tokens: int = 40) -> dict[str, Any]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "retrieval": retrieval,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        return dict(self.post("/v1/chat/completions", body))

    def text(self, question: str, **options: Any) -> str:
        return str(self.ask(question, **options)["choices"][0]["message"]["content"])

    def wait_for_run(self, run_id: str) -> dict[str, Any]:
        """A learning run as it stands when it has ended."""

        def look() -> dict[str, Any] | None:
            status = dict(self.get(f"/v1/learn/{run_id}"))
            return status if status["phase"] in ("done", "failed") else None

        return until(look, timeout_s=600, every_s=0.5)

    def actor_pid(self, name: str) -> int:
        """The pid that answers under an actor's name, found by Ray's process title."""
        title = f"ray::{name.capitalize()}Shell"
        pids = [
            process.pid
            for process in find_processes(self.home)
            if process.cmdline()[:1] and title in process.cmdline()[0]
        ]
        assert len(pids) == 1, f"{title}: {pids}"
        return pids[0]

    def replica_pids(self) -> list[int]:
        return sorted(
            process.pid
            for process in find_processes(self.home)
            if process.cmdline()[:1] and "EngineDeployment" in process.cmdline()[0]
        )


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """Up for the whole session. Down afterwards, and no process may be left."""
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="autonomous-e2e-") as folder:
        system = System(Path(folder))
        system.run("up")
        try:
            yield system
        finally:
            system.run("down")
            left = find_processes(system.home)
            assert not left, f"processes left after down: {[(p.pid, p.cmdline()[:2]) for p in left]}"
