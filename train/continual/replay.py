"""Experience replay: a uniform sample of everything ever learned, of bounded size.

Each item has a key, uniform in [0, 1), hashed from its id; the reservoir keeps the items with the largest keys. That is
Vitter's reservoir in law, needs no count of the stream, makes a repeated item harmless, and two shards merge into exactly
what one stream would have kept. Source: random-key sampling, Efraimidis and Spirakis 2006; Avalanche's reservoir buffer.
"""

import hashlib
import heapq
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

STATE_VERSION = 1

T = TypeVar("T")


def replay_key(item_id: str, *, seed: int) -> float:
    """Uniform in [0, 1), the same in every process: 53 bits of BLAKE2b, keyed by the seed."""
    digest = hashlib.blake2b(item_id.encode(), digest_size=8, key=str(seed).encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class ExperienceReplay(Generic[T]):
    """The reservoir: values of any kind by id. Not thread-safe: one owner."""

    def __init__(self, capacity: int, *, seed: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: keep at least one item")
        self.capacity = capacity
        self.seed = seed
        self._items: dict[str, T] = {}
        self._heap: list[tuple[float, str]] = []
        self._evicted: tuple[float, str] = (-1.0, "")
        """Largest key that was pushed out. Smaller ones never come in: not even after `forget` made room,
        for then the newest items would be kept more often than the oldest."""

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item_id: str) -> T:
        return self._items[item_id]

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def items(self) -> dict[str, T]:
        """All kept items, by falling key: an order that does not depend on the order of arrival."""
        return {item_id: self._items[item_id] for _, item_id in sorted(self._heap, reverse=True)}

    def add(self, items: Mapping[str, T]) -> None:
        """Offer items by id. An id that is kept already stays as it is."""
        for item_id, item in items.items():
            self.offer(item_id, item)

    def offer(self, item_id: str, item: T) -> list[T] | None:
        """One item: None if it is not taken, else what was pushed out for it."""
        entry = (replay_key(item_id, seed=self.seed), item_id)
        if item_id in self._items or entry <= self._evicted:
            return None
        self._items[item_id] = item
        heapq.heappush(self._heap, entry)
        if len(self._heap) <= self.capacity:
            return []
        self._evicted = heapq.heappop(self._heap)
        pushed_out = self._items.pop(self._evicted[1])
        return None if self._evicted == entry else [pushed_out]

    def exclude(self, other: "ExperienceReplay[Any]") -> None:
        """Take nothing from now on that `other` would not."""
        self._evicted = max(self._evicted, other._evicted)

    def sample(self, n: int, rng: np.random.Generator) -> list[T]:
        """`n` different items in random order. Raises: ValueError if fewer are kept."""
        if not 0 <= n <= len(self):
            raise ValueError(f"n is {n}, the reservoir holds {len(self)} items: ask for 0 to {len(self)}")
        kept = list(self.items().values())
        return [kept[index] for index in rng.choice(len(kept), size=n, replace=False)]

    def forget(self, item_ids: Collection[str]) -> int:
        """Drop items (erased, or found bad); returns how many were there."""
        gone = {item_id for item_id in item_ids if item_id in self._items}
        self._items = {item_id: item for item_id, item in self._items.items() if item_id not in gone}
        self._heap = [entry for entry in self._heap if entry[1] not in gone]
        heapq.heapify(self._heap)
        return len(gone)

    def merge(self, other: "ExperienceReplay[T]") -> "ExperienceReplay[T]":
        """The reservoir of both streams, exactly as if they had been one."""
        if (self.capacity, self.seed) != (other.capacity, other.seed):
            raise ValueError(
                f"reservoirs differ: capacity {self.capacity} and {other.capacity}, seed {self.seed} and {other.seed}; "
                "only shards of one configuration merge"
            )
        merged: ExperienceReplay[T] = ExperienceReplay(self.capacity, seed=self.seed)
        merged._evicted = max(self._evicted, other._evicted)
        merged.add(self.items())
        merged.add(other.items())
        return merged

    def state(self) -> dict[str, Any]:
        """Everything; JSON types if the items are."""
        return {
            "version": STATE_VERSION,
            "capacity": self.capacity,
            "seed": self.seed,
            "evicted": list(self._evicted),
            "items": self.items(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ExperienceReplay[T]":
        """The reservoir that `state` describes. Raises: ValueError for a state of another version."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"replay state has version {state.get('version')}, this program reads {STATE_VERSION}: "
                "start the program that wrote it, or delete the file to begin with an empty reservoir"
            )
        replay = cls(state["capacity"], seed=state["seed"])
        key, item_id = state["evicted"]
        replay._evicted = (float(key), str(item_id))
        replay.add(state["items"])
        return replay
