"""EpisodicShards: one episodic memory whose episodes lie in several stores, with the results of one.

Episodes are dealt by their words, so that repeats meet in one store. Times of writing come from one clock, BM25 from the
statistics of all stores, and the best of all stores are ranked together. A store is an EpisodicMemory of this process,
or stands for one elsewhere; its calls may fail with what the transport raises, and appending again is idempotent.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from typing import TypeVar

from memory.embed import Embedder
from memory.episode_rows import MAX_TEXT_CHARS, TICK_S, check_episode
from memory.protocols import EpisodeStore
from memory.recall import ANY_EPISODE, Recall
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
from memory.words import near_duplicate_key

T = TypeVar("T")
ALL = 2**31 - 1


class EpisodicShards:
    """See the module. Every method may be called from any thread."""

    def __init__(
        self, stores: Sequence[EpisodeStore], *, embedder: Embedder, clock: Callable[[], float] = time.time
    ) -> None:
        if not stores:
            raise ValueError("stores is empty: give at least one")
        self._stores = list(stores)
        self._recall = Recall(embedder)
        self._clock = clock
        self._pool = ThreadPoolExecutor(max_workers=4 * len(stores), thread_name_prefix="shard")
        self._writing = threading.Lock()
        self._last_recorded_at: float | None = None  # asked for at the first write: the stores may still be starting

    @property
    def num_stores(self) -> int:
        """How many there are."""
        return len(self._stores)

    def close(self) -> None:
        """End the threads; the stores stay open."""
        self._pool.shutdown()

    def append(self, episodes: Sequence[Episode], *, guard: Guard = no_guard) -> AppendResult:
        """As EpisodicMemory.append; bad input is refused before any store has it, but a store that fails leaves what others
        have stored: send the batch again.

        `last_seq` is the sum of the stores': it grows with every write.
        """
        for episode in episodes:
            check_episode(episode, max_text_chars=MAX_TEXT_CHARS)
        with self._writing:
            owners = self._owners(episodes)
            if self._last_recorded_at is None:
                self._last_recorded_at = max(self._of_all(lambda store: store.last_recorded_at()))
            first = max(self._clock(), self._last_recorded_at + TICK_S)
            self._last_recorded_at = first + len(episodes) * TICK_S
        dealt: dict[int, list[int]] = defaultdict(list)
        for number, owner in enumerate(owners):
            dealt[owner].append(number)

        def write(shard: int) -> AppendResult:
            numbers = dealt[shard]
            return self._stores[shard].append(
                [episodes[number] for number in numbers],
                recorded_at=[first + number * TICK_S for number in numbers],
                guard=guard,
            )

        results = list(self._pool.map(write, range(len(self._stores))))
        added = {key for result in results for key in result.added}
        repeated = {key for result in results for key in result.repeated}
        merged = {key for result in results for key in result.merged}
        ids = dict.fromkeys(episode.id for episode in episodes)
        return AppendResult(
            tuple(key for key in ids if key in added),
            tuple(key for key in ids if key in repeated),
            sum(result.last_seq for result in results),
            tuple(key for key in ids if key in merged),
        )

    def delete_document(self, document_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """As EpisodicMemory.delete_document, over all stores."""
        return _joined(self._of_all(lambda store: store.delete_document(document_id, guard=guard)))

    def delete_source(self, source_id: str, *, guard: Guard = no_guard) -> tuple[str, ...]:
        """As EpisodicMemory.delete_source, over all stores."""
        return _joined(self._of_all(lambda store: store.delete_source(source_id, guard=guard)))

    def retire(self, ids: Sequence[str], *, guard: Guard = no_guard) -> tuple[str, ...]:
        """As EpisodicMemory.retire, over all stores."""
        return _joined(self._of_all(lambda store: store.retire(ids, guard=guard)))

    def set_trust(
        self,
        trust: Trust,
        *,
        ids: Sequence[str] | None = None,
        source_id: str | None = None,
        between: tuple[Trust, Trust] = (Trust.QUARANTINED, Trust.TRUSTED),
        guard: Guard = no_guard,
    ) -> tuple[str, ...]:
        """As EpisodicMemory.set_trust, over all stores."""
        return _joined(
            self._of_all(
                lambda store: store.set_trust(trust, ids=ids, source_id=source_id, between=between, guard=guard)
            )
        )

    def traits(self) -> list[EpisodeTraits]:
        """As EpisodicMemory.traits, in the order of writing."""
        found = [one for ones in self._of_all(lambda store: store.traits()) for one in ones]
        return sorted(found, key=lambda one: one.recorded_at)

    def revise(
        self,
        run: str,
        step: str,
        *,
        saliences: Mapping[str, float] | None = None,
        prune: Sequence[str] = (),
        guard: Guard = no_guard,
    ) -> int:
        """As EpisodicMemory.revise; each store takes what it has of it."""
        return sum(self._of_all(lambda store: store.revise(run, step, saliences=saliences, prune=prune, guard=guard)))

    def undo(self, run: str, *, guard: Guard = no_guard) -> int:
        """As EpisodicMemory.undo, over all stores."""
        return sum(self._of_all(lambda store: store.undo(run, guard=guard)))

    def forget_revisions(self, *, but: Sequence[str], guard: Guard = no_guard) -> int:
        """As EpisodicMemory.forget_revisions, over all stores."""
        return sum(self._of_all(lambda store: store.forget_revisions(but=but, guard=guard)))

    def departed(self, *, before: float, after: str = "", limit: int) -> list[str]:
        """As EpisodicMemory.departed."""
        found = self._of_all(lambda store: store.departed(before=before, after=after, limit=limit))
        return sorted({key for keys in found for key in keys})[:limit]

    def forget_departed(self, ids: Sequence[str], *, erased_before: float, guard: Guard = no_guard) -> int:
        """As EpisodicMemory.forget_departed, over all stores."""
        return sum(self._of_all(lambda store: store.forget_departed(ids, erased_before=erased_before, guard=guard)))

    def verify(self) -> None:
        """As EpisodicMemory.verify, over all stores."""
        self._of_all(lambda store: store.verify())

    def recall(
        self, query: str, *, k: int, min_cosine: float = -1.0, where: EpisodeFilter = ANY_EPISODE
    ) -> list[RecallHit]:
        """As EpisodicMemory.recall."""
        return self._recall.over(
            self._stores, query, k=k, min_cosine=min_cosine, where=where, map_stores=self._pool.map
        )

    def find(self, where: EpisodeFilter, *, limit: int, offset: int = 0) -> list[tuple[int, Episode]]:
        """As EpisodicMemory.find."""
        found = self._of_all(lambda store: store.find(where, limit=limit + offset))
        both = [one for ones in found for one in ones]
        return sorted(both, key=lambda one: (-one[1].happened_at, -one[0]))[offset : offset + limit]

    def episodes_after(
        self, seqs: Sequence[int], *, limit: int, min_trust: Trust = Trust.STANDARD
    ) -> tuple[list[Episode], list[int]]:
        """The next episodes behind a follower's place in each store, and its places behind them."""
        seqs = [*seqs, *[0] * (len(self._stores) - len(seqs))]
        pages = [
            store.episodes_after(seq, limit=limit, min_trust=min_trust)
            for store, seq in zip(self._stores, seqs, strict=True)
        ]
        places = [page[-1][0] if page else seq for page, seq in zip(pages, seqs, strict=True)]
        return [episode for page in pages for _, episode in page], places

    def freshest(self, *, limit: int, offset: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """As EpisodicMemory.freshest."""
        found = self._of_all(lambda store: store.freshest(limit=limit + offset, offset=0, min_trust=min_trust))
        both = [one for ones in found for one in ones]
        return sorted(both, key=lambda one: (-one[1].salience, -one[0]))[offset : offset + limit]

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """As EpisodicMemory.get."""
        found = {one.id: one for ones in self._of_all(lambda store: store.get(ids)) for one in ones}
        return [found[key] for key in ids if key in found]

    def has(self, ids: Iterable[str]) -> set[str]:
        """As EpisodicMemory.has."""
        wanted = list(ids)
        return set().union(*self._of_all(lambda store: store.has(wanted)))

    def num_learnable(self, left_out: Mapping[str, int]) -> int:
        """As EpisodicMemory.num_learnable, over all stores."""
        return sum(self._of_all(lambda store: store.num_learnable(left_out)))

    def documents(self, *, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """As EpisodicMemory.documents. All documents are read: their passages lie in several stores."""
        found: dict[str, DocumentInfo] = {}
        for infos in self._of_all(lambda store: store.documents(limit=ALL, offset=0, source_id=source_id)):
            for info in infos:
                known = found.get(info.document_id)
                found[info.document_id] = info if known is None else _joined_info(known, info)
        return sorted(found.values(), key=lambda info: -info.recorded_at)[offset : offset + limit]

    def ids_of(self, document_id: str) -> tuple[str, ...]:
        """As EpisodicMemory.ids_of, store by store."""
        return _joined(self._of_all(lambda store: store.ids_of(document_id)))

    def ids_of_source(self, source_id: str) -> tuple[str, ...]:
        """As EpisodicMemory.ids_of_source, store by store."""
        return _joined(self._of_all(lambda store: store.ids_of_source(source_id)))

    def health(self) -> MemoryHealth:
        """Sums over the stores; `indexed_seq` is `last_seq` less what waits in each."""
        found = self._of_all(lambda store: store.health())
        return MemoryHealth(*(sum(values) for values in zip(*map(astuple, found), strict=True)))

    def _owners(self, episodes: Sequence[Episode]) -> list[int]:
        """The store of each episode: the one that knows its id, else the one that its words fall to."""
        ids = list({episode.id for episode in episodes})
        owner_of = {key: shard for shard, held in enumerate(self._of_all(lambda store: store.has(ids))) for key in held}
        for episode in episodes:
            key = near_duplicate_key(episode.text, tenant=episode.tenant, trust=0)
            owner_of.setdefault(episode.id, int(key[:8], 16) % len(self._stores))
        return [owner_of[episode.id] for episode in episodes]

    def _of_all(self, call: Callable[[EpisodeStore], T]) -> list[T]:
        return list(self._pool.map(call, self._stores))


def _joined(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(key for part in parts for key in part)


def _joined_info(one: DocumentInfo, other: DocumentInfo) -> DocumentInfo:
    first = min(one, other, key=lambda info: info.recorded_at)
    return replace(first, num_episodes=one.num_episodes + other.num_episodes, trust=Trust(min(one.trust, other.trust)))
