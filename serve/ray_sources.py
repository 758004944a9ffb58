"""SourceParts over the stream actor."""

from autonomous.sources.config import SourceConfig
from serve.ray_calls import ActorCalls
from serve.source_parts import Json

ACTOR = "stream"


class RaySourceParts:
    """Implements `serve.source_parts.SourceParts`."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def sources(self) -> Json:
        """See SourceParts."""
        return dict(await self._calls.call(ACTOR, "status"))

    async def add(self, config: SourceConfig, *, by: str, reason: str) -> None:
        """See SourceParts."""
        await self._calls.act(ACTOR, "add", config, by, reason)

    async def remove(self, source_id: str, *, by: str, reason: str) -> None:
        """See SourceParts."""
        await self._calls.act(ACTOR, "remove", source_id, by, reason)

    async def read_now(self, source_id: str) -> None:
        """See SourceParts."""
        await self._calls.call(ACTOR, "read_now", source_id)

    async def refused(self, source_id: str, *, limit: int) -> list[Json]:
        """See SourceParts."""
        return list(await self._calls.call(ACTOR, "refused", source_id, limit))
