from pathlib import Path

import pytest

from memory.facts import extract_facts
from memory.semantic import SemanticMemory, concept_key
from memory.types import Fact


def _facts(text: str, *, episode: str) -> list[Fact]:
    return extract_facts(text, title="notes", episode_id=episode)


TEXT = (
    "Dr. Imra Solen leads the Helix project. The Helix project uses the Vostrek valve. The Vostrek valve costs 9 euros."
)


@pytest.fixture
def memory(tmp_path: Path) -> SemanticMemory:
    memory = SemanticMemory.open(tmp_path)
    assert memory.add(_facts(TEXT, episode="one"), last_seq=4) == 3
    return memory


def test_facts_cursor_and_graph_survive_reopening(memory: SemanticMemory, tmp_path: Path) -> None:
    before = (memory.cursor, memory.about("Helix project"), memory.health()["num_concepts"])
    memory.close()
    reopened = SemanticMemory.open(tmp_path)

    assert before == (4, reopened.about("the helix PROJECT"), 4)
    assert reopened.cursor == 4
    assert reopened.health()["num_facts"] == 3


def test_the_same_fact_of_two_episodes_keeps_both_and_outlives_one_of_them(memory: SemanticMemory) -> None:
    (fact,) = _facts("The Vostrek valve costs 9 euros.", episode="two")
    assert memory.add([fact], last_seq=5) == 0
    assert memory.sources(fact.id) == ["one", "two"]

    assert memory.forget_episodes(["one"]) == 2
    assert [(kept.object, kept.episode_id) for kept in memory.about("Vostrek valve")] == [("9 euros", "two")]
    assert memory.neighbours("Helix project") == []


def test_a_forgotten_sentence_is_in_no_file(memory: SemanticMemory, tmp_path: Path) -> None:
    memory.forget_episodes(["one"])

    assert memory.health() | {"size_bytes": 0} == {"num_facts": 0, "num_concepts": 0, "size_bytes": 0}
    assert all(b"Vostrek" not in file.read_bytes() for file in tmp_path.iterdir())


def test_neighbours_are_found_in_both_directions_nearest_first(memory: SemanticMemory) -> None:
    assert memory.neighbours("Vostrek valve") == ["9 euros", "Helix project"]
    assert memory.neighbours("vostrek valve", hops=2) == ["9 euros", "Helix project", "Dr. Imra Solen"]
    assert memory.neighbours("unknown") == []


def test_about_finds_concepts_that_hold_the_words_of_the_question(memory: SemanticMemory) -> None:
    memory.add(_facts("The access code of the Kestrel vault is KX-4471.", episode="two"), last_seq=6)

    assert [fact.object for fact in memory.about("Kestrel vault")] == ["KX-4471"]
    assert memory.about("!?") == []
    assert len(memory.about("Vostrek valve", limit=1)) == 1


def test_a_refused_commit_stores_neither_facts_nor_cursor(memory: SemanticMemory) -> None:
    def refuse() -> None:
        raise PermissionError("stopped")

    with pytest.raises(PermissionError):
        memory.add(_facts("The Marlow station has three airlocks.", episode="two"), last_seq=9, guard=refuse)
    with pytest.raises(PermissionError):
        memory.forget_episodes(["one"], guard=refuse)

    assert (memory.cursor, memory.health()["num_facts"], memory.about("Marlow station")) == (4, 3, [])


def test_a_repeated_batch_changes_nothing_and_the_cursor_never_goes_back(memory: SemanticMemory) -> None:
    assert memory.add(_facts(TEXT, episode="one"), last_seq=2) == 0

    assert (memory.cursor, memory.health()["num_facts"]) == (4, 3)


def test_a_concept_is_the_same_with_another_case_article_or_spacing() -> None:
    assert concept_key("The  Helix\nProject") == concept_key("helix project") == "helix project"
