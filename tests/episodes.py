"""What the tests of the stores share: an embedder of words, episodes, opened memories, on SQLite or PostgreSQL."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.rag_index import Vectors
from memory.semantic import SemanticConfig, SemanticMemory
from memory.trust import SourceTrusts
from memory.types import Episode, Trust, episode_id


class HashingEmbedder:
    """Texts that share words are near: each word adds its own fixed random direction."""

    dimension = 32

    def __init__(self, name: str = "hashing") -> None:
        self.name = name
        self.num_texts = 0
        self.before_return = lambda: None

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.num_texts += len(texts)
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for number, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                seed = int.from_bytes(hashlib.sha256(f"{self.name} {word}".encode()).digest()[:8])
                rows[number] += np.random.default_rng(seed).standard_normal(self.dimension)
        self.before_return()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_episode(text: str, *, document: str = "doc", position: int = 0, **fields: Any) -> Episode:
    """An episode whose id derives from what it says, as documents' are."""
    key = episode_id(document, position, text)
    given = {"source_id": "src", "title": f"Title {document}", "happened_at": 1.5, **fields}
    return Episode(key, document, text=text, position=position, **given)


POSTGRES_URL = ""
"""Set by tests/unit/memory/conftest.py: the stores then lie there, each folder's in a schema of its own."""


def open_memory(folder: Path, **fields: Any) -> EpisodicMemory:
    """An EpisodicMemory with the embedder and the clock that are given."""
    embedder = fields.pop("embedder", None) or HashingEmbedder()
    clock = fields.pop("clock", lambda: 1000.0)
    config = EpisodicConfig(folder=folder, **_backend(folder, "episodic"), **fields)
    return EpisodicMemory.open(config, embedder=embedder, clock=clock)


def open_semantic(folder: Path, *, clock: Callable[[], float] = lambda: 1000.0, **fields: Any) -> SemanticMemory:
    """A SemanticMemory with the clock that is given."""
    return SemanticMemory.open(SemanticConfig(folder=folder, **_backend(folder, "semantic"), **fields), clock=clock)


def open_trusts(folder: Path, *, default: Trust) -> SourceTrusts:
    """The decisions about sources."""
    return SourceTrusts.open(folder, default=default, clock=lambda: 1000.0, **_backend(folder, "trust"))


def _backend(folder: Path, kind: str) -> dict[str, str]:
    if not POSTGRES_URL:
        return {}
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:20]
    return {"database": POSTGRES_URL, "namespace": f"{kind}_{digest}"}


def index_all(memory: EpisodicMemory) -> None:
    """Embed whatever waits."""
    while memory.index_pending(max_episodes=8):
        pass


def recalled(memory: EpisodicMemory, query: str, **options: Any) -> list[str]:
    """The texts of up to 5 hits."""
    return [hit.episode.text for hit in memory.recall(query, k=5, **options)]


def indexed_seqs(memory: EpisodicMemory) -> set[int]:
    """What can be found by its vector."""
    index: Any = memory._index
    if not POSTGRES_URL:
        return set(index.vectors.ids)
    with memory._database.read() as connection:
        return {row[0] for row in connection.execute("SELECT seq FROM episode WHERE embedding IS NOT NULL")}
