"""The error budget: two rollbacks within seven days, or an audit log that was altered, freeze promotions."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.versions.budget import WINDOW_S
from autonomous.versions.ledger import PromotionRefused, PromotionsFrozen, VersionLedger
from autonomous.versions.states import IllegalTransition, State
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import advance, make_candidate, make_genesis, make_production


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[VersionLedger]:
    ledger = VersionLedger(tmp_path / "ledger.sqlite", clock=clock)
    make_genesis(ledger, tmp_path)
    yield ledger
    ledger.close()


def _learn_and_roll_back(ledger: VersionLedger, mark: str) -> str:
    bad = make_production(ledger, ledger.pointers().v2, mark=mark)
    assert ledger.rollback(by="bob", reason="bad")[0] == bad
    return bad


def test_two_rollbacks_freeze_promotions_until_a_person_unlocks_them(ledger: VersionLedger) -> None:
    first = _learn_and_roll_back(ledger, "one")
    second = _learn_and_roll_back(ledger, "two")
    waiting = advance(ledger, make_candidate(ledger, ledger.pointers().v2, mark="three"), State.SHADOW)
    for call in (ledger.check_promotions, lambda: ledger.promote(waiting, by="agent", reason="all gates passed")):
        with pytest.raises(
            PromotionsFrozen, match=f"{first}, {second} were rolled back, two within 7 days.*autonomous unlock"
        ):
            call()
    assert ledger.get(waiting).state is State.SHADOW

    with pytest.raises(IllegalTransition, match="only by a person"):
        ledger.unlock_promotions(by="agent", reason="let me")
    with pytest.raises(ValueError, match="reason"):
        ledger.unlock_promotions(by="alice", reason="")
    ledger.unlock_promotions(by="alice", reason="both had learned one bad source")
    row = ledger.audit(1)[0]
    assert (row.actor, row.before and row.before["rolled_back"]) == ("alice", [first, second])
    ledger.promote(waiting, by="agent", reason="all gates passed")
    assert ledger.pointers().v2 == waiting
    assert ledger.verify_audit().ok


def test_one_rollback_and_two_that_lie_apart_freeze_nothing(ledger: VersionLedger, clock: Clock) -> None:
    _learn_and_roll_back(ledger, "one")
    with pytest.raises(ValueError, match="nothing to unlock"):
        ledger.unlock_promotions(by="alice", reason="x")
    clock.now += WINDOW_S + 1
    _learn_and_roll_back(ledger, "two")
    ledger.check_promotions()


def test_a_freeze_ends_by_no_time_and_by_no_clock(ledger: VersionLedger, clock: Clock) -> None:
    _learn_and_roll_back(ledger, "one")
    clock.now += 0.98 * WINDOW_S
    _learn_and_roll_back(ledger, "two")
    for passed in (0.04 * WINDOW_S, 10 * WINDOW_S, -20 * WINDOW_S):
        clock.now += passed
        with pytest.raises(PromotionsFrozen):
            ledger.check_promotions()


def test_an_altered_audit_log_freezes_promotions_at_the_row(ledger: VersionLedger, tmp_path: Path) -> None:
    waiting = advance(ledger, make_candidate(ledger, ledger.pointers().v2, mark="one"), State.SHADOW)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("DROP TRIGGER audit_is_never_updated")
        connection.execute("UPDATE audit SET actor = 'mallory' WHERE seq = 3")
    with pytest.raises(PromotionRefused, match="the audit log is broken at row 3"):
        ledger.promote(waiting, by="agent", reason="all gates passed")
    assert ledger.get(waiting).state is State.SHADOW


def test_only_the_ledger_writes_rows_about_promotions(ledger: VersionLedger) -> None:
    with pytest.raises(ValueError, match="only the ledger writes"):
        ledger.append_audit(actor="x", action="promotions.unlock", subject="promotions")
