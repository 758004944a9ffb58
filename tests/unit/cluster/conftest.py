"""A running system for the command line, the client and the guided run: real HTTP on a real port."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from autonomous.safety.screen import SafetyScreen
from cluster.client import Client
from cluster.state import RunningState, write_state
from serve.app import build_api
from serve.config import HttpConfig, RAGConfig
from tests.unit.cluster.small_system import SmallSystem


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables keep their words together."""
    monkeypatch.setenv("COLUMNS", "300")


@dataclass(frozen=True)
class Running:
    """The system and where to reach it."""

    parts: SmallSystem
    home: Path
    config_path: Path
    url: str


@pytest.fixture(scope="session")
def http_server() -> Iterator[Callable[[FastAPI], str]]:
    """One server for all tests: give it the application that answers from now on, get its address."""
    current: list[FastAPI] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await current[-1](scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(answer, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def serve(app: FastAPI) -> str:
        current.append(app)
        return url

    yield serve
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A configuration whose home is a temporary folder; nothing runs there."""
    path = tmp_path / "config.toml"
    path.write_text(
        f'home = "{tmp_path / "home"}"\n[ray]\ndashboard_port = 0\n[agent]\nhuman_oversight_required = false\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def system(
    tmp_path: Path, config_path: Path, http_server: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """A system that answers HTTP, and whose run.json names this process as its head."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cluster.client.POLL_S", 0.005)
    home = tmp_path / "home"
    (tmp_path / "parts").mkdir()
    parts = SmallSystem(tmp_path / "parts", home)
    screen = SafetyScreen("high")
    app = build_api(
        parts,
        http=HttpConfig(default_max_tokens=32),
        rag=RAGConfig(min_cosine=0.2, max_context_tokens=120),
        max_model_len=400,
        mask=lambda text: screen.screen_answer(text).text,
    )
    asyncio.run(parts.engine.start())
    url = http_server(app)
    write_state(
        home,
        RunningState(
            url=url, dashboard_url="http://127.0.0.1:1", ray_address="", ray_temp_dir=str(tmp_path / "ray"),
            token_path="", head_pid=os.getpid(), head_created_at=psutil.Process().create_time(), started_at=time.time(),
            config_path=str(config_path), session_dir=str(tmp_path / "ray" / "session"),
        ),
    )  # fmt: skip
    yield Running(parts, home, config_path, url)
    parts.close()


@pytest.fixture
def client(system: Running) -> Iterator[Client]:
    """A client of `system`."""
    with Client(system.url) as connected:
        yield connected


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with three documents that hold facts, an empty file and a binary one."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, city in (("Brindle", "Oslo"), ("Kestwick", "Quito"), ("Marlowe", "Hanoi")):
        text = f"{name} is a weather station in {city}. {name} requires a valid permit of the harbour office.\n"
        (folder / f"{name.lower()}.txt").write_text(text, encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    (folder / "picture.bin").write_bytes(bytes(range(256)) * 8)
    return folder
