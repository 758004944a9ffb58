"""The ledger: what each method moves, what it refuses, and that a refusal changes nothing."""

import multiprocessing
import sqlite3
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from autonomous.versions.approval import Approval
from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.ledger import (
    DuplicateVersion,
    LedgerNotReady,
    PromotionRefused,
    UnknownVersion,
    VersionLedger,
)
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from memory.store import StoreProblem
from tests.unit.autonomous.ledger_life import (
    FAILED,
    PASSED,
    advance,
    everything,
    fix,
    make_bundle,
    make_candidate,
    make_genesis,
    make_production,
    version_id_of,
)


class Stopped(Exception):
    """What the emergency stop raises in these tests."""


def refuse() -> None:
    raise Stopped


def state_of(ledger: VersionLedger, name: str) -> State:
    return ledger.get(name).state


# -- opening


def test_a_ledger_without_genesis_says_so(folder: Path):
    with pytest.raises(LedgerNotReady, match="genesis"):
        VersionLedger(folder / "new.sqlite").pointers()


def test_a_newer_schema_is_refused_with_a_fix_and_left_as_it_is(folder: Path, ledger: VersionLedger):
    ledger.close()
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreProblem, match=r"version 99.*upgrade the program"):
        VersionLedger(folder / "ledger.sqlite")


def test_everything_is_there_after_opening_again(folder: Path, ledger: VersionLedger, base: str):
    make_production(ledger, base, mark="one", episodes=("a", "b"), offset=2)
    before = everything(ledger)
    ledger.close()
    assert everything(VersionLedger(folder / "ledger.sqlite")) == before


def test_genesis_is_idempotent_and_other_code_with_the_same_weights_is_the_same_original(
    folder: Path, ledger: VersionLedger, base: str
):
    before = everything(ledger)
    make_genesis(ledger, folder)
    upgraded = make_bundle(None, mark="base").model_copy(update={"code_sha256": "d" * 64})
    ledger.genesis(version_id_of(upgraded), folder=folder, manifest=upgraded.model_dump(mode="json"), by="system")
    assert everything(ledger) == before
    assert (ledger.get(base).adapter_number, ledger.stream_offset(base)) == (None, 0)


def test_genesis_with_another_base_model_is_refused(folder: Path, ledger: VersionLedger):
    other = make_bundle(None, mark="base").model_copy(update={"base_sha256": "d" * 64})
    with pytest.raises(ValueError, match="data folder of its own"):
        ledger.genesis(version_id_of(other), folder=folder, manifest=other.model_dump(mode="json"), by="system")


