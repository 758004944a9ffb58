"""The episodic actor: documents in, passages out. Writes are ordered and durable; reading goes on beside them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.stores import StoreHost, StoreShell, episodic_config, open_trusts, remote_store, shard_name
from autonomous.ingest import IngestConfig, Prepared, prepare_document, stale_passages
from autonomous.safety.screen import Level, SafetyScreen
from memory.embed import MiniLmEmbedder
from memory.protocols import EpisodeStore
from memory.recall import ANY_EPISODE
from memory.settings import MemorySettings
from memory.shards import EpisodicShards
from memory.types import DocumentInfo, Episode, EpisodeFilter, RecallHit, Trust
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument


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
        self._trusts = open_trusts(folder, settings)
        self._cleaner = DataCleaner(CleanConfig())
        self._screen = SafetyScreen(level)
        self._ingest = ingest

    @ray.method
    def ingest(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Clean, screen, cut and store. Returns one row per document and the commit order, after all is durable."""
        return self._store_all(documents)[1]

    @ray.method
    def follow(self, documents: list[dict[str, Any]], removed: list[str]) -> dict[str, Any]:
        """`ingest` for a source that is read on: a document takes the place of its earlier versions, and what the source has
        `removed` leaves recall and learning. Idempotent.
        """
        prepared, answer = self._store_all(documents)
        stale = stale_passages(prepared, ids_of=self._shards.ids_of)
        stale += [key for document_id in removed for key in self._shards.ids_of(document_id)]
        if stale:
            self._shards.retire(stale, guard=self._latch.permit("memory write").check)
        return answer

    def _store_all(self, documents: list[dict[str, Any]]) -> tuple[list[Prepared], dict[str, Any]]:
        start = time.monotonic()
        guard = self._latch.permit("memory write").check
        prepared = [
            prepare_document(_decode(document), cleaner=self._cleaner, screen=self._screen, config=self._ingest)
            for document in documents
        ]
        episodes = [episode for one in prepared for episode in one.episodes]
        result = self._trusts.append(self._shards, episodes, guard=guard)
        if self._host is not None:
            self._host.wake.set()
        held = {source for source in {one.source_id for one in episodes} if self._trusts.of(source) < Trust.STANDARD}
        waiting = {episode.document_id for episode in episodes if episode.source_id in held}
        rows = [_row(one, repeated=set(result.repeated), waiting=waiting) for one in prepared]
        return prepared, {
            "documents": rows,
            "last_seq": result.last_seq,
            "acknowledged_s": time.monotonic() - start,
        }

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


def _row(prepared: Prepared, *, repeated: set[str], waiting: set[str]) -> dict[str, Any]:
    """One document of the answer to POST /v1/knowledge."""
    status: str = prepared.status
    reason = prepared.reason
    if status == "stored" and prepared.document_id in waiting:
        status, reason = "quarantined", "its source is not trusted: it waits until it is released"
    elif status == "stored" and prepared.episodes and all(one.id in repeated for one in prepared.episodes):
        status = "repeated"
    return {
        "id": prepared.document_id,
        "status": status,
        "reason": reason,
        "num_episodes": len(prepared.episodes),
        "counts": dict(prepared.counts),
    }


def _decode(document: Mapping[str, Any]) -> RawDocument:
    """One document of POST /v1/knowledge."""
    source_id = str(document.get("source") or "api")
    return RawDocument(
        id=str(document.get("id") or ""),
        source_id=source_id,
        title=str(document.get("title") or ""),
        content=document["text"],
        media_type=document.get("media_type"),
        happened_at=float(document.get("happened_at") or time.time()),
        metadata={str(key): str(value) for key, value in (document.get("metadata") or {}).items()},
    )
