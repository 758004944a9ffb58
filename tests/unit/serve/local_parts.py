"""The parts behind the HTTP surface in one process: an echo engine, the real stores, the real stop latch."""

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autonomous.safety.latch import Latch
from autonomous.safety.latch_state import Scope
from autonomous.versions.rollout import Outcome
from memory.claims import claims_of
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.passages import split_passages
from memory.types import (
    DocumentInfo,
    Episode,
    RecallHit,
    episode_id,
)
from memory.working import WorkingConfig, WorkingMemory
from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateChunk, GenerateRequest
from serve.engine_echo import EchoEngine
from serve.errors import ConflictError, NotFoundError
from serve.parts import Category
from serve.rag import Message
from serve.stream import WholeAnswer, collect
from tests.unit.serve.local_feedback import LocalFeedback
from tests.unit.serve.local_memory import LocalMemory
from tests.unit.serve.local_reports import LocalReports
from tests.unit.serve.local_schedules import LocalSchedules
from tests.unit.serve.local_sources import LocalSources
from tests.unit.serve.local_tools import LocalTools

MAX_MODEL_LEN = 400


class HashingEmbedder:
    """Bag of words hashed to 64 dimensions: similar words, similar vectors."""

    dimension = 64
    name = "hashing-64"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace("?", " ").replace(".", " ").split():
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % self.dimension] += 1
            vectors[row, 0] += 1e-3
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class LocalParts:
    """`serve.parts.Parts` in one process. `fail_with`, when set, is raised by the engine before its first piece."""

    def __init__(self, folder: Path) -> None:
        self.engine = EchoEngine(EngineConfig(kind="echo", max_model_len=MAX_MODEL_LEN), model_folder=folder)
        self.embedder = HashingEmbedder()
        self.episodic = EpisodicMemory.open(EpisodicConfig(folder=folder / "episodic"), embedder=self.embedder)
        self.working = WorkingMemory(WorkingConfig())
        Latch.create(folder / "latch")
        self.latch = Latch.open(folder / "latch")
        self.memory = LocalMemory(folder, episodic=self.episodic, working=self.working, latch=self.latch)
        self.tools = LocalTools(folder, episodic=self.episodic, latch=self.latch)
        (folder / "home").mkdir()
        self.sources = LocalSources(folder / "home", latch=self.latch)
        self.feedback = LocalFeedback(parts=self)
        self.governance: Any = self
        self.schedules = LocalSchedules(folder, self.latch)
        self.reports = LocalReports()
        self.fail_with: Exception | None = None
        self.searched: list[str] = []
        self.is_ready = True
        self.run_id: str | None = None
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
        adapter = AdapterRef(name="ver-new", number=1, folder=str(folder / "adapter"))
        self.adapters: dict[str, AdapterRef | None] = {"ver-base": None, "ver-new": adapter}
        self.slots: dict[str, str | None] = {"v1": "ver-new", "v2": "ver-base", "v3": None}
        self.percent = 0.0
        self.outcomes: list[Outcome] = []

    def close(self) -> None:
        self.episodic.close()
        self.sources.close()
        self.memory.semantic.close()
        self.feedback.close()
        self.schedules.scheduler.close()
        self.memory.management.trusts.close()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        if self.fail_with is not None:
            raise self.fail_with
        async with aclosing(self.engine.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        return await collect(self.generate(request))

    async def render_chat(self, messages: Sequence[Message]) -> str:
        return self.engine.render_chat(list(messages))

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [self.engine.count_tokens(text) for text in texts]

    async def pointers(self) -> Mapping[str, str | None]:
        return self.slots

    async def canary_percent(self) -> float:
        return self.percent

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    async def version_adapter(self, version_id: str) -> AdapterRef | None:
        return self.adapters[version_id]

    async def versions(self) -> dict[str, Any]:
        return {"pointers": self.slots, "versions": [await self.version(name) for name in reversed(self.adapters)]}

    async def version(self, version_id: str) -> dict[str, Any]:
        if version_id not in self.adapters:
            raise NotFoundError(f"version {version_id!r} does not exist; GET /v1/versions lists them")
        adapter = self.adapters[version_id]
        return {
            "id": version_id,
            "state": "PRODUCTION" if self.slots["v2"] == version_id else "SHADOW",
            "parent": None if version_id == "ver-base" else "ver-base",
            "adapter_number": adapter and adapter.number,
            "created_at": 1_700_000_000.5,
            "lineage": ["ver-base"],
        }

    async def rollback(self, *, reason: str, by: str, keep_passages: bool) -> dict[str, Any]:
        if self.slots["v2"] == "ver-base":
            raise ConflictError("V2 is the frozen original: there is nothing to roll back to")
        bad, self.slots = self.slots["v2"], {"v1": "ver-base", "v2": "ver-base", "v3": self.slots["v2"]}
        return {"from": bad, "to": "ver-base", "seconds": 0.0}

    async def unlock(self, *, reason: str, by: str) -> None:
        raise ValueError("promotions are not frozen by rollbacks: there is nothing to unlock")

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        await self.version(version_id)
        self.slots = {"v1": version_id, "v2": version_id, "v3": None}

    async def ingest(self, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        guard = self.latch.permit("memory write").check
        rows, episodes = [], []
        for document in documents:
            key = document.get("id") or hashlib.sha256(document["text"].encode()).hexdigest()[:16]
            own = [
                Episode(
                    id=episode_id(key, position, text),
                    document_id=key,
                    source_id=document.get("source", "api"),
                    title=document.get("title", key),
                    text=text,
                    position=position,
                    happened_at=document.get("happened_at", time.time()),
                )
                for position, text in enumerate(split_passages(document["text"]))
            ]
            known = self.episodic.has([episode.id for episode in own])
            status = "repeated" if own and len(known) == len(own) else "stored" if own else "rejected"
            rows.append(
                {"id": key, "status": status, "reason": None if own else "empty text", "num_episodes": len(own)}
            )
            episodes += own
        result = self.episodic.append(episodes, guard=guard)
        self.episodic.index_pending()
        self.memory.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
        return {"documents": rows, "last_seq": result.last_seq, "acknowledged_s": 0.001}

    async def documents(self, *, limit: int, offset: int, source: str | None) -> list[DocumentInfo]:
        return self.episodic.documents(limit=limit, offset=offset, source_id=source)

    async def delete_document(self, document_id: str) -> dict[str, Any]:
        deleted = self.episodic.delete_document(document_id, guard=self.latch.permit("memory write").check)
        if not deleted:
            raise NotFoundError(f"document {document_id!r} is not stored; GET /v1/knowledge lists the ids")
        return {"deleted_episodes": len(deleted), "versions": []}

    async def search(self, query: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        self.searched.append(query)
        return self.episodic.recall(query, k=k, min_cosine=min_cosine)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.embedder.embed(texts).tolist()
        return vectors

    async def remember(self, session: str, key: str, value: str) -> None:
        self.working.put(key, value, session=session)

    async def recall_session(self, session: str, key: str) -> str | None:
        value = self.working.get(key, session=session)
        return None if value is None else str(value)

    async def learn(self, *, by: str | None) -> str:
        self.latch.permit("learning")
        if self.run_id is not None:
            raise ConflictError(f"run {self.run_id} is under way; wait for it")
        self.run_id = "run-000000000001"
        return self.run_id

    async def learn_next(self) -> dict[str, Any]:
        return {"num_pending": self.episodic.health().num_episodes, "episodes": [], "questions": []}

    async def learn_status(self, run_id: str) -> dict[str, Any]:
        if run_id != self.run_id:
            raise NotFoundError(f"no learning run {run_id!r}; POST /v1/learn starts one")
        return {"run_id": run_id, "phase": "training", "step": 3, "num_steps": 24, "loss": 1.5}

    async def safety_status(self) -> dict[str, Any]:
        return asdict(self.latch.state())

    async def stop(self, *, reason: str, by: str, category: Category, scope: Scope) -> dict[str, Any]:
        getattr(self.latch, category)(reason=reason, by=by, scope=scope)
        return await self.safety_status()

    async def reset(self, *, reason: str, by: str) -> dict[str, Any]:
        self.latch.reset(reason=reason, by=by)
        return await self.safety_status()

    async def status(self) -> dict[str, Any]:
        return {"pointers": self.slots, "memory": asdict(self.episodic.health()), "safety": await self.safety_status()}

    async def audit(self, limit: int) -> dict[str, Any]:
        return {"rows": [], "ok": True}

    async def ready(self) -> dict[str, Any]:
        return {"ready": self.is_ready, "parts": {"engine": "ready" if self.is_ready else "starting"}}
