"""Approvals: by somebody else than the proposer, of the report that was read, in time; and rejections by people."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autonomous.config import AutonomousConfig, SafetyConfig
from autonomous.loop import LearningLoop
from autonomous.ports import AgentParts
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.approval import Approval, OwnProposal, PromotionRefused, ReportChanged
from autonomous.versions.audit import sha256_of
from autonomous.versions.bundle import Bundle, version_id_of
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import PASSED, advance, fix, make_bundle, make_candidate, make_production
from tests.watches import make_watch

NOW = 1_700_000_000.0


def propose(ledger: VersionLedger, parent: str, *, by: str, mark: str) -> str:
    """A version that `by` asked for and that waits for approval."""
    run_id = ledger.start_run(parent=parent, config={"mark": mark}, by=by)
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
    return advance(ledger, fix(ledger, run_id, parent=parent, mark=mark, episodes=(mark,)), State.AWAITING_APPROVAL)


def approval_of(ledger: VersionLedger, name: str, by: str) -> Approval:
    return Approval(by, "read it", ledger.get(name).report_sha256, two_people=True)


def approve(ledger: VersionLedger, name: str, by: str) -> None:
    ledger.promote(name, by="agent", reason="approved", approval=approval_of(ledger, name, by))


def test_somebody_else_than_the_proposer_approves(ledger: VersionLedger, base: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    approve(ledger, name, "bob")
    assert ledger.pointers().v2 == name


@pytest.mark.parametrize("by", ["ada", " ADA ", "\uff41da"])
def test_the_proposer_does_not_approve_however_the_name_is_typed(ledger: VersionLedger, base: str, by: str) -> None:
    name = propose(ledger, base, by="Ada", mark="one")
    before = ledger.audit(100)
    with pytest.raises(OwnProposal, match="Another person has to approve it"):
        approve(ledger, name, by)
    assert (ledger.get(name).state, ledger.audit(100)) == (State.AWAITING_APPROVAL, before)


@pytest.mark.parametrize("by", ["agent", "system:x", "AGENT:schedule"])
def test_the_program_never_approves(ledger: VersionLedger, base: str, by: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    with pytest.raises(IllegalTransition, match="only by a person"):
        approve(ledger, name, by)
    with pytest.raises(IllegalTransition, match="only by a person"):
        ledger.check_approval(name, approval_of(ledger, name, by))


def test_what_the_schedule_proposed_any_person_may_approve(ledger: VersionLedger, base: str) -> None:
    approve(ledger, propose(ledger, base, by="agent:schedule", mark="one"), "ada")


def test_the_proposer_of_an_ancestor_that_nobody_else_approved_does_not_approve(
    ledger: VersionLedger, base: str
) -> None:
    first = propose(ledger, base, by="ada", mark="one")
    own = Approval("ada", "my own", two_people=False)  # from the time before two people were asked for
    ledger.promote(first, by="agent", reason="approved", approval=own)
    second = propose(ledger, first, by="agent:schedule", mark="two")
    with pytest.raises(OwnProposal, match=first):
        approve(ledger, second, "ada")
    approve(ledger, second, "bob")
    third = propose(ledger, second, by="agent:schedule", mark="three")
    approve(ledger, third, "ada")  # bob has agreed to all that stands below
    assert ledger.pointers().v2 == third


def test_one_person_may_do_both_where_two_are_not_asked_for(ledger: VersionLedger, base: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    ledger.promote(name, by="agent", reason="approved", approval=Approval("ada", "my own"))
    assert ledger.pointers().v2 == name


def test_an_approval_names_the_report_that_was_read(ledger: VersionLedger, base: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    read = str(ledger.get(name).report_sha256)
    ledger.bind_report(name, report={"seconds": 2.0}, gates=PASSED, by="agent")
    now = str(ledger.get(name).report_sha256)
    for two_people in (True, False):
        with pytest.raises(ReportChanged, match=f"{read}.*{now}"):
            ledger.promote(name, by="agent", reason="x", approval=Approval("bob", "fine", read, two_people=two_people))
    with pytest.raises(ValueError, match="report_sha256 is missing"):
        ledger.promote(name, by="agent", reason="x", approval=Approval("bob", "fine", two_people=True))
    assert ledger.get(name).state is State.AWAITING_APPROVAL
    ledger.promote(name, by="agent", reason="x", approval=Approval("bob", "fine", now, two_people=True))


def test_the_audit_row_holds_the_hashes_of_bundle_report_and_gates(ledger: VersionLedger, base: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    record = ledger.get(name)
    approve(ledger, name, "bob")
    (row,) = [row for row in ledger.audit(100) if row.action == "version.approve"]
    assert (row.actor, row.subject) == ("bob", name)
    assert row.evidence_sha256 is not None
    assert ledger.evidence(row.evidence_sha256) == {
        "version": name,
        "manifest_sha256": sha256_of(record.manifest),
        "report_sha256": record.report_sha256,
        "gates_sha256": sha256_of([gate.to_dict() for gate in record.gates]),
        "proposed_by": "ada",
        "reason": "read it",
        "read_report": True,
    }
    assert ledger.verify_audit().ok


@pytest.mark.parametrize("by", ["ada", "bob"])
def test_a_person_rejects_what_waits_and_its_episodes_are_held_back(ledger: VersionLedger, base: str, by: str) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    ledger.reject(name, by=by, reason="a rumour", report_sha256=ledger.get(name).report_sha256)
    assert (ledger.get(name).state, ledger.held_back(), ledger.pointers().v2) == (State.QUARANTINED, {"one"}, base)
    moves = [(step.action, step.by, step.to_state) for step in ledger.steps(name)][-2:]
    assert moves == [("version.reject", by, "REJECTED"), ("version.quarantine", by, "QUARANTINED")]
    with pytest.raises(StaleTransition):
        approve(ledger, name, "bob")


def test_the_program_rejects_nothing_and_nothing_is_rejected_that_does_not_wait(
    ledger: VersionLedger, base: str
) -> None:
    name = propose(ledger, base, by="ada", mark="one")
    with pytest.raises(IllegalTransition, match="only by a person"):
        ledger.reject(name, by="agent", reason="no")
    with pytest.raises(ValueError, match="reason"):
        ledger.reject(name, by="bob", reason=" ")
    gated = advance(ledger, make_candidate(ledger, base, mark="two"), State.GATED)
    for other in (gated, base, make_production(ledger, base, mark="three")):
        with pytest.raises(StaleTransition):
            ledger.reject(other, by="bob", reason="no")


@pytest.mark.parametrize(
    ("level", "oversight", "two_people", "expected"),
    [
        ("high", True, "auto", True), ("high", False, "auto", False), ("medium", True, "auto", False),
        ("low", False, "auto", False), ("low", False, True, True), ("high", True, False, False),
    ],
)  # fmt: skip
def test_two_people_decide_at_level_high_with_oversight_unless_the_setting_says_otherwise(
    level: Any, oversight: bool, two_people: Any, expected: bool
) -> None:
    safety = SafetyConfig(two_people=two_people)
    config = AutonomousConfig(safety_level=level, human_oversight_required=oversight, safety=safety)
    assert config.needs_two_people is expected


class Engine:
    """EnginePort that loads nothing. `meanwhile` runs while an adapter is being loaded."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None

    def prepare(self, adapter: Any, probe: str) -> list[list[float]]:
        self.meanwhile()
        return [[]]

    def drop(self, adapter: Any) -> None:
        return None


