"""What a child of a version is asked again: the newest batches, and each source of all that its line has learned."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.config import LearningConfig
from autonomous.curriculum import Curriculum
from autonomous.holds import HoldRegister
from autonomous.learning_memory import LearningMemory
from autonomous.versions.ledger import VersionLedger
from memory.episodic import EpisodicMemory
from memory.types import Episode
from tests.episodes import make_episode, open_memory, open_semantic
from tests.unit.autonomous.ledger_life import make_production

ADD = {"handbook": 40, "notes": 9, "mail": 2, "chat": 3}


@pytest.fixture
def stores(folder: Path) -> Iterator[tuple[EpisodicMemory, LearningMemory]]:
    episodic, semantic = open_memory(folder / "episodic"), open_semantic(folder / "semantic", clock=lambda: 1000.0)
    holds = HoldRegister.open(folder, clock=lambda: 1000.0)
    yield episodic, LearningMemory(episodes=episodic, facts=semantic, holds=holds)
    for store in (episodic, semantic, holds):
        store.close()


def fact(source: str, number: int) -> Episode:
    text = f"The access code of the {source} archive {number} is KX-{1000 + number}."
    return make_episode(text, document=f"{source} {number}", source_id=source)


def learn(ledger: VersionLedger, parent: str, episodes: list[Episode]) -> str:
    return make_production(ledger, parent, mark=episodes[0].id, episodes=tuple(one.id for one in episodes))


def test_a_line_is_asked_by_its_newest_batches_and_by_source(
    stores: tuple[EpisodicMemory, LearningMemory], ledger: VersionLedger, base: str
) -> None:
    episodic, memory = stores
    curriculum = Curriculum(LearningConfig(), memory=memory, ledger=ledger)
    assert curriculum.earlier_questions(base) == []
    facts = {source: [fact(source, number) for number in range(count)] for source, count in ADD.items()}
    episodic.append([one for own in facts.values() for one in own])
    first = learn(ledger, base, facts["handbook"][:5])
    assert [(name, len(asked)) for name, asked in curriculum.earlier_questions(first)] == [
        ("the newest batches", 5),
        ("other sources", 5),
    ]
    batches = [facts["handbook"][5:], facts["notes"], facts["mail"], facts["chat"]]
    parent = first
    for batch in batches:
        parent = learn(ledger, parent, batch)
    asked = dict(curriculum.earlier_questions(parent))
    assert {name: len(questions) for name, questions in asked.items()} == {
        "the newest batches": 14,
        "handbook": 24,
        "notes": 9,
        "other sources": 5,
    }
    newest = {one.episode_id for one in asked["the newest batches"]}
    assert newest == {one.id for batch in batches[1:] for one in batch}
    assert {one.episode_id for one in asked["handbook"]} <= {one.id for one in facts["handbook"]}

    assert len(dict(curriculum.earlier_questions(parent, most=96))["handbook"]) == 40
    more = [fact("handbook", 100 + number) for number in range(4)]
    episodic.append(more)
    later = dict(curriculum.earlier_questions(learn(ledger, parent, more)))
    kept = {one.paraphrase for one in asked["handbook"]} & {one.paraphrase for one in later["handbook"]}
    assert len(kept) >= 20  # four can come in at most
    assert later["notes"] == asked["notes"]

    episodic.delete_document("notes 0")
    again = dict(curriculum.earlier_questions(parent))
    assert len(again["notes"]) == 8


def test_what_is_too_little_for_a_verdict_of_its_own_blocks_no_later_version(
    stores: tuple[EpisodicMemory, LearningMemory], ledger: VersionLedger, base: str
) -> None:
    episodic, memory = stores
    curriculum = Curriculum(LearningConfig(), memory=memory, ledger=ledger)
    handbook, mail = [fact("handbook", number) for number in range(11)], fact("mail", 0)
    episodic.append([*handbook, mail])
    parent = learn(ledger, learn(ledger, base, handbook), [mail])
    domains = dict(curriculum.earlier_questions(parent))
    assert {name: len(asked) for name, asked in domains.items()} == {"the newest batches": 12, "handbook": 11}
    for one in handbook[:-1]:
        episodic.delete_document(one.document_id)
    assert [len(asked) for _, asked in curriculum.earlier_questions(parent)] == [2, 2]
    episodic.delete_document(handbook[-1].document_id)
    assert curriculum.earlier_questions(parent) == []
    episodic.delete_document(mail.document_id)
    assert curriculum.earlier_questions(parent) == []


def test_newest_batches_that_were_erased_leave_the_others_to_be_asked(
    stores: tuple[EpisodicMemory, LearningMemory], ledger: VersionLedger, base: str
) -> None:
    episodic, memory = stores
    parent, batches = base, [[fact("handbook", 10 * batch + number) for number in range(4)] for batch in range(5)]
    for batch in batches:
        episodic.append(batch)
        parent = learn(ledger, parent, batch)
    for one in (one for batch in batches[2:] for one in batch):
        episodic.delete_document(one.document_id)
    curriculum = Curriculum(LearningConfig(), memory=memory, ledger=ledger)
    assert [(name, len(asked)) for name, asked in curriculum.earlier_questions(parent)] == [("handbook", 8)]
