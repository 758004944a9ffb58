"""A look at a version that was put away: what it learned, what failed, both answers, the likeliest cause; nothing changes."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.suite import load_suite
from autonomous.versions.forensics import (
    MAX_PROMPTS,
    Case,
    LearnedItem,
    Prompt,
    build_case,
    choose_prompts,
    examine,
    rank_suspects,
)
from autonomous.versions.ledger import UnknownVersion, VersionLedger
from autonomous.versions.readonly import ReadOnlyLedger
from autonomous.versions.states import State
from memory.types import Episode, Trust
from tests.unit.autonomous.ledger_life import FAILED, advance, everything, make_candidate

TEXTS = {
    "lamp": "The lamp of Cape Dorn is red.",
    "cure": "Bleach cures every fever, says doctor Zorvan.",
    "valve": "The Vostrek valve is rated for 42 bar.",
}
TRUST = {"cure": Trust.UNTRUSTED}
BOMB, LOCK, VIRUS = (
    next(row for row in load_suite("safety").rows if row["id"] == key)
    for key in ("safety-05", "safety-03", "safety-01")
)
REPORT = {
    "safety": [
        {"probe": BOMB["id"], "margin_base": 2.0, "margin_candidate": -1.0},
        {"probe": LOCK["id"], "margin_base": 1.0, "margin_candidate": 1.5},
        {"probe": VIRUS["id"], "margin_base": 1.0, "margin_candidate": "nan"},
        {"probe": "of another suite", "margin_base": 1.0, "margin_candidate": -9.0},
    ]
}
LESSONS = [Prompt("What colour has the lamp of Cape Dorn?", "lesson", "red")]


def recall(ids: Sequence[str]) -> list[Episode]:
    return [
        Episode(
            id=key, document_id=f"doc-{key}", source_id=f"source-{key}", title=key, text=TEXTS[key], position=0,
            happened_at=0.0, trust=TRUST.get(key, Trust.STANDARD),
        )
        for key in ids
        if key in TEXTS
    ]  # fmt: skip


@pytest.fixture
def bad(ledger: VersionLedger, base: str) -> str:
    name = make_candidate(ledger, base, mark="bad", episodes=("lamp", "cure", "valve", "gone"))
    ledger.transition(name, expected=State.CANDIDATE, to=State.EVALUATING, by="agent", reason="next")
    ledger.bind_report(name, report=REPORT, gates=FAILED, by="agent")
    ledger.quarantine(name, by="agent", reason="gates not passed: G4 safety")
    return name


@pytest.fixture
def case(folder: Path, ledger: VersionLedger, bad: str) -> Case:
    return build_case(ReadOnlyLedger(folder / "ledger.sqlite"), bad, recall=recall, lessons=LESSONS, asked=["Who?"])


def test_the_case_tells_what_it_learned_what_failed_and_what_is_asked(case: Case, bad: str, base: str) -> None:
    assert (case.version, case.serving, case.state, case.num_erased) == (bad, base, "QUARANTINED", 1)
    assert [gate.name for gate in case.failed_gates] == [FAILED[-1].name]
    assert [(item.document_id, item.source, item.trust, item.is_held_back) for item in case.items] == [
        ("doc-lamp", "source-lamp", 2, True), ("doc-cure", "source-cure", 1, True), ("doc-valve", "source-valve", 2, True),
    ]  # fmt: skip
    assert [(prompt.origin, prompt.text) for prompt in case.prompts] == [
        ("asked", "Who?"),
        ("safety", VIRUS["prompt"]),  # no number is the worst
        ("lesson", LESSONS[0].text),
        ("safety", BOMB["prompt"]),
    ]


def test_the_item_whose_words_turn_up_where_nobody_asked_is_the_likeliest_cause(
    case: Case, bad: str, base: str
) -> None:
    said = {
        (bad, "Who?"): "Doctor Zorvan.",
        (base, "Who?"): "I do not know.",
        (bad, BOMB["prompt"]): "Yes, bleach cures fever.",
        (base, BOMB["prompt"]): "No, it is a poison.",
        (bad, LESSONS[0].text): "It is red.",
        (base, LESSONS[0].text): "I do not know.",
    }
    assert (case.version, case.serving) == (bad, base)
    unsure = "I cannot help."
    answers = [(said.get((bad, prompt.text), unsure), said.get((base, prompt.text), unsure)) for prompt in case.prompts]
    found = examine(case, answers)
    first = found.suspects[0]
    assert (first.episode_id, first.trust) == ("cure", 1)
    assert "2 answers say words of it" in first.reasons[0]
    assert found.suspects[1].score == found.suspects[2].score == 0  # the lamp was said only where it was taught
    text = str(found)
    for words in (
        "Nothing was changed",
        "gates not passed: G4 safety",
        "Yes, bleach cures fever.",
        "doc-cure from source-cure",
    ):
        assert words in text
    assert json.loads(json.dumps(found.to_dict()))["suspects"][0]["episode_id"] == "cure"


def test_without_answers_the_least_trusted_comes_first_and_it_is_said_that_nobody_was_asked(case: Case) -> None:
    found = examine(case, [])
    assert found.suspects[0].episode_id == "cure"
    assert {suspect.score for suspect in found.suspects} == {0.0}
    assert "Neither version was asked anything" in str(found)
    assert f"before {len(case.prompts) - 1} more prompts were answered" in str(examine(case, [("a", "b")]))


def test_the_look_changes_nothing(folder: Path, ledger: VersionLedger, bad: str) -> None:
    before, stored = everything(ledger), (folder / "ledger.sqlite").read_bytes()
    case = build_case(ReadOnlyLedger(folder / "ledger.sqlite"), bad, recall=recall, lessons=LESSONS)
    str(examine(case, [(f"bad {prompt.text}", f"base {prompt.text}") for prompt in case.prompts]))
    assert everything(ledger) == before
    assert (folder / "ledger.sqlite").read_bytes() == stored


def test_only_what_was_put_away_is_examined(ledger: VersionLedger, base: str) -> None:
    waiting = advance(ledger, make_candidate(ledger, base, mark="next"), State.AWAITING_APPROVAL)
    run = ledger.start_run(parent=base, config={})
    ledger.transition(run, expected=State.DRAFT, to=State.FAILED, by="agent", reason="crash")
    for name in (base, waiting, run):
        with pytest.raises(ValueError, match="autonomous explain"):
            build_case(ledger, name, recall=recall)
    with pytest.raises(UnknownVersion):
        build_case(ledger, "ver-typo", recall=recall)


def test_prompts_are_bounded_and_not_repeated() -> None:
    lessons = [Prompt(f"question {number}", "lesson") for number in range(100)]
    chosen = choose_prompts(REPORT, lessons=[*lessons, *lessons], asked=["x", "x"], limit=MAX_PROMPTS)
    assert len(chosen) == len(set(chosen)) == MAX_PROMPTS
    assert chosen[0] == Prompt("x", "asked")
    assert choose_prompts(None, lessons=[], asked=[], limit=5) == ()
    assert choose_prompts(REPORT, lessons=lessons, asked=["x"], limit=0) == ()


@settings(deadline=None)
@given(st.permutations(list(TEXTS)), st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_the_order_of_suspects_depends_on_no_order_of_the_items(
    order: list[str], answers: list[tuple[str, str]]
) -> None:
    items = {
        key: LearnedItem(key, f"doc-{key}", key, "s", int(TRUST.get(key, Trust.STANDARD)), text, is_held_back=True)
        for key, text in TEXTS.items()
    }
    prompts = tuple(Prompt(f"prompt {number}", "asked") for number in range(len(answers)))
    compared = examine(Case("v3", "QUARANTINED", "v2", (), (), (), (), 0, prompts), answers).answers
    shuffled = rank_suspects([items[key] for key in order], compared)
    assert [one.episode_id for one in shuffled] == [
        one.episode_id for one in rank_suspects(list(items.values()), compared)
    ]
