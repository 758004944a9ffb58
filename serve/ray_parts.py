"""The HTTP surface's parts over Ray: named actors for memory, learning and versions, a Serve handle for the engine.

What may be repeated is repeated until the request's deadline: reads, writes that are idempotent by id, stops
(ray_calls.py), and answers of which nothing was sent (ray_engine.py).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from autonomous.feedback_config import FeedbackConfig
from autonomous.safety.latch import Latch
from autonomous.safety.latch_state import Scope
from autonomous.versions.rollout import Outcome
from autonomous.versions.schema import Pointers
from memory.types import DocumentInfo, RecallHit
from serve.engine import AdapterRef, GenerateChunk, GenerateRequest
from serve.errors import NotFoundError, NotReadyError, OverloadedError
from serve.feedback_parts import FeedbackParts
from serve.governance import GovernanceParts
from serve.parts import Category, Json, MemoryParts, ScheduleParts
from serve.rag import Message
from serve.ray_calls import ActorCalls, in_one_line
from serve.ray_engine import EngineReplicas
from serve.ray_feedback import RayFeedbackParts
from serve.ray_governance import RayGovernance
from serve.ray_memory import RayMemoryParts
from serve.ray_outcomes import OutcomeSender
from serve.ray_reports import RayReportParts
from serve.ray_schedules import RayScheduleParts
from serve.ray_sources import RaySourceParts
from serve.ray_tools import RayToolParts
from serve.report_routes import ReportParts
from serve.source_parts import SourceParts
from serve.stream import WholeAnswer
from serve.tool_parts import ToolParts

_log = logging.getLogger(__name__)

ACTORS = ("agent", "episodic", "semantic", "working", "safety")
"""Named actors that an answer or a decision needs; each has `identity()` in its control group."""
READY_TIMEOUT_S = 5.0
POINTERS_TIMEOUT_S = 2.0
"""Beyond it the last known pointers serve on: answering does not wait for a busy agent."""
PROBE_CHARS = 200
PROBE_HITS = 5
"""A new document counts as retrievable when it is among so many hits for its own opening."""


class TextCodec(Protocol):
    """The serving model's tokenizer and chat template, held by the HTTP process itself to save a hop."""

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """Messages -> prompt."""

    def count_tokens(self, text: str) -> int:
        """Length of a prompt."""


