"""Several stores give what one gives, whatever was written, erased and released in whatever order."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.episodic import EpisodicMemory
from memory.recall import ANY_EPISODE
from memory.shards import EpisodicShards
from memory.types import Episode, EpisodeFilter, Trust
from tests.episodes import HashingEmbedder, index_all, make_episode, open_memory

WORDS = "pump valve vault code Kestrel water opens closes".split()
NUM_SHARDS = 3

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
episodes = st.builds(
    lambda text, document, trust, time: make_episode(
        text, document=document, source_id=f"s-{document}", trust=trust, happened_at=float(time), salience=1.0 + time % 2
    ),
    texts, st.sampled_from("abcd"), st.sampled_from(list(Trust)[1:]), st.integers(0, 5),
)  # fmt: skip
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(episodes, min_size=1, max_size=6)),
    st.tuples(st.just("erase"), st.sampled_from("abcd")),
    st.tuples(st.just("trust"), st.tuples(st.sampled_from("abcd"), st.sampled_from(list(Trust)[1:]))),
    st.tuples(st.just("index"), st.none()),
)


class Pair:
    """One memory, and the same over several stores."""

    def __init__(self, folder: Path) -> None:
        self.one = open_memory(folder / "one")
        self.stores = [open_memory(folder / f"shard{number}") for number in range(NUM_SHARDS)]
        self.several = EpisodicShards(self.stores, embedder=HashingEmbedder(), clock=lambda: 1000.0)

    @property
    def both(self) -> tuple[EpisodicMemory, EpisodicShards]:
        return self.one, self.several

    def do(self, action: str, value: object) -> None:
        if action == "append":
            one, several = (memory.append(value) for memory in self.both)  # type: ignore[arg-type]
            assert (one.added, one.repeated, one.merged) == (several.added, several.repeated, several.merged)
        elif action == "erase":
            assert set(self.one.delete_document(str(value))) == set(self.several.delete_document(str(value)))
        elif action == "trust":
            document, trust = value  # type: ignore[misc]
            one, several = (set(memory.set_trust(trust, source_id=f"s-{document}")) for memory in self.both)
            assert one == several
        else:
            for store in (self.one, *self.stores):
                index_all(store)

    def close(self) -> None:
        self.several.close()
        for store in (self.one, *self.stores):
            store.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=1, max_size=8))
def test_three_stores_give_what_one_gives(tmp_path_factory: pytest.TempPathFactory, actions: list[tuple]) -> None:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    for action, value in actions:
        pair.do(action, value)

    for query in ("Kestrel vault code", "pump", "zeppelin"):
        for where in (ANY_EPISODE, EpisodeFilter(min_trust=Trust.TRUSTED, happened_before=4.0)):
            one, several = (memory.recall(query, k=6, where=where) for memory in pair.both)
            assert [(hit.episode, hit.times_seen) for hit in one] == [(hit.episode, hit.times_seen) for hit in several]
            assert [hit.score for hit in one] == pytest.approx([hit.score for hit in several], abs=1e-6)
    everything = EpisodeFilter(min_trust=Trust.QUARANTINED)
    ids = [episode.id for _, episode in pair.one.find(everything, limit=99)]
    for ask in (
        lambda memory: [episode for _, episode in memory.find(everything, limit=5, offset=1)],
        lambda memory: [episode for _, episode in memory.freshest(limit=4, offset=2)],
        lambda memory: memory.get(ids),
        lambda memory: memory.has([*ids, "unknown"]),
        lambda memory: [(info.document_id, info.num_episodes, info.trust) for info in memory.documents(limit=3, offset=1)],
        lambda memory: set(memory.ids_of("a")) | set(memory.ids_of_source("s-b")),
        lambda memory: (memory.health().num_episodes, memory.health().num_learnable),
        lambda memory: [memory.num_learnable(dict.fromkeys([*ids[:3], "unknown"], trust)) for trust in range(4)],
    ):  # fmt: skip
        assert ask(pair.one) == ask(pair.several)
    stream, places = pair.several.episodes_after([], limit=99)
    assert {episode.id for episode in stream} == {episode.id for _, episode in pair.one.episodes_after(0, limit=99)}
    assert pair.several.episodes_after(places, limit=99) == ([], places)
    pair.close()


def test_an_id_that_comes_again_with_other_words_stays_where_it_is(pair: Pair) -> None:
    for number in range(8):
        episode = make_episode("pump")
        other = Episode(episode.id, "doc", "src", "", f"valve {number}", 0, 0.0)
        assert pair.several.append([episode, other]).added in ((episode.id,), ())
    assert pair.several.health().num_episodes == 1


def test_many_episodes_with_close_scores_are_cut_alike(pair: Pair) -> None:
    rows = [
        make_episode(f"Kestrel pump {' '.join(WORDS[number % 5 :])} {number}", position=number) for number in range(150)
    ]
    pair.do("append", rows)
    pair.do("index", None)
    one, several = ([hit.episode.id for hit in memory.recall("Kestrel vault water", k=10)] for memory in pair.both)
    assert one == several
    assert pair.one.health().num_documents == pair.several.health().num_documents == 1


def test_what_one_store_refuses_can_be_sent_again_and_is_there_once(pair: Pair) -> None:
    rows = [make_episode(f"pump {number}", document=f"d{number}") for number in range(12)]
    calls = 0

    def refuse_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PermissionError("stopped")

    with pytest.raises(PermissionError):
        pair.several.append(rows, guard=refuse_once)
    result = pair.several.append(rows)
    assert set(result.added) | set(result.repeated) == {episode.id for episode in rows}
    assert pair.several.health().num_episodes == 12


def test_bad_input_is_refused_before_any_store_has_a_part_of_it(pair: Pair) -> None:
    rows = [make_episode(f"pump {number}") for number in range(6)]
    with pytest.raises(ValueError, match="the limit is"):
        pair.several.append([*rows, make_episode("x" * 20_000)])
    assert pair.several.health().num_episodes == 0
