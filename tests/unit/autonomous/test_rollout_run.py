"""The rollout over a real ledger: canary steps, withdrawal, soak, restart; and the reconciler behind it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from autonomous.config import RolloutConfig
from autonomous.reconciler import Reconciler
from autonomous.rollout import Rollout
from autonomous.safety.latch import Latch
from autonomous.versions.ledger import PromotionRefused, VersionLedger
from autonomous.versions.reference import reference_of
from autonomous.versions.rollout import Outcome
from autonomous.versions.states import State
from memory.store import no_guard
from memory.types import Episode
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import advance, make_candidate, make_genesis, make_production
from train.adapt.reference import AdapterRef

STEPS = RolloutConfig(canary_percents=(5, 50), min_requests=50)
DAY_S = 86_400.0


class World:
    """A ledger with a genesis, a latch, a clock, and a rollout over them."""

    def __init__(self, folder: Path, config: RolloutConfig) -> None:
        self.clock = Clock(1e9)
        self.config = config
        self.ledger = VersionLedger(folder / "ledger.sqlite", clock=self.clock)
        self.base = make_genesis(self.ledger, folder)
        self.latch = Latch.create(folder / "latch")
        self.start()

    def start(self) -> None:
        self.actions: list[str] = []
        self.rollout = Rollout(
            self.config, ledger=self.ledger, latch=self.latch, on_action=self.actions.append, clock=self.clock
        )

    def begin(self, mark: str, *, episodes: tuple[str, ...] = ()) -> str:
        name = make_candidate(self.ledger, self.ledger.pointers().v2, mark=mark, episodes=episodes)
        self.rollout.begin(advance(self.ledger, name, State.SHADOW), reason="gates passed", guard=no_guard)
        return name

    def serve(self, name: str, count: int, *, num_errors: int = 0) -> None:
        self.rollout.observe([Outcome(name, 0.5, is_error=row < num_errors) for row in range(count)])
        self.rollout.tick()

    def state(self, name: str) -> State:
        return self.ledger.get(name).state


def test_without_steps_a_version_serves_everybody_at_once(folder: Path) -> None:
    world = World(folder, RolloutConfig())
    name = world.begin("one")
    assert world.ledger.pointers().v2 == name
    assert world.actions == ["promotion"]


def test_canary_climbs_and_is_promoted_with_the_counts_of_both_arms_as_evidence(folder: Path) -> None:
    world = World(folder, STEPS)
    name = world.begin("one")
    assert world.ledger.pointers().canary_percent == 5
    world.serve(world.base, 500)
    world.serve(name, 49)
    assert world.ledger.pointers().canary_percent == 5
    world.serve(name, 1)
    assert world.ledger.pointers().canary_percent == 50
    assert world.rollout.status()["requests"][name]["num_requests"] == 50, "the counts go on over the steps"
    world.serve(name, 49)
    assert world.state(name) is State.CANARY
    for _ in range(4):
        world.serve(name, 50)
    assert world.state(name) is State.PRODUCTION
    assert world.actions == ["promotion"]
    row = next(row for row in world.ledger.audit() if row.action == "version.promote")
    assert row.evidence_sha256 is not None
    assert world.ledger.verify_audit().ok


def test_canary_that_fails_is_withdrawn_and_its_passages_are_held_back(folder: Path) -> None:
    world = World(folder, STEPS)
    name = world.begin("one", episodes=("a",))
    world.serve(world.base, 500)
    world.serve(name, 20, num_errors=15)
    assert world.state(name) is State.QUARANTINED
    assert world.ledger.pointers().v2 == world.base
    assert world.ledger.held_back() == {"a"}
    assert world.actions == ["rollback"]
    assert "15 of 20" in str(next(row.after for row in world.ledger.audit() if row.action == "version.rollback"))


def test_a_stop_holds_the_canary_where_it_is_but_not_its_withdrawal(folder: Path) -> None:
    world = World(folder, STEPS)
    name = world.begin("one")
    world.latch.stop(reason="drill", by="alice")
    world.serve(world.base, 500)
    world.serve(name, 60)
    assert world.ledger.pointers().canary_percent == 5
    world.serve(name, 60, num_errors=60)
    assert world.state(name) is State.QUARANTINED


def test_canary_whose_parent_left_is_closed_and_its_passages_are_free(folder: Path) -> None:
    world = World(folder, STEPS)
    make_production(world.ledger, world.base, mark="zero")
    name = world.begin("one", episodes=("a",))
    world.ledger.rollback(by="alice", reason="bad")
    world.rollout.tick()
    assert world.state(name) is State.QUARANTINED
    assert world.ledger.held_back() == set()


def test_canary_that_nobody_asks_leaves_after_its_time_and_uses_up_no_budget(folder: Path) -> None:
    world = World(folder, STEPS)
    for mark in ("one", "two"):
        name = world.begin(mark, episodes=(mark,))
        world.clock.now += DAY_S + 1
        world.rollout.tick()
        assert world.state(name) is State.QUARANTINED
    assert world.ledger.frozen() == ""
    assert world.ledger.held_back() == set(), "nothing was found wrong with what it learned"


def test_a_restart_counts_the_step_anew(folder: Path) -> None:
    world = World(folder, STEPS)
    name = world.begin("one")
    world.serve(world.base, 500)
    world.serve(name, 40)
    world.start()
    world.serve(name, 40)
    assert world.ledger.pointers().canary_percent == 5
    world.serve(name, 10)
    assert world.ledger.pointers().canary_percent == 50


def test_soak_rolls_a_version_back_that_serves_worse_than_the_one_before(folder: Path) -> None:
    world = World(folder, RolloutConfig(soak_s=3600))
    world.serve(world.base, 500)
    name = world.begin("one")
    world.serve(name, 20, num_errors=15)
    assert world.state(name) is State.QUARANTINED
    assert world.ledger.pointers().v2 == world.base
    row = next(row for row in world.ledger.audit() if row.action == "version.rollback")
    assert (row.actor, row.subject) == ("agent:soak", name)


def test_soak_that_ends_well_is_audited_once(folder: Path) -> None:
    world = World(folder, RolloutConfig(soak_s=3600))
    world.serve(world.base, 500)
    name = world.begin("one")
    world.serve(name, 500)
    world.clock.now += 3600
    for _ in range(3):
        world.rollout.tick()
    assert [row.subject for row in world.ledger.audit() if row.action == "soak.ended"] == [name]
    world.start()
    world.rollout.tick()
    assert len([row for row in world.ledger.audit() if row.action == "soak.ended"]) == 1
    world.serve(name, 20, num_errors=20)
    assert world.state(name) is State.PRODUCTION, "after the soak people decide"


def test_a_version_that_was_compared_with_another_is_refused(folder: Path) -> None:
    world = World(folder, STEPS)
    late = advance(world.ledger, make_candidate(world.ledger, world.base, mark="late"), State.SHADOW)
    make_production(world.ledger, world.base, mark="one")
    with pytest.raises(PromotionRefused, match="was compared with"):
        world.rollout.begin(late, reason="gates passed", guard=no_guard)


def test_a_restart_in_the_soak_knows_no_predecessor_and_blames_nobody_for_slow_answers(folder: Path) -> None:
    world = World(folder, RolloutConfig(soak_s=3600))
    name = world.begin("one")
    world.start()
    world.rollout.observe([Outcome(name, 30.0)] * 50)
    world.rollout.tick()
    assert world.state(name) is State.PRODUCTION


def test_what_a_rollback_restored_is_not_soaked_again(folder: Path) -> None:
    world = World(folder, RolloutConfig(soak_s=3600))
    world.begin("one")
    good = world.ledger.pointers().v2
    world.serve(good, 300)
    world.begin("two")
    world.ledger.rollback(by="alice", reason="bad")
    world.serve(good, 50, num_errors=50)
    assert world.state(good) is State.PRODUCTION


def test_a_stop_of_the_canary_does_not_end_the_watch_over_production(folder: Path) -> None:
    world = World(folder, RolloutConfig(canary_percents=(50,), min_requests=10, soak_s=3600))
    bad = advance(world.ledger, make_candidate(world.ledger, world.base, mark="bad"), State.SHADOW)
    world.serve(world.base, 500)
    world.ledger.promote(bad, by="agent", reason="passed")
    world.rollout.tick()
    canary = world.begin("next")
    world.serve(canary, 300)
    world.latch.stop(reason="drill", by="alice")
    world.serve(bad, 40, num_errors=40)
    assert world.state(bad) is State.QUARANTINED


class Effects:
    """An engine's replicas and a memory, which may be away."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.suspected: list[str] = []
        self.is_away = False

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        self._check()
        self.loaded.add(adapter.name)
        return []

    def drop(self, adapter: AdapterRef) -> None:
        self._check()
        self.loaded.discard(adapter.name)

    def suspect(self, ids: Sequence[str]) -> list[str]:
        self._check()
        self.suspected += ids
        return list(ids)

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        raise NotImplementedError

    def get(self, ids: Sequence[str]) -> list[Episode]:
        raise NotImplementedError

    def _check(self) -> None:
        if self.is_away:
            raise OSError("away")


