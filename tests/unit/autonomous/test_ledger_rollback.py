"""Quarantine, rollback and recovery: what is held back, what is restored, and what a kill -9 leaves."""

import random
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from autonomous.versions.ledger import (
    NothingToRollBack,
    VersionLedger,
)
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from tests.unit.autonomous import ledger_life
from tests.unit.autonomous.ledger_life import (
    advance,
    everything,
    make_candidate,
    make_production,
    state_of,
)


@pytest.mark.parametrize(
    ("at", "via"),
    [
        (State.EVALUATING, "REJECTED"),
        (State.GATED, "REJECTED"),
        (State.AWAITING_APPROVAL, "REJECTED"),
        (State.SHADOW, "ROLLED_BACK"),
        (State.CANARY, "ROLLED_BACK"),
    ],
)
def test_quarantine_leads_by_rejected_or_rolled_back_and_holds_the_episodes_back(
    ledger: VersionLedger, base: str, at: State, via: str
):
    name = advance(ledger, make_candidate(ledger, base, mark="one", episodes=("a", "b")), at)
    ledger.quarantine(name, by="agent", reason="gates failed")
    states = [(row.before or {})["state"] + ">" + (row.after or {})["state"] for row in ledger.audit(2)]
    assert states == [f"{via}>QUARANTINED", f"{at}>{via}"]
    assert (ledger.held_back(), ledger.pointers().v3) == ({"a", "b"}, name)


def test_quarantine_does_not_hold_back_what_the_serving_version_learned_too(ledger: VersionLedger, base: str):
    make_production(ledger, base, mark="one", episodes=("a",))
    sibling = advance(ledger, make_candidate(ledger, base, mark="two", episodes=("a", "b")), State.EVALUATING)
    ledger.quarantine(sibling, by="agent", reason="gates failed")
    assert ledger.held_back() == {"b"}


def test_production_is_not_quarantined_without_a_successor(ledger: VersionLedger, base: str):
    with pytest.raises(IllegalTransition, match="PRODUCTION leaves by rollback"):
        ledger.quarantine(base, by="alice", reason="bad")


def test_rollback_restores_the_predecessor_and_quarantines_the_bad_version_in_one_step(
    ledger: VersionLedger, base: str
):
    good = make_production(ledger, base, mark="good", episodes=("a",), offset=1)
    bad = make_production(ledger, good, mark="bad", episodes=("b", "c"), offset=3)
    assert ledger.learned_episodes(bad) == {"a", "b", "c"}
    assert ledger.rollback(by="bob", reason="answers are wrong") == (bad, good)
    assert asdict(ledger.pointers()) == {"v1": good, "v2": good, "v3": bad, "canary_percent": 0}
    assert (ledger.held_back(), ledger.get(good).stream_offset) == ({"b", "c"}, 1)


def test_rollback_keeps_learnable_what_the_restored_version_learned_too(ledger: VersionLedger, base: str):
    make_production(ledger, base, mark="one", episodes=("a",))
    make_production(ledger, base, mark="two", episodes=("a", "b"))
    ledger.rollback(by="bob", reason="bad")
    assert ledger.held_back() == {"b"}


def test_rollback_twice_goes_back_two_versions_and_then_there_is_nothing_left(ledger: VersionLedger, base: str):
    first = make_production(ledger, base, mark="one")
    second = make_production(ledger, first, mark="two")
    assert ledger.rollback(by="bob", reason="bad") == (second, first)
    assert ledger.rollback(by="bob", reason="bad too") == (first, base)
    with pytest.raises(NothingToRollBack, match="no earlier version"):
        ledger.rollback(by="bob", reason="the original too")


def test_two_people_who_roll_back_the_same_version_roll_back_once(ledger: VersionLedger, base: str):
    first = make_production(ledger, base, mark="one")
    second = make_production(ledger, first, mark="two")
    ledger.rollback(by="bob", reason="bad", expected=second)
    with pytest.raises(StaleTransition, match="expected in state PRODUCTION but is QUARANTINED"):
        ledger.rollback(by="alice", reason="bad", expected=second)
    assert ledger.pointers().v2 == first


