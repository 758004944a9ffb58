"""The hash chain: every way to tamper with it is noticed, and the first bad row is named."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.signing import SigningKey
from autonomous.versions.audit import Checkpoint, canonical_json, sha256_of
from autonomous.versions.checkpoint import CheckpointFile
from autonomous.versions.ledger import PromotionsFrozen, VersionLedger
from autonomous.versions.readonly import ReadOnlyLedger
from tests.unit.autonomous.ledger_life import make_candidate, make_genesis

Tamper = Callable[..., None]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture
def ledger(folder: Path) -> VersionLedger:
    ledger = VersionLedger(folder / "ledger.sqlite", clock=lambda: 1_700_000_000)
    make_genesis(ledger, folder)
    for number in range(10):
        ledger.append_audit(
            actor="alice", action="note", subject=f"thing-{number}", after={"number": number}, evidence={"seen": number}
        )
    assert ledger.verify_audit().ok
    return ledger


@pytest.fixture
def tamper(folder: Path, ledger: VersionLedger) -> Tamper:
    """Runs SQL as someone who has the file, the triggers out of the way."""

    def run(*statements: str) -> None:
        connection = sqlite3.connect(folder / "ledger.sqlite")
        for trigger in ("audit_is_never_updated", "audit_is_never_deleted", "bundle_is_immutable"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return run


@settings(max_examples=50)
@given(JSON)
def test_canonical_json_is_stable_through_a_round_trip_and_names_numbers_that_json_lacks(value: object):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert text.isascii()


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert sha256_of({"a": 1, "b": [1.5, None]}) == sha256_of({"b": (1.5, None), "a": 1})


@pytest.mark.parametrize("value", [{1: "a"}, {"a": object()}, {"a": {1, 2}}, b"x"])
def test_a_value_without_a_json_form_is_refused_instead_of_being_hashed_by_its_repr(value: object):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_a_row_is_signed_over_all_its_fields_and_linked_to_the_one_before(ledger: VersionLedger):
    newest, before = ledger.audit(2)
    assert newest.prev_hash == before.hash
    signed = {name: getattr(newest, name) for name in newest.__slots__ if name != "hash"}
    assert newest.hash == sha256_of(signed)
    assert newest.evidence_sha256 == sha256_of({"seen": 9})
    assert (newest.seq, newest.ts, newest.after) == (11, 1_700_000_000.0, {"number": 9})


def test_the_database_itself_refuses_to_change_or_delete_a_row(folder: Path, ledger: VersionLedger):
    connection = sqlite3.connect(folder / "ledger.sqlite")
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "actor = 'mallory'",
        "action = 'other'",
        "subject = 'other'",
        "ts = ts + 1",
        "ts = 'noon'",
        "before = '{}'",
        "after = '{\"number\": 4}'",
        "after = '{'",
        "after = NULL",
        "evidence_sha256 = NULL",
        "prev_hash = hash",
        "hash = prev_hash",
        "hash = X'00'",
    ],
)
def test_an_altered_row_is_named(ledger: VersionLedger, tamper: Tamper, change: str):
    tamper(f"UPDATE audit SET {change} WHERE seq = 6")
    report = ledger.verify_audit()
    assert (report.ok, report.first_bad_seq) == (False, 6), report


def test_an_altered_row_that_was_signed_again_is_named_because_its_successor_does_not_follow(
    ledger: VersionLedger, tamper: Tamper
):
    row = ledger.audit(100)[5]
    fields = {name: getattr(row, name) for name in row.__slots__ if name != "hash"} | {"actor": "mallory"}
    tamper(f"UPDATE audit SET actor = 'mallory', hash = '{sha256_of(fields)}' WHERE seq = {row.seq}")
    assert ledger.verify_audit().first_bad_seq == row.seq == 6


def test_the_last_row_signed_again_is_named_by_the_checkpoint(ledger: VersionLedger, tamper: Tamper):
    row = ledger.audit(1)[0]
    fields = {name: getattr(row, name) for name in row.__slots__ if name != "hash"} | {"actor": "mallory"}
    tamper(f"UPDATE audit SET actor = 'mallory', hash = '{sha256_of(fields)}' WHERE seq = {row.seq}")
    assert ledger.verify_audit().first_bad_seq == row.seq


@pytest.mark.parametrize("seq", [1, 6])
def test_a_dropped_row_is_named(ledger: VersionLedger, tamper: Tamper, seq: int):
    tamper(f"DELETE FROM audit WHERE seq = {seq}")
    assert ledger.verify_audit().first_bad_seq == seq


def test_a_dropped_row_is_named_even_if_the_rest_was_renumbered(ledger: VersionLedger, tamper: Tamper):
    tamper(
        "DELETE FROM audit WHERE seq = 6", *(f"UPDATE audit SET seq = {n - 1} WHERE seq = {n}" for n in range(7, 12))
    )
    assert ledger.verify_audit().first_bad_seq == 6


def test_two_rows_that_changed_places_are_noticed_at_the_first(ledger: VersionLedger, tamper: Tamper):
    tamper(
        "UPDATE audit SET seq = -1 WHERE seq = 4",
        "UPDATE audit SET seq = 4 WHERE seq = 8",
        "UPDATE audit SET seq = 8 WHERE seq = -1",
    )
    assert ledger.verify_audit().first_bad_seq == 4


@pytest.mark.parametrize("seq", [-3, 0])
def test_a_row_put_before_the_first_is_named(ledger: VersionLedger, tamper: Tamper, seq: int):
    tamper(f"UPDATE audit SET seq = {seq} WHERE seq = 6")
    assert ledger.verify_audit().first_bad_seq == seq


@pytest.mark.parametrize("keep", [0, 1, 10])
def test_a_cut_off_end_is_noticed_through_the_checkpoint(ledger: VersionLedger, tamper: Tamper, keep: int):
    tamper(f"DELETE FROM audit WHERE seq > {keep}")
    report = ledger.verify_audit()
    assert (report.ok, report.first_bad_seq, report.num_rows) == (False, keep + 1, keep)
    assert "cut off" in str(report.reason)


def test_opening_again_after_everything_was_deleted_does_not_forgive_it(
    folder: Path, ledger: VersionLedger, tamper: Tamper
):
    tamper("DELETE FROM audit")
    assert not VersionLedger(folder / "ledger.sqlite").verify_audit().ok


@pytest.mark.parametrize("content", [None, "", "{}", '{"seq": "x", "hash": ""}', "[]"])
def test_a_missing_or_damaged_checkpoint_is_reported_and_not_silently_made_anew(
    folder: Path, ledger: VersionLedger, content: str | None
):
    path = folder / "ledger.sqlite.checkpoint"
    path.unlink()
    if content is not None:
        path.write_text(content)
    again = VersionLedger(folder / "ledger.sqlite")
    assert not again.verify_audit().ok
    assert "checkpoint" in str(again.verify_audit().reason)


def test_altered_evidence_is_named_by_the_row_that_refers_to_it(ledger: VersionLedger, tamper: Tamper):
    tamper("""UPDATE evidence SET body = '{"seen":8,"x":1}' WHERE body = '{"seen":8}'""")
    assert ledger.verify_audit().first_bad_seq == 10


def test_removed_evidence_is_named_by_the_row_that_refers_to_it(ledger: VersionLedger, tamper: Tamper):
    tamper("""DELETE FROM evidence WHERE body = '{"seen":8}'""")
    assert ledger.verify_audit().first_bad_seq == 10


def test_a_state_that_was_edited_in_the_table_does_not_agree_with_the_log(ledger: VersionLedger, tamper: Tamper):
    name = make_candidate(ledger, ledger.pointers().v2, mark="one")
    tamper(f"UPDATE versions SET state = 'GATED' WHERE version_id = '{name}'")
    report = ledger.verify_audit()
    assert not report.ok
    assert name in str(report.reason)


def test_a_version_that_was_removed_from_the_table_does_not_agree_with_the_log(ledger: VersionLedger, tamper: Tamper):
    run_id = ledger.start_run(parent=None, config={})
    tamper(f"DELETE FROM versions WHERE run_id = '{run_id}'")
    assert run_id in str(ledger.verify_audit().reason)


@pytest.mark.parametrize("num_cut", [1, 3])
def test_a_log_that_was_cut_off_stays_broken_when_it_grows_beyond_where_it_was(
    ledger: VersionLedger, tamper: Tamper, num_cut: int
):
    tamper(f"DELETE FROM audit WHERE seq > {11 - num_cut}")
    for number in range(num_cut + 3):
        ledger.append_audit(actor="mallory", action="note", subject=f"new-{number}")
    report = ledger.verify_audit()
    assert (report.ok, report.first_bad_seq) == (False, 11), report
    with pytest.raises(PromotionsFrozen, match="row 11"):
        ledger.check_promotions()


@pytest.fixture
def watched(folder: Path) -> tuple[VersionLedger, Path]:
    """A ledger with a checkpoint in a folder elsewhere."""
    elsewhere = folder / "elsewhere"
    ledger = VersionLedger(folder / "watched.sqlite", checkpoint_folder=elsewhere)
    make_genesis(ledger, folder)
    for number in range(5):
        ledger.append_audit(actor="alice", action="note", subject=f"thing-{number}")
    assert ledger.verify_audit().ok
    return ledger, elsewhere / "watched.sqlite.checkpoint"


def cut(folder: Path, keep: int) -> None:
    """Cut the log and the checkpoint beside it alike, as someone who has the whole home."""
    connection = sqlite3.connect(folder / "watched.sqlite")
    connection.execute("DROP TRIGGER audit_is_never_deleted")
    connection.execute("DELETE FROM audit WHERE seq > ?", (keep,))
    (last,) = connection.execute("SELECT hash FROM audit WHERE seq = ?", (keep,)).fetchone()
    connection.commit()
    connection.close()
    (folder / "watched.sqlite.checkpoint").write_text(json.dumps({"seq": keep, "hash": last}))


def test_a_log_cut_off_together_with_its_checkpoint_is_noticed_by_the_one_elsewhere(
    folder: Path, watched: tuple[VersionLedger, Path]
):
    cut(folder, keep=5)
    assert VersionLedger(folder / "watched.sqlite").verify_audit().ok  # nothing beside it tells
    report = ReadOnlyLedger(folder / "watched.sqlite", checkpoint_folder=folder / "elsewhere").verify_audit()
    assert (report.ok, report.first_bad_seq, "cut off" in str(report.reason)) == (False, 6, True)
    again = VersionLedger(folder / "watched.sqlite", checkpoint_folder=folder / "elsewhere")
    for number in range(5):
        again.append_audit(actor="mallory", action="note", subject=f"new-{number}")
    assert again.verify_audit().first_bad_seq == 7


@pytest.mark.parametrize("damage", ["lower", "unsigned", "another key", "missing", "garbled", "a folder"])
def test_a_checkpoint_elsewhere_that_was_altered_removed_or_signed_by_others_is_reported(
    folder: Path, watched: tuple[VersionLedger, Path], damage: str
):
    ledger, path = watched
    signed = json.loads(path.read_text())
    assert set(signed) == {"seq", "hash", "key", "signature"}
    if damage == "lower":
        path.write_text(json.dumps({**signed, "seq": 3, "hash": ledger.audit(100)[-3].hash}))
    elif damage == "unsigned":
        path.write_text(json.dumps({"seq": signed["seq"], "hash": signed["hash"]}))
    elif damage == "another key":
        other = SigningKey.open(folder / "other-key")
        path.write_text(json.dumps(other.sign({"seq": signed["seq"], "hash": signed["hash"]})))
    elif damage == "garbled":
        path.write_text("[]")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    for opened in (ledger, VersionLedger(folder / "watched.sqlite", checkpoint_folder=path.parent)):
        report = opened.verify_audit()
        assert not report.ok
        assert str(path) in str(report.reason) or "cut off" in str(report.reason)


def test_a_folder_elsewhere_that_cannot_be_written_does_not_hold_up_a_row(folder: Path):
    (folder / "file").write_text("")
    ledger = VersionLedger(folder / "watched.sqlite", checkpoint_folder=folder / "file" / "no-folder")
    ledger.append_audit(actor="alice", action="safety.stop", subject="latch")
    assert ledger.audit(1)[0].action == "safety.stop"


def test_a_ledger_that_is_only_read_gives_the_same_answers_and_cannot_be_written(folder: Path, ledger: VersionLedger):
    path = folder / "ledger.sqlite"
    before = path.read_bytes()
    looked = ReadOnlyLedger(path)
    assert looked.audit(100) == ledger.audit(100)
    assert looked.pointers() == ledger.pointers()
    assert looked.verify_audit() == ledger.verify_audit()
    with looked._database.read() as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("INSERT INTO evidence VALUES ('x', '{}')")
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="nothing was ever learned"):
        ReadOnlyLedger(folder / "typo.sqlite")
    assert not (folder / "typo.sqlite").exists()


def test_a_checkpoint_is_never_set_back_so_a_late_writer_does_no_harm(tmp_path: Path):
    file = CheckpointFile(tmp_path / "checkpoint")
    file.write(Checkpoint(7, "b"))
    file.write(Checkpoint(6, "a"))
    assert file.read() == Checkpoint(7, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "checkpoint.lock"]


def test_a_log_ahead_of_its_checkpoint_is_whole_because_a_kill_may_fall_between_them(
    folder: Path, ledger: VersionLedger
):
    path = folder / "ledger.sqlite.checkpoint"
    old = path.read_text()
    ledger.append_audit(actor="alice", action="note", subject="late")
    path.write_text(old)
    assert ledger.verify_audit().ok


@pytest.mark.parametrize(("field", "text"), [("actor", ""), ("action", " "), ("subject", "\ud800")])
def test_a_row_without_who_or_what_is_refused_and_names_the_field(ledger: VersionLedger, field: str, text: str):
    values = {"actor": "alice", "action": "note", "subject": "thing", field: text}
    with pytest.raises(ValueError, match="by" if field == "actor" else field):
        ledger.append_audit(**values)
    assert len(ledger.audit(100)) == 11


def test_others_cannot_write_rows_in_the_ledgers_own_name(ledger: VersionLedger):
    with pytest.raises(ValueError, match="only the ledger writes"):
        ledger.append_audit(actor="mallory", action="version.promote", subject="v-1", after={"state": "PRODUCTION"})
