"""The routes of the memory: contexts, notes, facts, trust in sources, erasure, consolidation."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from memory.types import Belief, EpisodeFilter
from serve.parts import MemoryParts
from serve.schemas import DeleteResponse, Signed
from serve.schemas_memory import (
    AlarmList,
    BeliefList,
    ChangedEpisodes,
    ContextRequest,
    ContextResponse,
    ContradictionList,
    ForgetRequest,
    NoteRequest,
    ReleaseRequest,
    RuleIn,
    RuleList,
    SourceList,
    TrustRequest,
    WaitingList,
)

Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows.")]
Offset = Annotated[int, Query(ge=0)]
Moment = Annotated[
    float | None, Query(allow_inf_nan=False, description="Seconds since the epoch; the latest when absent.")
]


def build_memory_router(memory: MemoryParts) -> APIRouter:
    """All routes below /v1/memory, and /v1/facts."""
    router = APIRouter(prefix="/v1", tags=["Memory"])
    _add_questions(router, memory)
    _add_changes(router, memory)
    return router


def _add_questions(router: APIRouter, memory: MemoryParts) -> None:
    @router.post("/memory/context", response_model=ContextResponse)
    async def context(body: ContextRequest) -> Any:
        """What fits a request within a token budget: of the session's mind, of facts, of passages."""
        where = EpisodeFilter(
            source_ids=None if body.sources is None else tuple(body.sources),
            happened_from=body.happened_from,
            happened_before=body.happened_before,
            metadata=body.metadata,
        )
        return await memory.context(body.request, body.token_budget, session=body.session or "", where=where)

    @router.get("/facts", response_model=BeliefList)
    async def facts(
        about: Annotated[str, Query(min_length=1, max_length=500)],
        valid_at: Moment = None,
        recorded_at: Moment = None,
        limit: Limit = 20,
    ) -> Any:
        """What is held about a concept, with the sentence that says it; also as of a moment of the world or of the record."""
        found = await memory.facts(about, limit=limit, valid_at=valid_at, recorded_at=recorded_at)
        return {"facts": [_row(belief) for belief in found]}

    @router.get("/memory/contradictions", response_model=ContradictionList)
    async def contradictions(limit: Limit = 100) -> Any:
        """Facts that cannot all hold, newest first; the one that is believed is first in each group."""
        found = await memory.contradictions(limit=limit)
        return {"contradictions": [[_row(belief) for belief in group.beliefs] for group in found]}

    @router.get("/memory/alarms", response_model=AlarmList)
    async def alarms() -> Any:
        """Sources that contradict many facts of others."""
        return {"alarms": await memory.alarms()}

    @router.get("/memory/waiting", response_model=WaitingList)
    async def waiting(limit: Limit = 100, offset: Offset = 0) -> Any:
        """Episodes that are neither recalled nor learned until they are released."""
        return {"episodes": await memory.waiting(limit=limit, offset=offset)}

    @router.get("/memory/sources", response_model=SourceList)
    async def sources() -> Any:
        """Decisions about sources."""
        return {"sources": await memory.sources()}

    @router.get("/memory/enrichments/failed")
    async def failed_enrichments(limit: Limit = 100) -> dict[str, Any]:
        """Texts that the model could not read, with the last error."""
        return {"failed": [asdict(one) for one in await memory.failed_enrichments(limit=limit)]}

    @router.get("/memory/rules", response_model=RuleList)
    async def rules() -> Any:
        """The rules that derive facts."""
        return {"rules": [{"name": name, "text": text} for name, text in await memory.rules()]}

    @router.get("/memory/consolidations")
    async def consolidations(limit: Limit = 20) -> dict[str, Any]:
        """The last runs of consolidation and what each changed, newest first."""
        return {"runs": await memory.consolidations(limit=limit)}


def _add_changes(router: APIRouter, memory: MemoryParts) -> None:
    @router.post("/memory/notes", status_code=204)
    async def note(body: NoteRequest) -> None:
        """Hold something in a session's mind."""
        await memory.note(body.session, body.key, body.value, ttl_s=body.ttl_s, pinned=body.pinned)

    @router.delete("/memory/notes/{session:path}", status_code=204)
    async def end_session(session: str) -> None:
        """Forget all that a session holds in mind, pinned notes too."""
        await memory.end_session(session)

    @router.post("/memory/enrichments/retry")
    async def retry_enrichments() -> dict[str, int]:
        """Send the texts that the model could not read back into the queue."""
        return {"num_queued": await memory.retry_enrichments()}

    @router.post("/memory/forget", response_model=DeleteResponse)
    async def forget(body: ForgetRequest) -> Any:
        """Erase all that a source has said from every store; names the versions whose weights had learned it."""
        return await memory.forget_source(body.source, by=body.by, reason=body.reason)

    @router.put("/memory/sources/{source:path}", response_model=ChangedEpisodes)
    async def believe(source: Annotated[str, Path(min_length=1, max_length=256)], body: TrustRequest) -> Any:
        """Believe a source so far from now on, and all that it has said."""
        return {"episodes": await memory.believe(source, body.level(), by=body.by, reason=body.reason)}

    @router.post("/memory/release", response_model=ChangedEpisodes)
    async def release(body: ReleaseRequest) -> Any:
        """Let episodes that wait be recalled and learned."""
        return {"episodes": await memory.release(body.ids, by=body.by, reason=body.reason)}

    @router.post("/memory/rules", status_code=201)
    async def add_rule(body: RuleIn) -> dict[str, int]:
        """Keep a rule, in place of one of the same name."""
        return {"num_derived": await memory.add_rule(body.name, body.text)}

    @router.delete("/memory/rules/{name:path}", status_code=204)
    async def remove_rule(name: str, erase: bool = False) -> None:
        """Apply a rule no longer, and drop what only it derives. Questions as of earlier still find that, unless the rule is
        erased.
        """
        await memory.remove_rule(name, is_erased=erase)

    @router.post("/memory/consolidations", status_code=201)
    async def consolidate() -> dict[str, Any]:
        """Consolidate now; answers when it has ended."""
        return await memory.consolidate()

    @router.post("/memory/consolidations/{run}/undo")
    async def undo(run: str, body: Signed) -> dict[str, Any]:
        """Take a run back: what it changed is as it was."""
        return await memory.undo_consolidation(run, by=body.by, reason=body.reason)


def _row(belief: Belief) -> dict[str, Any]:
    fact = belief.fact
    return {
        "subject": fact.subject,
        "relation": fact.relation,
        "object": fact.object,
        "sentence": fact.sentence,
        "episode_id": fact.episode_id,
        "trust": int(belief.trust),
        "confidence": belief.confidence,
        "valid_from": belief.valid_from,
        "valid_to": belief.valid_to,
        "recorded_at": belief.recorded_at,
        "rule": belief.rule,
    }
