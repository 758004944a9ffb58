"""StreamingDataLoader: every sequence once per pass, the same batches for any number of ranks, exact resume, clean ends."""

import gc
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numbered_shards import END, FORMAT, LENGTH, load_numbered, loader_threads, take, write_numbered
from train.data import token_sources
from train.data.batch import build_batch
from train.data.loader import LoaderConfig, StreamingDataLoader
from train.data.storage import HDF5Storage, TokenReader
from train.data.token_sources import SourceSpec, TokenSources


@pytest.mark.slow
def test_each_pass_has_every_sequence_once_and_an_order_of_its_own(web: str) -> None:
    with load_numbered(web, reservoir_size=1, global_batch_size=10) as loader:
        passes = [take(loader, 5).ravel().tolist() for _ in range(3)]
    assert [sorted(one) for one in passes] == [list(range(50))] * 3
    assert len({tuple(one) for one in passes}) == 3
    assert passes[0] != sorted(passes[0])


@pytest.mark.parametrize("run", [1, 4, 64])
def test_with_a_reservoir_no_sequence_is_lost_or_early_by_more_than_it_holds(web: str, run: int) -> None:
    with load_numbered(web, reservoir_size=20, global_batch_size=10, block_sequences=run) as loader:
        counts = Counter(take(loader, 15).ravel().tolist())
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
    with load_numbered(web, code, **options) as one:
        whole = take(one, 8)
    parts = []
    for rank in range(world_size):
        with load_numbered(web, code, rank=rank, world_size=world_size, **options) as loader:
            parts.append(take(loader, 8))
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@given(OPTIONS, st.tuples(WORLDS, WORLDS), st.integers(0, 30))
@settings(deadline=None, max_examples=15)
def test_a_state_goes_on_bit_for_bit_with_another_number_of_ranks(
    web: str, code: str, options: dict[str, int], worlds: tuple[int, int], cut: int
) -> None:
    before, after = worlds
    with load_numbered(web, code, weights=(3, 1), **options) as one:
        whole = take(one, cut + 6)
    with load_numbered(web, code, weights=(3, 1), rank=before - 1, world_size=before, **options) as stopped:
        take(stopped, cut)
        state = json.loads(json.dumps(stopped.state_dict()))
    rest = []
    for rank in range(after):
        with load_numbered(web, code, weights=(3, 1), rank=rank, world_size=after, **options) as resumed:
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            rest.append(take(resumed, 6))
    assert np.array_equal(np.concatenate(rest, axis=1), whole[cut:])


def test_the_batch_size_may_change_at_a_state(web: str) -> None:
    with load_numbered(web, global_batch_size=10) as loader:
        whole = take(loader, 4).ravel()
    with load_numbered(web, global_batch_size=10) as loader:
        take(loader, 2)
        state = loader.state_dict()
    with load_numbered(web, global_batch_size=4) as loader:
        loader.load_state_dict(state)
        assert take(loader, 5).ravel().tolist() == whole[20:].tolist()


def test_the_state_is_that_of_what_was_consumed_not_of_what_was_read_ahead(web: str) -> None:
    with load_numbered(web, prefetch_batches=4) as ahead, load_numbered(web) as exact:
        for _ in range(20):
            next(ahead), next(exact)
            assert ahead.state_dict() == exact.state_dict()
        assert ahead.state_dict()["position"] == 120


def test_the_state_is_as_large_for_a_thousand_times_the_data(tmp_path: Path, web: str) -> None:
    large = write_numbered(str(tmp_path / "web"), [20_000])
    sizes = []
    for location in (web, large):
        with load_numbered(location, reservoir_size=100) as loader:
            take(loader, 50)
            sizes.append(len(json.dumps(loader.state_dict())))
    assert sizes[1] < 1.5 * sizes[0]


