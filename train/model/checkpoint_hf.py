"""Model folders in and out: a MoETransformer from a Hugging Face folder, and back, without a conversion step.

Reading maps the files into memory, checks every tensor's name, shape and values, and stacks the experts; writing splits
them again, shard by shard, beside its place, and renames. Only config.json and *.safetensors are read: no code and no
pickle of a folder is ever executed. hf_layout.py knows the families and their names.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import ProcessGroup

from train.files import sync_path
from train.model.config import MoEConfig
from train.model.embedded import INDEX_NAME, WEIGHTS_NAME, read_json_object, read_weight_shapes
from train.model.hf_layout import StoredTensor, from_hf_config, stored_tensors, to_hf_config
from train.model.transformer import MoETransformer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
IGNORED_ENDINGS = ("rotary_emb.inv_freq",)
"""Tensors that older files hold and that are computed here."""


class WeightProblem(ValueError):
    """The weights of a folder do not fit its configuration: names the tensor, what was found, and the fix."""


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ep_group: ProcessGroup | None = None,
) -> MoETransformer:
    """The model of `folder` (Llama, Mixtral, Qwen3-MoE, OLMoE, GLM-4.5-MoE, or our own layout), in evaluation mode.

    `dtype`: None keeps that of the files. With `ep_group` only this process's share of the experts is read.
    Raises ModelFolderProblem for a missing or damaged file, ValueError for a configuration that is not supported,
    WeightProblem for a tensor that is missing, of another shape, not finite, or of no part of the model.
    """
    config = _with_ends_of_text(from_hf_config(read_json_object(folder / "config.json")), folder)
    shapes = read_weight_shapes(folder)
    with _Weights(folder) as weights:
        stored_dtype = weights.read(next(iter(shapes))).dtype
        model = MoETransformer(config, device="meta", dtype=dtype or stored_dtype, ep_group=ep_group)
        model.to_empty(device=device)
        tie_head(model)
        _fill(model, weights, shapes, folder=folder)
    return model.eval()


def _with_ends_of_text(config: MoEConfig, folder: Path) -> MoEConfig:
    """generation_config.json may name further ends of text, as Qwen3's does: generation stops at any of them."""
    path = folder / "generation_config.json"
    named = read_json_object(path).get("eos_token_id") if path.is_file() else None
    further = [
        end for end in (named if isinstance(named, list) else [named]) if end not in (None, *config.eos_token_ids)
    ]
    return config.replace(eos_token_id=(*config.eos_token_ids, *further)) if further else config


def tie_head(model: MoETransformer) -> None:
    """Let head and embedding share one weight again, which moving a model off the meta device undoes."""
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


@torch.no_grad()
def _fill(model: MoETransformer, weights: "_Weights", shapes: dict[str, tuple[int, ...]], *, folder: Path) -> None:
    layout = read_json_object(folder / "config.json")["model_type"]
    parameters = model.state_dict()
    left = {name for name in shapes if not name.endswith(IGNORED_ENDINGS)}
    if model.config.tie_word_embeddings:
        left.discard("lm_head.weight")
    if layout == "glm4_moe":  # in any other family a layer too many is a wrong config.json
        left -= {name for name in left if _is_beyond_last_layer(name, model.config.num_hidden_layers)}
    for stored in stored_tensors(model.config, parameters=list(parameters), layout=layout):
        target = parameters[stored.parameter]
        first, count = model.expert_range if stored.expert is not None else (0, 0)
        read, names = _find(stored, shapes, num_experts=model.config.num_experts)
        if read is None:
            raise WeightProblem(
                f"{folder} lacks the tensor {stored.name} that config.json (model_type {layout}) asks for; copy the weights "
                "of the same model, or correct config.json"
            )
        left -= names
        if stored.expert is not None:
            if not first <= stored.expert < first + count:
                continue
            target = target[stored.expert - first]
        value = read(weights)
        if value.shape != target.shape:
            raise WeightProblem(
                f"{stored.name} in {folder} has shape {list(value.shape)}, config.json asks for {list(target.shape)}; copy "
                "config.json and weights of the same model"
            )
        if not torch.isfinite(value).all():
            raise WeightProblem(
                f"{stored.name} in {folder} holds {int((~torch.isfinite(value)).sum())} values that are NaN or infinite; "
                "take an earlier checkpoint"
            )
        target.copy_(value)
    if left:
        raise WeightProblem(
            f"{folder} holds {len(left)} tensors that this model has no place for, such as {min(left)}; "
            "take the config.json of these weights"
        )


