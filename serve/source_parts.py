"""What the routes of sources need from the rest of the system. `serve.ray_sources` implements it over the stream actor."""

from typing import Any, Protocol

from autonomous.sources.config import SourceConfig

Json = dict[str, Any]


class SourceParts(Protocol):
    """The sources that are read by themselves. Unknown ids raise NotFoundError."""

    async def sources(self) -> Json:
        """GET /v1/sources."""

    async def add(self, config: SourceConfig, *, by: str, reason: str) -> None:
        """Read a source from now on, in place of one of the same id. Raises ValueError, LearningStopped."""

    async def remove(self, source_id: str, *, by: str, reason: str) -> None:
        """Read it no longer; what it said stays stored."""

    async def read_now(self, source_id: str) -> None:
        """Look at it without waiting for its interval."""

    async def refused(self, source_id: str, *, limit: int) -> list[Json]:
        """What of it is neither recalled nor learned, newest first."""
