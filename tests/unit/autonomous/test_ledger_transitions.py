"""The ledger's steps: compare and swap, the emergency stop, and writers at once; a refusal changes nothing."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from tests.stops import Stopped, refuse
from tests.unit.autonomous.ledger_life import (
    PASSED,
    advance,
    everything,
    make_bundle,
    make_candidate,
    version_id_of,
)


def test_a_wrong_expectation_changes_nothing_and_names_both_states(ledger: VersionLedger, base: str):
    name = make_candidate(ledger, base, mark="one")
    before = everything(ledger)
    with pytest.raises(StaleTransition, match="expected in state GATED but is CANDIDATE"):
        ledger.transition(name, expected=State.GATED, to=State.SHADOW, by="alice", reason="next")
    assert everything(ledger) == before


@pytest.mark.parametrize(
    ("expected", "to", "method"),
    [(State.SHADOW, State.PRODUCTION, "promote"), (State.PRODUCTION, State.SUPERSEDED, "promote")],
)
def test_a_step_that_moves_two_versions_is_only_taken_by_its_method(
    ledger: VersionLedger, base: str, expected: State, to: State, method: str
):
    name = advance(ledger, make_candidate(ledger, base, mark="one"), State.SHADOW)
    with pytest.raises(IllegalTransition, match=method):
        ledger.transition(
            base if expected is State.PRODUCTION else name, expected=expected, to=to, by="alice", reason="x"
        )


@pytest.mark.parametrize(("field", "value"), [("by", ""), ("reason", "  "), ("reason", "\ud800")])
def test_a_transition_without_who_or_why_is_refused(ledger: VersionLedger, base: str, field: str, value: str):
    run_id = ledger.start_run(parent=base, config={})
    before = everything(ledger)
    values = {"by": "agent", "reason": "batch", field: value}
    with pytest.raises(ValueError, match=field):
        ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, **values)
    assert everything(ledger) == before


def test_the_guard_refuses_every_mutation_right_before_its_commit_and_nothing_is_written(
    folder: Path, ledger: VersionLedger, base: str
):
    run_id = ledger.start_run(parent=base, config={})
    trained = ledger.start_run(parent=base, config={})
    ledger.transition(trained, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
    evaluating = advance(ledger, make_candidate(ledger, base, mark="one", episodes=("a",)), State.EVALUATING)
    shadow = advance(ledger, make_candidate(ledger, base, mark="two"), State.SHADOW)
    bundle = make_bundle(base, mark="three", episodes=("x",))
    manifest = bundle.model_dump(mode="json")
    before = everything(ledger)
    with pytest.raises(Stopped):
        ledger.start_run(parent=base, config={}, guard=refuse)
    with pytest.raises(Stopped):
        ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch", guard=refuse)
    with pytest.raises(Stopped):
        ledger.fix_bundle(
            trained,
            version_id=version_id_of(bundle),
            folder=folder,
            manifest=manifest,
            episode_ids=["x"],
            stream_offset=1,
            by="agent",
            guard=refuse,
        )
    with pytest.raises(Stopped):
        ledger.bind_report(evaluating, report={}, gates=PASSED, by="agent", guard=refuse)
    with pytest.raises(Stopped):
        ledger.quarantine(evaluating, by="agent", reason="failed", guard=refuse)
    with pytest.raises(Stopped):
        ledger.promote(shadow, by="agent", reason="passed", guard=refuse)
    with pytest.raises(Stopped):
        ledger.recover(by="system", guard=refuse)
    assert everything(ledger) == before
    assert ledger.verify_audit().ok


def test_of_two_threads_that_take_the_same_step_one_wins_and_the_other_is_stale(ledger: VersionLedger, base: str):
    run_id = ledger.start_run(parent=base, config={})
    outcomes: list[str] = []
    gate = threading.Barrier(4)

    def step() -> None:
        gate.wait()
        try:
            ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
            outcomes.append("moved")
        except StaleTransition:
            outcomes.append("stale")

    threads = [threading.Thread(target=step) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "stale", "stale", "stale"]


def append_rows(path: Path, name: str, num_rows: int) -> None:
    ledger = VersionLedger(path)
    for _ in range(num_rows):
        ledger.append_audit(actor=name, action="note", subject="thing")


def test_processes_that_open_and_write_at_once_make_one_unbroken_chain(folder: Path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=append_rows, args=(folder / "shared.sqlite", f"process-{n}", 40)) for n in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    report = VersionLedger(folder / "shared.sqlite").verify_audit()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (report.ok, report.num_rows) == (True, 120)