def _find(
    stored: StoredTensor, shapes: dict[str, tuple[int, ...]], *, num_experts: int
) -> tuple[Callable[["_Weights"], Tensor] | None, set[str]]:
    """How to read one stored tensor: by its name, or out of the fused experts that transformers holds in memory."""
    name = stored.name
    if name not in shapes and stored.expert is None:
        name = stored.parameter  # what transformers calls a Mixtral router when it writes fused experts
    if name in shapes:
        return lambda weights: weights.read(name), {name}
    if stored.expert is not None:
        expert = stored.expert
        prefix, _, weight = stored.parameter.rpartition(".")
        fused = f"{prefix}.{'down_proj' if weight == 'w2' else 'gate_up_proj'}"
        if fused in shapes:
            if len(shapes[fused]) != 3 or shapes[fused][0] != num_experts:
                raise WeightProblem(
                    f"{fused} has shape {list(shapes[fused])}, config.json asks for three dimensions, {num_experts} "
                    "experts first; copy config.json and weights of the same model"
                )
            half = shapes[fused][1] // 2
            rows = {"w1": slice(0, half), "w3": slice(half, None), "w2": slice(None)}[weight]
            return lambda weights: weights.slice(fused)[expert, rows], {fused}
    return None, set()


def _is_beyond_last_layer(name: str, num_layers: int) -> bool:
    """Whether a tensor is of a layer after the last one: GLM keeps multi-token prediction there."""
    parts = name.split(".")
    return name.startswith("model.layers.") and parts[2].isdigit() and int(parts[2]) >= num_layers


class _Weights:
    """The safetensors files of a folder, mapped into memory and read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        if (folder / INDEX_NAME).is_file():
            self._file_of: dict[str, str] = read_json_object(folder / INDEX_NAME)["weight_map"]
            names = sorted(set(self._file_of.values()))
        else:
            names, self._file_of = [WEIGHTS_NAME], {}
        self._files = {name: safe_open(folder / name, framework="pt") for name in names}

    def __enter__(self) -> "_Weights":
        for file in self._files.values():
            file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files.values():
            file.__exit__(*error)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._file_of.get(name, WEIGHTS_NAME)].get_tensor(name)
        return tensor

    def slice(self, name: str) -> Any:
        """Reads only what is indexed."""
        return self._files[self._file_of.get(name, WEIGHTS_NAME)].get_slice(name)


def save_model(
    model: MoETransformer, folder: Path, *, max_shard_bytes: int = 5 * 10**9, tokenizer_from: Path | None = None
) -> Path:
    """Write config.json, generation_config.json and safetensors shards; transformers and vLLM load the folder.

    One tensor per expert; shards of at most `max_shard_bytes`. `tokenizer_from`: a folder whose tokenizer files are
    copied, which vLLM needs. A configuration that no public family computes is written in our own layout
    (hf_layout.explain_layout says why). The folder appears complete or not at all.
    Raises ValueError if `folder` holds files already, or if weights are NaN or infinite.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder = {folder} holds files already; name one that is empty or does not exist")
    if model.num_expert_ranks > 1:
        raise ValueError(
            "this process holds only its share of the experts; gather them before saving (CheckpointManager)"
        )
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_folder(model, partial, max_shard_bytes=max_shard_bytes, tokenizer_from=tokenizer_from)
        sync_path(*partial.iterdir(), partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        sync_path(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_folder(model: MoETransformer, folder: Path, *, max_shard_bytes: int, tokenizer_from: Path | None) -> None:
    config = model.config
    written = to_hf_config(config, dtype=str(model.model.embed_tokens.weight.dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    ends = {name: written.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {name: value for name, value in ends.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    parameters = model.state_dict()
    stored = list(stored_tensors(config, parameters=list(parameters), layout=written["model_type"]))

    def value_of(one: StoredTensor) -> Tensor:
        whole: Tensor = parameters[one.parameter]
        return whole if one.expert is None else whole[one.expert]

    shards = _plan_shards(stored, value_of, max_shard_bytes=max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for one in shard:
            value = value_of(one).detach()
            if not torch.isfinite(value).all():
                raise ValueError(f"{one.name} holds values that are NaN or infinite; nothing was written")
            tensors[one.name] = value.cpu().contiguous()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(value_of(one).numel() * value_of(one).element_size() for one in stored)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if tokenizer_from is not None:
        found = [tokenizer_from / name for name in TOKENIZER_FILES if (tokenizer_from / name).is_file()]
        if not found:
            raise ValueError(
                f"tokenizer_from = {tokenizer_from} holds no tokenizer files; name a model folder that does"
            )
        for path in found:
            shutil.copyfile(path, folder / path.name)


def _plan_shards(
    stored: list[StoredTensor], value_of: Callable[[StoredTensor], Tensor], *, max_shard_bytes: int
) -> list[list[StoredTensor]]:
    """Tensors in order, cut where a shard would grow beyond the limit; a tensor is never split."""

    def cut() -> Iterator[list[StoredTensor]]:
        shard: list[StoredTensor] = []
        size = 0
        for one in stored:
            value = value_of(one)
            num_bytes = value.numel() * value.element_size()
            if shard and size + num_bytes > max_shard_bytes:
                yield shard
                shard, size = [], 0
            shard.append(one)
            size += num_bytes
        yield shard

    return list(cut())
