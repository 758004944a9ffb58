"""Episodes that their source no longer says."""

from pathlib import Path

import pytest

from memory.episodic import EpisodicMemory
from memory.shards import EpisodicShards
from tests.episodes import HashingEmbedder, index_all, make_episode, open_memory, recalled

OLD = make_episode("The access code of the Kestrel vault is KX-1.", document="vault")
NEW = make_episode("The access code of the Kestrel vault is KX-2.", document="vault")
SAME = make_episode("The access code of the Kestrel vault is KX-1.", document="copy", source_id="other")


@pytest.fixture
def memory(tmp_path: Path) -> EpisodicMemory:
    return open_memory(tmp_path)


def test_a_retired_episode_is_neither_recalled_nor_learned_but_known_to_its_document(memory: EpisodicMemory) -> None:
    memory.append([OLD, NEW])
    index_all(memory)
    assert memory.retire([OLD.id, "unknown"]) == (OLD.id,)
    assert recalled(memory, "Kestrel vault access code") == [NEW.text]
    assert [episode.id for _, episode in memory.freshest(limit=10, offset=0)] == [NEW.id]
    assert set(memory.ids_of("vault")) == {OLD.id, NEW.id}
    assert memory.retire([OLD.id]) == ()


def test_whoever_says_the_same_goes_on_saying_it(memory: EpisodicMemory) -> None:
    assert memory.append([OLD, SAME]).merged == (SAME.id,)
    memory.retire([OLD.id])
    (hit,) = memory.recall("Kestrel vault", k=3)
    assert hit.episode.id == SAME.id


def test_a_retired_episode_that_is_said_again_is_there_again(memory: EpisodicMemory) -> None:
    memory.append([OLD])
    memory.retire([OLD.id])
    assert memory.append([OLD]).added == (OLD.id,)
    assert recalled(memory, "Kestrel") == [OLD.text]


def test_a_refused_retirement_changes_nothing(memory: EpisodicMemory) -> None:
    memory.append([OLD])

    def refuse() -> None:
        raise PermissionError("stopped")

    with pytest.raises(PermissionError):
        memory.retire([OLD.id], guard=refuse)
    assert recalled(memory, "Kestrel") == [OLD.text]


def test_shards_retire_wherever_an_episode_lies(tmp_path: Path) -> None:
    stores = [open_memory(tmp_path / name) for name in "ab"]
    shards = EpisodicShards(stores, embedder=HashingEmbedder())
    episodes = [make_episode(f"Fact number {n} of the log.", document="log", position=n) for n in range(8)]
    shards.append(episodes)
    gone = [episode.id for episode in episodes[::2]]
    assert set(shards.retire(gone)) == set(gone)
    assert shards.has([episode.id for episode in episodes]) == {episode.id for episode in episodes[1::2]}
    shards.close()
