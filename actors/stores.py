"""The stores that hold episodes: in the episodic actor itself, or each in an actor of its own, on any node.

A store is idempotent by id, so whoever calls it across Ray repeats a call while its actor restarts.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from actors.base import Shell
from actors.calls import actor, retried, when_there
from autonomous.safety.latch import Latch
from memory.embed import MiniLmEmbedder
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.indexer import Indexer
from memory.protocols import EpisodeStore
from memory.settings import MemorySettings
from memory.shards import EpisodicShards
from memory.store import no_guard
from memory.trust import SourceTrusts
from memory.types import Guard, MemoryHealth

WRITES = frozenset(
    ("append", "delete_document", "delete_source", "set_trust", "revise", "undo", "forget_revisions", "forget_departed")
) | {"retire"}
"""Methods of a store that change it: they take a guard."""
HEALTH_TIMEOUT_S = 5.0
"""Not repeated: whoever asks wants to know how it is now."""
RESTART_TIMEOUT_S = 60.0
"""A store that was killed is back after its start."""


def shard_name(number: int) -> str:
    """The actor's name."""
    return f"episodic-{number}"


def episodic_config(settings: MemorySettings, *, folder: Path, number: int) -> EpisodicConfig:
    """Of one store of several."""
    return EpisodicConfig(
        folder=folder,
        capacity=max(1, settings.capacity // settings.num_shards),
        index=settings.index,
        database=settings.database,
        namespace="episodic" if settings.num_shards == 1 else f"episodic_{number}",
    )


def open_trusts(folder: Path, settings: MemorySettings) -> SourceTrusts:
    """The decisions about sources, in an actor's constructor."""
    return when_there(lambda: SourceTrusts.open(folder, default=settings.source_trust, database=settings.database))


class StoreHost:
    """An EpisodicMemory and the thread that embeds what was acknowledged."""

    def __init__(self, config: EpisodicConfig) -> None:
        self.embedder = MiniLmEmbedder(num_threads=1)
        self.memory = when_there(lambda: EpisodicMemory.open(config, embedder=self.embedder))
        self.indexer = Indexer(self.memory, embedder=self.embedder)


class StoreShell(Shell):
    """What an actor with episodes offers: the store's own methods, writes in the order of the calls, reads beside them."""

    def __init__(self, name: str, settings_sha256: str, *, latch: Path) -> None:
        super().__init__(name, settings_sha256)
        self._latch = Latch.open(latch)
        self._host: StoreHost | None = None
        self._store: EpisodicMemory | EpisodicShards | None = None

    @ray.method
    def write(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One of the store's methods that change it. The stop latch is asked at the commit."""
        guard = self._latch.permit("memory write").check
        result = getattr(self._store, method)(*arguments, **options, guard=guard)
        if self._host is not None:
            self._host.indexer.wake()
        return result

    @ray.method(concurrency_group="read")
    def read(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One of the store's methods that change nothing."""
        return getattr(self._store, method)(*arguments, **options)

    @ray.method(concurrency_group="control")
    def health(self) -> MemoryHealth:
        """Sizes. Raises if indexing fails, with the reason."""
        if self._host is not None:
            self._host.indexer.check()
        assert self._store is not None
        return self._store.health()

    @ray.method(concurrency_group="control")
    def snapshot(self) -> None:
        """Save the vector index beside the database."""
        if self._host is not None:
            self._host.memory.save_index()


class EpisodeShardShell(StoreShell):
    """Holds one store of several."""

    def __init__(
        self, settings_sha256: str, *, number: int, folder: Path, latch: Path, settings: MemorySettings
    ) -> None:
        super().__init__(shard_name(number), settings_sha256, latch=latch)
        self._host = StoreHost(episodic_config(settings, folder=folder, number=number))
        self._store = self._host.memory


class _RemoteStore:
    """The methods of a StoreShell's store by their names, called in the actor and repeated while it restarts."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._write if method in WRITES else self._read, method)

    def health(self) -> MemoryHealth:
        """See EpisodicMemory. Raises if the store's indexing fails, or it does not answer soon."""
        health: MemoryHealth = ray.get(actor(self._name).health.remote(), timeout=HEALTH_TIMEOUT_S)
        return health

    def _write(self, method: str, *arguments: Any, guard: Guard = no_guard, **options: Any) -> Any:
        """The guard is asked here; at the commit the actor asks its own, of the same latch."""
        guard()
        return retried(
            lambda: ray.get(actor(self._name).write.remote(method, arguments, options)), timeout_s=RESTART_TIMEOUT_S
        )

    def _read(self, method: str, *arguments: Any, **options: Any) -> Any:
        return retried(
            lambda: ray.get(actor(self._name).read.remote(method, arguments, options)), timeout_s=RESTART_TIMEOUT_S
        )


def remote_store(name: str) -> EpisodeStore:
    """The store of the episodic actor, or of one of its shards, from another process."""
    return cast("EpisodeStore", _RemoteStore(name))