class RayParts:
    """Implements `serve.parts.Parts`. Lives in one event loop, in the ingress replica."""

    def __init__(
        self,
        engine: DeploymentHandle[Any],
        codec: TextCodec,
        *,
        timeout_s: float,
        latch: Latch | None = None,
        feedback: FeedbackConfig | None = None,
    ) -> None:
        self._calls = calls = ActorCalls(timeout_s=timeout_s)
        self._engine = EngineReplicas(engine, timeout_s=timeout_s, latch=latch)
        self._codec = codec
        self._pointers: Mapping[str, str | None] | None = None
        self._canary_percent = 0.0
        self._outcomes = OutcomeSender(lambda outcomes: self._calls.once("agent", "observe", outcomes))
        self._adapters: dict[str, AdapterRef | None] = {}
        self._probe: asyncio.Task[None] | None = None
        self._retrieval_delay_s: float | None = None
        self.memory: MemoryParts = RayMemoryParts(calls)
        self.tools: ToolParts = RayToolParts(calls)
        self.sources: SourceParts = RaySourceParts(calls)
        self.feedback: FeedbackParts = RayFeedbackParts(calls, config=feedback or FeedbackConfig())
        self.governance: GovernanceParts = RayGovernance(calls)
        self.schedules: ScheduleParts = RayScheduleParts(calls)
        self.reports: ReportParts = RayReportParts(calls)

    # --- engine ---------------------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """See Parts."""
        return self._engine.generate(request)

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        """See Parts."""
        return await self._engine.complete(request)

    async def render_chat(self, messages: Sequence[Message]) -> str:
        """See Parts."""
        return self._codec.render_chat(list(messages))

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See Parts."""
        return [self._codec.count_tokens(text) for text in texts]

    # --- versions -------------------------------------------------------------------------------------------------

    async def pointers(self) -> Mapping[str, str | None]:
        """See Parts. While the agent restarts the last known pointers serve on: answering does not depend on it."""
        if self._pointers is None:
            self._keep(await self._calls.call("agent", "pointers"))
        else:
            try:
                self._keep(await asyncio.wait_for(self._calls.once("agent", "pointers"), timeout=POINTERS_TIMEOUT_S))
            except (RayActorError, NotReadyError, OverloadedError, TimeoutError) as problem:
                _log.warning("the agent does not answer, the last pointers are used: %s", type(problem).__name__)
        assert self._pointers is not None
        return self._pointers

    def _keep(self, pointers: Pointers) -> None:
        self._pointers = {"v1": pointers.v1, "v2": pointers.v2, "v3": pointers.v3}
        self._canary_percent = pointers.canary_percent

    async def canary_percent(self) -> float:
        """See Parts."""
        return self._canary_percent

    def observe(self, outcome: Outcome) -> None:
        """See Parts."""
        self._outcomes.observe(outcome)

    async def version_adapter(self, version_id: str) -> AdapterRef | None:
        """See Parts. A version never changes, so its adapter is remembered."""
        if version_id not in self._adapters:
            self._adapters[version_id] = await self._calls.call("agent", "version_adapter", version_id)
        return self._adapters[version_id]

    async def versions(self) -> Json:
        """See Parts."""
        return dict(await self._calls.call("agent", "versions"))

    async def version(self, version_id: str) -> Json:
        """See Parts."""
        return dict(await self._calls.call("agent", "version", version_id))

    async def rollback(self, *, reason: str, by: str, keep_passages: bool) -> Json:
        """See Parts."""
        return dict(await self._calls.act("agent", "rollback", reason, by, keep_passages))

    async def unlock(self, *, reason: str, by: str) -> None:
        """See Parts."""
        await self._calls.act("agent", "unlock", reason, by)

    # --- knowledge ------------------------------------------------------------------------------------------------

    async def ingest(self, documents: Sequence[Json]) -> Json:
        """See Parts. Idempotent by content, so it is repeated after a crash of the store."""
        start = time.monotonic()
        result: Json = await self._calls.call("episodic", "ingest", list(documents))
        if (self._probe is None or self._probe.done()) and result["documents"][-1]["status"] == "stored":
            document_id, text = result["documents"][-1]["id"], str(documents[-1]["text"])
            self._probe = asyncio.create_task(self._measure_retrieval_delay(document_id, text, start))
        return result

    async def _measure_retrieval_delay(self, document_id: str, text: str, start: float) -> None:
        """Seconds from a document's arrival until a search for its opening finds it; for the status page."""
        try:
            hits = await self._calls.once("episodic", "recall", text[:PROBE_CHARS], PROBE_HITS)
        except Exception as problem:
            _log.info("retrieval delay not measured: %s", type(problem).__name__)
            return
        if any(hit.episode.document_id == document_id for hit in hits):
            self._retrieval_delay_s = round(time.monotonic() - start, 3)

    async def documents(self, *, limit: int, offset: int, source: str | None) -> list[DocumentInfo]:
        """See Parts."""
        return list(await self._calls.call("episodic", "documents", limit, offset, source))

    async def delete_document(self, document_id: str) -> Json:
        """See Parts. The agent erases, because it also knows who learned the document."""
        result: Json = await self._calls.call("agent", "forget_document", document_id)
        if not result["deleted_episodes"]:
            raise NotFoundError(f"document {document_id!r} is not stored; GET /v1/knowledge lists the ids")
        return result

    async def search(self, query: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        """See Parts."""
        return list(await self._calls.call("episodic", "recall", query, k, min_cosine))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See Parts."""
        return list(await self._calls.call("episodic", "embed", list(texts)))

    async def remember(self, session: str, key: str, value: str) -> None:
        """See Parts."""
        await self._calls.call("working", "put", session, key, value)

    async def recall_session(self, session: str, key: str) -> str | None:
        """See Parts."""
        value: str | None = await self._calls.call("working", "get", session, key)
        return value

    # --- learning and safety --------------------------------------------------------------------------------------

    async def learn(self, *, by: str | None) -> str:
        """See Parts."""
        return str(await self._calls.act("agent", "learn", by))

    async def learn_next(self) -> Json:
        """See Parts."""
        return dict(await self._calls.call("agent", "learn_next"))

    async def learn_status(self, run_id: str) -> Json:
        """See Parts."""
        return dict(await self._calls.call("agent", "learn_status", run_id))

    async def safety_status(self) -> Json:
        """See Parts."""
        return dict(await self._calls.call("safety", "status"))

    async def stop(self, *, reason: str, by: str, category: Category, scope: Scope) -> Json:
        """See Parts."""
        return dict(await self._calls.call("safety", "stop", reason, by, category, scope))

    async def reset(self, *, reason: str, by: str) -> Json:
        """See Parts."""
        return dict(await self._calls.act("safety", "reset", reason, by))

    # --- state ----------------------------------------------------------------------------------------------------

    async def status(self) -> Json:
        """See Parts. The engine's counters and the retrieval delay are added to what the agent knows."""
        state = dict(await self._calls.call("agent", "status"))
        state["delays"] = {"retrieval_s": self._retrieval_delay_s, **state.get("delays", {})}
        try:
            state["engine"] = await self._engine.stats(timeout_s=READY_TIMEOUT_S)
        except Exception as problem:
            state["engine"] = {"error": in_one_line(problem)}
        return state

    async def audit(self, limit: int) -> Json:
        """See Parts."""
        return dict(await self._calls.call("agent", "audit", limit))

    async def ready(self) -> Json:
        """See Parts."""
        names = ("engine", *ACTORS)
        reasons = await asyncio.gather(self._engine_state(), *(self._actor_state(name) for name in ACTORS))
        return {"ready": all(reason == "ready" for reason in reasons), "parts": dict(zip(names, reasons, strict=True))}

    async def _actor_state(self, name: str) -> str:
        try:
            await asyncio.wait_for(self._calls.once(name, "identity"), timeout=READY_TIMEOUT_S)
        except Exception as problem:
            return in_one_line(problem)
        return "ready"

    async def _engine_state(self) -> str:
        try:
            stats = await self._engine.stats(timeout_s=READY_TIMEOUT_S)
        except Exception as problem:
            return in_one_line(problem)
        return "ready" if stats["num_replicas"] else "no replica answers"
