"""The ledger: what opening it finds, a run until its bundle is fixed, and the questions that it answers."""

import sqlite3
from pathlib import Path

import pytest

from autonomous.versions.ledger import DuplicateVersion, LedgerNotReady, UnknownVersion, VersionLedger
from autonomous.versions.states import State
from memory.store import StoreProblem
from tests.unit.autonomous.ledger_life import (
    everything,
    fix,
    make_bundle,
    make_candidate,
    make_genesis,
    make_production,
    state_of,
    version_id_of,
)

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
    assert (ledger.get(base).adapter_number, ledger.get(base).stream_offset) == (None, 0)


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


# -- from a run to a fixed bundle


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
    assert (record.folder, record.stream_offset, ledger.episodes_of(name)) == (
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
    for ask in (ledger.get, ledger.lineage, ledger.learned_episodes, ledger.episodes_of):
        with pytest.raises(UnknownVersion, match="GET /v1/versions"):
            ask("v-nothing")


def test_list_shows_the_newest_first_as_the_api_does(ledger: VersionLedger, base: str):
    name = make_candidate(ledger, base, mark="one", episodes=("a", "b"))
    newest, oldest = (record.to_dict() for record in ledger.list(10))
    assert (newest["id"], newest["num_episodes"], newest["adapter_number"], newest["gates"]) == (name, 2, 1, [])
    assert (oldest["id"], oldest["state"], oldest["parent"]) == (base, "PRODUCTION", None)
    assert [record.name for record in ledger.list(1)] == [name]
