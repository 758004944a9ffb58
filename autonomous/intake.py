"""Intake: documents flow in as POST /v1/knowledge has them, durable passages and one row per document flow out."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from autonomous.ingest import IngestConfig, Prepared, prepare_document, stale_passages
from autonomous.safety.screen import Level, SafetyScreen
from memory.protocols import Episodes
from memory.trust import SourceTrusts
from memory.types import Guard, Trust
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument


class Intake:
    """Cleans, screens, cuts and stores. Idempotent: ids are derived from content. One caller at a time."""

    def __init__(self, config: IngestConfig, *, store: Episodes, trusts: SourceTrusts, level: Level) -> None:
        self._config = config
        self._store = store
        self._trusts = trusts
        self._cleaner = DataCleaner(CleanConfig())
        self._screen = SafetyScreen(level)

    def ingest(self, documents: Sequence[Mapping[str, Any]], *, guard: Guard) -> dict[str, Any]:
        """One row per document and the commit order, after all is durable. `guard` is asked right before the commit.

        A document has "text" (text or bytes) and may have id, source, title, media_type, happened_at, metadata.
        """
        return self._store_all(documents, guard=guard)[1]

    def follow(
        self,
        documents: Sequence[Mapping[str, Any]],
        removed: Sequence[str],
        *,
        guard: Guard,
    ) -> dict[str, Any]:
        """`ingest` for a source that is read on: a document takes the place of its earlier versions, and what the source has
        `removed` leaves recall and learning. Idempotent.
        """
        prepared, answer = self._store_all(documents, guard=guard)
        stale = stale_passages(prepared, ids_of=self._store.ids_of)
        stale += [key for document_id in removed for key in self._store.ids_of(document_id)]
        if stale:
            self._store.retire(stale, guard=guard)
        return answer

    def _store_all(
        self, documents: Sequence[Mapping[str, Any]], *, guard: Guard
    ) -> tuple[list[Prepared], dict[str, Any]]:
        start = time.monotonic()
        prepared = [
            prepare_document(decode_document(document), cleaner=self._cleaner, screen=self._screen, config=self._config)
            for document in documents
        ]
        episodes = [episode for one in prepared for episode in one.episodes]
        result = self._trusts.append(self._store, episodes, guard=guard)
        held = {source for source in {one.source_id for one in episodes} if self._trusts.of(source) < Trust.STANDARD}
        waiting = {episode.document_id for episode in episodes if episode.source_id in held}
        rows = [_row(one, repeated=set(result.repeated), waiting=waiting) for one in prepared]
        return prepared, {
            "documents": rows,
            "last_seq": result.last_seq,
            "acknowledged_s": time.monotonic() - start,
        }


def decode_document(document: Mapping[str, Any]) -> RawDocument:
    """One document of POST /v1/knowledge."""
    return RawDocument(
        id=str(document.get("id") or ""),
        source_id=str(document.get("source") or "api"),
        title=str(document.get("title") or ""),
        content=document["text"],
        media_type=document.get("media_type"),
        happened_at=float(document.get("happened_at") or time.time()),
        metadata={str(key): str(value) for key, value in (document.get("metadata") or {}).items()},
    )


def encode_document(document: RawDocument) -> dict[str, Any]:
    """A document that a source gave, as Intake takes it."""
    return {
        "id": document.id,
        "source": document.source_id,
        "title": document.title,
        "text": document.content,
        "media_type": document.media_type,
        "happened_at": document.happened_at,
        "metadata": dict(document.metadata),
    }


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
