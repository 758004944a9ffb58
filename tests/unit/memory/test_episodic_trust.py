"""Repeats, trust and erasure by source: who is recalled, and what remains when a source goes."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memory.episode_rows import PENDING
from memory.episodic import EpisodicMemory
from memory.types import Episode, EpisodeFilter, Trust
from tests.episodes import HashingEmbedder, index_all, indexed_seqs, make_episode, open_memory, recalled

CODE = make_episode("The access code of the Kestrel vault is KX-4471.", document="one", source_id="wiki")
AGAIN = make_episode("the  access code of Kestrel VAULT is: KX-4471", document="two", source_id="mail")
OTHER = make_episode("The access code of the Kestrel vault is KX-4472.", document="three", source_id="mail")


@pytest.fixture
def memory(tmp_path: Path) -> EpisodicMemory:
    return open_memory(tmp_path)


def test_what_says_the_same_is_one_hit_with_a_count_and_another_digit_is_another_episode(
    memory: EpisodicMemory,
) -> None:
    first = memory.append([CODE, CODE])
    second = memory.append([AGAIN, OTHER])

    assert (first.merged, second.added, second.merged) == ((), (AGAIN.id, OTHER.id), (AGAIN.id,))
    for _ in range(2):
        found = {hit.episode.text: hit.times_seen for hit in memory.recall("access code of the Kestrel vault", k=5)}
        assert found == {CODE.text: 3, OTHER.text: 1}
        index_all(memory)
    assert [episode for _, episode in memory.freshest(limit=9, offset=0)] == [OTHER, CODE]
    assert [episode for _, episode in memory.episodes_after(0, limit=9)] == [CODE, AGAIN, OTHER]
    assert memory.health().num_learnable == 2


def test_a_repeat_takes_the_place_of_the_episode_that_is_erased_before_it(memory: EpisodicMemory) -> None:
    third = make_episode("The access code of the KESTREL vault is KX-4471!", document="four")
    memory.append([CODE, AGAIN, third])
    index_all(memory)

    assert memory.delete_document("one") == (CODE.id,)
    (hit,) = memory.recall("Kestrel vault", k=5)
    assert (hit.episode, hit.times_seen) == (AGAIN, 2)
    assert [episode for _, episode in memory.episodes_after(3, limit=9)] == [AGAIN, third]
    index_all(memory)
    assert memory.delete_source("mail") == (AGAIN.id,)
    assert recalled(memory, "Kestrel vault") == [third.text]
    assert memory.delete_source("src") == (third.id,)
    assert recalled(memory, "Kestrel vault") == []


def test_a_source_is_erased_from_rows_words_vectors_and_files(tmp_path: Path) -> None:
    memory = open_memory(tmp_path)
    pump = make_episode("A Torvik pump moves water.", document="pump", source_id="wiki", metadata={"lang": "xyzzy"})
    memory.append([OTHER, AGAIN, pump])
    index_all(memory)
    memory.save_index()
    vector = HashingEmbedder().embed([f"{OTHER.title}\n{OTHER.text}"])[0].astype("<f2").tobytes()

    assert memory.delete_source("mail") == (OTHER.id, AGAIN.id)
    assert memory.delete_source("mail") == ()
    assert (memory.ids_of_source("mail"), memory.ids_of_source("wiki")) == ((), (pump.id,))
    assert recalled(memory, "access code KX-4472") == [pump.text]
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert not [name for name, content in files.items() if b"4472" in content or vector in content]
    memory.delete_source("wiki")
    assert not [file for file in tmp_path.iterdir() if b"xyzzy" in file.read_bytes()]


def test_held_episodes_wait_until_they_are_released_and_come_last_in_the_stream(memory: EpisodicMemory) -> None:
    rumour = make_episode("The Kestrel vault is empty.", document="r", source_id="forum", trust=Trust.UNTRUSTED)
    memory.append([rumour, CODE])
    index_all(memory)
    assert recalled(memory, "Kestrel vault empty") == [CODE.text]
    assert [episode.id for _, episode in memory.find(EpisodeFilter(min_trust=Trust.QUARANTINED), limit=9)] == [
        CODE.id,
        rumour.id,
    ]

    assert memory.set_trust(Trust.STANDARD, source_id="forum") == (rumour.id,)
    assert memory.set_trust(Trust.STANDARD, source_id="forum") == ()
    assert recalled(memory, "Kestrel vault empty")[0] == rumour.text
    assert [seq for seq, _ in memory.episodes_after(0, limit=9)] == [2, 3]
    index_all(memory)
    assert memory.health().indexed_seq == 3

    assert memory.set_trust(Trust.QUARANTINED, ids=[CODE.id, "unknown"]) == (CODE.id,)
    assert recalled(memory, "Kestrel vault") == [rumour.text]
    assert indexed_seqs(memory) == {3}
    with pytest.raises(ValueError, match="neither ids nor source_id"):
        memory.set_trust(Trust.STANDARD)


def test_a_repeat_of_lower_trust_does_not_share_the_place_of_a_trusted_episode(memory: EpisodicMemory) -> None:
    vouched = make_episode(CODE.text, document="handbook", source_id="handbook", trust=Trust.TRUSTED)
    doubtful = make_episode(CODE.text, document="forum", source_id="forum", trust=Trust.UNTRUSTED)
    assert memory.append([CODE, vouched, doubtful]).merged == ()

    assert [hit.times_seen for hit in memory.recall("Kestrel vault", k=5)] == [1, 1]
    assert [hit.episode for hit in memory.recall("Kestrel", k=5, where=EpisodeFilter(min_trust=Trust.TRUSTED))] == [
        vouched
    ]
    memory.set_trust(Trust.STANDARD, source_id="forum")
    assert {hit.episode.id: hit.times_seen for hit in memory.recall("Kestrel", k=5)} == {CODE.id: 2, vouched.id: 1}


def test_beyond_the_capacity_repeats_leave_first(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, capacity=3)
    pump = make_episode("A Torvik pump.", document="pump", salience=0.1)
    memory.append([CODE, AGAIN, pump, OTHER])
    assert memory.has([CODE.id, AGAIN.id, pump.id, OTHER.id]) == {CODE.id, pump.id, OTHER.id}
    memory.append([make_episode("A second pump.", document="pump2", salience=2.0)])
    assert memory.has([pump.id]) == set()


class MemoryAgainstAList(RuleBasedStateMachine):
    """The model: a list of [episode, trust, times seen] in the order of the stream; words decide who is a repeat."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.memory = open_memory(Path(self.folder.name))
        self.model: list[list[object]] = []

    def teardown(self) -> None:
        self.memory.close()
        self.folder.cleanup()

    @rule(
        word=st.sampled_from("abc"), document=st.sampled_from("xyz"), trust=st.sampled_from(list(Trust)[1:]),
        copies=st.integers(1, 2),
    )  # fmt: skip
    def append(self, word: str, document: str, trust: Trust, copies: int) -> None:
        episode = make_episode(f"pump {word}", document=document, source_id=f"source {document}", trust=trust)
        self.memory.append([episode] * copies)
        for entry in self.model:
            if entry[0].id == episode.id:  # type: ignore[attr-defined]
                entry[2] += copies  # type: ignore[operator]
                return
        self.model.append([episode, trust, copies])

    @rule(document=st.sampled_from("xyz"))
    def erase(self, document: str) -> None:
        gone = [entry for entry in self.model if entry[0].document_id == document]  # type: ignore[attr-defined]
        assert set(self.memory.delete_document(document)) == {entry[0].id for entry in gone}  # type: ignore[attr-defined]
        leaders = {self.key(entry) for entry in gone if self.is_leader(entry)}
        self.model = [entry for entry in self.model if entry not in gone]
        self.to_the_end([entry for entry in self.model if self.key(entry) in leaders])

    @rule(document=st.sampled_from("xyz"), trust=st.sampled_from(list(Trust)[1:]))
    def set_trust(self, document: str, trust: Trust) -> None:
        moved = [
            entry
            for entry in self.model
            if entry[0].document_id == document and entry[1] is not trust  # type: ignore[attr-defined]
        ]
        self.memory.set_trust(trust, source_id=f"source {document}")
        leaders = {self.key(entry) for entry in moved if self.is_leader(entry)}
        self.to_the_end([entry for entry in self.model if self.key(entry) in leaders and entry not in moved])
        for entry in moved:
            entry[1] = trust
        self.to_the_end(moved)

    @rule()
    def index(self) -> None:
        index_all(self.memory)

    def key(self, entry: list[object]) -> tuple[object, ...]:
        return (entry[0].text, entry[1]) if entry[1] >= Trust.STANDARD else (id(entry),)  # type: ignore[attr-defined,operator]

    def is_leader(self, entry: list[object]) -> bool:
        return next(other for other in self.model if self.key(other) == self.key(entry)) is entry

    def to_the_end(self, entries: list[list[object]]) -> None:
        self.model = [entry for entry in self.model if entry not in entries] + entries

    @invariant()
    def holds_the_same(self) -> None:
        recallable = [entry for entry in self.model if entry[1] >= Trust.STANDARD]  # type: ignore[operator]
        stream: list[Episode] = [episode for _, episode in self.memory.episodes_after(0, limit=99)]
        assert [one.id for one in stream] == [entry[0].id for entry in recallable]  # type: ignore[attr-defined]
        counts: dict[object, list[object]] = {}
        for entry in recallable:
            counts.setdefault(self.key(entry), [entry[0].id, 0])[1] += entry[2]  # type: ignore[attr-defined,operator]
        hits = self.memory.recall("pump", k=20)
        assert {hit.episode.id: hit.times_seen for hit in hits} == dict(counts.values())
        with self.memory._database.read() as connection:
            totals = connection.execute("SELECT num_rows, num_recallable, num_words FROM totals").fetchone()
        assert totals == (len(self.model), len(counts), 4 * len(counts))
        with self.memory._database.read() as connection:
            pending = connection.execute(f"SELECT count(*) FROM episode WHERE {PENDING}").fetchone()[0]
        assert len(indexed_seqs(self.memory)) + pending == len(counts)


