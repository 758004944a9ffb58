"""A tiny random Llama and two adapters on it, once per test run."""

from pathlib import Path

import pytest

from serve.engine import AdapterRef
from tests.tiny_model import write_adapter, write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    folder = tmp_path_factory.mktemp("tiny-adapters")
    return [AdapterRef(f"ver-{n}", n, str(write_adapter(folder / str(n), base=tiny_llama, seed=n))) for n in (1, 2, 3)]
