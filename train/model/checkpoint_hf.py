"""Model folders in and out: a MoETransformer from a Hugging Face folder, and back, without a conversion step.

Reading maps the files into memory, checks every tensor's name, shape and values, and stacks the experts; writing splits
them again, shard by shard, beside its place, and renames. Only config.json and *.safetensors are read: no code and no
pickle of a folder is ever executed. hf_layout.py knows the families and their names.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from train.files import sync_path
from train.model.config import MoEConfig
from train.model.embedded import INDEX_NAME, WEIGHTS_NAME, read_json_object, read_weight_shapes
from train.model.hf_layout import StoredTensor, from_hf_config, stored_tensors, to_hf_config
from train.model.ranks import ALONE, ModelRanks
from train.model.stored_weights import Shapes, StoredWeights, TensorSource, WeightProblem, match_tensors
from train.model.transformer import MoETransformer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"
FREE_FIELDS = frozenset(
    {
        "router", "expert_kernel", "initializer_range", "max_position_embeddings", "bos_token_id", "eos_token_id",
        "pad_token_id",
    }
)  # fmt: skip
FIXED_ROUTER_FIELDS = {"score", "renormalise", "scaling_factor"}
"""Of MoEConfig: what may change when training goes on from a folder, but for these fields of the router."""


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ranks: ModelRanks = ALONE,
) -> MoETransformer:
    """The model of `folder` (Llama, Mixtral, Qwen3-MoE, OLMoE, GLM-4.5-MoE, or our own layout), in evaluation mode.

    `dtype`: None keeps that of the embedding in the files. `ranks`: expert parallel ones; only this process's
    share of the experts is read.
    Raises ModelFolderProblem for a missing or damaged file, ValueError for a configuration that is not supported,
    WeightProblem for a tensor that is missing, of another shape or dtype, not finite, or of no part of the model.
    """
    written = read_json_object(folder / "config.json")
    config = _with_ends_of_text(from_hf_config(written), folder)
    shapes = read_weight_shapes(folder)
    _check_ends(config, shapes, folder=folder)
    with StoredWeights(folder) as weights:
        model = MoETransformer(config, device="meta", dtype=dtype or weights.dtype_of(EMBEDDING), ranks=ranks)
        sources = match_tensors(model, shapes, layout=written["model_type"], folder=folder)
        model.to_empty(device=device)
        model.tie_head()
        _fill(model, weights, sources, folder=folder)
    return model.eval()


@torch.no_grad()
def load_boxes(folder: Path, config: MoEConfig, boxes: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> None:
    """Fill parts of parameters from a folder: for each the parameter's name, where the part begins, the part.

    `config` is the model that is trained. Raises what load_model and check_same_model raise.
    """
    layout = check_same_model(folder, config)
    shapes = read_weight_shapes(folder)
    with StoredWeights(folder) as weights:
        sources = match_tensors(MoETransformer(config, device="meta"), shapes, layout=layout, folder=folder)
        source_of = {(stored.parameter, stored.expert): source for stored, source in sources}
        for name, offsets, part in boxes:
            if part.dim() == 3:
                for index, matrix in enumerate(part):
                    _fill_box(matrix, offsets[1:], weights.read(source_of[name, offsets[0] + index]))
            else:
                _fill_box(part, offsets, weights.read(source_of[name, None]))


def check_same_model(folder: Path, config: MoEConfig) -> str:
    """The layout of a folder whose weights fit `config`: what decides outputs has to be the same, but how the router balances
    and how long a sequence may be are free. Raises WeightProblem for another model, and what reading a folder raises."""
    written = read_json_object(folder / "config.json")
    found = from_hf_config(written)
    ours, theirs = _deciding(config), _deciding(found)
    for name, value in ours.items():
        if theirs[name] != value:
            raise WeightProblem(
                f"{name} = {value!r} here, and {theirs[name]!r} in {folder}: take the folder's (model.preset names it), or "
                "begin from another model"
            )
    layout: str = written["model_type"]
    return layout


def _deciding(config: MoEConfig) -> dict[str, Any]:
    """What outputs follow from, beside the weights."""
    router = {f"router.{name}": value for name, value in config.router.model_dump(include=FIXED_ROUTER_FIELDS).items()}
    return {name: value for name, value in config.model_dump().items() if name not in FREE_FIELDS} | router


def _fill_box(part: Tensor, offsets: tuple[int, ...], whole: Tensor) -> None:
    part.copy_(whole[tuple(slice(at, at + size) for at, size in zip(offsets, part.shape, strict=True))])


def _with_ends_of_text(config: MoEConfig, folder: Path) -> MoEConfig:
    """generation_config.json may name further ends of text, as Qwen3's does: generation stops at any of them."""
    path = folder / "generation_config.json"
    named = read_json_object(path).get("eos_token_id") if path.is_file() else None
    further = [
        end for end in (named if isinstance(named, list) else [named]) if end not in (None, *config.eos_token_ids)
    ]
    return config.replace(eos_token_id=(*config.eos_token_ids, *further)) if further else config


