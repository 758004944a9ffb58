"""What recall finds beside simple searches over all rows, and what it does when a part is damaged or full."""

import logging
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.episodic import EpisodicMemory
from memory.recall import ANY_EPISODE
from memory.retrieval import query_terms
from memory.store import StoreFull
from memory.types import Episode, EpisodeFilter, Trust
from tests.episodes import index_all, make_episode, open_memory, recalled

WORDS = "pump valve vault code Kestrel Torvik water opens closes north south running runs"


@pytest.fixture
def memory(tmp_path: Path) -> EpisodicMemory:
    return open_memory(tmp_path)


def _texts(num: int, *, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [
        make_episode(
            f"{' '.join(rng.choice(words, rng.integers(2, 12)))} {number}",
            document=f"d{number % 7}",
            position=number,
            source_id=f"s{number % 3}",
            tenant=f"t{number % 2}",
            happened_at=float(number % 10),
            trust=Trust(1 + number % 3),
            title=" ".join(rng.choice(words, 2)),
            metadata={"lang": "en" if number % 4 else "de", "kind": f"k{number % 2}"},
        )
        for number in range(num)
    ]


@pytest.mark.sqlite("asks SQLite itself")
def test_bm25_is_that_of_sqlite_for_every_episode(memory: EpisodicMemory, tmp_path: Path) -> None:
    memory.append(_texts(60))
    memory.delete_document("d3")
    question = "where is the Kestrel vault that runs, and pump pump 17?"
    terms = memory._recall.terms(question)
    found = memory.candidates(
        terms, np.ones(32, np.float32), statistics=memory.word_statistics(terms), limit=99, where=ANY_EPISODE
    )
    with sqlite3.connect(tmp_path / "episodic.db") as connection:
        rows = connection.execute(
            "SELECT id, -bm25(episode_words, 0.5, 1.0) FROM episode_words JOIN episode ON seq = episode_words.rowid"
            " WHERE episode_words MATCH ?",
            (" OR ".join(f'"{term}"' for term in query_terms(question)),),
        ).fetchall()

    assert len(rows) > 25
    assert {one.episode.id: one.bm25 for one in found} == pytest.approx(dict(rows), rel=1e-9)


filters = st.builds(
    EpisodeFilter,
    source_ids=st.none() | st.sets(st.sampled_from(["s0", "s1", "nobody"])).map(tuple),
    document_ids=st.none() | st.sets(st.sampled_from(["d0", "d1", "d5", "none"])).map(tuple),
    tenant=st.none() | st.sampled_from(["t0", "t1", "none"]),
    happened_from=st.none() | st.integers(0, 9).map(float),
    happened_before=st.none() | st.integers(0, 11).map(float),
    min_trust=st.sampled_from([Trust.STANDARD, Trust.TRUSTED]),
    metadata=st.dictionaries(st.sampled_from(["lang", "kind", "none"]), st.sampled_from(["en", "k1"]), max_size=2),
)


def _passes(episode: Episode, where: EpisodeFilter) -> bool:
    return (
        (where.source_ids is None or episode.source_id in where.source_ids)
        and (where.document_ids is None or episode.document_id in where.document_ids)
        and (where.tenant is None or episode.tenant == where.tenant)
        and (where.happened_from is None or episode.happened_at >= where.happened_from)
        and (where.happened_before is None or episode.happened_at < where.happened_before)
        and episode.trust >= where.min_trust
        and all(episode.metadata.get(key) == value for key, value in where.metadata.items())
    )


@pytest.fixture(scope="module")
def filled() -> EpisodicMemory:
    """80 episodes, of which the last 20 wait for their vector and the first 20 are repeated by others."""
    folder = tempfile.mkdtemp()
    memory = open_memory(Path(folder))
    memory.append(_texts(60))
    index_all(memory)
    memory.append(_texts(80)[60:])
    memory.append(list(_repeats().values()))
    return memory


def _repeats() -> dict[str, Episode]:
    """By the id of what they repeat."""
    return {
        one.id: replace(
            one, id=f"again {one.id}", source_id="s1", document_id="d1", happened_at=one.happened_at + 5,
            metadata={"kind": "k1", "lang": "en"},
        )
        for one in _texts(20)
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(filters)
def test_every_filter_finds_what_a_look_at_every_episode_and_its_repeats_finds(
    filled: EpisodicMemory, where: EpisodeFilter
) -> None:
    repeats = _repeats()
    wanted = {one.id for one in _texts(80) if _passes(one, where) or _passes(repeats.get(one.id, one), where)}
    found = filled.recall(" ".join(WORDS.split()), k=80, where=where)

    assert {hit.episode.id for hit in found} == wanted
    assert {episode.id for _, episode in filled.find(where, limit=99)} == wanted
    assert len(filled.find(where, limit=3)) == min(3, len(wanted))


def test_what_is_found_by_a_filter_comes_newest_first_page_by_page(filled: EpisodicMemory) -> None:
    pages = [filled.find(ANY_EPISODE, limit=20, offset=offset) for offset in (0, 20, 40)]
    times = [episode.happened_at for page in pages for _, episode in page]

    assert times == sorted(times, reverse=True)
    assert len({episode.id for page in pages for _, episode in page}) == len(times) > 40


DAMAGES = {
    "no sizes": "DELETE FROM episode_words_docsize WHERE id < 9",
    "nothing": "UPDATE episode_words_data SET block = x'00'",
    "zeros": "UPDATE episode_words_data SET block = zeroblob(length(block)) WHERE id > 10",
    "gone": "DELETE FROM episode_words_data WHERE id > 10",
}


@pytest.mark.sqlite("damages FTS5's tables")
@pytest.mark.parametrize(
    ("damage", "found_by"),
    [("no sizes", "start"), ("nothing", "start"), ("zeros", "start"), ("gone", "start"), ("gone", "recall"),
     ("zeros", "append"), ("no sizes", "verify"), ("nothing", "verify")],
)  # fmt: skip
def test_a_damaged_keyword_index_is_rebuilt_from_the_rows_and_said_so(
    tmp_path: Path, damage: str, found_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = open_memory(tmp_path)
    memory.append(_texts(40))
    index_all(memory)
    before = recalled(memory, "Kestrel vault water")
    if found_by == "start":
        memory.close()
    with sqlite3.connect(tmp_path / "episodic.db") as connection:
        connection.execute(DAMAGES[damage])
    connection.close()
    with caplog.at_level(logging.WARNING):
        if found_by == "start":
            memory = open_memory(tmp_path)
        elif found_by == "verify":
            memory.verify()
        elif found_by == "append":
            memory.append([make_episode("Kestrel zeppelin", trust=Trust.UNTRUSTED)])
            memory.append([make_episode("zeppelin", document="z")])
            memory.delete_document("z")
        after = recalled(memory, "Kestrel vault water")

    assert after == before
    assert "rebuilding the keyword index" in caplog.text
    caplog.clear()
    memory.verify()
    assert "rebuilding" not in caplog.text


@pytest.mark.sqlite("asks SQLite itself")
def test_a_full_disk_refuses_the_write_and_loses_nothing(memory: EpisodicMemory) -> None:
    memory.append(_texts(20))
    writer = memory._database._writer  # type: ignore[attr-defined]
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreFull, match=r"Nothing of this write was kept.*free disk space"):
        memory.append([make_episode(f"{number} " + "water " * 500) for number in range(40)])

    assert memory.health().num_episodes == 20
    assert len(recalled(memory, "water")) == 5
    index_all(memory)
    writer.execute(f"PRAGMA max_page_count = {pages + 4000}")
    assert memory.append([make_episode("room again")]).added
    assert recalled(memory, "room again")[0] == "room again"


def test_a_clock_that_goes_backwards_reorders_nothing(tmp_path: Path) -> None:
    times = iter([1000.0, 400.0, 1200.0])
    memory = open_memory(tmp_path, clock=lambda: next(times))
    for number in range(3):
        memory.append([make_episode(f"pump {number}", document=f"d{number}")])

    listed = memory.documents(limit=9, offset=0)
    assert [info.document_id for info in listed] == ["d2", "d1", "d0"]
    assert [info.recorded_at for info in listed] == pytest.approx([1200.0, 1000.000001, 1000.0])


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (make_episode("x" * 101), r"text of episode .* has 101 characters, the limit is 100: cut it into passages"),
        (make_episode("x", title="y" * 101), "title of episode"),
        (make_episode("x\ud800"), "lone surrogate"),
        (make_episode("x", metadata={"a": "\x00"}), "NUL character"),
    ],
)
def test_a_text_that_cannot_be_kept_is_refused_with_the_fix(tmp_path: Path, episode: Episode, message: str) -> None:
    memory = open_memory(tmp_path, max_text_chars=100)
    with pytest.raises(ValueError, match=message):
        memory.append([make_episode("good"), episode])
    assert memory.health().num_episodes == 0
