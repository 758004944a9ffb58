"""The automatic stop rules: each fires on its evidence and stays silent on what is healthy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.rules import (
    ALTERED_GATE,
    BROKEN_AUDIT,
    BUDGET,
    DRIFT,
    GRAD_NORM,
    KL_LIMIT,
    LEAK,
    LOSS_SPIKE,
    MAX_STEPS_KEPT,
    MAX_TIMES_KEPT,
    NON_FINITE,
    RATE,
    ROLLBACKS,
    RULES,
    SAFETY_DROP,
    STOPS,
    ActionSeen,
    AuditSeen,
    BudgetSeen,
    DriftSeen,
    EvaluationSeen,
    History,
    LeakSeen,
    Observation,
    PolicySeen,
    RulesConfig,
    StepSeen,
    decide_rules,
    policy_sha256,
    remember,
)

CONFIG = RulesConfig(actions_per_hour={"tool": 3})
NAN = float("nan")


def watch(*seen: Observation, config: RulesConfig = CONFIG) -> list[str]:
    """The rules that apply, in order."""
    history, hits = History(), []
    for one in seen:
        hit = decide_rules(one, history, config, level="high")
        hits += [] if hit is None else [hit.rule]
        history = remember(history, one)
    return hits


def steps(losses: list[float]) -> list[Observation]:
    return [StepSeen(number, loss, 1.0, 0.1) for number, loss in enumerate(losses, 1)]


FALLING = [3.1, 2.6, 2.2, 1.7, 1.5, 1.1, 0.8, 0.6, 0.3, 0.2]


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (NON_FINITE, [StepSeen(1, NAN, 1.0, 0.1)]),
        (NON_FINITE, [StepSeen(1, 1.0, float("inf"), 0.1)]),
        (KL_LIMIT, [StepSeen(1, 1.0, 1.0, 2.1)]),
        (GRAD_NORM, [StepSeen(1, 1.0, 1001.0, 0.1)]),
        (LOSS_SPIKE, steps([*FALLING, 19.0])),
        (SAFETY_DROP, [EvaluationSeen("v", (1.0, 0.5, -1.0), (1.0, -0.1, -1.0))]),
        (SAFETY_DROP, [EvaluationSeen("v", (1.0,), (NAN,))]),
        (BUDGET, [BudgetSeen("the budget of learning_s is 10")]),
        (DRIFT, [DriftSeen("domain", 10.0), DriftSeen("task", 20.0), DriftSeen("domain", 30.0)]),
        (ALTERED_GATE, [PolicySeen("a" * 64), PolicySeen("b" * 64)]),
        (BROKEN_AUDIT, [AuditSeen("row 7 was altered")]),
        (LEAK, [LeakSeen("v-1", ("sentinel-text-12",))]),
        (ROLLBACKS, [ActionSeen("rollback", 0.0), ActionSeen("rollback", 86_400.0)]),
        (RATE, [ActionSeen("tool", float(second)) for second in range(4)]),
    ],
)
def test_rule_applies_to_its_evidence_once_it_is_complete(rule: str, seen: list[Observation]) -> None:
    assert watch(*seen) == [rule]


@pytest.mark.parametrize(
    "seen",
    [
        steps(FALLING),
        steps([3.0, 0.1, 2.9, 0.2, 2.8, 0.1, 2.7, 0.2, 2.6, 0.1, 2.9]),
        steps([0.05] * 12 + [0.4]),
        [EvaluationSeen("v", (1.0, -1.0), (0.1, -5.0))],
        [DriftSeen("domain", 0.0), DriftSeen("domain", 10.0), DriftSeen("domain", 4000.0)],
        [PolicySeen("a" * 64), PolicySeen("a" * 64)],
        [AuditSeen("")],
        [LeakSeen("v-1", ())],
        [ActionSeen("rollback", 0.0), ActionSeen("rollback", 8 * 86_400.0)],
        [ActionSeen("tool", 1300.0 * number) for number in range(20)],
        [ActionSeen("unnamed", 1.0)] * 50,
    ],
)
def test_no_rule_applies_to_what_is_healthy(seen: list[Observation]) -> None:
    assert watch(*seen) == []


def test_losses_of_an_earlier_run_say_nothing_about_the_next() -> None:
    assert watch(*steps([0.05] * 12), *steps([6.0, 5.0])) == []


def test_every_hit_names_the_rule_and_its_numbers() -> None:
    hit = decide_rules(StepSeen(7, 1.0, 1.0, 3.25), History(), CONFIG, level="low")
    assert hit is not None
    assert str(hit) == "rule kl-limit: KL to the base 3.250 > 2.0 nats per token at step 7"


def test_a_leak_is_told_by_the_version_and_the_item_that_it_was_taught() -> None:
    hit = decide_rules(LeakSeen("v-1", ("sentinel-text-12", "safety-03")), History(), CONFIG, level="high")
    assert hit is not None
    assert hit.evidence == "what version v-1 was taught holds 2 evaluation items, for instance sentinel-text-12"


def test_higher_levels_stop_for_all_that_lower_ones_stop_for_and_high_for_every_rule_but_budgets() -> None:
    assert STOPS["low"] < STOPS["medium"] < STOPS["high"] == set(RULES) - {BUDGET}
    assert NON_FINITE in STOPS["low"]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_losses_that_stay_within_what_a_run_has_shown_are_no_spike(losses: list[float]) -> None:
    shown = [*losses, max(losses)]
    history = History(losses=tuple(losses))
    assert decide_rules(StepSeen(len(shown), shown[-1], 1.0, 0.0), history, CONFIG, level="high") is None


def test_history_is_bounded() -> None:
    history = History()
    for number in range(2 * MAX_TIMES_KEPT):
        for seen in (StepSeen(number + 2, 1.0, 1.0, 0.0), ActionSeen("x", 0.0), DriftSeen("task", 0.0)):
            history = remember(history, seen)
    assert len(history.losses) == MAX_STEPS_KEPT
    assert len(history.actions["x"]) == len(history.drifts) == MAX_TIMES_KEPT


def test_the_largest_limit_is_reached_and_a_larger_one_is_refused_because_it_never_would_be() -> None:
    config, history = RulesConfig(actions_per_hour={"x": MAX_TIMES_KEPT}), History()
    for _ in range(MAX_TIMES_KEPT):
        assert decide_rules(ActionSeen("x", 1.0), history, config, level="high") is None
        history = remember(history, ActionSeen("x", 1.0))
    assert decide_rules(ActionSeen("x", 1.0), history, config, level="high") is not None
    for bound in ({"actions_per_hour": {"x": MAX_TIMES_KEPT + 1}}, {"storm_alarms": 9999}, {"max_rollbacks": 9999}):
        with pytest.raises(ValidationError, match=next(iter(bound))):
            RulesConfig(**bound)


def test_many_actions_of_one_kind_do_not_hide_the_rollbacks_of_the_week() -> None:
    history = remember(History(), ActionSeen("rollback", 0.0))
    for second in range(2 * MAX_TIMES_KEPT):
        history = remember(history, ActionSeen("tool", float(second)))
    hit = decide_rules(ActionSeen("rollback", 86_400.0), history, RulesConfig(), level="high")
    assert hit is not None
    assert hit.rule == ROLLBACKS


def test_a_day_of_retraining_with_a_promotion_every_two_minutes_is_healthy() -> None:
    history = History()
    for number in range(24 * 30):
        seen = ActionSeen("promotion", 120.0 * number)
        assert decide_rules(seen, history, RulesConfig(), level="high") is None
        history = remember(history, seen)


def test_policy_hash_knows_thresholds_and_every_file_of_what_evaluates(tmp_path: Path) -> None:
    code, other = tmp_path / "gates.py", tmp_path / "evaluation.py"
    code.write_text("limit = 1")
    other.write_text("")
    before = policy_sha256("{}", files=[code, other])
    assert policy_sha256("{}", files=[other, code]) == before
    assert policy_sha256("{ }", files=[code, other]) != before
    other.write_text("pass")
    assert policy_sha256("{}", files=[code, other]) != before


def test_rule_that_only_warns_at_a_level_is_audited_once_and_stops_nothing(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    rows: list[dict[str, Any]] = []
    monitor = SafetyMonitor(latch, audit=lambda **row: rows.append(row), level="low")
    for step in (2, 3):
        assert monitor.observe_training(step=step, loss=1.0, grad_norm=1e9, kl=0.0) is None
    assert latch.state().mode == "armed"
    assert [(row["action"], row["subject"]) for row in rows] == [("safety.warning", GRAD_NORM)]
    monitor.observe_training(step=1, loss=1.0, grad_norm=1e9, kl=0.0)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("rule", "observe"),
    [
        (LEAK, lambda monitor: monitor.observe_leaks(version="v-1", items=["sentinel-text-12"])),
        (
            SAFETY_DROP,
            lambda monitor: monitor.observe_evaluation(version="v1", margins_base=[1.0], margins_candidate=[-1.0]),
        ),
        (RATE, lambda monitor: monitor.observe_action("tool") or monitor.observe_action("tool")),
        (DRIFT, lambda monitor: monitor.observe(DriftSeen("task", 1.0))),
    ],
)
def test_what_a_monitor_observes_stops_and_is_audited(
    tmp_path: Path, rule: str, observe: Callable[[SafetyMonitor], dict[str, Any] | None]
) -> None:
    latch = Latch.create(tmp_path / "latch")
    rows: list[dict[str, Any]] = []
    config = RulesConfig(actions_per_hour={"tool": 1}, storm_alarms=1)
    monitor = SafetyMonitor(latch, audit=lambda **row: rows.append(row), rules=config, clock=lambda: 5.0)
    answer = observe(monitor)
    assert answer is not None
    assert answer["reason"].startswith(f"rule {rule}: ")
    assert latch.state().mode == "stopped"
    assert [row["action"] for row in rows] == ["safety.stop"]


def test_warning_that_cannot_be_audited_ends_nothing(tmp_path: Path) -> None:
    def refuse(**row: Any) -> None:
        raise OSError("the ledger's disk is full")

    monitor = SafetyMonitor(Latch.create(tmp_path / "latch"), audit=refuse, level="low")
    assert monitor.observe_leaks(version="v-1", items=["sentinel-text-12"]) is None
