"""Triggers: falls, drift and floors with evidence; nothing by chance, and nothing from one number."""

import numpy as np
import pytest

from autonomous.benchmark_report import BenchmarkReport, Kind, MetricScores
from autonomous.triggers import TriggerConfig, decide_triggers

CONFIG = TriggerConfig()


def metric(name: str, kind: Kind, values: list[float], *, first: int = 0) -> MetricScores:
    items = tuple(f"item-{first + row}" for row in range(len(values)))
    return MetricScores(name, kind, items, tuple(values), (), tuple(values))


def report(version: str, *metrics: MetricScores) -> BenchmarkReport:
    return BenchmarkReport(version, None, 0.0, 1.0, 0.95, metrics, (), None, "", "", "")


def found(*history: BenchmarkReport, config: TriggerConfig = CONFIG) -> list[tuple[str, str, str | None]]:
    return [(trigger.kind, trigger.metric, trigger.reference) for trigger in decide_triggers(history, config)]


@pytest.mark.parametrize(
    ("kind", "before", "now", "expected"),
    [
        ("loss", [2.0] * 6, [2.3] * 6, "drift"),
        ("loss", [2.0] * 6, [2.05] * 6, None),
        ("loss", [2.0] * 6, [1.0] * 6, None),
        ("margin", [1.0] * 6, [0.5] * 6, "fall"),
        ("margin", [1.0] * 6, [1.5] * 6, None),
        ("share", [1.0] * 20, [0.0] * 10 + [1.0] * 10, "fall"),
        ("share", [1.0] * 20, [0.0] + [1.0] * 19, None),
        ("loss", [2.0], [9.0], None),
    ],
)
def test_a_metric_that_is_surely_worse_than_its_best_triggers(
    kind: Kind, before: list[float], now: list[float], expected: str | None
) -> None:
    history = (report("v-1", metric("m", kind, before)), report("v-2", metric("m", kind, now)))
    assert found(*history) == ([(expected, "m", "v-1")] if expected else [])


def test_the_best_of_all_earlier_reports_is_what_counts() -> None:
    history = [report(f"v-{row}", metric("m", "loss", [loss] * 6)) for row, loss in enumerate((2.0, 1.0, 1.9, 2.05))]
    assert found(*history) == [("drift", "m", "v-1")]
    (trigger,) = decide_triggers(history, CONFIG)
    assert (trigger.value, trigger.best, trigger.num_items) == (pytest.approx(2.05), pytest.approx(1.0), 6)
    assert "was 1.000 in v-1, over 6 items" in trigger.reason


def test_only_items_that_both_were_asked_are_compared() -> None:
    easy, hard = metric("m", "loss", [1.0] * 6), metric("m", "loss", [1.0] * 3 + [9.0] * 6, first=3)
    assert found(report("v-1", easy), report("v-2", hard)) == []
    assert found(report("v-1", easy), report("v-2", metric("m", "loss", [9.0] * 6, first=100))) == []


def test_one_report_shows_no_fall_and_no_report_nothing() -> None:
    assert found(report("v-1", metric("m", "loss", [9.0] * 6))) == []
    assert found() == []


def test_a_share_that_is_surely_below_its_floor_triggers_from_the_first_report() -> None:
    low, unsure = metric("recall", "share", [0.0] * 9 + [1.0]), metric("recall", "share", [0.0] * 3 + [1.0] * 2)
    assert found(report("v-1", low)) == [("floor", "recall", None)]
    assert found(report("v-1", unsure)) == []
    assert found(report("v-1", low), config=TriggerConfig(floors={})) == []


def test_chance_alone_seldom_triggers_anything_over_many_metrics() -> None:
    rng = np.random.default_rng(3)
    config = TriggerConfig(min_rise_nats=0.0, bootstrap_samples=400)
    num_alarms = 0
    for _ in range(60):
        history = [
            report(version, *(metric(str(row), "loss", rng.normal(2, 0.2, size=20).tolist()) for row in range(10)))
            for version in ("v-1", "v-2")
        ]
        num_alarms += bool(decide_triggers(history, config))
    assert num_alarms <= 8  # 5 % of 60 are 3
