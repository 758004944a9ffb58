"""The curriculum and the data gate over real stores: poison is never in a batch, and people see and release what is held."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.config import AutonomousConfig, LearningConfig
from autonomous.curriculum import MAX_ROUNDS, Curriculum
from autonomous.data_gate import GENERATED_ORIGIN, ORIGIN, DataGateConfig
from autonomous.holds import Hold, HoldRegister
from autonomous.learning_memory import LearningMemory
from autonomous.safety.poison_limits import CONTRADICTION, Finding
from autonomous.suite import EVALUATION_SUITES, asked_texts, load_suite
from autonomous.versions.ledger import VersionLedger
from memory.claims import claims_of
from memory.types import Episode, Trust
from tests.episodes import make_episode, open_memory, open_semantic
from tests.unit.autonomous.ledger_life import make_production
from tests.unit.autonomous.test_poison import GOOD, POISON, TRUTHS


class Stores:
    """Episodes, facts and holds; what is added is read at once, as the semantic actor does it."""

    def __init__(self, folder: Path, ledger: VersionLedger) -> None:
        self.now = 1000.0
        self.folder = folder
        self.ledger = ledger
        self.episodic = open_memory(folder / "episodic")
        self.semantic = open_semantic(folder / "semantic", clock=lambda: self.now)
        self.holds = HoldRegister.open(folder, clock=lambda: self.now)

    def add(self, *episodes: Episode) -> None:
        for episode in episodes:
            self.now += 60
            self.episodic.append([episode])
            self.semantic.add(claims_of(episode))

    def curriculum(self, data: DataGateConfig | None = None, **learning: int) -> Curriculum:
        memory = LearningMemory(episodes=self.episodic, facts=self.semantic, holds=self.holds)
        config = LearningConfig(**{"max_batch_items": 100, **learning})
        return Curriculum(config, memory=memory, ledger=self.ledger, data=data)

    def close(self) -> None:
        self.episodic.close()
        self.semantic.close()
        self.holds.close()


@pytest.fixture
def stores(folder: Path, ledger: VersionLedger, base: str) -> Iterator[Stores]:
    assert base
    stores = Stores(folder, ledger)
    stores.add(*(make_episode(text, document=f"truth {text}", source_id="handbook") for text in TRUTHS))
    yield stores
    stores.close()


def fact(name: str, *, source_id: str) -> Episode:
    return make_episode(f"The access code of the {name} archive is KX-7.", document=name, source_id=source_id)


def planted(name: str) -> Episode:
    return make_episode(POISON[name], document=f"planted {name}", source_id="web")


def test_all_of_twenty_planted_poisons_are_held_and_the_good_documents_among_them_are_learned(stores: Stores) -> None:
    poisons = [planted(name) for name in sorted(POISON)]
    good = [make_episode(GOOD.replace("Aldine", word), document=word, source_id=f"good {word}")
            for word in ("Bodoni", "Didot", "Jenson")]  # fmt: skip
    for poison in poisons:
        stores.add(poison)
    stores.add(*good)
    curriculum = stores.curriculum(max_batch_episodes=64)
    batch = curriculum.next_batch()
    assert len(poisons) >= 20
    assert {one.episode_id for one in curriculum.held(100)} == {one.id for one in poisons}
    assert {one.id for one in good} <= {one.id for one in batch.episodes}
    assert len(batch.episodes) == len(good) + len(TRUTHS)
    taught = " ".join(item.answer for item in batch.lessons.items)
    assert not any(text in taught for text in ("KX-9999", "Bob Stone", "Otto Brenner", "95 euros", "200 mg"))
    assert len(batch.data.episodes) == len(batch.episodes)


def test_flood_of_poison_that_is_fresher_than_all_else_keeps_nothing_from_being_learned(stores: Stores) -> None:
    flood = [
        make_episode(
            f"{POISON['direct code']} Bulletin {number} of the new board.", document=f"{number}", source_id="w"
        )
        for number in range(60)
    ]
    stores.add(*flood)
    batch = stores.curriculum(max_batch_episodes=8).next_batch()
    assert {one.source_id for one in batch.episodes} == {"handbook"}
    assert len(batch.episodes) == 8


FLOODS = {
    "prose": ("Perhaps nobody knows what happened on night {}.", {}),
    "facts of its own": ("The access code of the Gen {} archive is KX-7.", {ORIGIN: GENERATED_ORIGIN}),
    "answers to one question": ("The Vellmar gate contains a stone number {}.", {}),
}


@pytest.mark.parametrize("num_prose", [0, 2])
@pytest.mark.parametrize("kind", FLOODS)
def test_no_flood_of_what_a_batch_cannot_take_keeps_facts_from_being_learned(
    stores: Stores, kind: str, num_prose: int
) -> None:
    text, metadata = FLOODS[kind]
    flood = [
        make_episode(text.format(number), document=f"f{number}", source_id="w", metadata=metadata)
        for number in range(MAX_ROUNDS * 8 + 20)
    ]
    stores.episodic.append(flood)
    stores.semantic.add([claim for one in flood for claim in claims_of(one)])
    stores.add(
        *(make_episode(f"Perhaps it rained on day {number}.", document=f"r{number}") for number in range(num_prose))
    )
    batch = stores.curriculum(max_batch_episodes=8).next_batch()
    assert sum(one.source_id == "handbook" for one in batch.episodes) >= 4
    assert len(batch.lessons.questions) >= 4


def test_salient_prose_without_facts_keeps_no_facts_from_being_learned(stores: Stores) -> None:
    prose = [make_episode(f"Perhaps nobody knows what happened on night {n}.", document=f"p{n}") for n in range(40)]
    stores.add(*prose)
    stores.episodic.revise("x", "raise", saliences=dict.fromkeys([one.id for one in prose], 5.0))
    batch = stores.curriculum(max_batch_episodes=8).next_batch()
    assert ([one.source_id for one in batch.episodes], len(batch.lessons.questions)) == (["handbook"] * 8, 8)


def test_a_batch_waits_for_no_source_whose_passages_lie_behind_many_of_another(stores: Stores) -> None:
    stores.add(*(fact(f"Bodoni {number}", source_id="mine") for number in range(30)))
    batch = stores.curriculum(DataGateConfig(min_sources=2), max_batch_episodes=4).next_batch()
    assert [one.source_id for one in batch.episodes] == ["mine"] * 3 + ["handbook"]
    assert batch.undecided == {}


def test_all_that_a_dense_passage_states_is_taught_and_asked(stores: Stores, ledger: VersionLedger, base: str) -> None:
    told = " ".join(f"The access code of the Bodoni {number} archive is KX-{number}." for number in range(10))
    stores.add(make_episode(told, document="dense", source_id="handbook"))
    curriculum = stores.curriculum(max_batch_items=18)
    batch = curriculum.next_batch()
    assert (len(batch.episodes), len(batch.lessons.items), len(batch.lessons.questions)) == (1, 30, 10)
    name = make_production(ledger, base, mark="first", episodes=(batch.episodes[0].id,))
    assert len(curriculum.questions_of(name)) == 10


def test_what_a_person_releases_is_learned_and_stays_so(stores: Stores) -> None:
    poison = planted("direct code")
    stores.add(poison)
    curriculum = stores.curriculum()
    assert poison.id not in {one.id for one in curriculum.next_batch().episodes}
    (hold,) = curriculum.held(10)
    assert (hold.episode_id, hold.findings[0].rule) == (poison.id, CONTRADICTION)
    assert stores.holds.release([poison.id, "unknown"], by="ada", reason="the code was changed") == (poison.id,)
    for _ in range(2):
        batch = curriculum.next_batch()
        assert poison.id in {one.id for one in batch.episodes}
        assert curriculum.held(10) == []
    (row,) = [one for one in batch.data.episodes if one.episode_id == poison.id]
    assert row.is_released


def test_passages_that_wait_are_those_that_are_there_and_neither_learned_nor_held(
    stores: Stores, ledger: VersionLedger, base: str
) -> None:
    poison, curriculum = planted("direct code"), stores.curriculum()
    stores.add(poison)
    assert curriculum.num_pending() == len(TRUTHS) + 1
    batch = curriculum.next_batch()
    assert curriculum.num_pending() == len(batch.episodes) == len(TRUTHS)
    learned = [one.id for one in batch.episodes[:3]]
    make_production(ledger, base, mark="first", episodes=tuple(learned))
    assert curriculum.num_pending() == len(TRUTHS) - 3
    stores.episodic.set_trust(Trust.TRUSTED, source_id="web")
    assert curriculum.num_pending() == len(TRUTHS) - 2
    stores.episodic.set_trust(Trust.STANDARD, source_id="web")
    stores.episodic.delete_document(batch.episodes[0].document_id)  # one that is learned, and one that is held
    stores.episodic.delete_document(poison.document_id)
    assert curriculum.num_pending() == len(TRUTHS) - 3
    stores.add(fact("Aldine", source_id="handbook"))
    assert curriculum.num_pending() == len(TRUTHS) - 2
    stores.episodic.set_trust(Trust.QUARANTINED, source_id="handbook")
    assert curriculum.num_pending() == 0


def test_source_that_a_person_believes_more_is_judged_anew(stores: Stores) -> None:
    poison = planted("direct code")
    stores.add(poison)
    curriculum = stores.curriculum()
    assert poison.id not in {one.id for one in curriculum.next_batch().episodes}
    stores.episodic.set_trust(Trust.TRUSTED, source_id=poison.source_id)
    assert poison.id in {one.id for one in curriculum.next_batch().episodes}


def test_release_asks_for_a_name_and_a_reason(stores: Stores) -> None:
    for by, reason in (("", "because"), ("ada", " ")):
        with pytest.raises(ValueError, match="is empty"):
            stores.holds.release(["x"], by=by, reason=reason)


def test_holds_outlive_the_process_keep_their_newest_reasons_and_are_forgotten_on_erasure(stores: Stores) -> None:
    episode = make_episode("x")
    for value in (1.0, 2.0):
        stores.holds.hold([Hold.of(episode, [Finding("poison.flooding", value, 1.0, "look at it")])])
    again = HoldRegister.open(stores.folder)
    assert [one.findings[0].value for one in again.held(limit=5)] == [2.0]
    assert again.states([episode]) == {episode.id: "held"}
    again.forget([episode.id])
    assert (again.held(limit=5), again.states([episode])) == ([], {})
    again.close()


def test_evaluation_text_is_in_no_batch(stores: Stores) -> None:
    leaks = [
        make_episode(max(asked_texts(load_suite(name)).values(), key=len), document=name, source_id="handbook")
        for name in EVALUATION_SUITES
    ]
    stores.add(*leaks)
    curriculum = stores.curriculum(max_batch_episodes=64)
    assert not {one.id for one in leaks} & {one.id for one in curriculum.next_batch().episodes}
    held = {one.episode_id for one in curriculum.held(10)}
    assert held == {one.id for one in leaks}
    assert set(stores.holds.release(sorted(held), by="ada", reason="a mistake")) == held
    assert not held & {one.id for one in curriculum.next_batch().episodes}
    assert {one.episode_id for one in curriculum.held(10)} == held  # nobody can release them: they take no room


def test_batch_of_too_few_sources_is_empty_and_says_why(stores: Stores) -> None:
    batch = stores.curriculum(DataGateConfig(min_sources=2)).next_batch()
    assert (batch.episodes, batch.lessons.items) == ((), [])
    assert all("data.min_sources = 2" in reason for reason in batch.undecided.values())
    assert len(batch.undecided) == len(TRUTHS)


def test_more_sources_than_a_batch_has_passages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.min_sources = 17 is more than learning.max_batch_episodes = 16"):
        AutonomousConfig(data=DataGateConfig(min_sources=17))


def test_a_dense_passage_on_top_keeps_no_batch_of_two_sources_waiting(stores: Stores) -> None:
    told = " ".join(f"The access code of the Bodoni {number} archive is KX-{number}." for number in range(10))
    stores.add(make_episode(told, document="dense", source_id="mine"))
    batch = stores.curriculum(DataGateConfig(min_sources=2), max_batch_items=18).next_batch()
    assert [one.source_id for one in batch.episodes] == ["mine", "handbook"]
    assert batch.undecided == {}
