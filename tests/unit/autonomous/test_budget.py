"""Budgets: nothing passes a limit, whoever asks at once; what is settled is counted once."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError

from autonomous.budget import (
    Budget,
    BudgetConfig,
    BudgetExceeded,
    BudgetLimits,
    ClockWentBack,
    CycleBudget,
    UnknownReservation,
)
from autonomous.config import AutonomousConfig, LearningConfig
from tests.unit.autonomous.ledger_life import quick_folder

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
LIMITED = BudgetConfig(day=BudgetLimits(tool_calls=10), month=BudgetLimits(tool_calls=15))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_budget(folder: Path, clock: Clock, config: BudgetConfig = LIMITED) -> Budget:
    return Budget(folder / "budget.sqlite", config, clock=clock)


def spent(budget: Budget, kind: str = "tool_calls") -> list[tuple[float, float]]:
    return [(one.spent, one.reserved) for one in budget.usage() if one.kind == kind]


def test_reservation_that_would_pass_the_limit_is_refused_and_says_when_it_begins_anew(
    tmp_path: Path, clock: Clock
) -> None:
    budget = open_budget(tmp_path, clock)
    budget.reserve("tool_calls", 8, "a")
    with pytest.raises(BudgetExceeded, match=r"2026-02-01 00:00 UTC; raise agent\.budget\.day\.tool_calls") as refused:
        budget.reserve("tool_calls", 3, "b")
    assert refused.value.resets_at == datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    assert spent(budget) == [(0, 8), (0, 8)]
    budget.reserve("tool_calls", 2, "c")


def test_settling_frees_what_was_not_used_and_counts_what_was_once(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    budget.reserve("tool_calls", 8, "a")
    budget.settle("a", {"tool_calls": 3})
    budget.settle("a", {"tool_calls": 3})
    assert spent(budget) == [(3, 0), (3, 0)]
    with pytest.raises(ValueError, match="an id of its own"):
        budget.reserve("tool_calls", 8, "a")
    with pytest.raises(UnknownReservation, match="reserve before"):
        budget.settle("b", {"tool_calls": 1})


def test_repeated_reservation_changes_nothing_and_another_amount_is_refused(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    for _ in range(3):
        assert budget.reserve("tool_calls", 8, "a") == "a"
    assert spent(budget)[0] == (0, 8)
    with pytest.raises(ValueError, match="has reserved 8 tool_calls already"):
        budget.reserve("tool_calls", 7, "a")


def test_month_holds_where_a_new_day_has_begun(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    clock.now -= 86_400
    budget.reserve("tool_calls", 10, "a")
    budget.settle("a", {"tool_calls": 10})
    clock.now = NOON
    with pytest.raises(BudgetExceeded, match="month"):
        budget.reserve("tool_calls", 6, "b")
    budget.reserve("tool_calls", 5, "c")
    clock.now += 86_400
    budget.reserve("tool_calls", 10, "of February")


def test_all_kinds_are_reserved_or_none(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    with pytest.raises(BudgetExceeded):
        budget.reserve_all({"training_tokens": 500, "tool_calls": 11}, "a")
    assert spent(budget, "training_tokens") == [(0, 0), (0, 0)]


def test_what_is_unlimited_is_counted(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock, BudgetConfig())
    budget.reserve("training_tokens", 1e9, "a")
    budget.settle("a", {"training_tokens": 123_456})
    assert spent(budget, "training_tokens")[0] == (123_456, 0)


def test_reservation_whose_owner_died_expires_and_is_counted_if_it_is_settled_late(
    tmp_path: Path, clock: Clock
) -> None:
    budget = open_budget(tmp_path, clock)
    budget.reserve("tool_calls", 10, "dead")
    clock.now += LIMITED.reservation_s
    budget.reserve("tool_calls", 4, "b")
    assert spent(budget)[0] == (0, 4)
    budget.settle("dead", {"tool_calls": 2})
    assert spent(budget)[0] == (2, 4)


def test_expired_reservation_is_reserved_anew_when_its_run_goes_on(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    budget.reserve("tool_calls", 10, "a")
    clock.now += LIMITED.reservation_s
    assert spent(budget)[0] == (0, 0)
    budget.reserve("tool_calls", 10, "a")
    assert spent(budget)[0] == (0, 10)


def test_reservations_outlive_the_process(tmp_path: Path, clock: Clock) -> None:
    first = open_budget(tmp_path, clock)
    first.reserve("tool_calls", 9, "a")
    first.close()
    with pytest.raises(BudgetExceeded):
        open_budget(tmp_path, clock).reserve("tool_calls", 2, "b")


def test_clock_that_went_back_reserves_nothing(tmp_path: Path, clock: Clock) -> None:
    budget = open_budget(tmp_path, clock)
    budget.reserve("tool_calls", 10, "a")
    clock.now -= 86_400
    with pytest.raises(ClockWentBack, match="86400 s behind"):
        budget.reserve("tool_calls", 1, "b")
    budget.settle("a", {"tool_calls": 10})
    clock.now = NOON - 1  # a time server's correction
    with pytest.raises(BudgetExceeded):
        budget.reserve("tool_calls", 1, "c")


def test_sixty_four_clients_at_once_never_pass_the_limit(tmp_path: Path, clock: Clock) -> None:
    config = BudgetConfig(day=BudgetLimits(tool_calls=20))
    budgets = [open_budget(tmp_path, clock, config) for _ in range(4)]  # connections of their own, as of processes
    start = threading.Barrier(64)

    def ask(number: int) -> float:
        start.wait()
        try:
            budgets[number % 4].reserve("tool_calls", 1 + number % 3, f"run {number}")
        except BudgetExceeded:
            return 0
        return 1 + number % 3

    with ThreadPoolExecutor(64) as pool:
        granted = sum(pool.map(ask, range(64)))
    assert 18 <= granted <= 20
    assert spent(budgets[0])[0] == (0, granted)


def test_limiter_that_does_not_fire_is_found_at_the_start(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autonomous import budget as module

    monkeypatch.setattr(module, "_totals", lambda *arguments: (0, -(10**9)))
    with pytest.raises(module.BudgetBroken):
        open_budget(tmp_path, clock)


def test_self_test_leaves_nothing_behind(tmp_path: Path, clock: Clock) -> None:
    open_budget(tmp_path, clock).close()
    rows = sqlite3.connect(tmp_path / "budget.sqlite").execute("SELECT count(*) FROM total").fetchone()
    assert rows == (0,)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_amount_that_is_none_is_refused(tmp_path: Path, clock: Clock, amount: float) -> None:
    with pytest.raises(ValueError, match="finite amount"):
        open_budget(tmp_path, clock).reserve("tool_calls", amount, "a")


def test_guard_that_refuses_leaves_nothing_reserved(tmp_path: Path, clock: Clock) -> None:
    def refuse() -> None:
        raise RuntimeError("stopped")

    budget = open_budget(tmp_path, clock)
    with pytest.raises(RuntimeError, match="stopped"):
        budget.reserve("tool_calls", 1, "a", guard=refuse)
    assert spent(budget)[0] == (0, 0)


def test_a_day_in_which_no_cycle_fits_is_refused_with_the_fix() -> None:
    with pytest.raises(ValidationError, match="lower cycle_s, or raise the limit"):
        BudgetConfig(day=BudgetLimits(learning_s=60), cycle_s=3600)


def test_cycle_reserves_the_most_it_could_use_and_settles_what_it_did(tmp_path: Path, clock: Clock) -> None:
    learning = LearningConfig(
        max_steps=24, items_per_step=8, replay_ratio=0.2, kl_texts_per_step=2, max_item_tokens=160
    )
    tokens = learning.most_tokens
    assert tokens == 24 * (8 + 5 + 2) * 160  # two fifths are old where the stream drifts
    config = BudgetConfig(day=BudgetLimits(training_tokens=1.5 * tokens), cycle_s=600)
    budget = open_budget(tmp_path, clock, config)
    cycle = CycleBudget(budget)
    cycle.begin("run 1", num_tokens=tokens)
    with pytest.raises(BudgetExceeded):
        cycle.begin("run 2", num_tokens=tokens)
    cycle.end("run 1", seconds=31.5, num_tokens=2000)
    cycle.begin("run 2", num_tokens=tokens)
    assert spent(budget, "learning_s")[0] == (31.5, 600)


def test_a_budget_in_which_no_batch_fits_is_refused_with_the_fix() -> None:
    learning = LearningConfig()
    for span in ("day", "month"):
        limits = {span: BudgetLimits(training_tokens=learning.most_tokens - 1)}
        with pytest.raises(ValidationError, match=rf"budget.{span}.training_tokens = .* raise the limit, or lower"):
            AutonomousConfig(learning=learning, budget=BudgetConfig(**limits))
    AutonomousConfig(learning=learning, budget=BudgetConfig(day=BudgetLimits(training_tokens=learning.most_tokens)))


class BudgetMachine(RuleBasedStateMachine):
    """Whatever is reserved, settled and swept in whatever order: the totals are those of a plain count, below the limit."""

    def __init__(self) -> None:
        super().__init__()
        self._context = quick_folder()
        self.clock = Clock()
        self.budget = open_budget(self._context.__enter__(), self.clock)
        self.open: dict[str, tuple[float, float]] = {}
        self.done: dict[str, float] = {}
        self.number = 0

    def teardown(self) -> None:
        self.budget.close()
        self._context.__exit__(None, None, None)

    @rule(amount=st.sampled_from([0.1, 0.3, 1.0, 2.5, 7.0]))
    def reserve(self, amount: float) -> None:
        self.number += 1
        key = f"run {self.number}"
        room = 10 - sum(self.done.values()) - sum(held for held, _ in self.open.values())
        if room >= amount - 1e-9:
            self.budget.reserve("tool_calls", amount, key)
            self.open[key] = (amount, self.clock.now)
        else:
            with pytest.raises(BudgetExceeded):
                self.budget.reserve("tool_calls", amount, key)

    @rule(share=st.sampled_from([0.0, 0.5, 1.0]))
    def settle(self, share: float) -> None:
        for key in list(self.open)[:1]:
            amount, _ = self.open.pop(key)
            self.done[key] = amount * share
            self.budget.settle(key, {"tool_calls": amount * share})

    @rule()
    def let_time_pass(self) -> None:
        if self.clock.now < NOON + 30_000:
            self.clock.now += LIMITED.reservation_s / 2
            self.open = {
                key: held for key, held in self.open.items() if held[1] + LIMITED.reservation_s > self.clock.now
            }

    @invariant()
    def totals_are_those_of_a_plain_count(self) -> None:
        (day_spent, day_reserved), _ = spent(self.budget)
        assert day_spent == pytest.approx(sum(self.done.values()), abs=1e-4)
        assert day_reserved == pytest.approx(sum(held for held, _ in self.open.values()), abs=1e-4)
        assert day_spent + day_reserved <= 10


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@given(amounts=st.lists(st.floats(0, 5), max_size=12))
@settings(max_examples=15, deadline=None)
def test_no_order_of_amounts_passes_the_limit(amounts: list[float]) -> None:
    with quick_folder() as folder:
        budget = open_budget(folder, Clock())
        for number, amount in enumerate(amounts):
            room = 10 - spent(budget)[0][1]
            if amount > room + 1e-5:
                with pytest.raises(BudgetExceeded):
                    budget.reserve("tool_calls", amount, f"run {number}")
            elif amount < room - 1e-5:
                budget.reserve("tool_calls", amount, f"run {number}")
        assert spent(budget)[0][1] <= 10
        budget.close()
