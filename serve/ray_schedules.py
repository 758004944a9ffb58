"""ScheduleParts over the agent actor."""

from serve.parts import Json
from serve.ray_memory import CallActor


class RayScheduleParts:
    """`call` repeats an idempotent call while the actor restarts, `act` never repeats one that may have begun."""

    def __init__(self, call: CallActor, act: CallActor) -> None:
        self._call = call
        self._act = act

    async def schedules(self) -> Json:
        """See ScheduleParts."""
        return dict(await self._call("agent", "schedules"))

    async def runs(self, name: str, *, limit: int) -> list[Json]:
        """See ScheduleParts."""
        return list(await self._call("agent", "schedule_runs", name, limit))

    async def run(self, name: str, *, by: str, reason: str, key: str | None) -> Json:
        """See ScheduleParts. With a key it is idempotent, so it is repeated."""
        ask = self._act if key is None else self._call
        return dict(await ask("agent", "run_schedule", name, by, reason, key))
