"""StreamingDataLoader: every sequence once per pass, the same batches for any number of ranks, exact resume, clean ends."""

import gc
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data import token_sources
from train.data.batch import build_batch
from train.data.filesystem import resolve
from train.data.loader import LoaderConfig, StateMismatch, StreamingDataLoader
from train.data.storage import HDF5Storage, TokenReader
from train.data.stored_file import StorageUnreachable, UnreadableFile
from train.data.token_shard import TokenFormat
from train.data.token_sources import SourceSpec, TokenSources

LENGTH = 4
END = 99_999
FORMAT = TokenFormat(sequence_length=LENGTH, vocab_size=100_000, end_of_document_id=END, tokenizer_sha256="ab" * 32)


def _write(location: str, counts: Sequence[int], *, first: int = 0, **changes: Any) -> str:
    """Shards of these many sequences: sequence i of the folder begins with token first + 4 i."""
    filesystem, folder = resolve(location)
    fields = {name: getattr(FORMAT, name) for name in FORMAT.__slots__} | changes
    for index, count in enumerate(counts):
        with HDF5Storage(filesystem).writer(f"{folder}/{index:02}.h5", token_format=TokenFormat(**fields)) as writer:
            writer.write(np.arange(first, first + count * LENGTH + 1))
        first += count * LENGTH
    return location


def _loader(
    *locations: str, weights: Sequence[float] = (1, 1), rank: int = 0, world_size: int = 1, **changes: Any
) -> StreamingDataLoader:
    config: dict[str, Any] = {
        "sequence_length": LENGTH, "global_batch_size": 6, "reservoir_size": 8, "prefetch_batches": 0
    }  # fmt: skip
    sources = [SourceSpec(location=one, weight=weight) for one, weight in zip(locations, weights, strict=False)]
    return StreamingDataLoader(sources, config=LoaderConfig(**(config | changes)), rank=rank, world_size=world_size)


def _take(loader: StreamingDataLoader, count: int) -> npt.NDArray[np.int64]:
    """The numbers of the sequences of the next batches, [batch, row]."""
    found = []
    for _ in range(count):
        batch = next(loader)
        assert np.array_equal(batch.input_ids, batch.input_ids[:, :1] + np.arange(LENGTH))
        assert np.array_equal(batch.labels, batch.input_ids + 1)
        found.append(batch.input_ids[:, 0] // LENGTH)
    return np.array(found)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(str(tmp_path_factory.mktemp("data") / "web"), [7, 0, 30, 13])


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(str(tmp_path_factory.mktemp("data") / "code"), [11], first=1000 * LENGTH)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-loader"]


def test_each_pass_has_every_sequence_once_and_an_order_of_its_own(web: str) -> None:
    with _loader(web, reservoir_size=1, global_batch_size=10) as loader:
        passes = [_take(loader, 5).ravel().tolist() for _ in range(3)]
    assert [sorted(one) for one in passes] == [list(range(50))] * 3
    assert len({tuple(one) for one in passes}) == 3
    assert passes[0] != sorted(passes[0])


@pytest.mark.parametrize("run", [1, 4, 64])
def test_with_a_reservoir_no_sequence_is_lost_or_early_by_more_than_it_holds(web: str, run: int) -> None:
    with _loader(web, reservoir_size=20, global_batch_size=10, block_sequences=run) as loader:
        counts = Counter(_take(loader, 15).ravel().tolist())
    assert counts.total() == 150
    assert max(counts.values()) <= 4
    assert sum(abs(counts[sequence] - 3) for sequence in range(50)) <= 2 * 20


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**62),
        "global_batch_size": st.just(12),
        "reservoir_size": st.sampled_from([1, 5, 200]),
        "block_sequences": st.integers(1, 9),
        "prefetch_batches": st.sampled_from([0, 3]),
    }
)
WORLDS = st.sampled_from([1, 2, 3, 4, 6, 12])


@given(OPTIONS, WORLDS)
@settings(deadline=None, max_examples=15)
def test_the_batches_of_all_ranks_together_do_not_depend_on_their_number(
    web: str, code: str, options: dict[str, int], world_size: int
) -> None:
    with _loader(web, code, **options) as one:
        whole = _take(one, 8)
    parts = []
    for rank in range(world_size):
        with _loader(web, code, rank=rank, world_size=world_size, **options) as loader:
            parts.append(_take(loader, 8))
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@given(OPTIONS, st.tuples(WORLDS, WORLDS), st.integers(0, 30))
@settings(deadline=None, max_examples=15)
def test_a_state_goes_on_bit_for_bit_with_another_number_of_ranks(
    web: str, code: str, options: dict[str, int], worlds: tuple[int, int], cut: int
) -> None:
    before, after = worlds
    with _loader(web, code, weights=(3, 1), **options) as one:
        whole = _take(one, cut + 6)
    with _loader(web, code, weights=(3, 1), rank=before - 1, world_size=before, **options) as stopped:
        _take(stopped, cut)
        state = json.loads(json.dumps(stopped.state_dict()))
    rest = []
    for rank in range(after):
        with _loader(web, code, weights=(3, 1), rank=rank, world_size=after, **options) as resumed:
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            rest.append(_take(resumed, 6))
    assert np.array_equal(np.concatenate(rest, axis=1), whole[cut:])