def reconciler_of(world: World, effects: Effects) -> Reconciler:
    return Reconciler(ledger=world.ledger, engine=effects, memory=effects, latch=world.latch, adapter_of=reference_of)


def test_reconciler_loads_what_meets_users_and_drops_what_left_also_after_failures_and_restarts(folder: Path) -> None:
    world, effects = World(folder, STEPS), Effects()
    reconciler = reconciler_of(world, effects)
    name = world.begin("one")
    effects.is_away = True
    reconciler.step()
    effects.is_away = False
    reconciler.step()
    assert effects.loaded == {name}
    world.ledger.withdraw(name, by="agent", reason="bad", is_breach=True)
    reconciler_of(world, effects).step()
    assert effects.loaded == set()
    effects.loaded.add("untouched")
    reconciler.step()
    reconciler.step()
    assert effects.loaded == {"untouched"}


def test_what_a_rolled_back_version_learned_is_suspected_once_and_waits_for_a_stop_to_end(folder: Path) -> None:
    world, effects = World(folder, RolloutConfig()), Effects()
    world.begin("one", episodes=("a", "b"))
    world.ledger.rollback(by="alice", reason="wrong answers", is_suspect=True)
    world.latch.stop(reason="drill", by="alice")
    reconciler = reconciler_of(world, effects)
    reconciler.step()
    assert effects.suspected == []
    world.latch.reset(reason="over", by="alice")
    effects.is_away = True
    reconciler.step()
    effects.is_away = False
    reconciler.step()
    reconciler_of(world, effects).step()
    assert effects.suspected == ["a", "b"]
    assert world.ledger.verify_audit().ok


def test_a_rollback_that_keeps_the_passages_suspects_none(folder: Path) -> None:
    world, effects = World(folder, RolloutConfig()), Effects()
    world.begin("one", episodes=("a",))
    world.ledger.rollback(by="alice", reason="slow")
    reconciler_of(world, effects).step()
    assert effects.suspected == []
