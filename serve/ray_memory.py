"""MemoryParts over the semantic, working and agent actors."""

from collections.abc import Sequence

from memory.enrichment import FailedEnrichment
from memory.management import Context
from memory.trust import SourceTrust
from memory.types import Alarm, Belief, Contradiction, Episode, EpisodeFilter, Trust
from serve.errors import NotFoundError
from serve.parts import Json
from serve.ray_calls import ActorCalls


class RayMemoryParts:
    """Implements `serve.parts.MemoryParts`."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def context(self, request: str, token_budget: int, *, session: str, where: EpisodeFilter) -> Context:
        """See MemoryParts."""
        context: Context = await self._calls.call("semantic", "context_for", request, token_budget, session, where)
        return context

    async def note(self, session: str, key: str, value: str, *, ttl_s: float | None, pinned: bool) -> None:
        """See MemoryParts."""
        await self._calls.call("working", "put", session, key, value, ttl_s, pinned)

    async def end_session(self, session: str) -> None:
        """See MemoryParts."""
        await self._calls.call("working", "end_session", session)

    async def failed_enrichments(self, *, limit: int) -> list[FailedEnrichment]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "failed_enrichments", limit))

    async def retry_enrichments(self) -> int:
        """See MemoryParts."""
        return int(await self._calls.call("semantic", "retry_enrichments"))

    async def facts(self, about: str, *, limit: int, valid_at: float | None, recorded_at: float | None) -> list[Belief]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "about", about, limit, valid_at, recorded_at))

    async def contradictions(self, *, limit: int) -> list[Contradiction]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "contradictions", limit))

    async def alarms(self) -> list[Alarm]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "alarms"))

    async def waiting(self, *, limit: int, offset: int) -> list[Episode]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "waiting", limit, offset))

    async def sources(self) -> list[SourceTrust]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "sources"))

    async def believe(self, source: str, trust: Trust, *, by: str, reason: str) -> list[str]:
        """See MemoryParts. Idempotent, so it is repeated."""
        return list(await self._calls.call("semantic", "believe", source, int(trust), by, reason))

    async def release(self, ids: Sequence[str], *, by: str, reason: str) -> list[str]:
        """See MemoryParts. Idempotent, so it is repeated."""
        return list(await self._calls.call("semantic", "release", list(ids), by, reason))

    async def forget_source(self, source: str, *, by: str, reason: str) -> Json:
        """See MemoryParts."""
        result: Json = await self._calls.call("agent", "forget_source", source, by, reason)
        if not result["deleted_episodes"]:
            raise NotFoundError(f"source {source!r} has nothing stored; GET /v1/knowledge shows the sources")
        return result

    async def rules(self) -> list[tuple[str, str]]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "rules"))

    async def add_rule(self, name: str, text: str) -> int:
        """See MemoryParts."""
        return int(await self._calls.call("semantic", "add_rule", name, text))

    async def remove_rule(self, name: str, *, is_erased: bool) -> None:
        """See MemoryParts."""
        if not await self._calls.call("semantic", "remove_rule", name, is_erased):
            raise NotFoundError(f"there is no rule {name!r}; GET /v1/memory/rules lists them")

    async def consolidate(self) -> Json:
        """See MemoryParts."""
        return dict(await self._calls.act("semantic", "consolidate"))

    async def consolidations(self, *, limit: int) -> list[Json]:
        """See MemoryParts."""
        return list(await self._calls.call("semantic", "consolidations", limit))

    async def undo_consolidation(self, run: str, *, by: str, reason: str) -> Json:
        """See MemoryParts."""
        return dict(await self._calls.act("semantic", "undo_consolidation", run, f"{by}: {reason}"))
