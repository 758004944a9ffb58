"""The episodic actor: documents in, passages out. Writes are ordered and durable; reading goes on beside them."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from autonomous.ingest import IngestConfig, Prepared, prepare_document
from autonomous.safety.latch import Latch
from autonomous.safety.screen import Level, SafetyScreen
from memory.embed import MiniLmEmbedder
from memory.episodic import EpisodicConfig, EpisodicMemory
from memory.types import DocumentInfo, Episode, MemoryHealth, RecallHit, Trust
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument

logger = logging.getLogger(__name__)

INDEX_IDLE_S = 0.2
INDEX_RETRY_S = 5.0


class EpisodicShell(Shell):
    """Holds a cluster's one EpisodicMemory. `ingest` is idempotent: ids are derived from content.

    Groups: the default one writes in order, "read" answers beside it, "control" always answers. A thread embeds what
    was acknowledged; until it has, keywords find a passage.
    """

    def __init__(
        self, settings_sha256: str, *, folder: Path, latch: Path, capacity: int, ingest: IngestConfig, level: Level
    ) -> None:
        super().__init__("episodic", settings_sha256)
        self._embedder = MiniLmEmbedder(num_threads=1)
        self._memory = EpisodicMemory.open(EpisodicConfig(folder=folder, capacity=capacity), embedder=self._embedder)
        self._latch = Latch.open(latch)
        self._cleaner = DataCleaner(CleanConfig())
        self._screen = SafetyScreen(level)
        self._ingest = ingest
        self._index_error = ""
        self._wake = threading.Event()
        threading.Thread(target=self._index_for_ever, name="index", daemon=True).start()

    @ray.method
    def ingest(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Clean, screen, cut and store. Returns one row per document and the commit order, after all is durable."""
        start = time.monotonic()
        guard = self._latch.permit("memory write").check
        prepared = [
            prepare_document(_decode(document), cleaner=self._cleaner, screen=self._screen, config=self._ingest)
            for document in documents
        ]
        result = self._memory.append([episode for one in prepared for episode in one.episodes], guard=guard)
        self._wake.set()
        rows = [_row(one, repeated=set(result.repeated)) for one in prepared]
        return {"documents": rows, "last_seq": result.last_seq, "acknowledged_s": time.monotonic() - start}

    @ray.method(concurrency_group="read")
    def ids_of(self, document_id: str) -> tuple[str, ...]:
        """Ids of a document's episodes."""
        return self._memory.ids_of(document_id)

    @ray.method
    def delete_document(self, document_id: str) -> tuple[str, ...]:
        """Erase a document; returns the ids of its episodes. To be called by the agent, who also erases its facts."""
        return self._memory.delete_document(document_id, guard=self._latch.permit("memory write").check)

    @ray.method(concurrency_group="read")
    def recall(self, query: str, k: int, min_cosine: float = -1.0, source_id: str | None = None) -> list[RecallHit]:
        """The k passages that answer the query best."""
        return self._memory.recall(query, k=k, min_cosine=min_cosine, source_id=source_id)

    @ray.method(concurrency_group="read")
    def embed(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors, one per text."""
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    @ray.method(concurrency_group="read")
    def documents(self, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """Documents, newest first."""
        return self._memory.documents(limit=limit, offset=offset, source_id=source_id)

    @ray.method(concurrency_group="read")
    def episodes_after(self, seq: int, limit: int) -> list[tuple[int, Episode]]:
        """Episodes in commit order, for followers (semantic memory)."""
        return self._memory.episodes_after(seq, limit=limit, min_trust=Trust.STANDARD)

    @ray.method(concurrency_group="read")
    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        """Episodes in learning order: most salient first, newest first."""
        return self._memory.freshest(limit=limit, offset=offset, min_trust=Trust.STANDARD)

    @ray.method(concurrency_group="read")
    def get(self, ids: Sequence[str]) -> list[Episode]:
        """The episodes that still exist, in the order of `ids`."""
        return self._memory.get(ids)

    @ray.method(concurrency_group="control")
    def health(self) -> MemoryHealth:
        """Sizes. Raises if indexing fails, with the reason."""
        if self._index_error:
            raise RuntimeError(f"indexing fails and is retried every {INDEX_RETRY_S:.0f} s: {self._index_error}")
        return self._memory.health()

    @ray.method(concurrency_group="control")
    def snapshot(self) -> None:
        """Save the vector index beside the database."""
        self._memory.save_index()

    def _index_for_ever(self) -> None:
        saved, is_warm = True, False
        while True:
            try:
                if not is_warm:
                    self._embedder.embed(["loads the model, so that the first question does not wait for it"])
                    is_warm = True
                num_indexed = self._memory.index_pending()
                self._index_error = ""
                if num_indexed:
                    saved = False
                    continue
                if not saved:
                    self._memory.save_index()
                    saved = True
                self._wake.wait(INDEX_IDLE_S)
                self._wake.clear()
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("indexing failed")
                self._index_error = f"{type(error).__name__}: {error}"
                time.sleep(INDEX_RETRY_S)


def _row(prepared: Prepared, *, repeated: set[str]) -> dict[str, Any]:
    """One document of the answer to POST /v1/knowledge."""
    is_repeated = bool(prepared.episodes) and all(episode.id in repeated for episode in prepared.episodes)
    return {
        "id": prepared.document_id,
        "status": "repeated" if is_repeated and prepared.status == "stored" else prepared.status,
        "reason": prepared.reason,
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
