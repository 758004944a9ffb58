"""What survives kill -9, a damaged index file, and a newer program."""

import logging
import random
import sqlite3
from pathlib import Path

import pytest

from cluster.bench_kills import KillTally, kill_once, open_store
from memory.rag_index import RAGIndex
from memory.store import StoreProblem
from memory.types import Episode, Trust
from tests.episodes import make_episode, open_memory

pytestmark = pytest.mark.sqlite("the server's durability is its own")


def _episode(key: str, *, document: str) -> Episode:
    return Episode(key, document, "source", "title", f"the pump {key} " + "x" * (len(key) % 50), 0, 0.0)


@pytest.mark.slow
def test_every_acknowledged_episode_is_there_once_after_kill_9_at_random_moments(tmp_path: Path) -> None:
    rng, tally = random.Random(7), KillTally()
    for run in range(4):
        kill_once(tmp_path, run=f"run{run}", rng=rng, tally=tally)

    assert (tally.lost, tally.lingering, tally.problems) == (set(), set(), [])
    assert len(tally.present) > 90
    assert tally.erased


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", ["flipped", "missing", "behind"])
def test_an_index_file_that_is_corrupt_missing_or_behind_is_repaired_and_logged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = open_store(tmp_path)
    memory.append([_episode(f"key{i}", document="doc") for i in range(4)])
    memory.index_pending(max_episodes=2)
    memory.save_index()
    path = tmp_path / "episodic.index"
    early = path.read_bytes()
    memory.index_pending()
    memory.close()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(early if damage == "behind" else _flipped(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        reopened = open_store(tmp_path)

    assert ("was behind: adding 2" if damage == "behind" else "rebuilding the vector index from 4") in caplog.text
    assert reopened._index.vectors.ids == {1, 2, 3, 4}
    assert len(reopened.recall("zeppelin", k=4)) == 4
    assert RAGIndex.load(path, dimension=8, identity=reopened._index.vectors.identity).ids == {1, 2, 3, 4}


def test_the_index_file_of_another_store_is_not_believed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        memory = open_store(tmp_path / name)
        memory.append([_episode(f"{name}-{'long' * 9 * len(name)}", document=name)])
        memory.index_pending()
        memory.close()
    (tmp_path / "two" / "episodic.index").write_bytes((tmp_path / "one" / "episodic.index").read_bytes())

    opened = open_store(tmp_path / "two")
    assert opened._index.vectors.identity != (tmp_path / "one").name
    assert opened.recall("zeppelin", k=1)[0].episode.id.startswith("two")


def test_a_store_of_a_newer_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / "episodic.db") as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreProblem, match=r"schema version 99.*upgrade the program"):
        open_store(tmp_path)


def test_what_was_acknowledged_is_there_after_reopening_with_its_seq_order(tmp_path: Path) -> None:
    memory = open_store(tmp_path)
    keys = [f"key{i}" for i in range(5)]
    for key in keys:
        memory.append([_episode(key, document=key)])
    before = memory.episodes_after(0, limit=9)
    memory.close()

    assert open_store(tmp_path).episodes_after(0, limit=9) == before
    assert [episode.id for _, episode in before] == keys


def _words_on_disk(folder: Path) -> bytes:
    with sqlite3.connect(folder / "episodic.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return b"".join(row[0] for row in connection.execute("SELECT block FROM episode_words_data"))


def test_before_an_episode_that_left_is_no_longer_known_its_words_are_gone(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, capacity=300)
    memory.append([make_episode("The xylophon plays", document="gone", source_id="gone", salience=0.1)])
    for number in range(6):
        memory.append([make_episode(f"Rain on day {number} {n}", document=f"d{number} {n}") for n in range(50)])
    assert memory.ids_of_source("gone") != ()
    assert not memory.has(memory.ids_of_source("gone"))
    assert b"xylophon" in _words_on_disk(tmp_path)

    departed = memory.departed(before=2000.0, limit=10)
    assert memory.forget_departed(departed, erased_before=0.0) == len(departed) == 1
    assert memory.ids_of_source("gone") == ()
    assert b"xylophon" not in _words_on_disk(tmp_path)
    assert b"xylophon" not in (tmp_path / "episodic.db").read_bytes()
    memory.verify()


def test_what_left_is_merged_out_of_the_keyword_index_when_the_store_is_idle(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, capacity=200)
    for number in range(12):
        memory.append([make_episode(f"Rain on day {number} {n}", document=f"d{number} {n}") for n in range(100)])

    def num_segments() -> int:
        with sqlite3.connect(tmp_path / "episodic.db") as connection:
            (num,) = connection.execute("SELECT count(DISTINCT segid) FROM episode_words_idx").fetchone()
        return int(num)

    before = num_segments()
    for _ in range(5):
        memory.maintain()
    assert num_segments() < before
    memory.delete_source("nobody")
    memory.set_trust(Trust.UNTRUSTED, source_id="src")  # nothing is added: what leaves is merged out all the same
    assert memory._index._may_merge  # type: ignore[attr-defined]
    memory.maintain()
    assert not memory._index._may_merge  # type: ignore[attr-defined]
