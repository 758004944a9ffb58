"""The bundle: its name is its content, and an altered folder is found out."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from autonomous.versions.bundle import (
    Bundle,
    BundleProblem,
    base_bundle,
    digest_of,
    hash_tokenizer,
    load_bundle,
    version_id_of,
    write_bundle,
)
from tests.unit.autonomous.ledger_life import make_bundle
from train.adapt.lora import adapter_sha256
from train.model.embedded import check_model_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / CONFIG).write_text('{"r": 8}')
    return folder


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    made = make_bundle("v-parent", mark="one", episodes=("a", "b"))
    return made.model_copy(update={"adapter_sha256": adapter_sha256(folder)})


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_written_bundle_loads_as_it_was_and_its_files_are_read_only(folder: Path, bundle: Bundle):
    version_id = write_bundle(folder, bundle)
    assert version_id == version_id_of(bundle)
    assert load_bundle(folder, version_id=version_id) == bundle
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
        WEIGHTS: "0o444",
        CONFIG: "0o444",
        "manifest.json": "0o444",
    }


def test_writing_the_same_bundle_again_changes_nothing(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    before = _written(folder)
    assert write_bundle(folder, bundle) == version_id_of(bundle)
    assert _written(folder) == before


def _written(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Inode, size and time of the last write of each file; reading a file moves none of them."""
    stats = {path: path.stat() for path in folder.iterdir()}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def test_another_bundle_in_the_same_folder_is_refused(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    with pytest.raises(BundleProblem, match="expected v-"):
        write_bundle(folder, bundle.model_copy(update={"config": {"mark": "two"}}))
    assert load_bundle(folder) == bundle


def test_the_frozen_original_needs_no_adapter(tmp_path: Path):
    bundle = make_bundle(None, mark="base")
    write_bundle(tmp_path, bundle)
    assert load_bundle(tmp_path) == bundle


def test_the_name_is_the_same_from_the_bundle_and_from_its_json(bundle: Bundle):
    assert version_id_of(json.loads(bundle.model_dump_json())) == version_id_of(bundle)
    assert len(version_id_of(bundle)) == 18


@pytest.mark.parametrize(
    "change",
    [
        {"base_sha256": "0" * 64},
        {"adapter_sha256": "0" * 64},
        {"tokenizer_sha256": "0" * 64},
        {"code_sha256": "0" * 64},
        {"config": {"mark": "two"}},
        {"parent": "v-other"},
        {"data": make_bundle("v", mark="x", episodes=("z",)).data},
    ],
)
def test_each_part_of_the_manifest_changes_the_name(bundle: Bundle, change: dict[str, object]):
    assert version_id_of(bundle.model_copy(update=change)) != version_id_of(bundle)


@given(st.lists(st.text()))
@settings(max_examples=30)
def test_a_digest_of_ids_does_not_depend_on_their_order_or_repetition(ids: list[str]):
    assert digest_of(ids) == digest_of([*reversed(ids), *ids])


def test_a_digest_of_ids_does_not_confuse_where_one_id_ends():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])


@pytest.mark.parametrize("field", ["base_sha256", "adapter_sha256", "tokenizer_sha256", "code_sha256"])
@pytest.mark.parametrize("value", ["", "abc", "A" * 64, "a" * 63])
def test_a_hash_that_is_none_is_refused_and_named(bundle: Bundle, field: str, value: str):
    with pytest.raises(ValueError, match=field):
        Bundle.model_validate({**bundle.model_dump(), field: value})


def test_a_manifest_with_unknown_data_is_refused(bundle: Bundle):
    with pytest.raises(ValueError, match="num_shards"):
        Bundle.model_validate({**bundle.model_dump(), "data": {**bundle.data, "num_shards": 1}})


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_an_altered_file_is_named_with_both_hashes(folder: Path, bundle: Bundle, name: str):
    write_bundle(folder, bundle)
    overwrite(folder / name, b"other")
    with pytest.raises(
        BundleProblem, match=rf"{name} of v-.* was altered: sha256 is [0-9a-f]{{64}}, expected [0-9a-f]"
    ):
        load_bundle(folder)


def test_a_missing_file_is_named(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BundleProblem, match=f"{WEIGHTS}.*it is missing"):
        load_bundle(folder)


def test_an_added_file_is_named_because_an_engine_might_load_it(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    (folder / "new_embeddings.safetensors").write_bytes(b"x")
    with pytest.raises(BundleProblem, match=r"new_embeddings.safetensors.*expected no such file"):
        load_bundle(folder)


def test_a_link_is_refused_because_its_target_may_change(tmp_path: Path, folder: Path, bundle: Bundle):
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleProblem, match="is a link"):
        write_bundle(folder, bundle)


def test_an_altered_manifest_no_longer_has_its_name(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["bundle"]["config"]["mark"] = "two"
    overwrite(folder / "manifest.json", json.dumps(manifest).encode())
    with pytest.raises(BundleProblem, match="was altered"):
        load_bundle(folder)


def test_a_whole_bundle_under_another_versions_name_is_refused(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    with pytest.raises(BundleProblem, match="expected v-0"):
        load_bundle(folder, version_id="v-0")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"format": 1, "bundle": {}}'])
def test_a_damaged_manifest_is_a_clear_error(folder: Path, bundle: Bundle, content: bytes):
    write_bundle(folder, bundle)
    overwrite(folder / "manifest.json", content)
    with pytest.raises(BundleProblem, match=r"manifest.json is damaged"):
        load_bundle(folder)


def test_a_manifest_of_a_newer_program_is_refused(folder: Path, bundle: Bundle):
    write_bundle(folder, bundle)
    manifest = {**json.loads((folder / "manifest.json").read_text()), "format": 2}
    overwrite(folder / "manifest.json", json.dumps(manifest).encode())
    with pytest.raises(BundleProblem, match="upgrade the program"):
        load_bundle(folder)


def test_a_folder_without_a_manifest_is_not_a_bundle(folder: Path):
    with pytest.raises(BundleProblem, match="not a bundle"):
        load_bundle(folder)


def test_an_adapter_that_is_not_the_one_that_was_trained_is_not_written(folder: Path, bundle: Bundle):
    (folder / WEIGHTS).write_bytes(b"changed after training")
    with pytest.raises(BundleProblem, match="changed after training"):
        write_bundle(folder, bundle)
    assert not (folder / "manifest.json").exists()


def test_what_a_killed_writer_left_does_not_get_into_the_bundle(folder: Path, bundle: Bundle):
    (folder / ".manifest.json.4711").write_text("half")
    write_bundle(folder, bundle)
    assert load_bundle(folder) == bundle


def test_the_manifest_of_the_frozen_original_names_the_model_folders_content(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(2, dtype=np.float32)}, tmp_path / "model.safetensors")
    bundle = base_bundle(tmp_path, code_sha256="c" * 64)
    assert bundle.base_sha256 == check_model_folder(tmp_path).sha256
    assert (bundle.adapter_sha256, bundle.parent, bundle.data["num_episodes"]) == (None, None, 0)


def test_the_tokenizers_hash_follows_its_files_and_ignores_the_weights(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    first = hash_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"y")
    assert hash_tokenizer(tmp_path) == first
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert hash_tokenizer(tmp_path) != first
    with pytest.raises(BundleProblem, match="no tokenizer"):
        hash_tokenizer(tmp_path / "none")
