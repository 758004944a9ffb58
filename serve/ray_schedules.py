"""ScheduleParts over the agent actor."""

from serve.parts import Json
from serve.ray_calls import ActorCalls


class RayScheduleParts:
    """Implements `serve.parts.ScheduleParts`."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def schedules(self) -> Json:
        """See ScheduleParts."""
        return dict(await self._calls.call("agent", "schedules"))

    async def runs(self, name: str, *, limit: int) -> list[Json]:
        """See ScheduleParts."""
        return list(await self._calls.call("agent", "schedule_runs", name, limit))

    async def run(self, name: str, *, by: str, reason: str, key: str | None) -> Json:
        """See ScheduleParts. With a key it is idempotent, so it is repeated."""
        ask = self._calls.act if key is None else self._calls.call
        return dict(await ask("agent", "run_schedule", name, by, reason, key))