def test_the_batch_size_may_change_at_a_state(web: str) -> None:
    with _loader(web, global_batch_size=10) as loader:
        whole = _take(loader, 4).ravel()
    with _loader(web, global_batch_size=10) as loader:
        _take(loader, 2)
        state = loader.state_dict()
    with _loader(web, global_batch_size=4) as loader:
        loader.load_state_dict(state)
        assert _take(loader, 5).ravel().tolist() == whole[20:].tolist()


def test_the_state_is_that_of_what_was_consumed_not_of_what_was_read_ahead(web: str) -> None:
    with _loader(web, prefetch_batches=4) as ahead, _loader(web) as exact:
        for _ in range(20):
            next(ahead), next(exact)
            assert ahead.state_dict() == exact.state_dict()
        assert ahead.state_dict()["position"] == 120


def test_the_state_is_as_large_for_a_thousand_times_the_data(tmp_path: Path, web: str) -> None:
    large = _write(str(tmp_path / "web"), [20_000])
    sizes = []
    for location in (web, large):
        with _loader(location, reservoir_size=100) as loader:
            _take(loader, 50)
            sizes.append(len(json.dumps(loader.state_dict())))
    assert sizes[1] < 1.5 * sizes[0]


def test_sources_come_in_their_shares_and_epochs_count_their_passes(web: str, code: str) -> None:
    with _loader(web, code, weights=(1, 3), global_batch_size=64) as loader:
        found = np.concatenate([_take(loader, 1).ravel() for _ in range(16)])
        batch = next(loader)
    assert np.count_nonzero(found >= 1000) == pytest.approx(16 * 48, abs=16)
    assert batch.stats.position == 17 * 64 == sum(batch.stats.num_taken)
    assert batch.stats.epochs == {"web": batch.stats.num_taken[0] // 50, "code": batch.stats.num_taken[1] // 11}
    assert batch.stats.epochs["code"] == pytest.approx(17 * 48 / 11, abs=2)


def test_order_of_a_pass_is_not_correlated_with_the_order_of_the_data(tmp_path: Path) -> None:
    location = _write(str(tmp_path / "web"), [9000, 11_000])
    with _loader(location, global_batch_size=100, reservoir_size=1000) as loader:
        order = _take(loader, 200).ravel()
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.02


@pytest.mark.parametrize("run", [1, 4, 16])
def test_another_file_system_gives_the_same_batches(web: str, run: int) -> None:
    remote = f"memory://web{run}"
    _write(remote, [7, 0, 30, 13])
    options = {"block_sequences": run, "cache_bytes": 200}
    with _loader(web, **options) as local, _loader(remote, **options) as other:
        assert np.array_equal(_take(local, 30), _take(other, 30))
        state = local.state_dict()
        other.load_state_dict(state | {"sources": other.state_dict()["sources"]})


def test_a_block_is_read_at_once_where_a_read_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    location = _write("memory://blocks", [100, 60])
    sizes = []
    read = TokenReader.read
    monkeypatch.setattr(
        TokenReader, "read", lambda self, start, stop: sizes.append(stop - start) or read(self, start, stop)
    )
    with _loader(location, global_batch_size=16, block_sequences=20, reservoir_size=60) as loader:
        assert len(np.unique(_take(loader, 10))) > 100
    assert set(sizes) == {20 * LENGTH + 1}
    assert len(sizes) <= (160 + 60) // 20 + 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_storage_that_does_not_answer_is_told_as_such_and_the_next_call_reads_the_same(
    web: str, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """Not as a damaged shard: a training run is tried again then."""
    location = _write("memory://away", [7, 0, 30, 13])
    fetch, fails = TokenReader._fetch, iter([False] * 3 + [True] * 2 + [False] * 10_000)

    def flaky(self: TokenReader, offset: int, size: int) -> bytes:
        if next(fails):
            raise OSError(5, "the network is gone")
        return fetch(self, offset, size)

    monkeypatch.setattr(TokenReader, "_fetch", flaky)
    found, told = [], []
    with _loader(web) as local, _loader(location, prefetch_batches=prefetch) as loader:
        while len(found) < 8:
            try:
                found.append(_take(loader, 1))
            except StorageUnreachable as error:
                told.append(str(error))
        assert np.array_equal(np.concatenate(found), _take(local, 8))
    assert len(told) == 2
    assert all(re.search(r"\.h5 cannot be read now, .*the network is gone.* run again", text) for text in told)


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    location = _write(str(tmp_path / "web"), [2] * 12)
    places = np.random.default_rng(0).permutation(np.arange(24).repeat(3)).reshape(-1, 6)
    for max_open in (1, 2, 100):
        sources = TokenSources([SourceSpec(location=location)], sequence_length=LENGTH, max_open_shards=max_open)
        for some in places:
            batch = build_batch(sources.read(some), end_of_document_id=END)
            assert batch.input_ids[:, 0].tolist() == (some * LENGTH).tolist()
            assert batch.labels[:, -1].tolist() == ((some + 1) * LENGTH).tolist()


def test_rows_are_the_same_when_the_pages_of_files_are_let_go(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _loader(web) as loader:
        whole = _take(loader, 30)
    forgotten = []
    forget = TokenReader.forget
    monkeypatch.setattr(token_sources, "FORGET_ROWS", 20)
    monkeypatch.setattr(TokenReader, "forget", lambda self: forgotten.append(self) or forget(self))
    with _loader(web) as loader:
        assert np.array_equal(_take(loader, 30), whole)
    assert len(forgotten) > 20


def test_the_fill_of_a_last_sequence_is_padding(tmp_path: Path) -> None:
    with HDF5Storage().writer(str(tmp_path / "web" / "a.h5"), token_format=FORMAT) as writer:
        writer.write([1, 2, END, 4, 5, 6])
    with _loader(str(tmp_path / "web"), global_batch_size=2, reservoir_size=1) as loader:
        batch = next(loader)
    order = np.argsort(batch.input_ids[:, 0])
    assert batch.labels[order].tolist() == [[2, END, -100, 5], [6, -100, -100, -100]]
    assert batch.document_ids[order].tolist() == [[0, 0, 0, 1], [0, 0, -1, -1]]


def test_one_sequence_is_enough_and_a_reservoir_may_be_larger_than_the_data(tmp_path: Path) -> None:
    location = _write(str(tmp_path / "web"), [1])
    with _loader(location, reservoir_size=5000) as loader:
        assert set(_take(loader, 10).ravel().tolist()) == {0}
        assert next(loader).stats.epochs == {"web": 66}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_that_goes_missing_is_named_and_reading_goes_on_when_it_is_back(tmp_path: Path, prefetch: int) -> None:
    location = _write(str(tmp_path / "web"), [40, 40])
    with _loader(location, global_batch_size=80) as loader:
        whole = _take(loader, 1)
    with _loader(location, global_batch_size=80, prefetch_batches=prefetch) as loader:
        (tmp_path / "web" / "01.h5").rename(tmp_path / "gone")
        for _ in range(2):
            with pytest.raises(UnreadableFile, match=r"01\.h5 does not exist"):
                next(loader)
        assert not _threads()
        (tmp_path / "gone").rename(tmp_path / "web" / "01.h5")
        assert np.array_equal(_take(loader, 1), whole)


def test_no_thread_is_left_after_close_exception_or_garbage(web: str) -> None:
    loader = _loader(web, prefetch_batches=3)
    next(loader)
    assert len(_threads()) == 1
    loader.close()
    assert not _threads()
    first = next(loader).stats.position
    assert first == 12
    del loader
    gc.collect()
    assert not _threads()
    with pytest.raises(KeyError), _loader(web, prefetch_batches=1) as loader:
        raise KeyError(next(loader).stats.position)
    assert not _threads()


def test_a_folder_with_a_manifest_is_read_as_that_says(tmp_path: Path, web: str) -> None:
    folder = tmp_path / "web"
    _write(str(folder), [7, 0, 30, 13])
    (folder / "02.h5").rename(folder / "x.tokens")
    names = {"00.h5": 7, "01.h5": 0, "x.tokens": 30, "03.h5": 13}
    listed = [{"path": path, "num_sequences": count, "sha256": path} for path, count in names.items()]
    (folder / "manifest.json").write_text(json.dumps({"token_shards": listed, "other": 1}))
    with _loader(str(folder)) as loader, _loader(web) as bare:
        assert np.array_equal(_take(loader, 20), _take(bare, 20))
    (folder / "00.h5").unlink()
    with pytest.raises(UnreadableFile, match=r"00\.h5 does not exist, but .*manifest\.json lists it"):
        _loader(str(folder))
    listed[2]["num_sequences"] = 29
    (folder / "manifest.json").write_text(json.dumps({"token_shards": listed[2:]}))
    with pytest.raises(UnreadableFile, match=r"x\.tokens has 30 sequences, manifest\.json says 29"):
        _loader(str(folder))
    (folder / "manifest.json").write_text('{"token_shards": [{"path": "a.h5"}]}')
    with pytest.raises(UnreadableFile, match="lists no token_shards with path, num_sequences and sha256"):
        _loader(str(folder))


def test_a_source_can_be_a_list_of_shards(web: str) -> None:
    paths = tuple(f"{web}/{index:02}.h5" for index in range(4))
    config = LoaderConfig(sequence_length=LENGTH, global_batch_size=6, reservoir_size=8, prefetch_batches=0)
    with StreamingDataLoader([SourceSpec(location=paths)], config=config) as loader, _loader(web) as folder:
        assert np.array_equal(_take(loader, 20), _take(folder, 20))


def test_a_state_of_another_stream_is_refused_by_what_differs(tmp_path: Path, web: str, code: str) -> None:
    with _loader(web, code) as loader:
        state = loader.state_dict()
        for change, words in (
            ({"version": 2}, "the state has version = 2, this loader 1"),
            ({"seed": 5}, "the state has seed = 5, this loader 0: load it with the same seed"),
            ({"reservoir_size": 9}, "reservoir_size = 9"),
            ({"block_sequences": 2}, "block_sequences = 2"),
            ({"sources": state["sources"][:1]}, "give the same sources"),
            ({"sources": None}, "give the same sources"),
            ({"sources": [1, 2]}, "give the same sources"),
            ({"position": None}, "position = None"),
        ):
            with pytest.raises(ValueError, match=words):
                loader.load_state_dict(state | change)
        with pytest.raises(StateMismatch, match="version = None"):
            loader.load_state_dict({})
    with _loader(web, code, weights=(2, 1)) as other, pytest.raises(StateMismatch, match="source 'web' had share = "):
        other.load_state_dict(state)
    with _loader(code, web) as other, pytest.raises(StateMismatch, match="source 'code' had name = 'web'"):
        other.load_state_dict(state)
    changed = _write(str(tmp_path / "web"), [7, 0, 30, 12])
    with _loader(changed, code) as other, pytest.raises(StateMismatch, match="source 'web' had num_sequences = 50"):
        other.load_state_dict(state)
    moved = _write(str(tmp_path / "elsewhere" / "web"), [7, 0, 30, 13])
    with _loader(moved, code) as other:
        other.load_state_dict(state)


def test_what_cannot_be_read_is_named_at_the_start(tmp_path: Path, web: str) -> None:
    with pytest.raises(ValueError, match=r"global_batch_size = 6 cannot be divided among world_size = 4 ranks"):
        _loader(web, world_size=4)
    with pytest.raises(ValueError, match="rank = 2 with world_size = 2"):
        _loader(web, rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"sources\[0\]\.weight = 0.*leave the source out"):
        _loader(web, weights=(0,))
    with pytest.raises(ValueError, match="0 sources: give at least one"):
        _loader()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"sources\[0\]\.location = '.*empty': no sequences in it \(0 token shards\)"):
        _loader(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"sources\[0\]\.location = '.*none' is no folder that can be read"):
        _loader(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="the name 'web' stands twice"):
        _loader(web, web)
    with pytest.raises(UnreadableFile, match="has sequences of 4 tokens, not 8: set sequence_length = 4"):
        _loader(web, sequence_length=8)
    other = _write(str(tmp_path / "other"), [3], tokenizer_sha256="cd" * 32)
    with pytest.raises(UnreadableFile, match="tokens of different vocabularies do not mix"):
        _loader(web, other)
    with pytest.raises(ValidationError, match="seed"):
        _loader(web, seed=-1)


def test_a_source_reads_the_shards_of_a_part_without_those_that_are_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    _write(str(folder), [3, 4, 5, 6, 7])
    listed = [
        {"path": f"{index:02d}.h5", "num_sequences": index + 3, "sha256": str(index), "source": "b" if index else "a"}
        for index in range(5)
    ]
    (folder / "manifest.json").write_text(json.dumps({"token_shards": listed}))

    def sizes(**fields: object) -> tuple[int, ...]:
        spec = SourceSpec.model_validate({"location": str(folder), **fields})
        with StreamingDataLoader([spec], config=LoaderConfig(sequence_length=LENGTH, global_batch_size=1)) as loader:
            return next(loader).stats.num_sequences

    assert sizes() == (25,)
    assert sizes(of=("b",)) == (22,)
    assert sizes(of=("b",), held_out_every=2) == (4 + 6,)
    assert sizes(of=("b",), held_out_every=2, reads_held_out=True) == (5 + 7,)
    with pytest.raises(ValueError, match=r"no shard of source 'c' in it; its manifest\.json names a, b"):
        sizes(of=("c",))
    with pytest.raises(ValueError, match="1 shards, so none of number 2 to hold out"):
        sizes(of=("a",), held_out_every=2)
    with pytest.raises(ValueError, match="leaves no shard to read"):
        SourceSpec(location=str(folder), reads_held_out=True)
