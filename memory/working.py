"""WorkingMemory: what the system holds in mind now. A bounded key-value store in this process, never on disk.

Entries leave by age (time to live) or, when the store is full, by disuse (least recently used first). Pinned entries
leave only by `delete`. Thread-safe; `clock` gives seconds and is only compared with itself.
"""

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class WorkingConfig(BaseModel):
    """Bounds of the working memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: int = Field(1000, gt=0)
    """Most entries kept, pinned ones included."""
    ttl_s: float = Field(3600.0, gt=0)
    """Life of an entry that names none, seconds."""


class WorkingMemoryFull(ValueError):
    """Every place is pinned."""


@dataclass(slots=True)
class _Entry:
    value: object
    expires_at: float
    is_pinned: bool
    serial: int


class WorkingMemory:
    """See the module. The order of `_entries` is the order of use, least recent first."""

    def __init__(self, config: WorkingConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._deadlines: list[tuple[float, int, str]] = []  # heap; an item is stale when its serial is not the entry's
        self._serials = itertools.count()
        self._lock = threading.Lock()

    def put(self, key: str, value: object, *, ttl_s: float | None = None, pinned: bool = False) -> None:
        """Set a value, its life and its pin anew; the key becomes the most recently used.

        Raises: ValueError for a ttl_s that is not above 0; WorkingMemoryFull if all places are taken by pins.
        """
        life_s = self.config.ttl_s if ttl_s is None else ttl_s
        if not life_s > 0:
            raise ValueError(f"ttl_s is {ttl_s}: give a number of seconds above 0, or leave it out")
        with self._lock:
            now = self._clock()
            self._expire(now)
            if key not in self._entries:
                self._make_room()
            entry = _Entry(value, now + life_s, pinned, next(self._serials))
            self._entries[key] = entry
            self._entries.move_to_end(key)
            if not pinned:
                heapq.heappush(self._deadlines, (entry.expires_at, entry.serial, key))
                self._compact()

    def get(self, key: str) -> object | None:
        """The value, or None; a hit makes the key the most recently used and leaves its deadline as it is."""
        with self._lock:
            self._expire(self._clock())
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.value

    def delete(self, key: str) -> bool:
        """Remove a key, pinned or not; False if it was not there."""
        with self._lock:
            self._expire(self._clock())
            return self._entries.pop(key, None) is not None

    def items(self, prefix: str = "") -> list[tuple[str, object]]:
        """The live entries whose key starts with `prefix`, by key. Does not count as use."""
        with self._lock:
            self._expire(self._clock())
            return sorted(
                ((key, entry.value) for key, entry in self._entries.items() if key.startswith(prefix)),
                key=lambda item: item[0],
            )

    def __len__(self) -> int:
        with self._lock:
            self._expire(self._clock())
            return len(self._entries)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, serial, key = heapq.heappop(self._deadlines)
            if self._is_current(serial, key):
                del self._entries[key]

    def _make_room(self) -> None:
        if len(self._entries) < self.config.capacity:
            return
        oldest = next((key for key, entry in self._entries.items() if not entry.is_pinned), None)
        if oldest is None:
            raise WorkingMemoryFull(
                f"all {self.config.capacity} entries are pinned: delete or unpin one, or raise the capacity"
            )
        del self._entries[oldest]

    def _compact(self) -> None:
        """Drop stale deadlines when they outnumber the entries, so that overwriting one key does not grow the heap."""
        if len(self._deadlines) > 2 * len(self._entries) + 64:
            self._deadlines = [item for item in self._deadlines if self._is_current(item[1], item[2])]
            heapq.heapify(self._deadlines)

    def _is_current(self, serial: int, key: str) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.serial == serial
