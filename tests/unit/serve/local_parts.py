"""The parts behind the HTTP surface in one process: an echo engine, the real stores, the real stop latch."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autonomous import retraining
from autonomous.benchmark_report import BenchmarkReport, MetricScores, compare
from autonomous.jobs import SchedulesConfig
from autonomous.knowledge import KnowledgeIntegration, build_tools
from autonomous.safety.latch import Latch
from autonomous.safety.latch_state import Scope
from autonomous.schedule_book import UnknownSchedule
from autonomous.sources.config import SourceConfig
from autonomous.sources.cursors import CursorStore, UnknownSource
from autonomous.sources.stream import StreamReader
from autonomous.tools.config import KnowledgeConfig, SandboxConfig
from autonomous.tools.tool import ToolResult, ToolUnavailable, UnknownTool
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.rollout import Outcome
from memory.claims import claims_of
from memory.consolidate import Consolidation, ConsolidationConfig
from memory.enrichment import EnrichmentConfig, EnrichmentQueue, FailedEnrichment
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.management import Context, ContextConfig, MemoryManagement, NoWeights
from memory.passages import split_passages
from memory.rules import Rule
from memory.semantic import SemanticConfig, SemanticMemory
from memory.trust import SourceTrust, SourceTrusts
from memory.types import (
    Alarm,
    Belief,
    Contradiction,
    DocumentInfo,
    Episode,
    EpisodeFilter,
    Guard,
    RecallHit,
    Trust,
    episode_id,
)
from memory.working import WorkingConfig, WorkingMemory
from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateChunk, GenerateRequest
from serve.engine_echo import EchoEngine
from serve.errors import ConflictError, NotFoundError, NotReadyError
from serve.parts import Category
from serve.rag import Message
from serve.stream import WholeAnswer, collect
from tests.streams import MAX_DOCUMENT_BYTES, PassageStore
from tests.unit.serve.local_feedback import LocalFeedback

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


class LocalMemory:
    """`serve.parts.MemoryParts` in one process."""

    def __init__(self, folder: Path, *, episodic: EpisodicMemory, working: WorkingMemory, latch: Latch) -> None:
        self.episodic = episodic
        self.latch = latch
        self.working = working
        self.semantic = SemanticMemory.open(SemanticConfig(folder=folder / "semantic", alarm_facts=3))
        self.management = MemoryManagement(
            ContextConfig(),
            episodic=episodic,
            semantic=self.semantic,
            working=working,
            trusts=SourceTrusts.open(folder, default=Trust.STANDARD),
            count_tokens=lambda text: len(text.split()),
        )
        self.queue = EnrichmentQueue(EnrichmentConfig(max_attempts=1), self.semantic)
        self.consolidation = Consolidation(
            ConsolidationConfig(), episodic=episodic, semantic=self.semantic, capacity=1000, weights=NoWeights()
        )

    def guard(self) -> Guard:
        return self.latch.permit("memory write").check

    async def context(self, request: str, token_budget: int, *, session: str, where: EpisodeFilter) -> Context:
        return self.management.context_for(request, token_budget, session=session, where=where)

    async def note(self, session: str, key: str, value: str, *, ttl_s: float | None, pinned: bool) -> None:
        self.management.note(key, value, session=session, ttl_s=ttl_s, pinned=pinned)

    async def end_session(self, session: str) -> None:
        self.working.end_session(session)

    async def failed_enrichments(self, *, limit: int) -> list[FailedEnrichment]:
        return self.queue.failed(limit=limit)

    async def retry_enrichments(self) -> int:
        return self.queue.retry_failed(guard=self.guard())

    async def facts(self, about: str, *, limit: int, valid_at: float | None, recorded_at: float | None) -> list[Belief]:
        return self.semantic.about(about, limit=limit, valid_at=valid_at, recorded_at=recorded_at)

    async def contradictions(self, *, limit: int) -> list[Contradiction]:
        return self.semantic.contradictions(limit=limit)

    async def alarms(self) -> list[Alarm]:
        return self.semantic.alarms()

    async def waiting(self, *, limit: int, offset: int) -> list[Episode]:
        return self.management.waiting(limit=limit, offset=offset)

    async def sources(self) -> list[SourceTrust]:
        return self.management.trusts.decisions()

    async def believe(self, source: str, trust: Trust, *, by: str, reason: str) -> list[str]:
        return list(self.management.believe(source, trust, by=by, reason=reason, guard=self.guard()))

    async def release(self, ids: Sequence[str], *, by: str, reason: str) -> list[str]:
        return list(self.management.release(ids, guard=self.guard()))

    async def forget_source(self, source: str, *, by: str, reason: str) -> dict[str, Any]:
        report = self.management.forget(source, guard=self.guard())
        if not report.episodes:
            raise NotFoundError(f"source {source!r} has nothing stored; GET /v1/knowledge shows the sources")
        return {"deleted_episodes": len(report.episodes), "versions": list(report.versions)}

    async def rules(self) -> list[tuple[str, str]]:
        return [(rule.name, str(rule)) for rule in self.semantic.rules]

    async def add_rule(self, name: str, text: str) -> int:
        return self.semantic.add_rule(Rule.parse(name, text), guard=self.guard())

    async def remove_rule(self, name: str, *, is_erased: bool) -> None:
        if not self.semantic.remove_rule(name, is_erased=is_erased, guard=self.guard()):
            raise NotFoundError(f"there is no rule {name!r}; GET /v1/memory/rules lists them")

    async def consolidate(self) -> dict[str, Any]:
        return asdict(self.consolidation.run(guard=self.guard()))

    async def consolidations(self, *, limit: int) -> list[dict[str, Any]]:
        return [asdict(report) for report in self.consolidation.reports(limit=limit)]

    async def undo_consolidation(self, run: str, *, by: str, reason: str) -> dict[str, Any]:
        return asdict(self.consolidation.undo(run, by=f"{by}: {reason}", guard=self.guard()))


class LocalTools:
    """`serve.parts.ToolParts` in one process."""

    def __init__(self, folder: Path, *, episodic: EpisodicMemory, latch: Latch) -> None:
        self.ledger = VersionLedger(folder / "tools.sqlite")
        self.settings = KnowledgeConfig(
            min_cosine=0.2, max_prompt_chars=600, sandbox=SandboxConfig(min_isolation="interpreter")
        )
        tools = build_tools(self.settings, retrieve=episodic.recall, safety_folder=latch.path.parent)
        self.knowledge = KnowledgeIntegration(self.settings, tools=tools, latch=latch, audit=self.ledger.append_audit)

    async def describe(self) -> list[dict[str, Any]]:
        return self.knowledge.describe()

    async def config(self) -> KnowledgeConfig:
        return self.settings

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float | None, by: str) -> ToolResult:
        try:
            return await asyncio.to_thread(self.knowledge.call, tool, arguments, timeout_s=timeout_s, by=by)
        except UnknownTool as problem:
            raise NotFoundError(str(problem)) from problem
        except ToolUnavailable as problem:
            raise NotReadyError(str(problem)) from problem


class LocalSources:
    """`serve.source_parts.SourceParts` in one process; `settle` reads until nothing is due."""

    def __init__(self, folder: Path, *, latch: Latch) -> None:
        self.latch = latch
        self.store = PassageStore(folder / "passages", latch=latch)
        self.cursors = CursorStore(folder / "sources" / "cursors.sqlite")
        self.stream = StreamReader(
            self.cursors, latch=latch, ingest=self.store, home=folder, max_document_bytes=MAX_DOCUMENT_BYTES
        )

    def close(self) -> None:
        self.cursors.close()
        self.store.memory.close()

    def settle(self) -> None:
        while self.stream.step(time.monotonic()).did == "read":
            pass

    async def sources(self) -> dict[str, Any]:
        return self.stream.status(time.monotonic())

    async def add(self, config: SourceConfig, *, by: str, reason: str) -> None:
        self.stream.add(config)

    async def remove(self, source_id: str, *, by: str, reason: str) -> None:
        with self._known():
            self.stream.remove(source_id)

    async def read_now(self, source_id: str) -> None:
        with self._known():
            self.stream.read_now(source_id)

    async def refused(self, source_id: str, *, limit: int) -> list[dict[str, Any]]:
        with self._known():
            return [asdict(one) for one in self.stream.refused(source_id, limit=limit)]

    @contextmanager
    def _known(self) -> Iterator[None]:
        try:
            yield
        except UnknownSource as error:
            raise NotFoundError(str(error)) from error


class LocalSchedules:
    """`serve.parts.ScheduleParts` in one process: whatever waits is run when the runs are asked for."""

    def __init__(self, folder: Path, latch: Latch) -> None:
        self.outcome = retraining.Outcome("done", "drilled")
        self.scheduler = retraining.RetrainingScheduler(
            SchedulesConfig(), path=folder / "schedules.sqlite", latch=latch, runners={"drill": self._work}
        )

    def _work(self, job: retraining.Job) -> retraining.Outcome:
        return self.outcome

    async def schedules(self) -> dict[str, Any]:
        return {"schedules": self.scheduler.book.schedules(), "findings": self.scheduler.findings()}

    async def runs(self, name: str, *, limit: int) -> list[dict[str, Any]]:
        if (job := self.scheduler.tick()) is not None:
            self.scheduler.finish(job, self.scheduler.execute(job))
        try:
            return [run.to_dict() for run in self.scheduler.book.runs(name, limit=limit)]
        except UnknownSchedule as problem:
            raise NotFoundError(str(problem)) from problem

    async def run(self, name: str, *, by: str, reason: str, key: str | None) -> dict[str, Any]:
        try:
            return self.scheduler.ask(name, by=by, reason=reason, key=key).to_dict()
        except UnknownSchedule as problem:
            raise NotFoundError(str(problem)) from problem


class LocalReports:
    """`serve.report_routes.ReportParts` in one process: two versions; a benchmark is done when it was looked at twice."""

    def __init__(self) -> None:
        self.running: str | None = None
        self.num_looks = 0
        self.benchmarks: dict[str, BenchmarkReport] = {}
        self.error: str | None = None

    async def report(self, version_id: str) -> dict[str, Any]:
        self._check(version_id)
        self.num_looks += self.running == version_id
        if self.running == version_id and self.num_looks > 2:
            self.num_looks = 0
            self.running = None
            if self.error is None:
                self.benchmarks[version_id] = self._measured(version_id)
        found = self.benchmarks.get(version_id)
        return {
            "version": version_id,
            "benchmark": found and found.to_dict(),
            "triggers": [],
            "is_running": self.running == version_id,
            "error": self.error if self.running is None else None,
        }

    @staticmethod
    def _measured(version_id: str) -> BenchmarkReport:
        items = tuple(map(str, range(20)))
        metric = MetricScores("recall", "share", items, (1.0,) * 20, (), (0.0,) * 20)
        found = tuple(compare([metric], against="original", confidence=0.95, samples=200))
        return BenchmarkReport(version_id, None, 1.0, 2.0, 0.95, (metric,), found, None, "", "", "")

    async def page(self, version_id: str) -> str:
        self._check(version_id)
        return f"<!doctype html><title>Version {version_id}</title>"

    async def benchmark(self, version_id: str) -> str:
        self._check(version_id)
        if self.running is not None:
            raise ConflictError(f"version {self.running} is being benchmarked; try again when it is done")
        self.running = version_id
        return version_id

    def _check(self, version_id: str) -> None:
        if version_id not in ("ver-base", "ver-new"):
            raise NotFoundError(f"version {version_id!r} does not exist; GET /v1/versions lists them")


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