def test_the_index_of_the_database_itself_forbids_a_second_production(folder: Path, ledger: VersionLedger, base: str):
    name = make_candidate(ledger, base, mark="one")
    connection = sqlite3.connect(folder / "ledger.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("UPDATE versions SET state = 'PRODUCTION' WHERE version_id = ?", (name,))
    connection.close()


# -- from run to production


def test_a_run_is_named_by_its_run_id_until_its_bundle_names_it_and_both_names_find_it_then(
    ledger: VersionLedger, base: str
):
    run_id = ledger.start_run(parent=base, config={"lr": 1e-3})
    assert (ledger.get(run_id).name, state_of(ledger, run_id), run_id[:4], len(run_id)) == (
        run_id,
        State.DRAFT,
        "run-",
        16,
    )
    with pytest.raises(ValueError, match="no bundle"):
        _ = ledger.get(run_id).folder
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
    name = fix(ledger, run_id, parent=base, mark="one", episodes=("a", "b"), offset=7)
    record = ledger.get(run_id)
    assert record == ledger.get(name)
    assert (record.name, record.run_id, record.parent, record.config) == (name, run_id, base, {"lr": 1e-3})
    assert (record.folder, ledger.stream_offset(name), ledger.episodes_of(name)) == (
        Path("/versions") / name,
        7,
        ["a", "b"],
    )


def test_adapter_numbers_count_from_one_and_never_come_back(ledger: VersionLedger, base: str):
    first = make_candidate(ledger, base, mark="one")
    second = make_production(ledger, base, mark="two")
    ledger.rollback(by="bob", reason="bad")
    third = make_candidate(ledger, base, mark="three")
    assert [ledger.get(name).adapter_number for name in (first, second, third)] == [1, 2, 3]


def test_the_same_bundle_twice_is_a_duplicate_and_takes_no_number(ledger: VersionLedger, base: str):
    make_candidate(ledger, base, mark="one")
    with pytest.raises(DuplicateVersion, match="same batch"):
        make_candidate(ledger, base, mark="one")
    assert ledger.get(make_candidate(ledger, base, mark="two")).adapter_number == 2


def test_a_name_that_is_not_the_manifests_hash_is_refused(ledger: VersionLedger, base: str):
    run_id = ledger.start_run(parent=base, config={})
    bundle = make_bundle(base, mark="one").model_dump(mode="json")
    with pytest.raises(ValueError, match="hash names v-"):
        ledger.fix_bundle(
            run_id, version_id="v-1", folder=Path(), manifest=bundle, episode_ids=[], stream_offset=0, by="agent"
        )


def test_a_manifest_with_another_parent_than_the_runs_is_refused(ledger: VersionLedger, base: str):
    run_id = ledger.start_run(parent=base, config={})
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
    with pytest.raises(ValueError, match=r"manifest\.parent"):
        fix(ledger, run_id, parent=None, mark="one", episodes=())
    assert state_of(ledger, run_id) is State.TRAINING


@pytest.mark.parametrize("state", [State.DRAFT, State.FAILED])
def test_nothing_is_trained_on_top_of_a_run_without_a_bundle(ledger: VersionLedger, base: str, state: State):
    run_id = ledger.start_run(parent=base, config={})
    if state is State.FAILED:
        ledger.transition(run_id, expected=State.DRAFT, to=State.FAILED, by="agent", reason="stopped")
    with pytest.raises(ValueError, match="train on top of the version that serves"):
        ledger.start_run(parent=run_id, config={})


def test_a_fixed_bundle_cannot_be_changed_even_by_sql(folder: Path, ledger: VersionLedger, base: str):
    make_candidate(ledger, base, mark="one")
    connection = sqlite3.connect(folder / "ledger.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        connection.execute("UPDATE versions SET folder = '/elsewhere' WHERE adapter_number = 1")
    connection.close()


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


# -- compare and swap, and the emergency stop


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
    bundle = make_bundle(base, mark="three")
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


# -- questions


def test_lineage_runs_from_the_root_and_erasing_an_episode_names_all_versions_that_carry_it(
    ledger: VersionLedger, base: str
):
    first = make_production(ledger, base, mark="one", episodes=("a",))
    second = make_production(ledger, first, mark="two", episodes=("b",))
    other = make_candidate(ledger, base, mark="three", episodes=("c",))
    assert [record.name for record in ledger.lineage(second)] == [base, first, second]
    assert ledger.versions_that_learned(["a", "unknown"]) == [first, second]
    assert ledger.versions_that_learned(["b", "c"]) == [second, other]
    assert ledger.versions_that_learned([]) == []
    assert ledger.learned(["a", "c", "unknown"]) == {"a", "c"}


def test_an_unknown_name_says_where_the_names_are(ledger: VersionLedger):
    for ask in (ledger.get, ledger.lineage, ledger.learned_episodes, ledger.stream_offset, ledger.episodes_of):
        with pytest.raises(UnknownVersion, match="GET /v1/versions"):
            ask("v-nothing")


def test_list_shows_the_newest_first_as_the_api_does(ledger: VersionLedger, base: str):
    name = make_candidate(ledger, base, mark="one", episodes=("a", "b"))
    newest, oldest = (record.to_dict() for record in ledger.list(10))
    assert (newest["id"], newest["num_episodes"], newest["adapter_number"], newest["gates"]) == (name, 2, 1, [])
    assert (oldest["id"], oldest["state"], oldest["parent"]) == (base, "PRODUCTION", None)
    assert [record.name for record in ledger.list(1)] == [name]


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
