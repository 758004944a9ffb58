"""A tiny random Llama and two adapters on it, once per test run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serve.engine import AdapterRef
from tests.tiny_model import write_adapter, write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    folder = tmp_path_factory.mktemp("tiny-adapters")
    return [AdapterRef(f"ver-{n}", n, str(write_adapter(folder / str(n), base=tiny_llama, seed=n))) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For shapes so small that threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
