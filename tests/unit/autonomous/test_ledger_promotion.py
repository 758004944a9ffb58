"""The ledger on the way to production: reports, gates, promotion, and the canary that some users meet first."""

from dataclasses import asdict
from pathlib import Path

import pytest

from autonomous.versions.approval import Approval
from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.ledger import PromotionRefused, VersionLedger
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from tests.unit.autonomous.ledger_life import (
    FAILED,
    PASSED,
    advance,
    make_candidate,
    make_genesis,
    make_production,
    state_of,
)

# -- gates and promotion


def test_a_report_and_its_gates_are_bound_by_hash_and_named_in_the_next_transitions_row(
    ledger: VersionLedger, base: str
):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.EVALUATING)
    report = {"loss": float("nan"), "seconds": 2.5}
    digest = ledger.bind_report(name, report=report, gates=PASSED, by="agent")
    ledger.transition(name, expected=State.EVALUATING, to=State.GATED, by="agent", reason="passed")
    record, row = ledger.get(name), ledger.audit(1)[0]
    assert record.report == {"loss": "nan", "seconds": 2.5}
    assert (record.report_sha256, record.gates) == (digest, tuple(PASSED))
    assert row.after == {"state": "GATED", "reason": "passed", "report_sha256": digest}


@pytest.mark.parametrize(
    "gates", [[], FAILED, PASSED[1:], [*PASSED, GateResult("x", Verdict.INCONCLUSIVE, None, None, "")]]
)
def test_without_all_gates_passed_a_version_is_not_gated(ledger: VersionLedger, base: str, gates: list[GateResult]):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.EVALUATING)
    ledger.bind_report(name, report={}, gates=gates, by="agent")
    with pytest.raises(PromotionRefused, match="gates say"):
        ledger.transition(name, expected=State.EVALUATING, to=State.GATED, by="alice", reason="please")


def test_a_later_report_that_failed_stops_a_version_that_waits_for_promotion(ledger: VersionLedger, base: str):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.CANARY)
    ledger.bind_report(name, report={"again": True}, gates=FAILED, by="agent")
    with pytest.raises(PromotionRefused, match="gates say quarantine"):
        ledger.promote(name, by="agent", reason="passed")


@pytest.mark.parametrize("at", [State.SHADOW, State.CANARY])
def test_promotion_moves_the_pointer_and_supersedes_the_old_version(ledger: VersionLedger, base: str, at: State):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), at)
    percent = 5 if at is State.CANARY else 0
    assert asdict(ledger.pointers()) == {"v1": name, "v2": base, "v3": None, "canary_percent": percent}
    assert ledger.promote(name, by="agent", reason="passed") == []
    assert asdict(ledger.pointers()) == {"v1": name, "v2": name, "v3": None, "canary_percent": 0}
    assert state_of(ledger, base) is State.SUPERSEDED


def test_promotion_archives_beyond_the_warm_versions_but_never_the_frozen_original(folder: Path):
    ledger = VersionLedger(folder / "ledger.sqlite", warm_versions=2)
    names = [make_genesis(ledger, folder)]
    archived = []
    for mark in "abcde":
        name = advance(ledger, make_candidate(ledger, names[-1], mark=mark), State.SHADOW)
        archived += ledger.promote(name, by="agent", reason="passed")
        names.append(name)
    assert archived == names[1:3]
    assert [state_of(ledger, name) for name in names] == [
        State.SUPERSEDED,
        State.ARCHIVED,
        State.ARCHIVED,
        State.SUPERSEDED,
        State.SUPERSEDED,
        State.PRODUCTION,
    ]
    with pytest.raises(IllegalTransition, match="frozen original"):
        ledger.transition(names[0], expected=State.SUPERSEDED, to=State.ARCHIVED, by="alice", reason="space")


@pytest.mark.parametrize("state", [State.CANDIDATE, State.GATED, State.PRODUCTION])
def test_promotion_of_a_version_in_another_state_is_stale(ledger: VersionLedger, base: str, state: State):
    name = make_candidate(ledger, base, mark="one")
    if state is State.PRODUCTION:
        ledger.promote(advance(ledger, name, State.SHADOW), by="agent", reason="first")
    elif state is State.GATED:
        advance(ledger, name, State.GATED)
    with pytest.raises(StaleTransition, match=f"SHADOW or CANARY but is {state}"):
        ledger.promote(name, by="agent", reason="again")


