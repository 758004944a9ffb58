import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memory.working import WorkingConfig, WorkingMemory, WorkingMemoryFull

CAPACITY, TTL_S = 3, 10.0
keys = st.sampled_from(["a", "ab", "b", "c", "d"])


class WorkingMemoryAgainstADictionary(RuleBasedStateMachine):
    """The model: a plain dict in order of use, {key: (value, deadline, pinned)}."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.memory = WorkingMemory(WorkingConfig(capacity=CAPACITY, ttl_s=TTL_S), clock=lambda: self.now)
        self.model: dict[str, tuple[int, float, bool]] = {}

    def expire(self) -> None:
        self.model = {key: entry for key, entry in self.model.items() if entry[2] or entry[1] > self.now}

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.expire()

    @rule(key=keys, value=st.integers(), ttl_s=st.none() | st.floats(0.5, 20), pinned=st.booleans())
    def put(self, key: str, value: int, ttl_s: float | None, pinned: bool) -> None:
        if key not in self.model and len(self.model) == CAPACITY:
            unpinned = [name for name, entry in self.model.items() if not entry[2]]
            if not unpinned:
                with pytest.raises(WorkingMemoryFull, match="all 3 entries are pinned"):
                    self.memory.put(key, value, ttl_s=ttl_s, pinned=pinned)
                return
            del self.model[unpinned[0]]
        self.model.pop(key, None)
        self.model[key] = (value, self.now + (TTL_S if ttl_s is None else ttl_s), pinned)
        self.memory.put(key, value, ttl_s=ttl_s, pinned=pinned)

    @rule(key=keys)
    def get(self, key: str) -> None:
        entry = self.model.pop(key, None)
        if entry is not None:
            self.model[key] = entry
        assert self.memory.get(key) == (None if entry is None else entry[0])

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.memory.delete(key) == (self.model.pop(key, None) is not None)

    @invariant()
    def holds_the_same(self) -> None:
        for prefix in ("", "a"):
            assert self.memory.items(prefix) == sorted(
                (key, entry[0]) for key, entry in self.model.items() if key.startswith(prefix)
            )
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
