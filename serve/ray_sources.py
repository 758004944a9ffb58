"""SourceParts over the stream actor."""

from autonomous.sources.config import SourceConfig
from serve.ray_memory import CallActor
from serve.source_parts import Json

ACTOR = "stream"


class RaySourceParts:
    """`call` repeats an idempotent call while the actor restarts, `act` never repeats one that may have begun."""

    def __init__(self, call: CallActor, act: CallActor) -> None:
        self._call = call
        self._act = act

    async def sources(self) -> Json:
        """See SourceParts."""
        return dict(await self._call(ACTOR, "status"))

    async def add(self, config: SourceConfig, *, by: str, reason: str) -> None:
        """See SourceParts."""
        await self._act(ACTOR, "add", config, by, reason)

    async def remove(self, source_id: str, *, by: str, reason: str) -> None:
        """See SourceParts."""
        await self._act(ACTOR, "remove", source_id, by, reason)

    async def read_now(self, source_id: str) -> None:
        """See SourceParts."""
        await self._call(ACTOR, "read_now", source_id)

    async def refused(self, source_id: str, *, limit: int) -> list[Json]:
        """See SourceParts."""
        return list(await self._call(ACTOR, "refused", source_id, limit))
