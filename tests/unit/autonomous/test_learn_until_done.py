"""A retraining as learning cycles in turn: when it goes on, and when it ends."""

from collections.abc import Callable
from pathlib import Path

from autonomous.learn_until_done import LearnUntilDone
from autonomous.loop import NothingToLearn
from autonomous.retraining import Job, Outcome, RetrainingScheduler
from autonomous.run_board import AlreadyLearning
from autonomous.runs import CycleStatus
from autonomous.versions.ledger import PromotionsFrozen
from autonomous.versions.states import State
from tests.clock import Clock
from tests.unit.autonomous.scheduling import Desk

CYCLE_S = 30.0


class Cycles:
    """Cycles that take half a minute each; `ends` holds how each ends, and then nothing is left."""

    def __init__(self, *ends: str | Exception) -> None:
        self.clock = Clock(0.0)
        self.ends = list(ends)
        self.begun: list[float] = []
        self.on_pause: Callable[[], object] = lambda: None

    def start_cycle(self, *, by: str) -> str:
        if not self.ends:
            raise NothingToLearn("every passage is learned")
        if isinstance(self.ends[0], Exception):
            raise self.ends.pop(0)  # type: ignore[misc]
        self.begun.append(self.clock.now)
        return f"run-{len(self.begun)}"

    def status_of(self, run_id: str | None = None) -> CycleStatus | None:
        assert run_id == f"run-{len(self.begun)}"
        if self.clock.now - self.begun[-1] < CYCLE_S:
            return CycleStatus(run_id=run_id, phase="training")
        end = str(self.ends.pop(0))
        if end == "failed":
            return CycleStatus(run_id=run_id, phase="failed", error="OSError: no room")
        return CycleStatus(run_id=run_id, phase="done", state=end, version="v-new")

    def pause(self, seconds: float) -> None:
        self.clock.now += seconds
        self.on_pause()


def run(folder: Path, cycles: Cycles, kind: str = "retrain", **settings: float) -> Outcome:
    desk = Desk(folder, {kind: settings})
    scheduler = desk.open()
    runner = LearnUntilDone(cycles, pause=cycles.pause, monotonic=cycles.clock)
    desk.runners[kind] = runner
    return outcome_of(scheduler, kind)


def outcome_of(scheduler: RetrainingScheduler, name: str) -> Outcome:
    scheduler.ask(name, by="ann", reason="now")
    job: Job | None = scheduler.tick()
    assert job is not None
    return scheduler.execute(job)


GOOD, REJECTED = State.PRODUCTION.value, State.QUARANTINED.value


def test_a_retraining_goes_on_until_nothing_is_left_and_a_learning_run_is_one_cycle(folder: Path) -> None:
    outcome = run(folder, Cycles(GOOD, REJECTED, GOOD))
    assert (outcome.result, outcome.results) == ("done", ("run-1", "run-2", "run-3"))
    (folder / "second").mkdir()
    one = run(folder / "second", Cycles(GOOD, GOOD), kind="learn")
    assert (one.result, one.results) == ("done", ("run-1",))


def test_nothing_new_is_no_failure(folder: Path) -> None:
    outcome = run(folder, Cycles())
    assert (outcome.result, outcome.detail) == ("nothing", "every passage is learned")


def test_it_ends_with_its_budget_of_cycles_or_seconds(folder: Path) -> None:
    assert len(run(folder, Cycles(*[GOOD] * 9), max_cycles=4).results) == 4
    (folder / "second").mkdir()
    outcome = run(folder / "second", Cycles(*[GOOD] * 9), budget_s=2 * CYCLE_S + 1)
    assert (len(outcome.results), outcome.detail) == (3, "the budget of 61 s is used")


def test_a_failed_cycle_or_a_version_that_waits_for_a_person_ends_it(folder: Path) -> None:
    failed = run(folder, Cycles(GOOD, "failed", GOOD))
    assert (failed.result, failed.detail) == ("failed", "run-2: OSError: no room")
    (folder / "second").mkdir()
    waits = run(folder / "second", Cycles(State.AWAITING_APPROVAL.value, GOOD))
    assert (waits.result, waits.results) == ("done", ("run-1",))
    assert "v-new waits for approval" in waits.detail


def test_frozen_promotions_are_a_failure_that_says_how_to_go_on(folder: Path) -> None:
    outcome = run(folder, Cycles(PromotionsFrozen("unlock them first")))
    assert (outcome.result, outcome.detail) == ("failed", "unlock them first")


def test_learning_that_a_person_began_is_waited_for_within_the_budget(folder: Path) -> None:
    busy = AlreadyLearning("run-0 is under way")
    assert run(folder, Cycles(busy, busy, GOOD)).results == ("run-1",)
    (folder / "second").mkdir()
    outcome = run(folder / "second", Cycles(*[busy] * 100), budget_s=20)
    assert (outcome.result, outcome.detail) == ("nothing", "other learning was under way for 20 s")


def test_a_stop_ends_the_run_while_a_cycle_is_under_way(folder: Path) -> None:
    cycles = Cycles(GOOD, GOOD)
    desk = Desk(folder, {})
    cycles.on_pause = lambda: cycles.clock.now < 10 or desk.latch.stop(reason="drill", by="ann")
    desk.runners["retrain"] = LearnUntilDone(cycles, pause=cycles.pause, monotonic=cycles.clock)
    outcome = outcome_of(desk.open(), "retrain")
    assert outcome.result == "stopped"
    assert cycles.clock.now < CYCLE_S