def test_sources_come_in_their_shares_and_epochs_count_their_passes(web: str, code: str) -> None:
    with load_numbered(web, code, weights=(1, 3), global_batch_size=64) as loader:
        found = np.concatenate([take(loader, 1).ravel() for _ in range(16)])
        batch = next(loader)
    assert np.count_nonzero(found >= 1000) == pytest.approx(16 * 48, abs=16)
    assert batch.stats.position == 17 * 64 == sum(batch.stats.num_taken)
    assert batch.stats.epochs == {"web": batch.stats.num_taken[0] // 50, "code": batch.stats.num_taken[1] // 11}
    assert batch.stats.epochs["code"] == pytest.approx(17 * 48 / 11, abs=2)


def test_order_of_a_pass_is_not_correlated_with_the_order_of_the_data(tmp_path: Path) -> None:
    location = write_numbered(str(tmp_path / "web"), [9000, 11_000])
    with load_numbered(location, global_batch_size=100, reservoir_size=1000) as loader:
        order = take(loader, 200).ravel()
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.02


@pytest.mark.parametrize("run", [1, 4, 16])
def test_another_file_system_gives_the_same_batches(web: str, run: int) -> None:
    remote = f"memory://web{run}"
    write_numbered(remote, [7, 0, 30, 13])
    options = {"block_sequences": run, "cache_bytes": 200}
    with load_numbered(web, **options) as local, load_numbered(remote, **options) as other:
        assert np.array_equal(take(local, 30), take(other, 30))
        state = local.state_dict()
        other.load_state_dict(state | {"sources": other.state_dict()["sources"]})


def test_a_block_is_read_at_once_where_a_read_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    location = write_numbered("memory://blocks", [100, 60])
    sizes = []
    read = TokenReader.read
    monkeypatch.setattr(
        TokenReader, "read", lambda self, start, stop: sizes.append(stop - start) or read(self, start, stop)
    )
    with load_numbered(location, global_batch_size=16, block_sequences=20, reservoir_size=60) as loader:
        assert len(np.unique(take(loader, 10))) > 100
    assert set(sizes) == {20 * LENGTH + 1}
    assert len(sizes) <= (160 + 60) // 20 + 1


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    location = write_numbered(str(tmp_path / "web"), [2] * 12)
    places = np.random.default_rng(0).permutation(np.arange(24).repeat(3)).reshape(-1, 6)
    for max_open in (1, 2, 100):
        sources = TokenSources([SourceSpec(location=location)], sequence_length=LENGTH, max_open_shards=max_open)
        for some in places:
            batch = build_batch(sources.read(some), end_of_document_id=END)
            assert batch.input_ids[:, 0].tolist() == (some * LENGTH).tolist()
            assert batch.labels[:, -1].tolist() == ((some + 1) * LENGTH).tolist()


def test_rows_are_the_same_when_the_pages_of_files_are_let_go(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_numbered(web) as loader:
        whole = take(loader, 30)
    forgotten = []
    forget = TokenReader.forget
    monkeypatch.setattr(token_sources, "FORGET_ROWS", 20)
    monkeypatch.setattr(TokenReader, "forget", lambda self: forgotten.append(self) or forget(self))
    with load_numbered(web) as loader:
        assert np.array_equal(take(loader, 30), whole)
    assert len(forgotten) > 20


def test_the_fill_of_a_last_sequence_is_padding(tmp_path: Path) -> None:
    with HDF5Storage().writer(str(tmp_path / "web" / "a.h5"), token_format=FORMAT) as writer:
        writer.write([1, 2, END, 4, 5, 6])
    with load_numbered(str(tmp_path / "web"), global_batch_size=2, reservoir_size=1) as loader:
        batch = next(loader)
    order = np.argsort(batch.input_ids[:, 0])
    assert batch.labels[order].tolist() == [[2, END, -100, 5], [6, -100, -100, -100]]
    assert batch.document_ids[order].tolist() == [[0, 0, 0, 1], [0, 0, -1, -1]]


def test_one_sequence_is_enough_and_a_reservoir_may_be_larger_than_the_data(tmp_path: Path) -> None:
    location = write_numbered(str(tmp_path / "web"), [1])
    with load_numbered(location, reservoir_size=5000) as loader:
        assert set(take(loader, 10).ravel().tolist()) == {0}
        assert next(loader).stats.epochs == {"web": 66}


@pytest.mark.slow
def test_no_thread_is_left_after_close_exception_or_garbage(web: str) -> None:
    loader = load_numbered(web, prefetch_batches=3)
    next(loader)
    assert len(loader_threads()) == 1
    loader.close()
    assert not loader_threads()
    first = next(loader).stats.position
    assert first == 12
    del loader
    gc.collect()
    assert not loader_threads()
    with pytest.raises(KeyError), load_numbered(web, prefetch_batches=1) as loader:
        raise KeyError(next(loader).stats.position)
    assert not loader_threads()


def test_a_source_can_be_a_list_of_shards(web: str) -> None:
    paths = tuple(f"{web}/{index:02}.h5" for index in range(4))
    config = LoaderConfig(sequence_length=LENGTH, global_batch_size=6, reservoir_size=8, prefetch_batches=0)
    with StreamingDataLoader([SourceSpec(location=paths)], config=config) as loader, load_numbered(web) as folder:
        assert np.array_equal(take(loader, 20), take(folder, 20))


def test_a_source_reads_the_shards_of_a_part_without_those_that_are_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    write_numbered(str(folder), [3, 4, 5, 6, 7])
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
