"""A store of episodes under concurrent writers that is killed at a random moment, and what must hold when it is opened again.

Run as a script it is the writer that is killed: three threads append and erase, one embeds and saves the index, and every
acknowledgement is printed behind the commit. A line that is printed whole was acknowledged.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.config import REPOSITORY
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.rag_index import RAGIndex, Vectors, decode_vectors
from memory.types import Episode

DIMENSION = 8
BATCH = 3
ERASE_EVERY = 5


class LengthEmbedder:
    """A fixed direction per length of the text: enough to tell vectors apart."""

    dimension = DIMENSION
    name = "length"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        rows = np.stack([np.random.default_rng(len(text)).standard_normal(DIMENSION) for text in texts])
        unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


@dataclass
class KillTally:
    """Over all kills so far. The last three have to stay empty."""

    present: set[str] = field(default_factory=set)
    """Acknowledged as stored, and as erased:"""
    erased: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    """Acknowledged and not there, though nobody erased them."""
    lingering: set[str] = field(default_factory=set)
    """Acknowledged as erased and there."""
    problems: list[str] = field(default_factory=list)
    """Duplicates, and what an index has other than a rebuild."""


def open_store(folder: Path) -> EpisodicMemory:
    """The store that is killed."""
    return EpisodicMemory.open(EpisodicConfig(folder=folder), embedder=LengthEmbedder())


def kill_once(folder: Path, *, run: str, rng: random.Random, tally: KillTally) -> None:
    """Let the writer run for a random number of acknowledgements, kill it, and look."""
    writer = subprocess.Popen(
        [sys.executable, __file__, str(folder), run],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(rng.randrange(30, 200))]
    writer.send_signal(signal.SIGKILL)
    lines += writer.stdout.readlines()
    writer.wait()
    whole = [line.strip() for line in lines if line.endswith("\n")]
    tally.present |= {line[1:] for line in whole if line[0] == "+"}
    tally.erased |= {line[1:] for line in whole if line[0] == "-"}
    _look(folder, tally)


def _look(folder: Path, tally: KillTally) -> None:
    memory = open_store(folder)
    tally.lingering |= memory.has(tally.erased)
    missing = tally.present - tally.erased - memory.has(tally.present)
    with sqlite3.connect(folder / "episodic.db") as connection:
        # Whose erasure was committed, but the kill came before it was acknowledged.
        gone = {row[0] for row in connection.execute("SELECT id FROM episode WHERE deleted_at IS NOT NULL")}
        tally.lost |= missing - gone
        if connection.execute("SELECT count(*) - count(DISTINCT id) FROM episode").fetchone() != (0,):
            tally.problems.append("an id is there twice")
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            tally.problems.append("the database fails its integrity check")
        connection.execute("INSERT INTO episode_words(episode_words, rank) VALUES('integrity-check', 1)")
    connection.close()
    _compare_index(folder, memory, tally)
    while memory.index_pending(max_episodes=200):
        pass
    _compare_index(folder, memory, tally)
    memory.close()


def _compare_index(folder: Path, memory: EpisodicMemory, tally: KillTally) -> None:
    """The vector index against one that is built from the rows."""
    with sqlite3.connect(folder / "episodic.db") as connection:
        rows = connection.execute("SELECT seq, embedding FROM episode WHERE embedding IS NOT NULL").fetchall()
    connection.close()
    rebuilt = RAGIndex(DIMENSION, identity="rebuild")
    rebuilt.add([row[0] for row in rows], vectors=decode_vectors([row[1] for row in rows], dimension=DIMENSION))
    index = memory._index.vectors  # type: ignore[attr-defined]
    ids = sorted(rebuilt.ids)
    if index.ids != rebuilt.ids or not np.array_equal(index.vectors(ids), rebuilt.vectors(ids)):
        tally.problems.append("the vector index is not that of the rows")


def write_until_killed(folder: Path, *, run: str) -> None:
    """Three threads append and erase and print each acknowledged id; this one embeds and saves the index for ever."""
    memory = open_store(folder)
    lock = threading.Lock()

    def tell(mark: str, ids: Sequence[str]) -> None:
        with lock:
            sys.stdout.write("".join(f"{mark}{key}\n" for key in ids))
            sys.stdout.flush()

    def append(name: int) -> None:
        number = 0
        while True:
            number += 1
            document = f"{run}-{name}-{number}"
            batch = [
                Episode(f"{document}-{part}", document, "source", "title", f"pump {document}-{part} " + "x" * (number % 50),
                        part, 0.0) for part in range(BATCH)
            ]  # fmt: skip
            tell("+", memory.append(batch).added)
            if number % ERASE_EVERY == 0:
                tell("-", memory.delete_document(f"{run}-{name}-{number - 1}"))

    for name in range(3):
        threading.Thread(target=append, args=(name,), daemon=True).start()
    while True:
        memory.index_pending(max_episodes=5)
        memory.save_index()


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), run=sys.argv[2])
