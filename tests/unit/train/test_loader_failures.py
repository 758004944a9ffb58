"""What a loader cannot read, or cannot go on with, is named, and nothing is lost."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.numbered_shards import load_numbered, loader_threads, take, write_numbered
from train.data.loader import StateMismatch
from train.data.storage import TokenReader
from train.data.stored_file import StorageUnreachable, UnreadableFile


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_storage_that_does_not_answer_is_told_as_such_and_the_next_call_reads_the_same(
    web: str, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """Not as a damaged shard: a training run is tried again then."""
    location = write_numbered("memory://away", [7, 0, 30, 13])
    fetch, fails = TokenReader._fetch, iter([False] * 3 + [True] * 2 + [False] * 10_000)

    def flaky(self: TokenReader, offset: int, size: int) -> bytes:
        if next(fails):
            raise OSError(5, "the network is gone")
        return fetch(self, offset, size)

    monkeypatch.setattr(TokenReader, "_fetch", flaky)
    found, told = [], []
    with load_numbered(web) as local, load_numbered(location, prefetch_batches=prefetch) as loader:
        while len(found) < 8:
            try:
                found.append(take(loader, 1))
            except StorageUnreachable as error:
                told.append(str(error))
        assert np.array_equal(np.concatenate(found), take(local, 8))
    assert len(told) == 2
    assert all(re.search(r"\.h5 cannot be read now, .*the network is gone.* run again", text) for text in told)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_that_goes_missing_is_named_and_reading_goes_on_when_it_is_back(tmp_path: Path, prefetch: int) -> None:
    location = write_numbered(str(tmp_path / "web"), [40, 40])
    with load_numbered(location, global_batch_size=80) as loader:
        whole = take(loader, 1)
    with load_numbered(location, global_batch_size=80, prefetch_batches=prefetch) as loader:
        (tmp_path / "web" / "01.h5").rename(tmp_path / "gone")
        for _ in range(2):
            with pytest.raises(UnreadableFile, match=r"01\.h5 does not exist"):
                next(loader)
        assert not loader_threads()
        (tmp_path / "gone").rename(tmp_path / "web" / "01.h5")
        assert np.array_equal(take(loader, 1), whole)


def test_a_folder_with_a_manifest_is_read_as_that_says(tmp_path: Path, web: str) -> None:
    folder = tmp_path / "web"
    write_numbered(str(folder), [7, 0, 30, 13])
    (folder / "02.h5").rename(folder / "x.tokens")
    names = {"00.h5": 7, "01.h5": 0, "x.tokens": 30, "03.h5": 13}
    listed = [{"path": path, "num_sequences": count, "sha256": path} for path, count in names.items()]
    (folder / "manifest.json").write_text(json.dumps({"token_shards": listed, "other": 1}))
    with load_numbered(str(folder)) as loader, load_numbered(web) as bare:
        assert np.array_equal(take(loader, 20), take(bare, 20))
    (folder / "00.h5").unlink()
    with pytest.raises(UnreadableFile, match=r"00\.h5 does not exist, but .*manifest\.json lists it"):
        load_numbered(str(folder))
    listed[2]["num_sequences"] = 29
    (folder / "manifest.json").write_text(json.dumps({"token_shards": listed[2:]}))
    with pytest.raises(UnreadableFile, match=r"x\.tokens has 30 sequences, manifest\.json says 29"):
        load_numbered(str(folder))
    (folder / "manifest.json").write_text('{"token_shards": [{"path": "a.h5"}]}')
    with pytest.raises(UnreadableFile, match="lists no token_shards with path, num_sequences and sha256"):
        load_numbered(str(folder))


def test_a_state_of_another_stream_is_refused_by_what_differs(tmp_path: Path, web: str, code: str) -> None:
    with load_numbered(web, code) as loader:
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
    with (
        load_numbered(web, code, weights=(2, 1)) as other,
        pytest.raises(StateMismatch, match="source 'web' had share = "),
    ):
        other.load_state_dict(state)
    with load_numbered(code, web) as other, pytest.raises(StateMismatch, match="source 'code' had name = 'web'"):
        other.load_state_dict(state)
    changed = write_numbered(str(tmp_path / "web"), [7, 0, 30, 12])
    with (
        load_numbered(changed, code) as other,
        pytest.raises(StateMismatch, match="source 'web' had num_sequences = 50"),
    ):
        other.load_state_dict(state)
    moved = write_numbered(str(tmp_path / "elsewhere" / "web"), [7, 0, 30, 13])
    with load_numbered(moved, code) as other:
        other.load_state_dict(state)


def test_what_cannot_be_read_is_named_at_the_start(tmp_path: Path, web: str) -> None:
    with pytest.raises(ValueError, match=r"global_batch_size = 6 cannot be divided among world_size = 4 ranks"):
        load_numbered(web, world_size=4)
    with pytest.raises(ValueError, match="rank = 2 with world_size = 2"):
        load_numbered(web, rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"sources\[0\]\.weight = 0.*leave the source out"):
        load_numbered(web, weights=(0,))
    with pytest.raises(ValueError, match="0 sources: give at least one"):
        load_numbered()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"sources\[0\]\.location = '.*empty': no sequences in it \(0 token shards\)"):
        load_numbered(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"sources\[0\]\.location = '.*none' is no folder that can be read"):
        load_numbered(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="the name 'web' stands twice"):
        load_numbered(web, web)
    with pytest.raises(UnreadableFile, match="has sequences of 4 tokens, not 8: set sequence_length = 4"):
        load_numbered(web, sequence_length=8)
    other = write_numbered(str(tmp_path / "other"), [3], tokenizer_sha256="cd" * 32)
    with pytest.raises(UnreadableFile, match="tokens of different vocabularies do not mix"):
        load_numbered(web, other)
    with pytest.raises(ValidationError, match="seed"):
        load_numbered(web, seed=-1)
