import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memory.working import WorkingConfig, WorkingMemory, WorkingMemoryFull

CAPACITY, SHARE, TTL_S = 4, 3, 10.0
keys, sessions = st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["", "s", "t"])


class WorkingMemoryAgainstADictionary(RuleBasedStateMachine):
    """The model: a plain dict in order of use, {(session, key): (value, deadline, pinned)}."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        config = WorkingConfig(capacity=CAPACITY, session_capacity=SHARE, ttl_s=TTL_S)
        self.memory = WorkingMemory(config, clock=lambda: self.now)
        self.model: dict[tuple[str, str], tuple[int, float, bool]] = {}

    def own(self, session: str) -> list[tuple[str, str]]:
        return [place for place in self.model if place[0] == session]

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.model = {place: entry for place, entry in self.model.items() if entry[2] or entry[1] > self.now}

    @rule(
        session=sessions, key=keys, value=st.integers(), ttl_s=st.none() | st.floats(0.5, 20), pinned=st.booleans()
    )  # fmt: skip
    def put(self, session: str, key: str, value: int, ttl_s: float | None, pinned: bool) -> None:
        place = (session, key)
        if place not in self.model:
            full = self.own(session) if len(self.own(session)) == SHARE else None
            full = list(self.model) if full is None and len(self.model) == CAPACITY else full
            if full is not None:
                unpinned = [one for one in full if not self.model[one][2]]
                if not unpinned:
                    with pytest.raises(WorkingMemoryFull, match=r"all \d entries.* are pinned"):
                        self.memory.put(key, value, session=session, ttl_s=ttl_s, pinned=pinned)
                    return
                del self.model[unpinned[0]]
        self.model.pop(place, None)
        self.model[place] = (value, self.now + (TTL_S if ttl_s is None else ttl_s), pinned)
        self.memory.put(key, value, session=session, ttl_s=ttl_s, pinned=pinned)

    @rule(session=sessions, key=keys)
    def get(self, session: str, key: str) -> None:
        entry = self.model.pop((session, key), None)
        if entry is not None:
            self.model[session, key] = entry
        assert self.memory.get(key, session=session) == (None if entry is None else entry[0])

    @rule(session=sessions, key=keys, pinned=st.booleans())
    def pin(self, session: str, key: str, pinned: bool) -> None:
        entry = self.model.get((session, key))
        assert self.memory.pin(key, session=session, pinned=pinned) == (entry is not None)
        if entry is not None:
            deadline = self.now + TTL_S if entry[2] and not pinned else entry[1]
            self.model[session, key] = (entry[0], deadline, pinned)

    @rule(session=sessions, key=keys)
    def delete(self, session: str, key: str) -> None:
        assert self.memory.delete(key, session=session) == (self.model.pop((session, key), None) is not None)

    @rule(session=sessions)
    def end_session(self, session: str) -> None:
        own = self.own(session)
        assert self.memory.end_session(session) == len(own)
        for place in own:
            del self.model[place]

    @rule(digit=st.sampled_from("01234"))
    def forget(self, digit: str) -> None:
        gone = [place for place, entry in self.model.items() if digit in str(entry[0])]
        assert self.memory.forget([digit, "no such text"]) == len(gone)
        for place in gone:
            del self.model[place]

    @invariant()
    def holds_the_same(self) -> None:
        for session in ("", "s", "t"):
            own = [(place[1], entry) for place, entry in self.model.items() if place[0] == session]
            assert self.memory.items(session) == [(key, entry[0]) for key, entry in own]
            assert self.memory.items(session, pinned=True) == [(key, entry[0]) for key, entry in own if entry[2]]
            assert self.memory.sessions().get(session, 0) == len(own) <= SHARE
        assert len(self.memory) == len(self.model) <= CAPACITY


WorkingMemoryAgainstADictionary.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorkingMemoryEqualsADictionary = WorkingMemoryAgainstADictionary.TestCase


def test_overwriting_one_key_for_ever_does_not_grow_the_memory() -> None:
    memory = WorkingMemory(WorkingConfig(), clock=lambda: 0.0)
    for value in range(5000):
        memory.put("key", value)

    assert memory.get("key") == 4999
    assert len(memory._deadlines) < 100


def test_threads_that_write_at_once_stay_within_the_capacity() -> None:
    memory = WorkingMemory(WorkingConfig(capacity=50))

    def write(name: int) -> None:
        for value in range(500):
            memory.put(f"{name}-{value}", value)
            memory.get(f"{name}-{value - 1}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(memory) == 50


def test_a_life_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="ttl_s is 0"):
        WorkingMemory(WorkingConfig()).put("key", 1, ttl_s=0)
