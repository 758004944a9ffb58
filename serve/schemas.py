"""Requests and responses of our own routes, and the bases of all. They make the /docs page.

Requests refuse unknown fields, so that a misspelt one is noticed. Responses may carry more than is listed.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from autonomous.people import person_of

MAX_DOCUMENTS = 1000


def _visible(text: str) -> str:
    if not person_of(text):
        raise ValueError("nothing of it can be seen; write a name or a sentence")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_visible)]
"""Of a person, for the audit log: more than blanks and invisible characters."""
Why = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_visible)]
"""A reason, likewise."""


class Request(BaseModel):
    """Base of request bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        """JSON can spell half a character (a lone surrogate), which no store or tokenizer takes."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as problem:
                    raise ValueError(
                        f"half a character (a lone surrogate) at character {problem.start}; send whole characters"
                    ) from problem
        return value


class Response(BaseModel):
    """Base of response bodies."""

    model_config = ConfigDict(extra="allow", from_attributes=True, use_attribute_docstrings=True)


class DocumentIn(Request):
    """A document to remember."""

    text: str
    """Its content. Empty or binary text is rejected, with the reason."""
    title: str | None = Field(None, max_length=500)
    """Shown with answers; taken from the text when absent."""
    id: str | None = Field(None, min_length=1, max_length=512)
    """Your key; derived from the content when absent. The same document again changes nothing."""
    source: str | None = Field(None, min_length=1, max_length=256)
    """Where it comes from, for filters and trust; "api" when absent."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Kept with each passage."""
    media_type: str | None = Field(None, max_length=128, examples=["text/markdown"])
    """Guessed when absent."""
    happened_at: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Seconds since the epoch; now when absent."""


class KnowledgeRequest(Request):
    """POST /v1/knowledge."""

    documents: list[DocumentIn] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    """Up to 1000 at a time."""


class DocumentResult(Response):
    """What became of one document, in the order of the request."""

    id: str
    status: Literal["stored", "repeated", "quarantined", "rejected"]
    """quarantined: kept, but neither recalled nor learned. rejected: nothing kept."""
    reason: str | None = None
    num_episodes: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    """What cleaning removed."""


class KnowledgeResponse(Response):
    """Sent after everything is on disk."""

    documents: list[DocumentResult]
    last_seq: int
    acknowledged_s: float


class StoredDocument(Response):
    """One stored document."""

    document_id: str
    source_id: str
    title: str
    num_episodes: int
    recorded_at: float
    trust: int


class DocumentList(Response):
    """GET /v1/knowledge."""

    documents: list[StoredDocument]


class DeleteResponse(Response):
    """What an erasure removed, and the versions whose weights had learned it."""

    deleted_episodes: int
    versions: list[str] = Field(default_factory=list)


class Hit(Response):
    """A recalled passage."""

    episode_id: str
    document_id: str
    title: str
    source: str
    text: str
    score: float
    cosine: float


class SearchResponse(Response):
    """GET /v1/knowledge/search."""

    hits: list[Hit]
    seconds: float


class LearnRequest(Request):
    """POST /v1/learn."""

    by: Name | None = None
    """Who asks for it; recorded with the run. Where two people decide, that person cannot approve the version."""


class LearnStarted(Response):
    """Ask GET /v1/learn/{run_id} for progress."""

    run_id: str


class LearnNext(Response):
    """What the next batch would learn and the questions it would be judged by."""

    num_pending: int
    episodes: list[dict[str, Any]] = Field(default_factory=list)
    questions: list[dict[str, Any]] = Field(default_factory=list)
    held: list[dict[str, Any]] = Field(default_factory=list)
    """Passages that are not learned until a person releases them, newest first: episode_id, document_id, source_id, and
    findings with rule, value, threshold and fix."""
    undecided: dict[str, str] = Field(default_factory=dict)
    """Passages that could not be judged yet, with the reason."""


class Gate(Response):
    """One gate's verdict."""

    name: str
    verdict: str
    """pass, fail or inconclusive."""
    value: float | None = None
    threshold: float | None = None
    reason: str | None = None


class LearnStatus(Response):
    """Where a learning run stands."""

    run_id: str
    phase: str
    """waiting, training, evaluating, gating, loading, done or failed."""
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    version: str | None = None
    state: str | None = None
    gates: list[Gate] | None = None
    timings: dict[str, Any] | None = None
    error: str | None = None


class VersionInfo(Response):
    """One version of the model."""

    id: str
    state: str
    parent: str | None = None
    adapter_number: int | None = None
    created_at: float | None = None
    num_episodes: int | None = None
    percent: float | None = None
    """Of a canary: the share of V2's users whom it answers."""
    gates: list[Gate] | None = None
    report_sha256: str | None = None


class VersionList(Response):
    """GET /v1/versions, newest first."""

    pointers: dict[str, str | None]
    canary_percent: float = 0.0
    """Share of the users of V2 whom V1 answers."""
    frozen: str = ""
    """Why nothing is promoted; empty if promotions go on."""
    versions: list[VersionInfo]


class Signed(Request):
    """Who decides, and why: both go into the audit log."""

    reason: Why
    by: Name


class RollbackRequest(Signed):
    """POST /v1/versions/rollback."""

    keep_passages: bool = False
    """Go on recalling what the version learned. Otherwise it waits until a person releases it (GET /v1/memory/waiting)."""


class StopRequest(Signed):
    """POST /v1/safety/stop."""

    category: Literal["pause", "stop", "kill"] = "stop"
    """pause: after the step that is running; stop: nothing more takes effect; kill: and the processes are killed."""
    scope: Literal["learner", "learning", "all"] = "learning"
    """learner: training and what it leads to; learning: memory and promotions too; all: answers too."""


class RollbackResponse(Response):
    """Which version left and which one serves again."""

    from_: str = Field(alias="from")
    to: str
    seconds: float

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class Readiness(Response):
    """GET /readyz."""

    ready: bool
    parts: dict[str, str]


class ErrorDetail(BaseModel):
    """What went wrong: a sentence that names the field, its value and the fix."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every error has this body."""

    error: ErrorDetail
