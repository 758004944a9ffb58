"""A committed checkpoint as a Hugging Face folder, which transformers loads and vLLM serves.

In: a checkpoint of any plan. Out: config.json, safetensors files with one tensor per expert, and the tokenizer. One file's
tensors are in memory at a time.
"""

from pathlib import Path

import torch
from torch import Tensor

from train.dtype import FixedDtype
from train.model.checkpoint_hf import StoredShape, write_model_folder
from train.model.config import MoEConfig
from train.model.transformer import MoETransformer
from train.pretrain.checkpoint_files import CheckpointError, CheckpointInfo
from train.pretrain.checkpoint_load import CheckpointReader, verify


def model_of(info: CheckpointInfo) -> MoEConfig:
    """The model that the run of this checkpoint trains."""
    return MoEConfig.model_validate(info.manifest.shared["config"]["model"])


def export_checkpoint(
    info: CheckpointInfo,
    folder: Path,
    *,
    config: MoEConfig,
    tokenizer_from: Path | None = None,
    dtype: FixedDtype = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write the model of `info` to `folder`, which appears complete or not at all. Selection biases stay float32.

    Raises DamagedFile for a file that is not as it was saved; CheckpointError for a checkpoint of another model than
    `config`; ValueError as save_model does.
    """
    verify(info)
    state = MoETransformer(config, device="meta").state_dict()
    with CheckpointReader(info) as reader:
        kinds = {name: kind for kind, name in reader.tensors if kind in ("weight", "buffer")}
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        for name, tensor in state.items():
            saved = reader.tensors.get((kinds.get(name, ""), name))
            if saved is None or saved.shape != tuple(tensor.shape):
                found = "is missing" if saved is None else f"has shape {list(saved.shape)}"
                raise CheckpointError(
                    f"{info.name}: {name} {found}, the configuration asks for {list(tensor.shape)}; export with the model "
                    "that was trained"
                )

        def read(name: str, expert: int | None) -> Tensor:
            shape, target = state[name].shape, parameters[name].dtype
            extent, first = (shape, 0) if expert is None else ((1, *shape[1:]), expert)
            value = torch.empty(extent, dtype=reader.tensors[kinds[name], name].dtype)
            reader.read_into(value, kind=kinds[name], name=name, offsets=(first, *(0 for _ in shape[1:])))
            return (value if expert is None else value[0]).to(target)

        stored: torch.dtype = getattr(torch, dtype)
        parameters = {
            name: StoredShape(tuple(tensor.shape), stored if kinds[name] == "weight" else torch.float32)
            for name, tensor in state.items()
        }
        return write_model_folder(
            folder, config, parameters, read, max_shard_bytes=max_shard_bytes, tokenizer_from=tokenizer_from
        )