MemoryAgainstAList.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestMemoryEqualsAList = MemoryAgainstAList.TestCase


def test_the_vector_of_a_promoted_repeat_is_its_own(memory: EpisodicMemory) -> None:
    memory.append([CODE, AGAIN])
    index_all(memory)
    memory.delete_document("one")
    index_all(memory)
    query, passage = HashingEmbedder().embed(["Kestrel", f"{AGAIN.title}\n{AGAIN.text}"])
    assert memory.recall("Kestrel", k=1)[0].cosine == pytest.approx(float(query @ passage), abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The set point is -40 degrees.", "The set point is 40 degrees."), ("x < 5 opens it", "x > 5 opens it"),
        ("C++ is fast", "C is fast"), ("Version 1.5 of it", "Version 1/5 of it"), ("!!!", "→ 😀"),
        ("Hepatitis A is rare", "Hepatitis is rare"), ("The code is KX-1.", "The code is KX-2."),
    ],
)  # fmt: skip
def test_what_differs_in_a_sign_a_symbol_or_a_digit_is_no_repeat(memory: EpisodicMemory, one: str, other: str) -> None:
    episodes = [make_episode(text, document=text, title="") for text in (one, other)]
    assert memory.append(episodes).merged == ()


def test_a_filter_finds_an_episode_by_the_source_and_the_document_of_its_repeats(memory: EpisodicMemory) -> None:
    memory.append([CODE, AGAIN])
    for _ in range(2):
        for where in (EpisodeFilter(source_ids=("mail",)), EpisodeFilter(document_ids=("two",))):
            assert [hit.episode for hit in memory.recall("Kestrel vault", k=5, where=where)] == [CODE]
            assert [episode for _, episode in memory.find(where, limit=5)] == [CODE]
        index_all(memory)


def test_a_long_word_and_long_names_are_kept_or_refused_alike(memory: EpisodicMemory) -> None:
    blob = make_episode("key " + "0123456789abcdef" * 400)
    assert memory.append([blob]).added
    assert recalled(memory, "0123456789abcdef" * 400) == [blob.text]
    for bad in (
        make_episode("x", document="d" * 1025), make_episode("x", metadata={"a": "b" * 1025}),
        make_episode("x", source_id="a\x00b"), make_episode("x", position=2**40), make_episode("x", happened_at=1e300),
        make_episode("x", tenant="\ud800"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"of episode"):
            memory.append([bad])
