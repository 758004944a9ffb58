"""The HTTP surface's parts over Ray: named actors for memory, learning and versions, a Serve handle for the engine.

Handles are looked up by name when they are first needed and again after an actor died. What may be repeated is repeated
until the request's deadline: reads, writes that are idempotent by id, stops, and answers of which nothing was sent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from actors.base import NAMESPACE
from autonomous.feedback_config import FeedbackConfig
from autonomous.safety.latch import Latch, Scope
from autonomous.versions.rollout import Outcome
from autonomous.versions.schema import Pointers
from memory.store import no_guard
from memory.types import DocumentInfo, Guard, RecallHit
from serve.engine import AdapterRef, EngineDeadError, GenerateChunk, GenerateRequest
from serve.errors import (
    ConflictError,
    ErasureError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    StorageAwayError,
    StorageFullError,
)
from serve.feedback_parts import FeedbackParts
from serve.governance import GovernanceParts
from serve.parts import Category, Json, MemoryParts, ScheduleParts
from serve.rag import Message
from serve.ray_feedback import RayFeedbackParts
from serve.ray_governance import RayGovernance
from serve.ray_memory import RayMemoryParts
from serve.ray_outcomes import OutcomeSender
from serve.ray_reports import RayReportParts
from serve.ray_schedules import RayScheduleParts
from serve.ray_sources import RaySourceParts
from serve.ray_tools import RayToolParts
from serve.report_routes import ReportParts
from serve.router import RetryOn, call_with_retry, stream_with_retry
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
SUMMED_STATS = ("num_requests", "num_output_tokens", "num_running", "memory_bytes")
RETRY_ACTOR: RetryOn = (RayActorError, NotReadyError)
RETRY_ENGINE: RetryOn = (RayActorError, EngineDeadError, ReplicaUnavailableError)

CAUSES: Mapping[str, type[Exception]] = {
    "UnknownVersion": NotFoundError,
    "UnknownRun": NotFoundError,
    "UnknownSource": NotFoundError,
    "UnknownSchedule": NotFoundError,
    "AlreadyLearning": ConflictError,
    "AlreadyBenchmarking": ConflictError,
    "NothingToLearn": ConflictError,
    "NothingToRollBack": ConflictError,
    "BudgetExceeded": OverloadedError,
    "ClockWentBack": ConflictError,
    "PromotionRefused": ConflictError,
    "StaleTransition": ConflictError,
    "IllegalTransition": ConflictError,
    "DuplicateVersion": ConflictError,
    "LedgerNotReady": NotReadyError,
    "WorkingMemoryFull": ConflictError,
    "StoreFull": StorageFullError,
    "ErasureIncomplete": ErasureError,
    "ActorMissing": NotReadyError,
    "LatchChanged": ConflictError,
    "SecondPersonNeeded": ConflictError,
    "NothingRequested": ConflictError,
    "StoreAway": StorageAwayError,
    "UnknownTool": NotFoundError,
    "ToolUnavailable": NotReadyError,
    "UnknownResponse": NotFoundError,
    "FeedbackFull": OverloadedError,
    "OnlyGenerated": ConflictError,
}
"""The actors' typed errors by class name: importing them would load the learner's torch into the HTTP process."""


class TextCodec(Protocol):
    """The serving model's tokenizer and chat template, held by the HTTP process itself to save a hop."""

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """Messages -> prompt."""

    def count_tokens(self, text: str) -> int:
        """Length of a prompt."""


def unwrap(problem: BaseException) -> BaseException:
    """A Ray error -> what the remote side raised, or our typed error for it. Others are returned as they are."""
    if isinstance(problem, RayTaskError):
        cause = problem.cause if isinstance(problem.cause, BaseException) else problem
        kind = next((CAUSES[base.__name__] for base in type(cause).__mro__ if base.__name__ in CAUSES), None)
        if kind is not None:
            return kind(str(cause))
        if isinstance(cause, PendingCallsLimitExceeded | BackPressureError):
            return _overloaded()
        return NotReadyError(f"a part behind this one restarts: {cause}") if isinstance(cause, RayActorError) else cause
    if isinstance(problem, PendingCallsLimitExceeded | BackPressureError):
        return _overloaded()
    if isinstance(problem, DeploymentUnavailableError):
        return NotReadyError(f"The engine could not be deployed: {problem}. See: autonomous logs")
    return problem


