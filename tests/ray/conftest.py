"""One Ray for the whole session, with token authentication, as the product runs it."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Ray: its core reads them then.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_agent_register_timeout_ms="180000",
    RAY_allow_out_of_band_object_ref_serialization="0",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from actors.registry import prepare_home
    from autonomous.config import AutonomousConfig

    home = tmp_path_factory.mktemp("home")
    prepare_home(home, model_folder=home / "model", agent=AutonomousConfig())
    return home


@pytest.fixture(scope="session", autouse=True)
def ray_session() -> Iterator[None]:
    import ray

    from actors.base import NAMESPACE

    ray.init(
        address="local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False,
        object_store_memory=100 << 20,
    )  # fmt: skip
    yield
    ray.shutdown()