def test_a_version_on_top_of_a_bad_one_is_not_promoted(ledger: VersionLedger, base: str):
    bad = make_production(ledger, base, mark="bad")
    child = advance(ledger, make_candidate(ledger, bad, mark="child"), State.SHADOW)
    ledger.rollback(by="bob", reason="bad")
    with pytest.raises(PromotionRefused, match=f"builds on {bad}, which is QUARANTINED"):
        ledger.promote(child, by="agent", reason="passed")


def test_a_version_that_learned_what_is_held_back_is_not_promoted(ledger: VersionLedger, base: str):
    rejected = advance(ledger, make_candidate(ledger, base, mark="one", episodes=("a", "b")), State.EVALUATING)
    sibling = advance(ledger, make_candidate(ledger, base, mark="two", episodes=("b", "c")), State.SHADOW)
    ledger.quarantine(rejected, by="agent", reason="gates failed")
    with pytest.raises(PromotionRefused, match="1 episodes that are held back since, for instance b"):
        ledger.promote(sibling, by="agent", reason="passed")


# -- canary


def test_a_canary_gets_larger_shares_and_its_approval_takes_it_there_in_one_step(ledger: VersionLedger, base: str):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.AWAITING_APPROVAL)
    with pytest.raises(IllegalTransition, match="only by a person"):
        ledger.set_canary(name, percent=1, by="agent", reason="approved", approval=Approval("agent", "approved", None))
    ledger.set_canary(name, percent=1, by="agent", reason="approved", approval=Approval("alice", "approved", None))
    assert (ledger.pointers().v1, ledger.pointers().canary_percent) == (name, 1)
    ledger.set_canary(name, percent=25, by="agent", reason="all well", evidence={"num_requests": 400})
    assert ledger.get(name).to_dict()["percent"] == 25
    assert ledger.pointers().v2 == base
    assert ledger.verify_audit().ok


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_a_canary_of_nobody_or_everybody_is_refused(ledger: VersionLedger, base: str, percent: float):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.SHADOW)
    with pytest.raises(ValueError, match="between 0 and 100"):
        ledger.set_canary(name, percent=percent, by="agent", reason="begin")


def test_a_canary_needs_what_a_promotion_needs(ledger: VersionLedger, base: str):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.SHADOW)
    ledger.bind_report(name, report={}, gates=FAILED, by="agent")
    with pytest.raises(PromotionRefused, match="gates say"):
        ledger.set_canary(name, percent=5, by="agent", reason="begin")


@pytest.mark.parametrize("is_breach", [True, False])
def test_withdrawn_canaries_are_quarantined_and_only_breaches_use_up_the_budget(
    ledger: VersionLedger, base: str, is_breach: bool
):
    for mark in ("one", "two"):
        name = advance(ledger, make_candidate(ledger, base, mark=mark, episodes=(mark,)), State.CANARY)
        ledger.withdraw(name, by="agent", reason="errors", is_breach=is_breach, evidence={"num_errors": 9})
        assert state_of(ledger, name) is State.QUARANTINED
        assert asdict(ledger.pointers()) == {"v1": base, "v2": base, "v3": name, "canary_percent": 0}
    assert ledger.held_back() == ({"one", "two"} if is_breach else set())
    assert bool(ledger.frozen()) is is_breach
    with pytest.raises(StaleTransition, match="SHADOW or CANARY"):
        ledger.withdraw(name, by="agent", reason="again", is_breach=True)


def test_beside_a_canary_no_other_version_meets_users(ledger: VersionLedger, base: str):
    first = advance(ledger, make_candidate(ledger, base, mark="one"), State.CANARY)
    second = advance(ledger, make_candidate(ledger, base, mark="two"), State.AWAITING_APPROVAL)
    approval = Approval("alice", "fine", None)
    with pytest.raises(PromotionRefused, match=f"{first} meets users"):
        ledger.set_canary(second, percent=5, by="agent", reason="begin", approval=approval)
    with pytest.raises(PromotionRefused, match=f"{first} meets users"):
        ledger.promote(second, by="agent", reason="begin", approval=approval)
    ledger.set_canary(first, percent=50, by="agent", reason="more")
    assert ledger.promote(first, by="agent", reason="well") == []
