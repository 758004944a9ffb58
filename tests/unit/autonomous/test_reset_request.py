"""A reset that two people have to agree to: never by one alone, whatever the order of calls, stops and clock jumps."""

import json
import multiprocessing
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from autonomous.consent import NothingRequested, SecondPersonNeeded
from autonomous.people import person_of
from autonomous.safety.latch import Latch, LatchChanged
from autonomous.safety.monitor import SafetyMonitor
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import quick_folder

WINDOW_S = 3600.0
NOW = 1_700_000_000.0


class Hold:
    """A latch in a folder, its monitor, and the audit rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock(NOW)
        self.rows: list[dict[str, Any]] = []
        self.is_broken = False
        self.latch = Latch.create(folder / "latch", clock=self.clock)
        self.monitor = self.again()

    def again(self) -> SafetyMonitor:
        """What another process of the same home sees."""
        return SafetyMonitor(
            Latch.open(self.folder / "latch", clock=self.clock),
            audit=self.audit,
            two_people=True,
            second_person_within_s=WINDOW_S,
            clock=self.clock,
        )

    def audit(self, **row: Any) -> None:
        if self.is_broken:
            raise OSError("the ledger's disk is full")
        self.rows.append(row)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    hold = Hold(tmp_path)
    hold.monitor.stop(by="eve", reason="odd answers")
    return hold


def test_the_second_person_executes_what_the_first_asked_for_in_another_process(hold: Hold) -> None:
    asked = hold.monitor.reset(by="ada", reason="cause removed")
    assert (asked["mode"], asked["waiting"]["by"], asked["waiting"]["until"]) == ("stopped", "ada", NOW + WINDOW_S)
    assert hold.monitor.status()["waiting"] == asked["waiting"]
    hold.clock.now += WINDOW_S - 1
    answer = hold.again().reset(by="bob", reason="I agree")
    assert (answer["mode"], hold.again().status()["waiting"]) == ("armed", None)
    assert [(row["actor"], row["action"]) for row in hold.rows[-3:]] == [
        ("ada", "safety.reset-waits"), ("bob", "safety.reset-requested"), ("bob", "safety.reset"),
    ]  # fmt: skip
    assert hold.rows[-1]["evidence"]["requested_by"] == "ada"


@pytest.mark.parametrize("name", ["ada", " Ada ", "\uff21DA", "a\u200bda"])
def test_the_same_person_twice_is_refused_however_the_name_is_typed(hold: Hold, name: str) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    with pytest.raises(SecondPersonNeeded, match="Another person"):
        hold.again().reset(by=name, reason="go on")
    assert hold.latch.state().mode == "stopped"


@pytest.mark.parametrize("name", ["agent", "system:x", "AGENT"])
def test_the_program_is_neither_the_first_nor_the_second_person(hold: Hold, name: str) -> None:
    with pytest.raises(ValueError, match="only by a person"):
        hold.monitor.reset(by=name, reason="go on")
    hold.monitor.reset(by="ada", reason="cause removed")
    with pytest.raises(ValueError, match="only by a person"):
        hold.monitor.reset(by=name, reason="go on")


@pytest.mark.parametrize("jump_s", [WINDOW_S, 10 * WINDOW_S, -1.0, -1e9])
def test_a_request_whose_time_is_over_or_whose_clock_was_set_back_starts_anew(hold: Hold, jump_s: float) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    hold.clock.now += jump_s
    asked = hold.monitor.reset(by="bob", reason="I agree")
    assert (asked["mode"], asked["waiting"]["by"]) == ("stopped", "bob")
    assert hold.monitor.reset(by="ada", reason="yes")["mode"] == "armed"


@pytest.mark.parametrize(
    "pull",
    [
        lambda monitor: monitor.stop(by="eve", reason="again"),
        lambda monitor: monitor.stop(by="eve", reason="wider", scope="all"),
        lambda monitor: monitor.pause(by="eve", reason="softer"),
        lambda monitor: monitor.observe_training(step=1, loss=float("nan"), grad_norm=1.0, kl=0.0),
    ],
    ids=["the same", "wider", "softer", "a rule"],
)
def test_a_stop_in_between_voids_the_request_also_one_that_changes_nothing(hold: Hold, pull: Any) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    pull(hold.again())
    asked = hold.monitor.reset(by="bob", reason="I agree")
    assert (asked["mode"], asked["waiting"]["by"]) == ("stopped", "bob")


def test_a_stop_that_bypasses_the_monitor_voids_the_request_by_its_epoch(hold: Hold) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    hold.latch.kill(by="eve", reason="harder", scope="all")
    assert hold.monitor.status()["waiting"] is None
    assert hold.monitor.reset(by="bob", reason="I agree")["waiting"]["by"] == "bob"


def test_a_stop_that_falls_between_the_audit_and_the_reset_holds(hold: Hold) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    audit, hold.audit = hold.audit, lambda **row: hold.latch.kill(by="eve", reason="wait", scope="all")  # type: ignore[method-assign]
    with pytest.raises(LatchChanged):
        hold.again().reset(by="bob", reason="I agree")
    hold.audit = audit  # type: ignore[method-assign]
    assert hold.latch.state().mode == "killed"


def test_one_person_does_not_undo_a_stop_that_falls_into_a_reset_of_an_armed_latch(tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    hold.audit = lambda **row: hold.latch.stop(by="eve", reason="just now")  # type: ignore[method-assign]
    with pytest.raises(LatchChanged):
        hold.again().reset(by="ada", reason="over")
    assert hold.latch.state().mode == "stopped"


def test_two_people_reset_a_latch_that_is_missing_with_its_folder(tmp_path: Path) -> None:
    latch = Latch.open(tmp_path / "gone" / "latch")
    monitor = SafetyMonitor(latch, audit=lambda **_: None, two_people=True)
    assert monitor.reset(by="ada", reason="restored")["mode"] == "stopped"
    assert monitor.reset(by="bob", reason="I agree")["mode"] == "armed"


def test_a_withdrawn_request_is_gone_and_cannot_be_withdrawn_twice(hold: Hold) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    assert hold.monitor.withdraw_reset(by="bob", reason="not yet")["waiting"] is None
    with pytest.raises(NothingRequested):
        hold.monitor.withdraw_reset(by="ada", reason="not yet")
    assert hold.monitor.reset(by="bob", reason="now")["waiting"]["by"] == "bob"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text().replace('"ada"', '"zoe"')),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "until": 9e9})),
        lambda path: (path.parent / "signing-key").unlink(),
    ],
    ids=["another name", "cut off", "no record", "longer", "another key"],
)
def test_a_request_that_was_altered_or_signed_with_another_key_does_not_count(hold: Hold, damage: Any) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    damage(hold.folder / "reset-request")
    assert hold.again().reset(by="bob", reason="I agree")["waiting"]["by"] == "bob"
    assert hold.latch.state().mode == "stopped"


def test_a_request_is_kept_though_the_ledger_cannot_be_written_and_the_reset_itself_needs_it(hold: Hold) -> None:
    hold.is_broken = True
    asked = hold.monitor.reset(by="ada", reason="cause removed")
    assert asked["waiting"]["by"] == "ada"
    assert "disk is full" in asked["audit_error"]
    with pytest.raises(OSError, match="disk is full"):
        hold.again().reset(by="bob", reason="I agree")
    assert hold.latch.state().mode == "stopped"
    hold.is_broken = False
    assert hold.again().reset(by="bob", reason="I agree")["mode"] == "armed"


def test_the_signing_key_and_the_request_are_private(hold: Hold) -> None:
    hold.monitor.reset(by="ada", reason="cause removed")
    assert {os.stat(hold.folder / name).st_mode & 0o777 for name in ("signing-key", "reset-request")} == {0o600}
    (hold.folder / "signing-key").chmod(0o644)
    assert hold.monitor.status()["waiting"] is None  # whoever could read it could sign


def test_one_person_is_enough_where_two_are_not_asked_for(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    monitor = SafetyMonitor(latch, audit=lambda **_: None)
    monitor.stop(by="eve", reason="odd")
    assert monitor.reset(by="ada", reason="over")["mode"] == "armed"


def _ask(folder: Path, name: str, gate: Any, answers: Any) -> None:
    monitor = SafetyMonitor(Latch.open(folder / "latch"), audit=lambda **_: None, two_people=True)
    gate.wait()
    try:
        answers.put((name, monitor.reset(by=name, reason="over")["mode"]))
    except (SecondPersonNeeded, LatchChanged) as error:
        answers.put((name, type(error).__name__))


def test_two_processes_of_one_person_at_once_reset_nothing(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    latch.stop(by="eve", reason="odd")
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_ask, args=(tmp_path, name, gate, answers)) for name in ("ada", "Ada", "ADA ", "ada")
    ]
    for process in processes:
        process.start()
    told = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(outcome for _, outcome in told) == ["SecondPersonNeeded"] * 3 + ["stopped"]
    assert latch.state().mode == "stopped"


class ResetMachine(RuleBasedStateMachine):
    """Any order of requests, stops, withdrawals, clock jumps and restarts."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.hold = Hold(self.stack.enter_context(quick_folder()))
        self.since_stop: list[tuple[str, float]] = []
        self.mode = "armed"

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    @rule(scope=st.sampled_from(["learner", "learning", "all"]), kind=st.sampled_from(["pause", "stop"]))
    def pull(self, scope: Any, kind: str) -> None:
        getattr(self.hold.monitor, kind)(by="eve", reason="odd", scope=scope)
        self.since_stop, self.mode = [], "held"

    @rule(scope=st.sampled_from(["learner", "learning", "all"]))
    def kill_without_the_monitor(self, scope: Any) -> None:
        before = self.hold.latch.state().epoch
        if self.hold.latch.kill(by="eve", reason="odd", scope=scope).epoch > before:
            self.since_stop, self.mode = [], "held"

    @rule(by=st.sampled_from(["ada", "ADA", " ada", "bob", "agent", "eve"]))
    def reset(self, by: str) -> None:
        was_held = self.mode == "held"
        try:
            answer = self.hold.monitor.reset(by=by, reason="over")
        except (ValueError, SecondPersonNeeded, LatchChanged):
            return
        self.since_stop.append((person_of(by), self.hold.clock.now))
        if answer["mode"] == "armed" and was_held:
            now = self.hold.clock.now
            timely = {name for name, at in self.since_stop if 0 <= now - at < WINDOW_S}
            assert len(timely) >= 2, self.since_stop
            assert "agent" not in timely
            self.mode, self.since_stop = "armed", []

    @rule(by=st.sampled_from(["ada", "bob"]))
    def withdraw(self, by: str) -> None:
        try:
            self.hold.monitor.withdraw_reset(by=by, reason="not yet")
        except NothingRequested:
            return
        self.since_stop = []

    @rule(jump_s=st.sampled_from([1.0, WINDOW_S / 2, WINDOW_S, 1e6, -1.0, -WINDOW_S, -1e6]))
    def jump(self, jump_s: float) -> None:
        self.hold.clock.now += jump_s

    @rule()
    def restart(self) -> None:
        self.hold.monitor = self.hold.again()

    @invariant()
    def what_is_held_was_reset_by_nobody_else(self) -> None:
        assert (self.hold.latch.state().mode == "armed") is (self.mode == "armed")


TestReset = ResetMachine.TestCase
TestReset.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
