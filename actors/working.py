"""The working-memory actor: what sessions are doing right now. In RAM by design: it expires anyway."""

from collections.abc import Sequence

import ray

from actors.base import Shell
from actors.calls import actor, retried
from memory.working import WorkingConfig, WorkingMemory

RESTART_TIMEOUT_S = 30.0


class WorkingShell(Shell):
    """Holds a cluster's one WorkingMemory."""

    def __init__(self, settings_sha256: str, *, config: WorkingConfig) -> None:
        super().__init__("working", settings_sha256)
        self._memory = WorkingMemory(config)

    @ray.method
    def put(self, session: str, key: str, value: str, ttl_s: float | None = None, pinned: bool = False) -> None:
        """Remember until it expires or is the least recently used; a pinned value until it is deleted."""
        self._memory.put(key, value, session=session, ttl_s=ttl_s, pinned=pinned)

    @ray.method
    def get(self, session: str, key: str) -> str | None:
        """The value, or None when it is unknown or expired."""
        value = self._memory.get(key, session=session)
        return None if value is None else str(value)

    @ray.method
    def items(self, session: str, pinned: bool | None = None) -> list[tuple[str, object]]:
        """What a session holds in mind, least recently used first."""
        return self._memory.items(session, pinned=pinned)

    @ray.method
    def end_session(self, session: str) -> int:
        """Forget all of a session; how many entries it had."""
        return self._memory.end_session(session)

    @ray.method
    def forget(self, texts: list[str]) -> int:
        """Remove the entries that hold any of these texts; how many."""
        return self._memory.forget(texts)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, int]:
        """Number of items and sessions."""
        return {"num_items": len(self._memory), "num_sessions": len(self._memory.sessions())}


class RayWorking:
    """WorkingStore over the working actor."""

    def put(
        self, key: str, value: object, *, session: str = "", ttl_s: float | None = None, pinned: bool = False
    ) -> None:
        """See WorkingMemory."""
        retried(
            lambda: ray.get(actor("working").put.remote(session, key, str(value), ttl_s, pinned)),
            timeout_s=RESTART_TIMEOUT_S,
        )

    def items(self, session: str = "", *, pinned: bool | None = None) -> list[tuple[str, object]]:
        """See WorkingMemory."""
        return list(
            retried(lambda: ray.get(actor("working").items.remote(session, pinned)), timeout_s=RESTART_TIMEOUT_S)
        )

    def forget(self, texts: Sequence[str]) -> int:
        """See WorkingMemory."""
        return int(retried(lambda: ray.get(actor("working").forget.remote(list(texts))), timeout_s=RESTART_TIMEOUT_S))
