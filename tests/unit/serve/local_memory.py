"""`serve.parts.MemoryParts` in one process."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autonomous.safety.latch import Latch
from memory.consolidate import Consolidation, ConsolidationConfig
from memory.enrichment import EnrichmentConfig, EnrichmentQueue, FailedEnrichment
from memory.episodic import EpisodicMemory
from memory.management import Context, ContextConfig, MemoryManagement, NoWeights
from memory.rules import Rule
from memory.semantic import SemanticConfig, SemanticMemory
from memory.trust import SourceTrust, SourceTrusts
from memory.types import (
    Alarm,
    Belief,
    Contradiction,
    Episode,
    EpisodeFilter,
    Guard,
    Trust,
)
from memory.working import WorkingMemory
from serve.errors import NotFoundError


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