def _overloaded() -> OverloadedError:
    return OverloadedError("More requests wait than are taken at once. Try again in a second.")


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
        self._engine = engine
        self._streaming = engine.options(stream=True)
        self._codec = codec
        self._timeout_s = timeout_s
        self._latch = latch
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._pointers: Mapping[str, str | None] | None = None
        self._canary_percent = 0.0
        self._outcomes = OutcomeSender(lambda outcomes: self._call_once("agent", "observe", outcomes))
        self._adapters: dict[str, AdapterRef | None] = {}
        self._probe: asyncio.Task[None] | None = None
        self._retrieval_delay_s: float | None = None
        self.memory: MemoryParts = RayMemoryParts(self._call, self._act)
        self.tools: ToolParts = RayToolParts(self._call, self._act)
        self.sources: SourceParts = RaySourceParts(self._call, self._act)
        self.feedback: FeedbackParts = RayFeedbackParts(self._call, self._act, config=feedback or FeedbackConfig())
        self.governance: GovernanceParts = RayGovernance(self._call, self._act)
        self.schedules: ScheduleParts = RayScheduleParts(self._call, self._act)
        self.reports: ReportParts = RayReportParts(self._call, self._act)

    # --- calls ----------------------------------------------------------------------------------------------------

    async def _handle(self, name: str) -> ActorHandle[Any]:
        if name not in self._handles:
            try:
                self._handles[name] = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
            except ValueError as problem:
                raise NotReadyError(f"The {name} actor does not run. Start the system with: autonomous up") from problem
        return self._handles[name]

    async def _call_once(self, name: str, method: str, *args: Any) -> Any:
        handle = await self._handle(name)
        try:
            return await getattr(handle, method).remote(*args)
        except ActorDiedError:
            self._handles.pop(name, None)  # a successor of the same name has another handle
            raise
        except (RayTaskError, PendingCallsLimitExceeded) as problem:
            raise unwrap(problem) from problem

    async def _call(self, name: str, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """An idempotent call: repeated while the actor restarts."""
        deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        try:
            return await call_with_retry(
                lambda: asyncio.wait_for(
                    self._call_once(name, method, *args), timeout=max(0.001, deadline_s - time.monotonic())
                ),
                retry_on=RETRY_ACTOR,
                deadline_s=deadline_s,
            )
        except RayActorError as problem:
            raise NotReadyError(f"The {name} actor restarts. Try again in a few seconds.") from problem

    async def _act(self, name: str, method: str, *args: Any) -> Any:
        """A call that must not run twice: never repeated once it may have begun."""
        try:
            return await self._call_once(name, method, *args)
        except RayActorError as problem:
            raise NotReadyError(
                f"The {name} actor restarted during {method}; it may or may not have happened. "
                "Look at GET /v1/status and GET /v1/audit before trying again."
            ) from problem

    # --- engine ---------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """See Parts."""
        check = self._permit_answer()
        pieces = stream_with_retry(
            lambda: self._engine_stream(request, check),
            retry_on=RETRY_ENGINE,
            deadline_s=time.monotonic() + self._timeout_s,
        )
        try:
            async for chunk in pieces:
                yield chunk
        except RayActorError as problem:
            raise NotReadyError("The engine replica died while it answered. Send the request again.") from problem
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _engine_stream(self, request: GenerateRequest, check: Guard) -> AsyncIterator[GenerateChunk]:
        check()
        response = cast("DeploymentResponseGenerator[GenerateChunk]", self._streaming.generate.remote(request))
        try:
            async for chunk in response:
                check()
                yield chunk
        except Exception as problem:
            raise unwrap(problem) from problem
        finally:
            response.cancel()  # type: ignore[no-untyped-call]  # aborts the request in the engine if it still runs

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        """See Parts."""
        check = self._permit_answer()
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return await call_with_retry(
                lambda: self._complete_once(request, check), retry_on=RETRY_ENGINE, deadline_s=deadline_s
            )
        except RayActorError as problem:
            raise NotReadyError("No engine replica answers. Try again in a few seconds.") from problem

    def _permit_answer(self) -> Guard:
        """Asked here too, at every attempt, because after a kill no replica is there to refuse; and a request from before a
        stop is not answered after the reset. Raises LearningStopped.
        """
        return no_guard if self._latch is None else self._latch.permit("answer", within="all").check

    async def _complete_once(self, request: GenerateRequest, check: Guard) -> WholeAnswer:
        check()
        response = self._engine.complete.remote(request)
        try:
            answer: WholeAnswer = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except Exception as problem:
            raise unwrap(problem) from problem
        check()
        return answer

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
            self._keep(await self._call("agent", "pointers"))
        else:
            try:
                self._keep(await asyncio.wait_for(self._call_once("agent", "pointers"), timeout=POINTERS_TIMEOUT_S))
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
            self._adapters[version_id] = await self._call("agent", "version_adapter", version_id)
        return self._adapters[version_id]

    async def versions(self) -> Json:
        """See Parts."""
        return dict(await self._call("agent", "versions"))

    async def version(self, version_id: str) -> Json:
        """See Parts."""
        return dict(await self._call("agent", "version", version_id))

    async def rollback(self, *, reason: str, by: str, keep_passages: bool) -> Json:
        """See Parts."""
        return dict(await self._act("agent", "rollback", reason, by, keep_passages))

    async def unlock(self, *, reason: str, by: str) -> None:
        """See Parts."""
        await self._act("agent", "unlock", reason, by)

    # --- knowledge ------------------------------------------------------------------------------------------------

    async def ingest(self, documents: Sequence[Json]) -> Json:
        """See Parts. Idempotent by content, so it is repeated after a crash of the store."""
        start = time.monotonic()
        result: Json = await self._call("episodic", "ingest", list(documents))
        if (self._probe is None or self._probe.done()) and result["documents"][-1]["status"] == "stored":
            document_id, text = result["documents"][-1]["id"], str(documents[-1]["text"])
            self._probe = asyncio.create_task(self._measure_retrieval_delay(document_id, text, start))
        return result

    async def _measure_retrieval_delay(self, document_id: str, text: str, start: float) -> None:
        """Seconds from a document's arrival until a search for its opening finds it; for the status page."""
        try:
            hits = await self._call_once("episodic", "recall", text[:PROBE_CHARS], PROBE_HITS)
        except Exception as problem:
            _log.info("retrieval delay not measured: %s", type(problem).__name__)
            return
        if any(hit.episode.document_id == document_id for hit in hits):
            self._retrieval_delay_s = round(time.monotonic() - start, 3)

    async def documents(self, *, limit: int, offset: int, source: str | None) -> list[DocumentInfo]:
        """See Parts."""
        return list(await self._call("episodic", "documents", limit, offset, source))

    async def delete_document(self, document_id: str) -> Json:
        """See Parts. The agent erases, because it also knows who learned the document."""
        result: Json = await self._call("agent", "forget_document", document_id)
        if not result["deleted_episodes"]:
            raise NotFoundError(f"document {document_id!r} is not stored; GET /v1/knowledge lists the ids")
        return result

    async def search(self, query: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        """See Parts."""
        return list(await self._call("episodic", "recall", query, k, min_cosine))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See Parts."""
        return list(await self._call("episodic", "embed", list(texts)))

    async def remember(self, session: str, key: str, value: str) -> None:
        """See Parts."""
        await self._call("working", "put", session, key, value)

    async def recall_session(self, session: str, key: str) -> str | None:
        """See Parts."""
        value: str | None = await self._call("working", "get", session, key)
        return value

    # --- learning and safety --------------------------------------------------------------------------------------

    async def learn(self, *, by: str | None) -> str:
        """See Parts."""
        return str(await self._act("agent", "learn", by))

    async def learn_next(self) -> Json:
        """See Parts."""
        return dict(await self._call("agent", "learn_next"))

    async def learn_status(self, run_id: str) -> Json:
        """See Parts."""
        return dict(await self._call("agent", "learn_status", run_id))

    async def safety_status(self) -> Json:
        """See Parts."""
        return dict(await self._call("safety", "status"))

    async def stop(self, *, reason: str, by: str, category: Category, scope: Scope) -> Json:
        """See Parts."""
        return dict(await self._call("safety", "stop", reason, by, category, scope))

    async def reset(self, *, reason: str, by: str) -> Json:
        """See Parts."""
        return dict(await self._act("safety", "reset", reason, by))

    # --- state ----------------------------------------------------------------------------------------------------

    async def status(self) -> Json:
        """See Parts. The engine's counters and the retrieval delay are added to what the agent knows."""
        state = dict(await self._call("agent", "status"))
        state["delays"] = {"retrieval_s": self._retrieval_delay_s, **state.get("delays", {})}
        try:
            state["engine"] = await self._engine_stats()
        except Exception as problem:
            state["engine"] = {"error": _one_line(problem)}
        return state

    async def audit(self, limit: int) -> Json:
        """See Parts."""
        return dict(await self._call("agent", "audit", limit))

    async def ready(self) -> Json:
        """See Parts."""
        names = ("engine", *ACTORS)
        reasons = await asyncio.gather(self._engine_state(), *(self._actor_state(name) for name in ACTORS))
        return {"ready": all(reason == "ready" for reason in reasons), "parts": dict(zip(names, reasons, strict=True))}

    async def _actor_state(self, name: str) -> str:
        try:
            await asyncio.wait_for(self._call_once(name, "identity"), timeout=READY_TIMEOUT_S)
        except Exception as problem:
            return _one_line(problem)
        return "ready"

    async def _engine_state(self) -> str:
        try:
            stats = await self._engine_stats()
        except Exception as problem:
            return _one_line(problem)
        return "ready" if stats["num_replicas"] else "no replica answers"

    async def _engine_stats(self) -> Json:
        """Counters over all replicas; a broadcast also reaches replicas whose queue is full."""
        replicas = await self._engine.broadcast("stats").results_async(timeout_s=READY_TIMEOUT_S)
        totals = {name: sum(stats[name] for stats in replicas) for name in SUMMED_STATS}
        return {"num_replicas": len(replicas), **totals, "replicas": replicas}


def _one_line(problem: Exception) -> str:
    cause = unwrap(problem)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or ['no answer'])[0][:200]}"
