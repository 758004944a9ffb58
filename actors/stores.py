"""The stores that hold episodes: in the episodic actor itself, or each in an actor of its own, on any node.

A store is idempotent by id, so whoever calls it across Ray repeats a call while its actor restarts.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.base import Shell
from actors.calls import actor, retried
from autonomous.safety.latch import Latch
from memory.embed import MiniLmEmbedder
from memory.episodic import EpisodicConfig, EpisodicMemory
from memory.recall import ANY_EPISODE, Candidate
from memory.settings import MemorySettings
from memory.shards import EpisodicShards
from memory.store import no_guard
from memory.types import (
    AppendResult,
    DocumentInfo,
    Episode,
    EpisodeFilter,
    EpisodeTraits,
    Guard,
    MemoryHealth,
    RecallHit,
    Trust,
)
from memory.words import WordStatistics

logger = logging.getLogger(__name__)

INDEX_IDLE_S = 0.2
INDEX_RETRY_S = 5.0
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


class StoreHost:
    """An EpisodicMemory and the thread that embeds what was acknowledged; until it has, words find a passage."""

    def __init__(self, config: EpisodicConfig) -> None:
        self.embedder = MiniLmEmbedder(num_threads=1)
        self.memory = EpisodicMemory.open(config, embedder=self.embedder)
        self.wake = threading.Event()
        self._error = ""
        threading.Thread(target=self._index_for_ever, name="index", daemon=True).start()

    def check(self) -> None:
        """Raises if indexing fails, with the reason."""
        if self._error:
            raise RuntimeError(f"indexing fails and is retried every {INDEX_RETRY_S:.0f} s: {self._error}")

    def _index_for_ever(self) -> None:
        saved, is_warm = True, False
        while True:
            try:
                if not is_warm:
                    self.embedder.embed(["loads the model, so that the first question does not wait for it"])
                    is_warm = True
                num_indexed = self.memory.index_pending()
                self._error = ""
                if num_indexed:
                    saved = False
                    continue
                if self.memory.maintain() or not saved:
                    self.memory.save_index()
                    saved = True
                self.wake.wait(INDEX_IDLE_S)
                self.wake.clear()
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("indexing failed")
                self._error = f"{type(error).__name__}: {error}"
                time.sleep(INDEX_RETRY_S)


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
            self._host.wake.set()
        return result

    @ray.method(concurrency_group="read")
    def read(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One of the store's methods that change nothing."""
        return getattr(self._store, method)(*arguments, **options)

    @ray.method(concurrency_group="control")
    def health(self) -> MemoryHealth:
        """Sizes. Raises if indexing fails, with the reason."""
        if self._host is not None:
            self._host.check()
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


class RayStore:
    """The store of a StoreShell, called from another process. The guard is the actor's own: both read the same latch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def append(
        self, episodes: Sequence[Episode], *, guard: Guard = no_guard, recorded_at: Sequence[float] | None = None
    ) -> AppendResult:
        """See EpisodicMemory."""
        guard()
        result: AppendResult = self._write("append", list(episodes), recorded_at=recorded_at)
        return result

    def delete_document(self, document_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """See EpisodicMemory."""
        guard()
        return tuple(self._write("delete_document", document_id))

    def delete_source(self, source_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """See EpisodicMemory."""
        guard()
        return tuple(self._write("delete_source", source_id))

    def set_trust(
        self,
        trust: Trust,
        *,
        ids: Sequence[str] | None = None,
        source_id: str | None = None,
        between: tuple[Trust, Trust] = (Trust.QUARANTINED, Trust.TRUSTED),
        guard: Guard = no_guard,
    ) -> tuple[str, ...]:
        """See EpisodicMemory."""
        guard()
        wanted = None if ids is None else list(ids)
        return tuple(self._write("set_trust", trust, ids=wanted, source_id=source_id, between=between))

    def revise(
        self,
        run: str,
        step: str,
        *,
        saliences: Mapping[str, float] | None = None,
        prune: Sequence[str] = (),
        guard: Guard = no_guard,
    ) -> int:
        """See EpisodicMemory."""
        guard()
        return int(self._write("revise", run, step, saliences=dict(saliences or {}), prune=list(prune)))

    def undo(self, run: str, *, guard: Guard = no_guard) -> int:
        """See EpisodicMemory."""
        guard()
        return int(self._write("undo", run))

    def forget_revisions(self, *, but: Sequence[str], guard: Guard = no_guard) -> int:
        """See EpisodicMemory."""
        guard()
        return int(self._write("forget_revisions", but=list(but)))

    def verify(self) -> None:
        """See EpisodicMemory."""
        self._read("verify")

    def traits(self) -> list[EpisodeTraits]:
        """See EpisodicMemory."""
        return list(self._read("traits"))

    def recall(
        self, query: str, *, k: int, min_cosine: float = -1.0, where: EpisodeFilter = ANY_EPISODE
    ) -> list[RecallHit]:
        """See EpisodicMemory."""
        return list(self._read("recall", query, k=k, min_cosine=min_cosine, where=where))

    def word_statistics(self, terms: Sequence[str]) -> WordStatistics:
        """See EpisodicMemory."""
        statistics: WordStatistics = self._read("word_statistics", list(terms))
        return statistics

    def candidates(
        self,
        terms: Sequence[str],
        vector: NDArray[np.float32],
        *,
        statistics: WordStatistics,
        limit: int,
        where: EpisodeFilter,
    ) -> list[Candidate]:
        """See EpisodicMemory."""
        return list(self._read("candidates", list(terms), vector, statistics=statistics, limit=limit, where=where))

    def find(self, where: EpisodeFilter, *, limit: int, offset: int = 0) -> list[tuple[int, Episode]]:
        """See EpisodicMemory."""
        return list(self._read("find", where, limit=limit, offset=offset))

    def episodes_after(self, seq: int, *, limit: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """See EpisodicMemory."""
        return list(self._read("episodes_after", seq, limit=limit, min_trust=min_trust))

    def freshest(self, *, limit: int, offset: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """See EpisodicMemory."""
        return list(self._read("freshest", limit=limit, offset=offset, min_trust=min_trust))

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """See EpisodicMemory."""
        return list(self._read("get", list(ids)))

    def has(self, ids: Iterable[str]) -> set[str]:
        """See EpisodicMemory."""
        return set(self._read("has", list(ids)))

    def documents(self, *, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """See EpisodicMemory."""
        return list(self._read("documents", limit=limit, offset=offset, source_id=source_id))

    def ids_of(self, document_id: str) -> tuple[str, ...]:
        """See EpisodicMemory."""
        return tuple(self._read("ids_of", document_id))

    def ids_of_source(self, source_id: str) -> tuple[str, ...]:
        """See EpisodicMemory."""
        return tuple(self._read("ids_of_source", source_id))

    def last_recorded_at(self) -> float:
        """See EpisodicMemory."""
        return float(self._read("last_recorded_at"))

    def health(self) -> MemoryHealth:
        """See EpisodicMemory. Raises if the store's indexing fails."""
        health: MemoryHealth = ray.get(actor(self._name).health.remote(), timeout=HEALTH_TIMEOUT_S)
        return health

    def _write(self, method: str, *arguments: Any, **options: Any) -> Any:
        return retried(
            lambda: ray.get(actor(self._name).write.remote(method, arguments, options)), timeout_s=RESTART_TIMEOUT_S
        )

    def _read(self, method: str, *arguments: Any, **options: Any) -> Any:
        return retried(
            lambda: ray.get(actor(self._name).read.remote(method, arguments, options)), timeout_s=RESTART_TIMEOUT_S
        )
