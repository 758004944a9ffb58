"""Full weights of a version: the folder is written beside its place, checked against the base, hashed and loaded.

A version's folder holds the model in MODEL_FOLDER, complete: config.json is the base's but for the precision, tokenizer
files are copies of the base's, so that a version differs from the base in the numbers alone. That is what the check asks of
any folder before weights of it are served or trained on.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from train.adapt.base import BaseModelInMemory, load_model
from train.adapt.lora import adapter_sha256, attach_saved
from train.adapt.reference import MODEL_FOLDER
from train.files import sync_path
from train.model.checkpoint_hf import TOKENIZER_FILES
from train.model.embedded import HASHED_SUFFIXES, ModelFolderProblem, read_json_object, read_weight_shapes
from train.model.embedded import MANIFEST_NAME as CACHE_NAME
from train.model.hf_families import OWN_LAYOUT

FREE_KEYS = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path"})
"""Of config.json: what a version may say otherwise than its base."""
DTYPE_KEYS = ("dtype", "torch_dtype")
GENERATION_NAME = "generation_config.json"


class WeightsError(ValueError):
    """The folder does not hold weights of this base model: says what differs, and the fix."""


def is_weights_folder(folder: Path) -> bool:
    """Whether a version's folder holds full weights."""
    return (folder / MODEL_FOLDER).is_dir()


def check_trainable(folder: Path) -> None:
    """Raises WeightsError for a base model in our own layout, which neither transformers nor vLLM reads."""
    found = read_json_object(folder / "config.json").get("model_type")
    if found == OWN_LAYOUT:
        raise WeightsError(
            f"{folder} is a model in our own layout ({OWN_LAYOUT}), which transformers cannot load; for learning.target = "
            "'weights' take a configuration that a public family computes (train.model.hf_layout.explain_layout says why not)"
        )


def check_weights_folder(folder: Path, *, base_folder: Path) -> None:
    """Raises WeightsError unless the version's folder holds the base's architecture and tokenizer, with other numbers.

    Compared are config.json, the tokenizer's files, and names and shapes of all tensors: headers, no weights are read.
    """
    model = folder / MODEL_FOLDER
    try:
        found, wanted = (read_json_object(one / "config.json") for one in (model, base_folder))
        for key in sorted((found.keys() | wanted.keys()) - FREE_KEYS, key=lambda key: (key != "architectures", key)):
            if found.get(key) != wanted.get(key):
                raise WeightsError(
                    f"{model} has {key} = {found.get(key)!r} and the base model {base_folder} has {wanted.get(key)!r}: "
                    "a version has its base's architecture; train it again on this base"
                )
        tokenizers = [{name: _digest(one / name) for name in TOKENIZER_FILES} for one in (model, base_folder)]
        for name in TOKENIZER_FILES:
            if tokenizers[0][name] != tokenizers[1][name]:
                raise WeightsError(
                    f"{model / name} is not the tokenizer file of the base model, {base_folder / name}: prompts would become "
                    "other tokens; train the version again on this base"
                )
        shapes, base_shapes = read_weight_shapes(model), read_weight_shapes(base_folder)
    except ModelFolderProblem as error:
        raise WeightsError(str(error)) from error
    for name in sorted(shapes.keys() | base_shapes.keys()):
        if shapes.get(name) != base_shapes.get(name):
            raise WeightsError(
                f"{model} has {name} of shape {_said(shapes.get(name))} and the base model {base_folder} "
                f"{_said(base_shapes.get(name))}: the weights are of another model; train the version again on this base"
            )


def hash_weights(folder: Path) -> str:
    """Hash of the model in a version's folder: configuration, tokenizer, tensors. Raises WeightsError if it is incomplete."""
    model = folder / MODEL_FOLDER
    try:
        read_weight_shapes(model)
    except ModelFolderProblem as error:
        raise WeightsError(str(error)) from error
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()):
        if path.suffix in HASHED_SUFFIXES and path.name != CACHE_NAME:
            digest.update(f"{path.name}\0{_digest(path)}\n".encode())
    return digest.hexdigest()


def version_sha256(folder: Path) -> str:
    """Hash of what a version's folder holds: full weights, or an adapter."""
    return hash_weights(folder) if is_weights_folder(folder) else adapter_sha256(folder)


def save_weights(model: Any, *, folder: Path, base_folder: Path) -> str:
    """Write the model of a version into its folder, which must hold none yet; returns its `hash_weights`.

    MODEL_FOLDER appears complete or not at all. Raises WeightsError if it exists, or if weights are NaN or infinite.
    """
    place = folder / MODEL_FOLDER
    if place.exists():
        raise WeightsError(f"{place} exists already: save each version into a folder of its own")
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise WeightsError(f"{name} holds values that are NaN or infinite; nothing was written")
    partial = folder / f".{MODEL_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(partial)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        config = read_json_object(base_folder / "config.json")
        said = [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]
        (partial / "config.json").write_text(json.dumps(config | dict.fromkeys(said, dtype), indent=2) + "\n")
        (partial / GENERATION_NAME).unlink(missing_ok=True)  # the base's own, if it has one
        for name in (*TOKENIZER_FILES, GENERATION_NAME):
            if (base_folder / name).is_file():
                shutil.copyfile(base_folder / name, partial / name)
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes 0600
        sync_path(*partial.iterdir(), partial)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_path(folder)
    return hash_weights(folder)


def load_version(folder: Path | None, *, base: BaseModelInMemory) -> Any:
    """A model of its own with a version's weights, frozen, in the base's precision: full ones, or the base with the
    adapter merged into it; None: another copy of the base. Raises WeightsError, AdapterError for an unusable folder."""
    dtype: torch.dtype = next(base.model.parameters()).dtype
    if folder is not None and is_weights_folder(folder):
        check_weights_folder(folder, base_folder=base.folder)
        return load_model(folder / MODEL_FOLDER, dtype=dtype, device=base.device)
    model = load_model(base.folder, dtype=dtype, device=base.device)
    if folder is None:
        return model
    return attach_saved(model, {"merged": folder}).merge_and_unload().requires_grad_(False)


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
