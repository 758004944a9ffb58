"""Model folders: what is whole is hashed once, what is damaged is named with its fix, nothing is left half-done."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from train.model import embedded
from train.model.embedded import (
    INDEX_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    ModelFolderProblem,
    check_model_folder,
    materialise_base_model,
    read_weight_shapes,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one weight file of 2 x 3 + 4 parameters."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, path / WEIGHTS_NAME)
    return path


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same weights in two shards with an index."""
    (folder / WEIGHTS_NAME).unlink()
    save_file({"a": np.ones((2, 3), np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(4, np.float32)}, folder / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_whole_folder_gives_its_hash_and_the_number_of_parameters(folder: Path) -> None:
    model = check_model_folder(folder)
    assert model.num_parameters == 10
    assert len(model.sha256) == 64
    assert check_model_folder(folder) == model


def test_shards_count_as_one_model(sharded: Path) -> None:
    assert check_model_folder(sharded).num_parameters == 10
    assert read_weight_shapes(sharded) == {"a": (2, 3), "b": (4,)}


def test_a_missing_shard_is_named_with_the_fix(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFolderProblem, match=r"lacks 1 of 2 .*model-00002-of-00002\.safetensors; copy them"):
        check_model_folder(sharded)


def test_a_shard_of_another_model_is_found_by_the_tensor_it_lacks(sharded: Path) -> None:
    save_file({"c": np.ones(4, np.float32)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelFolderProblem, match="lacks the tensor b"):
        check_model_folder(sharded)


@pytest.mark.parametrize("num_bytes_kept", [4, 40, -1])
def test_a_truncated_weight_file_is_named(folder: Path, num_bytes_kept: int) -> None:
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[:num_bytes_kept])
    with pytest.raises(ModelFolderProblem, match=r"model\.safetensors .*download or save it again"):
        check_model_folder(folder)


def test_a_file_that_is_no_safetensors_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes((8).to_bytes(8, "little") + b"not json" + b"x" * 40)
    with pytest.raises(ModelFolderProblem, match="not a safetensors file"):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS_NAME])
def test_each_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderProblem, match=name):
        check_model_folder(folder)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFolderProblem, match=r"config\.json is not JSON"):
        check_model_folder(folder)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderProblem, match="does not exist"):
        check_model_folder(tmp_path / "nowhere")


def test_changed_weights_change_the_hash_although_the_size_is_the_same(folder: Path) -> None:
    before = check_model_folder(folder).sha256
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}, folder / WEIGHTS_NAME)
    assert check_model_folder(folder).sha256 != before


def test_unchanged_files_are_not_read_again(folder: Path) -> None:
    before = check_model_folder(folder).sha256
    status = (folder / WEIGHTS_NAME).stat()
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(content)
    os.utime(folder / WEIGHTS_NAME, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check_model_folder(folder).sha256 == before
    (folder / MANIFEST_NAME).unlink()
    assert check_model_folder(folder).sha256 != before


def test_a_manifest_that_cannot_be_read_is_written_anew(folder: Path) -> None:
    before = check_model_folder(folder).sha256
    (folder / MANIFEST_NAME).write_text('{"format": 99}')
    assert check_model_folder(folder).sha256 == before
    assert json.loads((folder / MANIFEST_NAME).read_text())["format"] == embedded.MANIFEST_FORMAT


def test_the_base_model_never_replaces_a_folder_that_holds_something_else(folder: Path) -> None:
    check_model_folder(folder)
    with pytest.raises(ModelFolderProblem, match="not the embedded model"):
        materialise_base_model(folder, progress=lambda line: None)
    assert check_model_folder(folder).num_parameters == 10


def test_a_damaged_source_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / embedded.GGUF_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / embedded.GGUF_NAME).write_bytes(b"damaged")
    monkeypatch.syspath_prepend(tmp_path / "site")
    place = tmp_path / "models" / "base"
    with pytest.raises(ModelFolderProblem, match="--force-reinstall"):
        materialise_base_model(place, progress=lambda line: None)
    assert not place.exists()
    assert [path.name for path in place.parent.iterdir()] == [".base.lock"]


def test_an_interrupted_call_leaves_nothing_half_done(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "base"
    with pytest.raises(KeyboardInterrupt):
        materialise_base_model(place, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".base.lock"]
