"""The working-memory actor: what sessions are doing right now. In RAM by design: it expires anyway."""

import ray

from actors.base import Shell
from memory.working import WorkingConfig, WorkingMemory


class WorkingShell(Shell):
    """Holds a cluster's one WorkingMemory. Keys are "session/name"."""

    def __init__(self, settings_sha256: str, *, capacity: int, ttl_s: float) -> None:
        super().__init__("working", settings_sha256)
        self._memory = WorkingMemory(WorkingConfig(capacity=capacity, ttl_s=ttl_s))

    @ray.method
    def put(self, key: str, value: str) -> None:
        """Remember until it expires or is the least recently used."""
        self._memory.put(key, value)

    @ray.method
    def get(self, key: str) -> str | None:
        """The value, or None when it is unknown or expired."""
        value = self._memory.get(key)
        return None if value is None else str(value)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, int]:
        """Number of items."""
        return {"num_items": len(self._memory)}
