"""Requests and responses of the routes of sources."""

from typing import Any, Literal

from pydantic import Field

from autonomous.sources.config import SourceConfig
from serve.schemas import Response, Signed


class SourceRequest(Signed):
    """POST /v1/sources."""

    source: SourceConfig
    """Where it lies; `kind` says how it is read."""


class SourceOut(Response):
    """A source and how far it was read. Counts are since it was added."""

    id: str
    kind: str
    config: dict[str, Any]
    """What differs from the defaults; without the values of an address's query."""
    origin: Literal["configuration", "run time"]
    num_documents: int = 0
    """Documents and versions of them that were handed to the memory."""
    num_repeated: int = 0
    num_refused: int = 0
    num_removed: int = 0
    num_bytes: int = 0
    last_read_at: float | None = None
    """Seconds since the epoch."""
    error: str = ""
    """Why it could not be read the last time."""
    num_failures: int = 0
    """In a row; each doubles the wait."""
    next_read_s: float
    """Seconds until it is looked at again."""


class SourceStatus(Response):
    """GET /v1/sources."""

    sources: list[SourceOut]
    waits_for: str = ""
    """Why nothing is read now: a stop, or a store that takes nothing. Empty if it is."""


class RefusedOut(Response):
    """A document that is neither recalled nor learned."""

    key: str
    """Its path or address, and of a record its id or place."""
    status: Literal["unreadable", "rejected", "quarantined"]
    reason: str
    fix: str
    refused_at: float


class RefusedList(Response):
    """GET /v1/sources/{id}/refused."""

    refused: list[RefusedOut] = Field(default_factory=list)
