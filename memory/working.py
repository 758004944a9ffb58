"""WorkingMemory: what each session holds in mind now. A bounded key-value store in this process, never on disk.

Entries leave by age (time to live) or by disuse (least recently used first): of their own session when it has its share,
of all when the store is full. Pinned entries leave only by `delete` and `end_session`. Thread-safe; `clock` gives seconds
and is only compared with itself.
"""

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator


class WorkingConfig(BaseModel):
    """Bounds of the working memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: int = Field(1000, gt=0)
    """Most entries kept, pinned ones included."""
    session_capacity: int = Field(250, gt=0)
    """Most entries of one session, so that none takes the places of all."""
    ttl_s: float = Field(3600.0, gt=0)
    """Life of an entry that names none, seconds."""

    @model_validator(mode="before")
    @classmethod
    def _share(cls, values: object) -> object:
        """A smaller memory is one session's to fill, unless the share is given."""
        if isinstance(values, dict) and "session_capacity" not in values and "capacity" in values:
            return {**values, "session_capacity": min(250, values["capacity"])}
        return values


class WorkingMemoryFull(ValueError):
    """Every place is pinned."""


Key = tuple[str, str]
"""Session and name."""


@dataclass(slots=True)
class _Entry:
    value: object
    expires_at: float
    is_pinned: bool
    serial: int


class WorkingMemory:
    """See the module. The order of `_entries`, and of each session's, is the order of use, least recent first."""

    def __init__(self, config: WorkingConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._sessions: dict[str, OrderedDict[Key, None]] = {}
        self._deadlines: list[tuple[float, int, Key]] = []  # heap; an item is stale when its serial is not the entry's
        self._serials = itertools.count()
        self._lock = threading.Lock()

    def put(
        self, key: str, value: object, *, session: str = "", ttl_s: float | None = None, pinned: bool = False
    ) -> None:
        """Set a value, its life and its pin anew; the key becomes the most recently used.

        Raises: ValueError for a ttl_s that is not above 0; WorkingMemoryFull if all places are taken by pins.
        """
        life_s = self.config.ttl_s if ttl_s is None else ttl_s
        if not life_s > 0:
            raise ValueError(f"ttl_s is {ttl_s}: give a number of seconds above 0, or leave it out")
        place = (session, key)
        with self._lock:
            now = self._clock()
            self._expire(now)
            if place not in self._entries:
                self._make_room(session)
            entry = _Entry(value, now + life_s, pinned, next(self._serials))
            self._entries[place] = entry
            self._sessions.setdefault(session, OrderedDict())[place] = None
            self._touch(place)
            if not pinned:
                heapq.heappush(self._deadlines, (entry.expires_at, entry.serial, place))
                self._compact()

    def get(self, key: str, *, session: str = "") -> object | None:
        """The value, or None; a hit makes the key the most recently used and leaves its deadline as it is."""
        with self._lock:
            self._expire(self._clock())
            entry = self._entries.get((session, key))
            if entry is None:
                return None
            self._touch((session, key))
            return entry.value

    def pin(self, key: str, *, session: str = "", pinned: bool = True) -> bool:
        """Pin an entry, or unpin it, which begins a new life of the usual length; False if it is not there."""
        with self._lock:
            now = self._clock()
            self._expire(now)
            entry = self._entries.get((session, key))
            if entry is None:
                return False
            if entry.is_pinned and not pinned:
                entry.expires_at, entry.serial = now + self.config.ttl_s, next(self._serials)
                heapq.heappush(self._deadlines, (entry.expires_at, entry.serial, (session, key)))
            entry.is_pinned = pinned
            return True

    def delete(self, key: str, *, session: str = "") -> bool:
        """Remove a key, pinned or not; False if it was not there."""
        with self._lock:
            self._expire(self._clock())
            is_there = (session, key) in self._entries
            if is_there:
                self._drop((session, key))
            return is_there

    def end_session(self, session: str) -> int:
        """Remove all of a session's entries, pinned ones too; how many there were."""
        with self._lock:
            self._expire(self._clock())
            places = list(self._sessions.get(session, ()))
            for place in places:
                self._drop(place)
            return len(places)

    def items(self, session: str = "", *, pinned: bool | None = None) -> list[tuple[str, object]]:
        """A session's live entries, least recently used first; only pinned or unpinned ones if asked. Is no use."""
        with self._lock:
            self._expire(self._clock())
            return [
                (place[1], self._entries[place].value)
                for place in self._sessions.get(session, ())
                if pinned is None or self._entries[place].is_pinned is pinned
            ]

    def sessions(self) -> dict[str, int]:
        """How many entries each session has."""
        with self._lock:
            self._expire(self._clock())
            return {session: len(places) for session, places in self._sessions.items()}

    def forget(self, texts: Sequence[str]) -> int:
        """Remove the entries that hold any of these texts, whatever its case and spacing, pinned ones too; how many."""
        wanted = [_plain(text) for text in texts if text.strip()]
        with self._lock:
            places = [
                place
                for place, entry in self._entries.items()
                if any(text in _plain(f"{place[1]} {entry.value}") for text in wanted)
            ]
            for place in places:
                self._drop(place)
            return len(places)

    def __len__(self) -> int:
        with self._lock:
            self._expire(self._clock())
            return len(self._entries)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, serial, place = heapq.heappop(self._deadlines)
            if self._is_current(serial, place):
                self._drop(place)

    def _make_room(self, session: str) -> None:
        own = self._sessions.get(session, OrderedDict())
        if len(own) >= self.config.session_capacity:
            self._drop_oldest(own, f"all {len(own)} entries of session '{session}'")
        elif len(self._entries) >= self.config.capacity:
            self._drop_oldest(self._entries, f"all {len(self._entries)} entries")

    def _drop_oldest(self, places: Iterable[Key], described: str) -> None:
        oldest = next((place for place in places if not self._entries[place].is_pinned), None)
        if oldest is None:
            raise WorkingMemoryFull(f"{described} are pinned: delete or unpin one, or raise the capacity")
        self._drop(oldest)

    def _drop(self, place: Key) -> None:
        del self._entries[place]
        del self._sessions[place[0]][place]
        if not self._sessions[place[0]]:
            del self._sessions[place[0]]

    def _touch(self, place: Key) -> None:
        self._entries.move_to_end(place)
        self._sessions[place[0]].move_to_end(place)

    def _compact(self) -> None:
        """Drop stale deadlines when they outnumber the entries, so that overwriting one key does not grow the heap."""
        if len(self._deadlines) > 2 * len(self._entries) + 64:
            self._deadlines = [item for item in self._deadlines if self._is_current(item[1], item[2])]
            heapq.heapify(self._deadlines)

    def _is_current(self, serial: int, place: Key) -> bool:
        entry = self._entries.get(place)
        return entry is not None and entry.serial == serial and not entry.is_pinned


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
