"""The episodic actor: documents in, passages out. Writes are ordered and durable; reading goes on beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.stores import StoreHost, StoreShell, episodic_config, open_trusts, remote_store, shard_name
from autonomous.ingest import IngestConfig
from autonomous.intake import Intake
from autonomous.safety.screen import Level
from memory.embed import MiniLmEmbedder
from memory.protocols import EpisodeStore
from memory.recall import ANY_EPISODE
from memory.settings import MemorySettings
from memory.shards import EpisodicShards
from memory.types import DocumentInfo, Episode, EpisodeFilter, RecallHit


class EpisodicShell(StoreShell):
    """The front of a cluster's one episodic memory, whose stores are here or in actors of their own. `ingest` is idempotent:
    ids are derived from content.

    Groups: the default one writes in order, "read" answers beside it, "control" always answers.
    """

    def __init__(
        self,
        settings_sha256: str,
        *,
        folder: Path,
        latch: Path,
        settings: MemorySettings,
        ingest: IngestConfig,
        level: Level,
    ) -> None:
        super().__init__("episodic", settings_sha256, latch=latch)
        if settings.num_shards == 1:
            self._host = StoreHost(episodic_config(settings, folder=folder / "episodic", number=0))
            self._embedder = self._host.embedder
            stores: list[EpisodeStore] = [self._host.memory]
        else:
            self._embedder = MiniLmEmbedder(num_threads=1)
            stores = [remote_store(shard_name(number)) for number in range(settings.num_shards)]
        self._shards = EpisodicShards(stores, embedder=self._embedder)
        self._store = self._shards
        self._intake = Intake(ingest, store=self._shards, trusts=open_trusts(folder, settings), level=level)

    @ray.method
    def ingest(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Clean, screen, cut and store. Returns one row per document and the commit order, after all is durable."""
        answer = self._intake.ingest(documents, guard=self._latch.permit("memory write").check)
        if self._host is not None:
            self._host.indexer.wake()
        return answer

    @ray.method
    def follow(self, documents: list[dict[str, Any]], removed: list[str]) -> dict[str, Any]:
        """`ingest` for a source that is read on: a document takes the place of its earlier versions, and what the source has
        `removed` leaves recall and learning. Idempotent.
        """
        guard = self._latch.permit("memory write").check
        answer = self._intake.follow(documents, removed, guard=guard)
        if self._host is not None:
            self._host.indexer.wake()
        return answer

    @ray.method(concurrency_group="read")
    def recall(
        self, query: str, k: int, min_cosine: float = -1.0, where: EpisodeFilter = ANY_EPISODE
    ) -> list[RecallHit]:
        """The k passages that answer the query best."""
        return self._shards.recall(query, k=k, min_cosine=min_cosine, where=where)

    @ray.method(concurrency_group="read")
    def embed(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors, one per text."""
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    @ray.method(concurrency_group="read")
    def documents(self, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """Documents, newest first."""
        return self._shards.documents(limit=limit, offset=offset, source_id=source_id)

    @ray.method(concurrency_group="read")
    def stream(self, places: Mapping[int, int], limit: int) -> tuple[list[Episode], dict[int, int]]:
        """The next episodes behind a follower's place in each store, and its places behind them."""
        seqs = [places.get(shard, 0) for shard in range(self._shards.num_stores)]
        episodes, behind = self._shards.episodes_after(seqs, limit=limit)
        return episodes, dict(enumerate(behind))
