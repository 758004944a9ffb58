"""The check of an adapter's folder before a backend sees it: files, rank, and whether it was made for this base model.

vLLM copies smaller weights into larger slots without a word, and a load that fails half-way stays registered; so what
can be seen from the headers is refused here, with the engine untouched.
"""

import json
import re
from pathlib import Path

from serve.engine import AdapterRef, UnknownAdapterError
from train.model.embedded import ModelFolderProblem, read_safetensors_shapes

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
BaseShapes = dict[str, tuple[int, ...]]
"""Weight shapes of the base model by name (train.model.embedded.read_weight_shapes)."""

_LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight$")


def check_adapter_folder(adapter: AdapterRef, *, base_shapes: BaseShapes, max_rank: int) -> None:
    """Raise UnknownAdapterError, naming adapter, fault and fix, if the folder cannot be served on this base model."""
    if adapter.kind == "weights":
        raise UnknownAdapterError(
            f"version {adapter.name!r} has full weights, and this engine takes adapters only: set engine.max_weights to 2 or "
            "more (the version that serves and its candidate)"
        )
    if adapter.number < 1:
        raise UnknownAdapterError(f"adapter {adapter.name!r} has number {adapter.number}: the ledger counts from 1")
    if max_rank == 0:
        raise UnknownAdapterError(
            f"adapter {adapter.name!r}: this engine takes none; set engine.max_loras to 1 or more"
        )
    folder = Path(adapter.folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UnknownAdapterError(
                f"adapter {adapter.name!r} has no {name} in {folder}: name a folder that PEFT's save_pretrained wrote"
            )
    try:
        is_lora = json.loads((folder / CONFIG_NAME).read_bytes()).get("peft_type") == "LORA"
        shapes = read_safetensors_shapes(folder / WEIGHTS_NAME)
    except (ModelFolderProblem, ValueError, AttributeError) as error:
        raise UnknownAdapterError(f"adapter {adapter.name!r} cannot be read: {error}") from error
    if not is_lora:
        raise UnknownAdapterError(f"adapter {adapter.name!r} is not a LoRA adapter: train it with peft.LoraConfig")
    for key, shape in shapes.items():
        match = _LORA_KEY.match(key)
        if match is None or len(shape) != 2:
            raise UnknownAdapterError(
                f"adapter {adapter.name!r} holds {key!r}, which is not a LoRA matrix: train it without modules_to_save "
                "and bias"
            )
        rank = shape[0] if match["part"] == "A" else shape[1]
        if rank > max_rank:
            raise UnknownAdapterError(
                f"adapter {adapter.name!r} has rank {rank}, the engine takes at most {max_rank}: raise "
                "engine.max_lora_rank or train with a smaller r"
            )
        _check_module(adapter, match["module"], part=match["part"], shape=shape, base_shapes=base_shapes)


def _check_module(
    adapter: AdapterRef, module: str, *, part: str, shape: tuple[int, ...], base_shapes: BaseShapes
) -> None:
    """A is [rank, in], B is [out, rank]; both must fit the base weight [out, in]."""
    if ".experts" in module or module.endswith(("lm_head", "embed_tokens")):
        return  # stacked or tied: stored under other names or in other shapes than the module has in memory
    base = base_shapes.get(f"{module}.weight")
    if base is None:
        raise UnknownAdapterError(
            f"adapter {adapter.name!r} changes {module!r}, which this base model does not have: it was trained on "
            "another base model"
        )
    found, expected = (shape[1], base[1]) if part == "A" else (shape[0], base[0])
    if found != expected:
        raise UnknownAdapterError(
            f"adapter {adapter.name!r} has width {found} at {module!r}, this base model has {expected}: it was trained "
            "on another base model"
        )
