"""Requests and responses of the memory's routes."""

from typing import Literal

from pydantic import Field

from memory.types import Trust
from serve.schemas import Request, Response, Signed

TrustName = Literal["quarantined", "untrusted", "standard", "trusted"]


class ContextRequest(Request):
    """POST /v1/memory/context."""

    request: str = Field(min_length=1, max_length=20_000)
    """The question or task that the context is for."""
    token_budget: int = Field(1024, ge=1)
    """Most tokens of the serving model; never more than its context window."""
    session: str | None = Field(None, min_length=1, max_length=256)
    """Whose working memory is used; none when absent."""
    sources: list[str] | None = Field(None, max_length=100)
    """Passages of these sources alone."""
    happened_from: float | None = Field(None, allow_inf_nan=False)
    """Passages from this time on, seconds since the epoch."""
    happened_before: float | None = Field(None, allow_inf_nan=False)
    """Passages before this time."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Passages whose metadata has all of these."""


class ContextPartOut(Response):
    """One piece, best first within its tier."""

    tier: Literal["working", "semantic", "episodic"]
    text: str
    num_tokens: int
    episode_id: str
    source_id: str


class ContextResponse(Response):
    """What goes before the request. It is data for the model, never an instruction."""

    parts: list[ContextPartOut]
    num_tokens: int
    budget_tokens: int


class NoteRequest(Request):
    """POST /v1/memory/notes."""

    session: str = Field(min_length=1, max_length=256)
    key: str = Field(min_length=1, max_length=256)
    value: str = Field(max_length=20_000)
    ttl_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds until it is forgotten; the configured time when absent."""
    pinned: bool = False
    """Keep it until the session ends."""


class ForgetRequest(Signed):
    """POST /v1/memory/forget."""

    source: str = Field(min_length=1, max_length=256)
    """All that it has said is erased."""


class TrustRequest(Signed):
    """PUT /v1/memory/sources/{source}."""

    trust: TrustName
    """Below standard it is neither recalled nor learned, and its facts are not believed."""

    def level(self) -> Trust:
        """As the stores have it."""
        return Trust[self.trust.upper()]


class SourceOut(Response):
    """A decision about a source."""

    source_id: str
    trust: int
    by: str
    reason: str
    decided_at: float


class SourceList(Response):
    """GET /v1/memory/sources, newest decision first."""

    sources: list[SourceOut]


class ReleaseRequest(Signed):
    """POST /v1/memory/release."""

    ids: list[str] = Field(min_length=1, max_length=1000)
    """Episodes that may be recalled and learned."""


class ChangedEpisodes(Response):
    """Ids of the episodes whose trust changed."""

    episodes: list[str]


class WaitingEpisode(Response):
    """An episode that waits to be released."""

    id: str
    document_id: str
    source_id: str
    title: str
    text: str
    trust: int


class WaitingList(Response):
    """GET /v1/memory/waiting, newest first."""

    episodes: list[WaitingEpisode]


class AlarmOut(Response):
    """A source that contradicts others."""

    source_id: str
    num_contradicting: int
    num_facts: int
    raised_at: float
    examples: list[str]


class AlarmList(Response):
    """GET /v1/memory/alarms."""

    alarms: list[AlarmOut]


class BeliefOut(Response):
    """A statement with its origin and its time."""

    subject: str
    relation: str
    object: str
    sentence: str
    episode_id: str
    trust: int
    confidence: float
    valid_from: float
    valid_to: float | None
    recorded_at: float
    rule: str | None


class BeliefList(Response):
    """GET /v1/facts."""

    facts: list[BeliefOut]


class ContradictionList(Response):
    """GET /v1/memory/contradictions: groups, the fact that is believed first in each."""

    contradictions: list[list[BeliefOut]]


class RuleIn(Request):
    """POST /v1/memory/rules."""

    name: str = Field(min_length=1, max_length=100)
    text: str = Field(
        min_length=1, max_length=1000, examples=["?a is part of ?b & ?b is located in ?c => ?a is located in ?c"]
    )
    """Conditions joined by &, then => and the conclusion; a fixed concept stands in double quotes."""


class RuleOut(Response):
    """A rule."""

    name: str
    text: str


class RuleList(Response):
    """GET /v1/memory/rules."""

    rules: list[RuleOut]