def test_rollback_skips_a_predecessor_that_learned_what_is_held_back_since(ledger: VersionLedger, base: str):
    suspect = make_production(ledger, base, mark="one", episodes=("a",))
    clean = make_production(ledger, base, mark="two", episodes=("b",))
    sibling = advance(ledger, make_candidate(ledger, base, mark="three", episodes=("a",)), State.EVALUATING)
    ledger.quarantine(sibling, by="agent", reason="poisoned")
    assert ledger.held_back() == {"a"}
    assert ledger.rollback(by="bob", reason="bad") == (clean, base)
    assert state_of(ledger, suspect) is State.SUPERSEDED


def test_a_release_from_quarantine_frees_its_episodes_and_asks_all_gates_again(ledger: VersionLedger, base: str):
    name = advance(ledger, make_candidate(ledger, base, mark="one", episodes=("a",)), State.GATED)
    ledger.quarantine(name, by="agent", reason="suspect")
    ledger.release(name, by="alice", reason="the probe was wrong", evidence={"probe": "fixed"}, consent=None)
    record = ledger.get(name)
    assert (record.state, record.gates, record.report_sha256, ledger.held_back()) == (State.CANDIDATE, (), None, set())
    assert ledger.verify_audit().ok
    ledger.promote(advance(ledger, name, State.SHADOW), by="agent", reason="passed")
    assert ledger.pointers().v2 == name


def test_recover_fails_open_runs_completes_quarantines_and_names_what_waits(ledger: VersionLedger, base: str):
    draft = ledger.start_run(parent=base, config={})
    training = ledger.start_run(parent=base, config={})
    ledger.transition(training, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
    candidate = make_candidate(ledger, base, mark="one")
    evaluating = advance(ledger, make_candidate(ledger, base, mark="two"), State.EVALUATING)
    gated = advance(ledger, make_candidate(ledger, base, mark="three"), State.GATED)
    half = advance(ledger, make_candidate(ledger, base, mark="four"), State.EVALUATING)
    ledger.transition(half, expected=State.EVALUATING, to=State.REJECTED, by="agent", reason="failed")
    assert ledger.recover(by="system") == [candidate, evaluating, gated]
    assert {state_of(ledger, name) for name in (draft, training)} == {State.FAILED}
    assert state_of(ledger, half) is State.QUARANTINED
    before = everything(ledger)
    assert ledger.recover(by="system") == [candidate, evaluating, gated]
    assert everything(ledger) == before


@pytest.mark.slow
def test_killed_at_ten_random_moments_there_is_one_production_a_whole_chain_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
):
    path = tmp_path / "ledger.sqlite"
    choose = random.Random(9)
    states: dict[str, set[State]] = {"promoted": set(), "rolled-back": {State.QUARANTINED}}
    states["promoted"] = {State.PRODUCTION, State.SUPERSEDED, State.ARCHIVED, State.QUARANTINED}
    acknowledged: list[tuple[str, str]] = []
    for turn in range(10):
        with subprocess.Popen(
            [sys.executable, ledger_life.__file__, str(path)],
            cwd=Path(__file__).parents[3],
            env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            lines = [process.stdout.readline()] if turn % 2 else []  # on a busy machine nothing may be done in .2 s
            try:
                process.wait(timeout=choose.uniform(0.0, 0.2))
            except subprocess.TimeoutExpired:
                process.kill()
            lines += process.stdout.read().splitlines()
        assert process.returncode == -9
        acknowledged += [(word, name) for word, name in (line.split() for line in lines if line.count(" v-"))]
        ledger = VersionLedger(path)
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM versions WHERE state = 'PRODUCTION'").fetchone() == (1,)
        assert ledger.verify_audit().ok
        assert not ledger.held_back() & ledger.learned_episodes(ledger.pointers().v2)
        assert all(ledger.get(name).state in states[word] for word, name in acknowledged)
        ledger.close()
    assert acknowledged