@pytest.fixture
def loop(folder: Path) -> LearningLoop:
    """A loop at level high with oversight. Nothing here trains or evaluates, so those parts are missing."""
    clock = Clock(NOW)
    missing: Any = None
    base = Bundle.model_validate(make_bundle(None, mark="base"))
    ledger, latch = VersionLedger(folder / "ledger.sqlite", clock=clock), Latch.create(folder / "safety" / "latch")
    loop = LearningLoop(
        AutonomousConfig(),
        parts=AgentParts(memory=missing, learner=missing, evaluator=missing, engine=Engine()),
        ledger=ledger,
        latch=latch,
        watch=make_watch(AutonomousConfig(), folder, ledger=ledger, latch=latch, clock=clock),
        versions_folder=folder / "versions",
        base=base,
        clock=clock,
    )
    assert loop.ledger.pointers().v2 == version_id_of(base)
    return loop


def test_the_loop_refuses_the_proposer_an_expired_report_and_another_report(loop: LearningLoop) -> None:
    ledger = loop.ledger
    name = propose(ledger, ledger.pointers().v2, by="ada", mark="one")
    read = ledger.get(name).report_sha256
    with pytest.raises(OwnProposal):
        loop.approve(name, by="ada", reason="mine", report_sha256=read)
    with pytest.raises(ReportChanged):
        loop.approve(name, by="bob", reason="fine", report_sha256="0" * 64)
    with pytest.raises(ValueError, match="report_sha256 is missing"):
        loop.approve(name, by="bob", reason="fine")
    clock = loop._clock  # the same object as the ledger's
    assert isinstance(clock, Clock)
    clock.now += 86_401.0
    with pytest.raises(PromotionRefused, match="waited for longer"):
        loop.approve(name, by="bob", reason="fine", report_sha256=read)
    clock.now -= 2.0
    loop.approve(name, by="bob", reason="fine", report_sha256=read)
    assert ledger.pointers().v2 == name


def test_a_report_that_is_replaced_while_the_adapter_is_loaded_is_not_approved(loop: LearningLoop) -> None:
    ledger = loop.ledger
    name = propose(ledger, ledger.pointers().v2, by="ada", mark="one")
    engine = loop._parts.engine
    assert isinstance(engine, Engine)
    engine.meanwhile = lambda: ledger.bind_report(name, report={"seconds": 9.0}, gates=PASSED, by="agent")
    with pytest.raises(ReportChanged):
        loop.approve(name, by="bob", reason="fine", report_sha256=ledger.get(name).report_sha256)
    assert ledger.get(name).state is State.AWAITING_APPROVAL


def test_nothing_is_approved_while_learning_is_stopped(loop: LearningLoop) -> None:
    name = propose(loop.ledger, loop.ledger.pointers().v2, by="ada", mark="one")
    loop._latch.stop(by="eve", reason="odd")
    with pytest.raises(LearningStopped):
        loop.approve(name, by="bob", reason="fine", report_sha256=loop.ledger.get(name).report_sha256)
    loop.ledger.reject(name, by="bob", reason="no")  # takes something away, so it needs no permit
