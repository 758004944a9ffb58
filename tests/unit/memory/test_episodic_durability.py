"""What survives kill -9, a damaged index file, and a newer program. As a script: the writer that is killed."""

import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memory.episodic import EpisodicConfig, EpisodicMemory
from memory.rag_index import RAGIndex, Vectors, decode_vectors
from memory.store import StoreProblem
from memory.types import Episode

REPOSITORY = Path(__file__).parents[3]
pytestmark = pytest.mark.sqlite("the server's durability is its own")


class LengthEmbedder:
    """A fixed direction per length of the text: enough to tell vectors apart."""

    dimension = 8
    name = "length"

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = np.stack([np.random.default_rng(len(text)).standard_normal(self.dimension) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _open(folder: Path) -> EpisodicMemory:
    return EpisodicMemory.open(EpisodicConfig(folder=folder), embedder=LengthEmbedder())


def _episode(key: str, *, document: str) -> Episode:
    return Episode(key, document, "source", "title", f"the pump {key} " + "x" * (hash(key) % 50), 0, 0.0)


def write_until_killed(folder: Path, *, run: str) -> None:
    """Three threads append and print each acknowledged id; this one embeds, saves the index and erases for ever."""
    memory = _open(folder)
    lock = threading.Lock()

    def append(name: int) -> None:
        number = 0
        while True:
            number += 1
            batch = [_episode(f"{run}-{name}-{number}-{part}", document=f"{run}-{name}-{number}") for part in range(3)]
            acknowledged = memory.append(batch).added
            with lock:
                sys.stdout.write("".join(f"+{key}\n" for key in acknowledged))
                sys.stdout.flush()
            if number % 5 == 0:
                erased = memory.delete_document(f"{run}-{name}-{number - 1}")
                with lock:
                    sys.stdout.write("".join(f"-{key}\n" for key in erased))
                    sys.stdout.flush()

    for name in range(3):
        threading.Thread(target=append, args=(name,), daemon=True).start()
    while True:
        memory.index_pending(max_episodes=5)
        memory.save_index()


def _assert_index_equals_a_rebuild(folder: Path, memory: EpisodicMemory) -> None:
    with sqlite3.connect(folder / "episodic.db") as connection:
        rows = connection.execute("SELECT seq, embedding FROM episode WHERE embedding IS NOT NULL").fetchall()
    rebuilt = RAGIndex(8, identity="rebuild")
    rebuilt.add([row[0] for row in rows], vectors=decode_vectors([row[1] for row in rows], dimension=8))

    assert memory._index.vectors.ids == rebuilt.ids
    ids = sorted(rebuilt.ids)
    np.testing.assert_array_equal(memory._index.vectors.vectors(ids), rebuilt.vectors(ids))


def test_every_acknowledged_episode_is_there_once_after_kill_9_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(7)
    present: set[str] = set()
    erased: set[str] = set()
    for run in range(4):
        writer = subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), f"run{run}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(rng.randrange(30, 200))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        assert writer.wait() == -signal.SIGKILL
        whole = [line.strip() for line in lines if line.endswith("\n")]
        present |= {line[1:] for line in whole if line[0] == "+"}
        erased |= {line[1:] for line in whole if line[0] == "-"}

        memory = _open(tmp_path)
        assert memory.has(erased) == set()
        lost = present - erased - memory.has(present)
        assert {key.rsplit("-", 1)[0] for key in lost} <= _erased_unacknowledged(tmp_path, known=erased)
        _assert_index_equals_a_rebuild(tmp_path, memory)
        while memory.index_pending(max_episodes=200):
            pass
        _assert_index_equals_a_rebuild(tmp_path, memory)
        with sqlite3.connect(tmp_path / "episodic.db") as connection:
            assert connection.execute("SELECT count(*) - count(DISTINCT id) FROM episode").fetchone() == (0,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.execute("INSERT INTO episode_words(episode_words) VALUES('integrity-check')")
        memory.close()
    assert len(present) > 90
    assert erased


def _erased_unacknowledged(folder: Path, *, known: set[str]) -> set[str]:
    """Documents whose erasure was committed, but the kill came before it was acknowledged."""
    with sqlite3.connect(folder / "episodic.db") as connection:
        rows = connection.execute("SELECT id, document_id FROM episode WHERE deleted_at IS NOT NULL").fetchall()
    return {document for key, document in rows if key not in known}


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", ["flipped", "missing", "behind"])
def test_an_index_file_that_is_corrupt_missing_or_behind_is_repaired_and_logged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = _open(tmp_path)
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
        reopened = _open(tmp_path)

    assert ("was behind: adding 2" if damage == "behind" else "rebuilding the vector index from 4") in caplog.text
    _assert_index_equals_a_rebuild(tmp_path, reopened)
    assert len(reopened.recall("zeppelin", k=4)) == 4
    assert RAGIndex.load(path, dimension=8, identity=reopened._index.vectors.identity).ids == {1, 2, 3, 4}


def test_the_index_file_of_another_store_is_not_believed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        memory = _open(tmp_path / name)
        memory.append([_episode(f"{name}-{'long' * 9 * len(name)}", document=name)])
        memory.index_pending()
        memory.close()
    (tmp_path / "two" / "episodic.index").write_bytes((tmp_path / "one" / "episodic.index").read_bytes())

    _assert_index_equals_a_rebuild(tmp_path / "two", _open(tmp_path / "two"))


def test_a_store_of_a_newer_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    _open(tmp_path).close()
    with sqlite3.connect(tmp_path / "episodic.db") as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreProblem, match=r"schema version 99.*upgrade the program"):
        _open(tmp_path)


def test_what_was_acknowledged_is_there_after_reopening_with_its_seq_order(tmp_path: Path) -> None:
    memory = _open(tmp_path)
    keys = [f"key{i}" for i in range(5)]
    for key in keys:
        memory.append([_episode(key, document=key)])
    before = memory.episodes_after(0, limit=9)
    memory.close()

    assert _open(tmp_path).episodes_after(0, limit=9) == before
    assert [episode.id for _, episode in before] == keys


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), run=sys.argv[2])
