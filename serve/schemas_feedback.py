"""Requests and responses of feedback and gaps."""

from typing import Any, Literal

from pydantic import Field

from serve.schemas import Name, Request, Response

MAX_CHARS = 20_000


class FeedbackIn(Request):
    """POST /v1/feedback."""

    response_id: str = Field(min_length=1, max_length=200, examples=["chatcmpl-0123456789abcdef0123456789abcdef"])
    """The `id` of the answer."""
    rating: Literal["up", "down"]
    correction: str = Field("", max_length=MAX_CHARS)
    """What would have been right; only with "down". It is screened, and waits until a person releases it, unless a configured
    reviewer gives it."""
    reason: str = Field("", max_length=MAX_CHARS)
    by: str = Field("", max_length=200)
    """Who says it. Their second word on an answer takes the place of the first; without a name all are one voter."""


class FeedbackReceipt(Response):
    """Sent after it is on disk."""

    response_id: str
    status: Literal["stored", "repeated", "changed"]
    correction: Literal["none", "accepted", "waits", "quarantined"]
    reasons: list[str] = Field(default_factory=list)
    """What the screen found in the correction."""


class Unlabelled(Response):
    """An answer that people should look at."""

    response_id: str
    question: str
    answer: str
    version: str
    confidence: float | None = None
    """Mean log-probability of its tokens, nats; closer to 0 is surer."""
    cosine: float | None = None
    """Of the best passage in its prompt."""
    chosen_at: float | None = None
    """When a retraining put it before people, seconds since the epoch; it waits until somebody votes. None: it is what would
    be chosen now."""


class LabellingQueue(Response):
    """GET /v1/feedback/queue, in the order in which they should be looked at."""

    answers: list[Unlabelled]


class Task(Response):
    """A gap in what is known, and what becomes of it."""

    gap_id: str
    state: Literal["open", "data found", "learned", "closed"]
    kind: Literal["contradicted", "down-voted", "unknown"]
    question: str
    """The one that is nearest to all others of the gap."""
    questions: list[str]
    size: int
    score: float
    mean_confidence: float | None = None
    episodes: list[str] = Field(default_factory=list)
    """Passages that may fill it."""
    suggestion: str = ""
    note: str = ""
    version: str = ""
    num_attempts: int = 0
    num_asked: int = 0
    num_answered: int = 0


class Gaps(Response):
    """GET /v1/gaps, worst first."""

    tasks: list[Task]
    next_run: dict[str, Any] = Field(default_factory=dict)
    """What the next learning run would get: num_episodes, by_source, by_origin, and how many of it tasks asked for."""
    health: dict[str, Any] = Field(default_factory=dict)


class CollectReport(Response):
    """POST /v1/gaps/collect."""

    num_requests: int
    num_gaps: int
    num_corrections: int
    num_erased: int
    num_with_data: int
    num_passages: int


class ForgetPersonRequest(Request):
    """POST /v1/feedback/forget."""

    name: Name
    """As given in `user` of requests or in `by` of feedback."""


class Forgotten(Response):
    """What an erasure removed."""

    num_requests: int
    num_votes: int
    num_documents: int
