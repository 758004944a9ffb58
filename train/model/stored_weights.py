"""StoredWeights: the tensors of a model folder's safetensors files, found by what a model asks for.

In: a folder, the parameters of a model. Out: for each stored tensor where it lies, checked by name and shape before anything
is allocated, and its values, checked to be finite. Files are mapped into memory; no pickle is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.model.embedded import INDEX_NAME, WEIGHTS_NAME, ModelFolderProblem, read_json_object
from train.model.hf_layout import StoredTensor, stored_tensors
from train.model.transformer import MoETransformer

STORED_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""safetensors' names of what weights may be stored as."""
Shapes = dict[str, tuple[int, ...]]
"""Of every stored tensor, by its name."""
IGNORED_ENDINGS = ("rotary_emb.inv_freq",)
"""Tensors that older files hold and that are computed here."""


class WeightProblem(ValueError):
    """The weights of a folder do not fit its configuration: names the tensor, what was found, and the fix."""


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor of the files, or a part of it: the rows of one expert out of a fused stack."""

    name: str
    shape: tuple[int, ...]
    part: tuple[int, slice] | None = None


def match_tensors(
    model: MoETransformer, shapes: Shapes, *, layout: str, folder: Path
) -> list[tuple[StoredTensor, TensorSource]]:
    """Where each tensor of the model lies in the files. Shapes are compared here, before anything is allocated."""
    parameters = model.state_dict()
    left = {name for name in shapes if not name.endswith(IGNORED_ENDINGS)}
    if model.config.tie_word_embeddings:
        left.discard("lm_head.weight")
    if layout == "glm4_moe":  # in any other family a layer too many is a wrong config.json
        left -= {name for name in left if _is_beyond_last_layer(name, model.config.num_hidden_layers)}
    sources = []
    for stored in stored_tensors(model.config, parameters=list(parameters), layout=layout):
        source = _find(stored, shapes, num_experts=model.config.num_experts)
        if source is None:
            raise WeightProblem(
                f"{folder} lacks the tensor {stored.name} that config.json (model_type {layout}) asks for; copy the weights "
                "of the same model, or correct config.json"
            )
        left.discard(source.name)
        wanted = tuple(parameters[stored.parameter].shape)[0 if stored.expert is None else 1 :]
        if source.shape != wanted:
            raise WeightProblem(
                f"{stored.name} in {folder} has shape {list(source.shape)}, config.json asks for {list(wanted)}; copy "
                "config.json and weights of the same model"
            )
        sources.append((stored, source))
    if left:
        raise WeightProblem(
            f"{folder} holds {len(left)} tensors that this model has no place for, such as {min(left)}; "
            "take the config.json of these weights"
        )
    return sources


def _find(stored: StoredTensor, shapes: Shapes, *, num_experts: int) -> TensorSource | None:
    """Where one stored tensor lies: under its name, or in the fused experts that transformers holds in memory."""
    name = stored.name
    if name not in shapes and stored.expert is None:
        name = stored.parameter  # what transformers calls a Mixtral router when it writes fused experts
    if name in shapes:
        return TensorSource(name, shapes[name])
    prefix, _, weight = stored.parameter.rpartition(".")
    fused = f"{prefix}.{'down_proj' if weight == 'w2' else 'gate_up_proj'}"
    if stored.expert is None or fused not in shapes:
        return None
    shape = shapes[fused]
    if len(shape) != 3 or shape[0] != num_experts:
        raise WeightProblem(
            f"{fused} has shape {list(shape)}, config.json asks for three dimensions, {num_experts} experts first; copy "
            "config.json and weights of the same model"
        )
    half = shape[1] // 2
    rows = {"w1": slice(0, half), "w3": slice(half, shape[1]), "w2": slice(0, shape[1])}[weight]
    return TensorSource(fused, (rows.stop - rows.start, shape[2]), (stored.expert, rows))


def _is_beyond_last_layer(name: str, num_layers: int) -> bool:
    """Whether a tensor is of a layer after the last one: GLM keeps multi-token prediction there."""
    parts = name.split(".")
    return name.startswith("model.layers.") and parts[2].isdigit() and int(parts[2]) >= num_layers


class StoredWeights:
    """The safetensors files of a folder, mapped into memory and read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if (folder / INDEX_NAME).is_file():
            self._file_of: dict[str, str] = read_json_object(folder / INDEX_NAME)["weight_map"]
            names = sorted(set(self._file_of.values()))
        else:
            names, self._file_of = [WEIGHTS_NAME], {}
        try:
            self._files = {name: safe_open(folder / name, framework="pt") for name in names}
        except SafetensorError as error:
            raise ModelFolderProblem(
                f"weights of {folder} are damaged ({error}): download or save them again"
            ) from error

    def __enter__(self) -> "StoredWeights":
        for file in self._files.values():
            file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files.values():
            file.__exit__(*error)

    def dtype_of(self, name: str) -> torch.dtype:
        """Raises WeightProblem for one that holds no weights: integers, bits, float8."""
        return self._open(name)[1]

    def read(self, source: TensorSource) -> Tensor:
        """The tensor, or its part: only that is read. Raises WeightProblem as dtype_of does, and for NaN and infinity."""
        stored, _ = self._open(source.name)
        tensor: Tensor = stored[:] if source.part is None else stored[source.part]
        if num_bad := int((~torch.isfinite(tensor)).sum()):
            raise WeightProblem(
                f"{source.name} in {self._folder} holds {num_bad} values that are NaN or infinite; take an earlier checkpoint"
            )
        return tensor

    def _open(self, name: str) -> tuple[Any, torch.dtype]:
        stored = self._files[self._file_of.get(name, WEIGHTS_NAME)].get_slice(name)
        dtype = stored.get_dtype()
        if dtype not in STORED_DTYPES:
            raise WeightProblem(
                f"{name} in {self._folder} is stored as {dtype}; only {', '.join(STORED_DTYPES)} are read: take weights that "
                "are not quantized"
            )
        return stored, STORED_DTYPES[dtype]
