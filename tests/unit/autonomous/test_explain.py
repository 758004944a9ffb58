"""Why a version serves or does not, told from the ledger and the memory alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from autonomous.versions.approval import Approval
from autonomous.versions.explain import explain
from autonomous.versions.ledger import UnknownVersion, VersionLedger
from autonomous.versions.readonly import ReadOnlyLedger
from autonomous.versions.states import State
from memory.types import Episode, Trust
from tests.unit.autonomous.ledger_life import FAILED, PASSED, advance, fix, make_candidate, make_production


def episode(key: str, *, document: str, source: str = "wiki", trust: Trust = Trust.STANDARD) -> Episode:
    return Episode(
        id=key, document_id=document, source_id=source, title=f"About {document}", text=f"The {key} is red.",
        position=0, happened_at=0.0, trust=trust,
    )  # fmt: skip


MEMORY = {
    "a": episode("a", document="doc-1"),
    "b": episode("b", document="doc-1", trust=Trust.UNTRUSTED),
    "c": episode("c", document="doc-2", source="forum"),
}


def recall(ids: Sequence[str]) -> list[Episode]:
    return [MEMORY[key] for key in ids if key in MEMORY]


@pytest.fixture
def approved(ledger: VersionLedger, base: str) -> str:
    """Asked for by ada, approved by bob, serving."""
    run_id = ledger.start_run(parent=base, config={}, by="ada")
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
    name = fix(ledger, run_id, parent=base, mark="one", episodes=("a", "b", "c", "gone"))
    advance(ledger, name, State.AWAITING_APPROVAL)
    approval = Approval("bob", "read it", ledger.get(name).report_sha256, two_people=True)
    ledger.promote(name, by="agent", reason="approved by bob", approval=approval)
    return name


def test_it_tells_who_asked_who_approved_what_it_learned_and_on_what_it_stands(
    ledger: VersionLedger, base: str, approved: str
) -> None:
    told = explain(ledger, approved, recall=recall)
    assert (told.state, told.parent, told.replaced_by) == ("PRODUCTION", base, None)
    assert told.why.startswith("It serves (V2).")
    assert [ancestor.version for ancestor in told.lineage] == [base, approved]
    assert (told.lineage[-1].proposed_by, told.lineage[-1].approved_by) == ("ada", ("bob",))
    assert [step.to_state for step in told.lineage[-1].steps if step.to_state][-2:] == ["SHADOW", "PRODUCTION"]
    (decision,) = told.approvals
    assert (decision["verdict"], decision["by"], decision["bound_to"]["report_sha256"]) == (
        "approved", "bob", told.report_sha256,
    )  # fmt: skip
    assert [(d.document_id, d.source, d.trust, d.num_episodes) for d in told.documents] == [
        ("doc-1", "wiki", "UNTRUSTED", 2), ("doc-2", "forum", "STANDARD", 1),
    ]  # fmt: skip
    assert (told.num_episodes, told.num_erased) == (4, 1)
    assert told.gates == tuple(PASSED)
    text = str(told)
    for words in ("ada", "approve by bob", "doc-2", "source forum", "1 of them erased", "pass: G2 gain", base):
        assert words in text


def test_what_replaced_it_is_the_version_of_the_same_transaction(
    ledger: VersionLedger, base: str, approved: str
) -> None:
    assert explain(ledger, base).replaced_by == approved
    later = make_production(ledger, approved, mark="two")
    told = explain(ledger, approved)
    assert (told.state, told.replaced_by) == ("SUPERSEDED", later)
    ledger.rollback(by="eve", reason="wrong answers")
    gone = explain(ledger, later)
    assert (gone.state, gone.replaced_by) == ("QUARANTINED", approved)
    assert "by eve: wrong answers" in gone.why
    assert "quarantine (V3)" in gone.why


def test_a_version_that_failed_names_the_gates_and_one_that_waits_says_for_what(
    ledger: VersionLedger, base: str
) -> None:
    bad = make_candidate(ledger, base, mark="bad")
    ledger.transition(bad, expected=State.CANDIDATE, to=State.EVALUATING, by="agent", reason="next")
    ledger.bind_report(bad, report={}, gates=FAILED, by="agent")
    ledger.quarantine(bad, by="agent", reason="gates not passed")
    assert f"Gates that it did not pass: {FAILED[-1].name}." in explain(ledger, bad).why
    waiting = advance(ledger, make_candidate(ledger, base, mark="next"), State.AWAITING_APPROVAL)
    assert "waits for a person's approval" in explain(ledger, waiting).why


def test_a_run_without_a_bundle_is_told_too_and_an_unknown_name_is_an_error(ledger: VersionLedger, base: str) -> None:
    run_id = ledger.start_run(parent=base, config={}, by="ada")
    told = explain(ledger, run_id)
    assert (told.state, told.num_erased, told.lineage[-1].proposed_by) == ("DRAFT", None, "ada")
    assert "the memory was not asked" in str(told)
    with pytest.raises(UnknownVersion):
        explain(ledger, "ver-typo")


def test_it_is_json_and_the_same_from_a_ledger_that_is_only_read(
    folder: Path, ledger: VersionLedger, approved: str
) -> None:
    told = explain(ledger, approved, recall=recall)
    assert explain(ReadOnlyLedger(folder / "ledger.sqlite"), approved, recall=recall) == told
    assert json.loads(json.dumps(told.to_dict()))["documents"][0]["document_id"] == "doc-1"
