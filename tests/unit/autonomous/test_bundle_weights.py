"""A bundle of full weights: its name, its folder, and that bundles of adapters kept theirs."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from autonomous.versions.bundle import (
    Bundle,
    BundleProblem,
    kind_of,
    load_bundle,
    version_id_of,
    write_bundle,
)
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.ledger_life import make_bundle
from train.adapt.base import load_base_model, pick_device
from train.adapt.reference import MODEL_FOLDER
from train.adapt.weights import hash_weights, load_version, save_weights
from train.model.embedded import MANIFEST_NAME, check_model_folder


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder with the model of a base, and what the learner writes beside it."""
    llama = write_tiny_llama(tmp_path / "llama")
    base = load_base_model(llama, dtype="float32", device=pick_device("cpu"))
    save_weights(load_version(None, base=base), folder=tmp_path / "version", base_folder=llama)
    (tmp_path / "version" / "training.json").write_text("{}")
    return tmp_path / "version"


def bundle_of(folder: Path) -> Bundle:
    made = make_bundle("v-parent", mark="one")
    return Bundle.model_validate(made.model_dump() | {"adapter_sha256": None, "weights_sha256": hash_weights(folder)})


def test_names_of_versions_with_adapters_and_of_the_original_are_what_they_were_before_weights() -> None:
    """Pinned: written by the program before there were versions of weights. Ledgers hold such names."""
    adapter = make_bundle("v-parent", mark="one", episodes=("a", "b"))
    assert version_id_of(adapter) == "v-cd99d12853509d6c"
    assert version_id_of(make_bundle(None, mark="base")) == "v-c23afd6329769dfd"
    assert "weights_sha256" not in adapter.model_dump(mode="json")
    assert "weights_sha256" not in json.loads(adapter.model_dump_json())
    assert Bundle.model_validate(adapter.model_dump(mode="json")) == adapter


def test_a_version_of_weights_loads_as_it_was_written_and_its_name_follows_the_weights(version: Path) -> None:
    bundle = bundle_of(version)
    version_id = write_bundle(version, bundle)
    assert load_bundle(version, version_id=version_id) == bundle
    other = bundle.model_copy(update={"weights_sha256": "0" * 64})
    assert version_id_of(other) != version_id != version_id_of(make_bundle("v-parent", mark="one"))
    assert oct((version / MODEL_FOLDER / "model.safetensors").stat().st_mode & 0o777) == "0o444"


def test_what_a_check_of_the_model_keeps_in_the_folder_does_not_alter_the_bundle(version: Path) -> None:
    """Engine, learner and panel look at the folder, and keep the hashes of its files there."""
    version_id = write_bundle(version, bundle_of(version))
    check_model_folder(version / MODEL_FOLDER)
    assert (version / MODEL_FOLDER / MANIFEST_NAME).is_file()
    assert load_bundle(version, version_id=version_id).weights_sha256 == hash_weights(version)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_altered_model_is_found_out(version: Path, name: str) -> None:
    write_bundle(version, bundle_of(version))
    path = version / MODEL_FOLDER / name
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleProblem, match=rf"{name} of v-.* was altered"):
        load_bundle(version)


def test_weights_that_are_not_those_that_were_trained_are_not_written(version: Path) -> None:
    with pytest.raises(BundleProblem, match=r"the model in .* changed after training"):
        write_bundle(version, bundle_of(version).model_copy(update={"weights_sha256": "0" * 64}))
    assert not (version / "manifest.json").exists()


def test_a_bundle_is_an_adapter_or_weights_and_says_which() -> None:
    made = make_bundle("v-parent", mark="one")
    with pytest.raises(ValidationError, match="a version is an adapter or full weights"):
        Bundle.model_validate(made.model_dump() | {"weights_sha256": "0" * 64})
    weights = made.model_copy(update={"adapter_sha256": None, "weights_sha256": "0" * 64})
    manifests = (None, made.model_dump(mode="json"), weights.model_dump(mode="json"))
    assert [kind_of(manifest) for manifest in manifests] == ["adapter", "adapter", "weights"]
