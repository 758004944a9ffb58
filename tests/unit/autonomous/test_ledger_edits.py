"""A table of the ledger that was edited by hand: the version and its row of the log are named, and nothing is promoted."""

import sqlite3
from pathlib import Path

import pytest

from autonomous.versions.ledger import PromotionsFrozen, VersionLedger
from autonomous.versions.states import State
from tests.unit.autonomous.ledger_life import advance, fix, make_candidate, make_genesis, make_production

VERSIONS = "UPDATE versions SET {} WHERE version_id = :bad"
EDITS = {
    "what is held back is freed": ("DELETE FROM held_back", "held_sha256"),
    "one more is held back": ("INSERT INTO held_back SELECT 'a', id FROM versions WHERE version_id = :bad", "held_sha256"),
    "an episode was not learned": ("DELETE FROM version_episodes WHERE episode_id = 'c'", "episodes_sha256"),
    "another episode was learned": ("UPDATE version_episodes SET episode_id = 'x' WHERE episode_id = 'c'", "episodes_sha256"),
    "folder": (VERSIONS.format("folder = '/elsewhere'"), "folder"),
    "stream offset": (VERSIONS.format("stream_offset = 9"), "stream_offset"),
    "manifest": (VERSIONS.format("manifest = json_set(manifest, '$.code_sha256', 'x')"), "manifest"),
    "parent": (VERSIONS.format("parent = (SELECT version_id FROM versions WHERE run_id IS NULL)"), "parent"),
    "adapter number": (VERSIONS.format("adapter_number = NULL"), "adapter_number"),
    "owner of a number": ("UPDATE adapter_numbers SET version_id = 'v-x' WHERE version_id = :bad", "given_number"),
    "config": (VERSIONS.format("config = '{}'"), "config"),
    "run": (VERSIONS.format("run_id = 'run-x'"), "run_id"),
    "state": (VERSIONS.format("state = 'SUPERSEDED'"), "state"),
    "order of its moves": (VERSIONS.format("changed_seq = 1"), "changed_seq"),
    "time of its move": (VERSIONS.format("changed_at = 1"), "changed_at"),
    "time of its run": (VERSIONS.format("created_at = 1"), "created_at"),
    "report": (VERSIONS.format("report_sha256 = NULL"), "report_sha256"),
    "gates": (VERSIONS.format("gates_sha256 = NULL"), "gates_sha256"),
}  # fmt: skip
SAID_BY = {
    "held_sha256": "version.quarantine", "episodes_sha256": "version.fix_bundle", "folder": "version.fix_bundle",
    "stream_offset": "version.fix_bundle", "manifest": "version.fix_bundle", "parent": "version.fix_bundle",
    "adapter_number": "version.fix_bundle", "given_number": "version.fix_bundle", "run_id": "version.fix_bundle",
    "config": "version.start_run", "created_at": "version.start_run", "state": "version.quarantine",
    "changed_seq": "version.quarantine", "changed_at": "version.quarantine", "report_sha256": "version.bind_report",
    "gates_sha256": "version.bind_report",
}  # fmt: skip


@pytest.fixture
def ledger(folder: Path) -> VersionLedger:
    """The original, a version that serves, and one on top of it that was rolled back."""
    ledger = VersionLedger(folder / "ledger.sqlite")
    good = make_production(ledger, make_genesis(ledger, folder), mark="good", episodes=("a",), offset=1)
    make_production(ledger, good, mark="bad", episodes=("a", "b", "c"), offset=3)
    ledger.rollback(by="bob", reason="bad answers")
    assert ledger.verify_audit().ok
    assert ledger.held_back() == {"b", "c"}
    return ledger


def edit(folder: Path, statement: str, **values: str) -> None:
    """Run SQL as someone who has the file, the triggers and foreign keys out of the way."""
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("DROP TRIGGER bundle_is_immutable")
    assert connection.execute(statement, values).rowcount
    connection.commit()
    connection.close()


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_of_any_table_is_named_at_the_row_that_says_otherwise_and_freezes_promotions(
    folder: Path, ledger: VersionLedger, what: str
):
    bad, (statement, fact) = ledger.pointers().v3, EDITS[what]
    assert bad is not None
    edit(folder, statement, **({"bad": bad} if ":bad" in statement else {}))
    report = ledger.verify_audit()
    assert not report.ok
    assert bad in str(report.reason)
    assert f"its {fact} is" in str(report.reason)
    rows = {row.seq: (row.action, row.subject) for row in ledger.audit(100)}
    assert report.first_bad_seq is not None
    action, subject = rows[report.first_bad_seq]
    assert action == SAID_BY[fact]
    assert subject == bad or action == "version.start_run"
    with pytest.raises(PromotionsFrozen, match="edited by hand"):
        ledger.check_promotions()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("INSERT INTO held_back VALUES ('a', 99)", "in row 99 was added"),
        ("UPDATE held_back SET episode_id = x'00ff' WHERE episode_id = 'b'", "its held_sha256 is"),
        ("UPDATE held_back SET version = 1", "its held_sha256 is"),
        ("DELETE FROM versions WHERE version_id = :bad", "removed by hand"),
        ("DELETE FROM evidence WHERE sha256 = (SELECT report_sha256 FROM versions WHERE version_id = :bad)", "are missing"),
    ],
)  # fmt: skip
def test_a_row_that_was_added_moved_or_removed_by_hand_freezes_promotions_too(
    folder: Path, ledger: VersionLedger, statement: str, told: str
):
    edit(folder, statement, **({"bad": str(ledger.pointers().v3)} if ":bad" in statement else {}))
    with pytest.raises(PromotionsFrozen, match=told):
        ledger.check_promotions()


@pytest.mark.parametrize(("hold_back", "held"), [(None, ["new", "other"]), ((), []), (("a", "new"), ["new"])])
def test_the_log_says_what_a_move_holds_back_and_what_it_frees(
    ledger: VersionLedger, hold_back: tuple[str, ...] | None, held: list[str]
):
    base = ledger.pointers().v2  # it learned "a"
    name = advance(ledger, make_candidate(ledger, base, mark="bad", episodes=("a", "new", "other")), State.SHADOW)
    ledger.quarantine(name, by="agent", reason="why", hold_back=hold_back)
    assert (ledger.audit(1)[0].after or {})["num_held"] == len(held)
    assert ledger.held_back_by(name) == held
    ledger.release(name, by="bob", reason="sound", evidence={"seen": 1}, consent=None)
    assert (ledger.audit(1)[0].after or {})["num_held"] == 0
    assert ledger.verify_audit().ok
    assert ledger.held_back() == {"b", "c"}


def test_a_manifest_that_names_other_episodes_than_were_learned_is_refused(ledger: VersionLedger):
    base = ledger.pointers().v2
    run_id = ledger.start_run(parent=base, config={})
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
    fix_bundle = ledger.fix_bundle
    ledger.fix_bundle = lambda run, **named: fix_bundle(run, **{**named, "episode_ids": ["x"]})  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"manifest\.data\.episodes_sha256"):
        fix(ledger, run_id, parent=base, mark="other", episodes=("y",))