def _check_ends(config: MoEConfig, shapes: Shapes, *, folder: Path) -> None:
    """Whether embedding and last layer are there: cheap, before a model of a mistaken size is described."""
    last = f"model.layers.{config.num_hidden_layers - 1}."
    for missing in [name for name in (EMBEDDING, last) if not any(found.startswith(name) for found in shapes)]:
        raise WeightProblem(
            f"{folder} lacks {missing}, which config.json asks for (num_hidden_layers = {config.num_hidden_layers}); copy "
            "config.json and weights of the same model"
        )


@torch.no_grad()
def _fill(
    model: MoETransformer, weights: StoredWeights, sources: list[tuple[StoredTensor, TensorSource]], *, folder: Path
) -> None:
    """Copy what this process holds."""
    parameters = model.state_dict()
    first, count = model.expert_range
    for stored, source in sources:
        target = parameters[stored.parameter]
        if stored.expert is not None:
            if not first <= stored.expert < first + count:
                continue
            target = target[stored.expert - first]
        target.copy_(weights.read(source))


def save_model(
    model: MoETransformer, folder: Path, *, max_shard_bytes: int = 5 * 10**9, tokenizer_from: Path | None = None
) -> Path:
    """Write config.json, generation_config.json and safetensors shards; transformers and vLLM load the folder.

    One tensor per expert; shards of at most `max_shard_bytes`. `tokenizer_from`: a folder whose tokenizer files are
    copied, which vLLM needs. A configuration that no public family computes is written in our own layout
    (hf_layout.explain_layout says why). The folder appears complete or not at all.
    Raises ValueError if `folder` holds files already, or if weights are NaN or infinite.
    """
    if not model.is_whole:
        raise ValueError(
            "this process holds only a part of the model; save a checkpoint and export that (CheckpointManager)"
        )
    parameters: dict[str, Tensor] = model.state_dict()
    stored = {name: StoredShape(tuple(tensor.shape), tensor.dtype) for name, tensor in parameters.items()}

    def read(name: str, expert: int | None) -> Tensor:
        return parameters[name] if expert is None else parameters[name][expert]

    return write_model_folder(
        folder, model.config, stored, read, max_shard_bytes=max_shard_bytes, tokenizer_from=tokenizer_from
    )


@dataclass(frozen=True, slots=True)
class StoredShape:
    """Of a tensor of the model, all its experts together."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def write_model_folder(
    folder: Path,
    config: MoEConfig,
    parameters: Mapping[str, StoredShape],
    read: Callable[[str, int | None], Tensor],
    *,
    max_shard_bytes: int = 5 * 10**9,
    tokenizer_from: Path | None = None,
) -> Path:
    """Write the folder of a model of which one shard at a time is in memory: see save_model.

    `parameters`: those of MoETransformer.state_dict(). `read`: one of them, or one expert of it.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes = {max_shard_bytes}: give the size of a file, such as 5 * 10**9")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder = {folder} holds files already; name one that is empty or does not exist")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        layout = _write_configs(config, partial, dtype=parameters[EMBEDDING].dtype)
        stored = list(stored_tensors(config, parameters=list(parameters), layout=layout))
        _write_shards(partial, stored, parameters, read, max_shard_bytes=max_shard_bytes)
        if tokenizer_from is not None:
            _copy_tokenizer(tokenizer_from, partial)
        sync_path(*partial.iterdir(), partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        sync_path(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_configs(config: MoEConfig, folder: Path, *, dtype: torch.dtype) -> str:
    """config.json and generation_config.json. Returns the layout."""
    written = to_hf_config(config, dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    ends = {name: written.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {name: value for name, value in ends.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return str(written["model_type"])


def _write_shards(
    folder: Path,
    stored: list[StoredTensor],
    parameters: Mapping[str, StoredShape],
    read: Callable[[str, int | None], Tensor],
    *,
    max_shard_bytes: int,
) -> None:
    def size_of(one: StoredTensor) -> int:
        whole = parameters[one.parameter]
        return math.prod(whole.shape[0 if one.expert is None else 1 :]) * whole.dtype.itemsize

    shards = list(_cut(stored, size_of, max_shard_bytes=max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for one in shard:
            value = read(one.parameter, one.expert).detach()
            if not torch.isfinite(value).all():
                raise ValueError(f"{one.name} holds values that are NaN or infinite; nothing was written")
            tensors[one.name] = value.cpu().contiguous()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(size_of(one) for one in stored)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise ValueError(f"tokenizer_from = {source} holds no tokenizer files; name a model folder that does")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def _cut(
    stored: list[StoredTensor], size_of: Callable[[StoredTensor], int], *, max_shard_bytes: int
) -> Iterator[list[StoredTensor]]:
    """Tensors in order, cut where a shard would grow beyond the limit; a tensor is never split."""
    shard: list[StoredTensor] = []
    size = 0
    for one in stored:
        if shard and size + size_of(one) > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(one)
        size += size_of(one)
    yield shard
