"""The safety monitor: the latch is first, the audit follows, and rules stop training by themselves."""

from pathlib import Path
from typing import Any

import pytest

from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.rules import RulesConfig
from cluster.processes import is_alive
from tests.safety_processes import starting


class Ledger:
    """Collects audit rows and the latch's mode at the time of each; fails on demand."""

    def __init__(self, latch: Latch) -> None:
        self.latch = latch
        self.rows: list[dict[str, Any]] = []
        self.is_broken = False

    def append(self, **row: Any) -> int:
        if self.is_broken:
            raise OSError("the ledger's disk is full")
        self.rows.append({**row, "mode": self.latch.state().mode})
        return len(self.rows)


@pytest.fixture
def latch(tmp_path: Path) -> Latch:
    return Latch.create(tmp_path / "latch")


@pytest.fixture
def ledger(latch: Latch) -> Ledger:
    return Ledger(latch)


@pytest.fixture
def monitor(latch: Latch, ledger: Ledger) -> SafetyMonitor:
    return SafetyMonitor(latch, audit=ledger.append, rules=RulesConfig(max_kl_nats=0.5))


def test_a_stop_is_on_the_latch_before_it_is_audited(monitor: SafetyMonitor, ledger: Ledger) -> None:
    answer = monitor.stop(by="ada", reason="drill")
    assert (answer["mode"], answer["by"], answer["seconds"] >= 0) == ("stopped", "ada", True)
    row = ledger.rows[-1]
    assert (row["mode"], row["actor"], row["after"]["reason"]) == ("stopped", "ada", "drill")


def test_a_stop_stands_if_the_audit_fails_and_the_problem_is_returned(
    monitor: SafetyMonitor, ledger: Ledger, latch: Latch
) -> None:
    ledger.is_broken = True
    answer = monitor.stop(by="ada", reason="drill")
    assert "disk is full" in answer["audit_error"]
    assert latch.state().mode == "stopped"


def test_a_pause_and_a_reset_go_the_same_way(monitor: SafetyMonitor, ledger: Ledger) -> None:
    assert monitor.pause(by="ada", reason="lunch")["mode"] == "paused"
    with pytest.raises(LearningStopped):
        monitor.permit("step")
    assert monitor.reset(by="ada", reason="back")["mode"] == "armed"
    monitor.permit("step").check()
    assert ledger.rows[-1]["action"] == "safety.reset"


def test_a_kill_tells_and_audits_what_became_of_the_processes_of_the_scope_that_holds(
    monitor: SafetyMonitor, ledger: Ledger, latch: Latch, tmp_path: Path
) -> None:
    monitor.stop(by="bob", reason="odd", scope="all")
    with starting(tmp_path) as start:
        pids = {*start("learner", "learner"), *start("engine", "all")}
        answer = monitor.kill(by="ada", reason="fire", scope="learner")
        assert not any(is_alive(pid) for pid in pids)
    assert (answer["mode"], answer["scope"], answer["is_complete"]) == ("killed", "all", True)
    assert {one["pid"] for one in answer["processes"] if one["is_gone"]} == pids
    row = ledger.rows[-1]
    assert (row["action"], row["evidence"]["processes"]) == ("safety.kill", answer["processes"])


def test_a_reset_is_a_persons(monitor: SafetyMonitor) -> None:
    monitor.stop(by="ada", reason="drill")
    with pytest.raises(ValueError, match="only by a person"):
        monitor.reset(by="agent:scheduler", reason="go on")
    assert monitor.status()["mode"] == "stopped"


def test_a_reset_without_a_reason_is_refused(monitor: SafetyMonitor) -> None:
    monitor.stop(by="ada", reason="drill")
    with pytest.raises(ValueError, match="reason is empty"):
        monitor.reset(by="ada", reason="")
    assert monitor.status()["mode"] == "stopped"


def test_the_status_is_the_latch_as_it_stands(monitor: SafetyMonitor) -> None:
    status = monitor.status()
    assert (status["mode"], status["epoch"]) == ("armed", 1)


@pytest.mark.parametrize(
    ("measured", "evidence"),
    [
        ({"loss": float("nan"), "grad_norm": 1.0, "kl": 0.0}, "loss = nan at step 7"),
        ({"loss": float("inf"), "grad_norm": 1.0, "kl": 0.0}, "loss = inf at step 7"),
        ({"loss": 1.0, "grad_norm": float("inf"), "kl": 0.0}, "grad_norm = inf at step 7"),
        ({"loss": 1.0, "grad_norm": 1.0, "kl": 0.51}, "0.510 > 0.5"),
    ],
)
def test_a_rule_that_applies_stops_and_names_itself_with_its_evidence(
    monitor: SafetyMonitor, latch: Latch, measured: dict[str, float], evidence: str
) -> None:
    answer = monitor.observe_training(step=7, **measured)
    assert answer is not None
    assert answer["reason"].startswith("rule ")
    assert evidence in answer["reason"]
    assert latch.state().mode == "stopped"


def test_a_healthy_step_changes_nothing(monitor: SafetyMonitor, ledger: Ledger) -> None:
    assert monitor.observe_training(step=1, loss=2.0, grad_norm=3.0, kl=0.5) is None
    assert (monitor.status()["epoch"], ledger.rows) == (1, [])
