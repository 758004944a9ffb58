"""The way out of quarantine: with new evidence, by two people where that is asked for, and never straight to traffic."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from autonomous.consent import NothingRequested, SecondPersonNeeded
from autonomous.people import person_of
from autonomous.versions.governance import ConsentRule
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import advance, everything, make_candidate, make_genesis, quick_folder

WINDOW_S = 3600.0
NOW = 1_700_000_000.0
EVIDENCE = {"text": "the probe was wrong"}


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def ledger(folder: Path, clock: Clock) -> VersionLedger:
    ledger = VersionLedger(folder / "ledger.sqlite", clock=clock)
    make_genesis(ledger, folder)
    return ledger


@pytest.fixture
def bad(ledger: VersionLedger) -> str:
    return put_away(ledger)


def put_away(ledger: VersionLedger) -> str:
    candidate = make_candidate(ledger, ledger.pointers().v2, mark="bad", episodes=("a", "b"))
    ledger.quarantine(advance(ledger, candidate, State.GATED), by="agent", reason="suspect")
    return candidate


def release(ledger: VersionLedger, name: str, by: str, *, epoch: int = 1, evidence: Any = EVIDENCE) -> Any:
    consent = ConsentRule(WINDOW_S, epoch)
    return ledger.release(name, by=by, reason="probe mended", evidence=evidence, consent=consent)


def test_two_people_release_it_its_episodes_are_free_and_its_report_is_void(ledger: VersionLedger, bad: str) -> None:
    assert ledger.held_back() == {"a", "b"}
    request = release(ledger, bad, "ada")
    assert (request.by, request.until, ledger.get(bad).state) == ("ada", NOW + WINDOW_S, State.QUARANTINED)
    assert ledger.release_request(bad, epoch=1) == request
    assert release(ledger, bad, "bob", evidence={"text": "seen too"}) is None
    record = ledger.get(bad)
    assert (record.state, record.gates, record.report_sha256, ledger.held_back()) == (State.CANDIDATE, (), None, set())
    (step,) = [step for step in ledger.steps(bad) if step.action == "version.release"]
    assert ledger.evidence(str(step.evidence_sha256)) == {
        "found": EVIDENCE, "found_too": {"text": "seen too"}, "requested_by": "ada", "requested_reason": "probe mended",
    }  # fmt: skip
    assert ledger.release_request(bad, epoch=1) is None
    assert ledger.verify_audit().ok


def test_one_person_releases_it_where_two_are_not_asked_for(ledger: VersionLedger, bad: str) -> None:
    assert ledger.release(bad, by="ada", reason="mended", evidence=EVIDENCE, consent=None) is None
    assert ledger.get(bad).state is State.CANDIDATE


@pytest.mark.parametrize("consent", [None, ConsentRule(WINDOW_S, 1)])
@pytest.mark.parametrize(
    ("signed", "error", "words"),
    [
        ({"by": "agent", "reason": "mended", "evidence": EVIDENCE}, IllegalTransition, "only by a person"),
        ({"by": "\uff21gent:x", "reason": "mended", "evidence": EVIDENCE}, IllegalTransition, "only by a person"),
        ({"by": "ada", "reason": " ", "evidence": EVIDENCE}, ValueError, "reason"),
        ({"by": "ada", "reason": "mended", "evidence": None}, IllegalTransition, "new evidence"),
        ({"by": "ada", "reason": "mended", "evidence": {}}, IllegalTransition, "new evidence"),
    ],
)
def test_a_release_without_a_person_a_reason_or_evidence_is_refused_and_changes_nothing(
    ledger: VersionLedger, bad: str, *, consent: Any, signed: dict[str, Any], error: Any, words: str
) -> None:
    before = everything(ledger)
    with pytest.raises(error, match=words):
        ledger.release(bad, **signed, consent=consent)
    assert everything(ledger) == before


def test_the_same_person_twice_is_refused(ledger: VersionLedger, bad: str) -> None:
    release(ledger, bad, "ada")
    before = everything(ledger)
    with pytest.raises(SecondPersonNeeded, match="Another person"):
        release(ledger, bad, " ADA")
    assert everything(ledger) == before


@pytest.mark.parametrize("jump_s", [WINDOW_S, -1.0])
def test_a_request_whose_time_is_over_or_whose_clock_was_set_back_starts_anew(
    ledger: VersionLedger, bad: str, clock: Clock, jump_s: float
) -> None:
    release(ledger, bad, "ada")
    clock.now += jump_s
    assert release(ledger, bad, "bob").by == "bob"
    assert ledger.get(bad).state is State.QUARANTINED


def test_a_stop_in_between_voids_the_request_by_the_epoch(ledger: VersionLedger, bad: str) -> None:
    release(ledger, bad, "ada", epoch=1)
    assert ledger.release_request(bad, epoch=3) is None
    assert release(ledger, bad, "bob", epoch=3).by == "bob"


def test_a_request_does_not_outlive_its_stay_in_quarantine_though_the_clock_stands_still(
    ledger: VersionLedger, bad: str
) -> None:
    release(ledger, bad, "ada")
    ledger.release(bad, by="eve", reason="mended", evidence=EVIDENCE, consent=None)
    ledger.transition(bad, expected=State.CANDIDATE, to=State.EVALUATING, by="agent", reason="again")
    ledger.quarantine(bad, by="agent", reason="failed again")
    assert release(ledger, bad, "bob").by == "bob"


def test_a_withdrawn_request_is_gone(ledger: VersionLedger, bad: str) -> None:
    with pytest.raises(NothingRequested):
        ledger.withdraw_release(bad, by="ada", reason="x")
    release(ledger, bad, "ada")
    ledger.withdraw_release(bad, by="eve", reason="not yet")
    assert release(ledger, bad, "bob").by == "bob"
    with pytest.raises(IllegalTransition, match="only by a person"):
        ledger.withdraw_release(bad, by="system", reason="x")


def test_a_request_for_one_version_says_nothing_about_another(ledger: VersionLedger, bad: str) -> None:
    other = make_candidate(ledger, ledger.pointers().v2, mark="other", episodes=("c",))
    ledger.quarantine(advance(ledger, other, State.GATED), by="agent", reason="suspect")
    release(ledger, bad, "ada")
    assert release(ledger, other, "bob").by == "bob"


def test_only_what_is_in_quarantine_is_released_and_only_by_this_way(ledger: VersionLedger, bad: str) -> None:
    with pytest.raises(StaleTransition):
        release(ledger, ledger.pointers().v2, "ada")
    with pytest.raises(IllegalTransition, match="release"):
        ledger.transition(bad, expected=State.QUARANTINED, to=State.CANDIDATE, by="ada", reason="x", evidence=EVIDENCE)
    assert ledger.get(bad).state is State.QUARANTINED


def test_nobody_else_writes_a_request_into_the_log(ledger: VersionLedger, bad: str) -> None:
    body = {"by": "ada", "reason": "x", "at": NOW, "until": NOW + WINDOW_S, "bound_to": "x"}
    with pytest.raises(ValueError, match="only the ledger writes"):
        ledger.append_audit(actor="ada", action="consent.release-requested", subject=bad, after=body)


def test_a_guard_that_refuses_leaves_no_request(ledger: VersionLedger, bad: str) -> None:
    def stopped() -> None:
        raise RuntimeError("stopped")

    before = everything(ledger)
    with pytest.raises(RuntimeError):
        ledger.release(bad, by="ada", reason="x", evidence=EVIDENCE, consent=ConsentRule(WINDOW_S, 1), guard=stopped)
    assert everything(ledger) == before


class ReleaseMachine(RuleBasedStateMachine):
    """Any order of requests, withdrawals, stops, returns to quarantine and clock jumps."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(quick_folder())
        self.clock = Clock(NOW)
        self.ledger = VersionLedger(folder / "ledger.sqlite", clock=self.clock)
        self.stack.callback(self.ledger.close)
        make_genesis(self.ledger, folder)
        self.name = put_away(self.ledger)
        self.epoch = 1
        self.agreed: list[tuple[str, float]] = []

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    @rule(by=st.sampled_from(["ada", "ADA ", "bob", "agent", "eve"]), has_evidence=st.booleans())
    def release(self, by: str, has_evidence: bool) -> None:
        try:
            request = release(self.ledger, self.name, by, epoch=self.epoch, evidence=EVIDENCE if has_evidence else None)
        except (ValueError, SecondPersonNeeded):
            return
        self.agreed.append((person_of(by), self.clock.now))
        if request is None:
            timely = {name for name, at in self.agreed if 0 <= self.clock.now - at < WINDOW_S}
            assert len(timely) >= 2, self.agreed
            assert "agent" not in timely
            self.agreed = []

    @rule()
    def withdraw(self) -> None:
        try:
            self.ledger.withdraw_release(self.name, by="ada", reason="not yet")
        except NothingRequested:
            return
        self.agreed = []

    @rule()
    def stop_and_reset(self) -> None:
        self.epoch += 2
        self.agreed = []

    @rule()
    def put_away_again(self) -> None:
        if self.ledger.get(self.name).state is State.CANDIDATE:
            self.ledger.transition(self.name, expected=State.CANDIDATE, to=State.EVALUATING, by="agent", reason="again")
            self.ledger.quarantine(self.name, by="agent", reason="failed again")
            self.agreed = []

    @rule(jump_s=st.sampled_from([1.0, WINDOW_S / 2, WINDOW_S, -1.0, -WINDOW_S]))
    def jump(self, jump_s: float) -> None:
        self.clock.now += jump_s

    @invariant()
    def its_episodes_are_held_back_as_long_as_it_is_in_quarantine(self) -> None:
        is_held = self.ledger.get(self.name).state is State.QUARANTINED
        assert (self.ledger.held_back() == {"a", "b"}) is is_held
        assert self.ledger.pointers().v2 != self.name


TestRelease = ReleaseMachine.TestCase
TestRelease.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
