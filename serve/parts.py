"""What the HTTP surface needs from the rest of the system. `serve.ray_parts` implements it over Ray actors.

All methods are async. They raise the errors of `serve.errors` (NotFoundError, ConflictError, OverloadedError,
NotReadyError), LearningStopped after an emergency stop, the engine's typed errors, and ValueError for bad values.
Dictionaries have the shapes of `serve.schemas`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from autonomous.safety.latch_state import Scope
from autonomous.versions.rollout import Outcome
from memory.enrichment import FailedEnrichment
from memory.management import Context
from memory.trust import SourceTrust
from memory.types import (
    Alarm,
    Belief,
    Contradiction,
    DocumentInfo,
    Episode,
    EpisodeFilter,
    RecallHit,
    Trust,
)
from serve.engine import AdapterRef, GenerateChunk, GenerateRequest
from serve.feedback_parts import FeedbackParts
from serve.governance import GovernanceParts
from serve.rag import Message
from serve.report_routes import ReportParts
from serve.source_parts import SourceParts
from serve.stream import WholeAnswer
from serve.tool_parts import ToolParts

Json = dict[str, Any]
Category = Literal["pause", "stop", "kill"]
"""How hard a stop is."""


class MemoryParts(Protocol):
    """The memory behind its routes. Changes raise LearningStopped after an emergency stop."""

    async def context(self, request: str, token_budget: int, *, session: str, where: EpisodeFilter) -> Context:
        """What fits a request within a budget."""

    async def note(self, session: str, key: str, value: str, *, ttl_s: float | None, pinned: bool) -> None:
        """Hold something in a session's mind."""

    async def end_session(self, session: str) -> None:
        """Forget what a session holds in mind."""

    async def failed_enrichments(self, *, limit: int) -> list[FailedEnrichment]:
        """Texts that the model could not read."""

    async def retry_enrichments(self) -> int:
        """Send them back into the queue; how many."""

    async def facts(self, about: str, *, limit: int, valid_at: float | None, recorded_at: float | None) -> list[Belief]:
        """What is held about a concept."""

    async def contradictions(self, *, limit: int) -> list[Contradiction]:
        """Facts that cannot all hold."""

    async def alarms(self) -> list[Alarm]:
        """Sources that contradict others."""

    async def waiting(self, *, limit: int, offset: int) -> list[Episode]:
        """What waits to be released."""

    async def sources(self) -> list[SourceTrust]:
        """Decisions about sources."""

    async def believe(self, source: str, trust: Trust, *, by: str, reason: str) -> list[str]:
        """Believe a source so far; ids of the episodes whose trust changed."""

    async def release(self, ids: Sequence[str], *, by: str, reason: str) -> list[str]:
        """Let episodes be recalled; ids of those whose trust changed."""

    async def forget_source(self, source: str, *, by: str, reason: str) -> Json:
        """Erase a source: {"deleted_episodes", "versions"}. Raises NotFoundError."""

    async def rules(self) -> list[tuple[str, str]]:
        """Name and text of every rule."""

    async def add_rule(self, name: str, text: str) -> int:
        """Keep a rule; how many facts it derives. Raises ValueError."""

    async def remove_rule(self, name: str, *, is_erased: bool) -> None:
        """Apply a rule no longer. Raises NotFoundError."""

    async def consolidate(self) -> Json:
        """Consolidate now; the report."""

    async def consolidations(self, *, limit: int) -> list[Json]:
        """The last reports, newest first."""

    async def undo_consolidation(self, run: str, *, by: str, reason: str) -> Json:
        """Take a run back. Raises ValueError."""


class ScheduleParts(Protocol):
    """What runs by itself, behind its routes."""

    async def schedules(self) -> Json:
        """GET /v1/schedules."""

    async def runs(self, name: str, *, limit: int) -> list[Json]:
        """A job's runs, newest first. Raises NotFoundError."""

    async def run(self, name: str, *, by: str, reason: str, key: str | None) -> Json:
        """Ask for a run now; the run. Raises NotFoundError, LearningStopped."""


class Parts(Protocol):
    """Everything behind the routes."""

    memory: MemoryParts
    tools: ToolParts
    sources: SourceParts
    feedback: FeedbackParts
    governance: GovernanceParts
    schedules: ScheduleParts
    reports: ReportParts

    # --- engine ---------------------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream an answer. Repeated on another replica only before its first piece."""

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        """A whole answer. May be repeated on another replica at any time: nothing of it was sent."""

    async def render_chat(self, messages: Sequence[Message]) -> str:
        """The model's chat template applied, generation prompt included."""

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the engine counts them."""

    # --- versions -------------------------------------------------------------------------------------------------

    async def pointers(self) -> Mapping[str, str | None]:
        """{"v1", "v2", "v3"}: version ids; v3 may be None."""

    async def canary_percent(self) -> float:
        """Share of the users of V2 whom V1 answers, as of the last `pointers`."""

    def observe(self, outcome: Outcome) -> None:
        """Tell how a request of V2's users ended. Returns at once; what cannot be delivered is dropped."""

    async def version_adapter(self, version_id: str) -> AdapterRef | None:
        """The adapter of a version, None for the base. Raises NotFoundError."""

    async def versions(self) -> Json:
        """GET /v1/versions."""

    async def version(self, version_id: str) -> Json:
        """GET /v1/versions/{id}. Raises NotFoundError."""

    async def rollback(self, *, reason: str, by: str, keep_passages: bool) -> Json:
        """Back to the predecessor: {"from", "to", "seconds"}. Raises ConflictError if there is none."""

    async def unlock(self, *, reason: str, by: str) -> None:
        """Let versions be promoted again after rollbacks. Raises ValueError if nothing is frozen."""

    # --- knowledge ------------------------------------------------------------------------------------------------

    async def ingest(self, documents: Sequence[Json]) -> Json:
        """Store documents durably. Raises LearningStopped."""

    async def documents(self, *, limit: int, offset: int, source: str | None) -> list[DocumentInfo]:
        """What is stored, newest first."""

    async def delete_document(self, document_id: str) -> Json:
        """Erase: {"deleted_episodes", "versions"}. Raises NotFoundError, LearningStopped."""

    async def search(self, query: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        """Passages, best first."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of texts."""

    async def remember(self, session: str, key: str, value: str) -> None:
        """Keep a value of a session in working memory."""

    async def recall_session(self, session: str, key: str) -> str | None:
        """A value of a session, None if it expired."""

    # --- learning and safety --------------------------------------------------------------------------------------

    async def learn(self, *, by: str | None) -> str:
        """Start a batch that somebody asked for; its run id. Raises ConflictError (already learning, nothing to learn),
        LearningStopped."""

    async def learn_next(self) -> Json:
        """GET /v1/learn/next."""

    async def learn_status(self, run_id: str) -> Json:
        """GET /v1/learn/{run_id}. Raises NotFoundError."""

    async def safety_status(self) -> Json:
        """The latch."""

    async def stop(self, *, reason: str, by: str, category: Category, scope: Scope) -> Json:
        """Pause, stop or kill what the scope names; idempotent."""

    async def reset(self, *, reason: str, by: str) -> Json:
        """Permit learning again; starts nothing. With `waiting`, the stop holds until a second person agrees."""

    # --- state ----------------------------------------------------------------------------------------------------

    async def status(self) -> Json:
        """GET /v1/status."""

    async def audit(self, limit: int) -> Json:
        """GET /v1/audit."""

    async def ready(self) -> Json:
        """{"ready": bool, "parts": {name: "ready" or the reason why not}}. Does not raise."""
