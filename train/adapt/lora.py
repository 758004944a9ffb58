"""Low-rank adapters: W' = W + (alpha / r) B A. W is frozen and B is zero at the start: a fresh adapter changes nothing.

`LoRALayer` is the layer by itself. Whole models are adapted through PEFT (`attach_adapter`, `detach_adapter`), in the
folder format that vLLM loads (`save_adapter`): adapter_config.json and adapter_model.safetensors.
Source: LoRA, arXiv:2106.09685.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from train.files import sync_path

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
DEFAULT_NAME = "default"
"""Of the adapter of a model that has one."""


class AdapterError(ValueError):
    """The adapter folder cannot be used: says what is wrong with it and the fix."""


class LoRAConfig(BaseModel):
    """Shape of an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(8, gt=0)
    """Rank."""
    alpha: int = Field(32, gt=0)
    """Scale numerator: the update is (alpha / r) B A."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter: module name endings, or all but the output layer."""
    seed: int = 0
    """Seed of A's initial values."""


class LoRALayer(nn.Module):
    """A linear layer with a low-rank update; `base` is frozen.

    Shapes: lora_a Float[r in], lora_b Float[out r]. A starts uniform within 1 / sqrt(in) (PEFT's kaiming_uniform
    with a = sqrt 5), B at zero.
    """

    def __init__(self, base: nn.Linear, *, r: int, alpha: int, seed: int) -> None:
        super().__init__()
        if not 0 < r <= min(base.in_features, base.out_features):
            raise ValueError(
                f"r is {r}, but the layer is {base.in_features} -> {base.out_features}: "
                f"choose r from 1 to {min(base.in_features, base.out_features)}"
            )
        self.base = base.requires_grad_(False)
        self.scale = alpha / r
        bound = 1 / math.sqrt(base.in_features)
        start = torch.empty(r, base.in_features).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.lora_a = nn.Parameter(start.to(device=base.weight.device, dtype=base.weight.dtype))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, r))
        self._original: Tensor | None = None

    @property
    def is_merged(self) -> bool:
        """Whether the update is inside the base weight now."""
        return self._original is not None

    def delta(self) -> Float[Tensor, "out in"]:
        """(alpha / r) B A."""
        return self.scale * (self.lora_b @ self.lora_a)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """W' x + bias, merged or not."""
        output: Tensor = self.base(x)
        if self.is_merged:
            return output
        return output + self.scale * nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base weight: the forward pass then costs what the base costs. Idempotent."""
        if self._original is None:
            self._original = self.base.weight.detach().clone()
            self.base.weight.add_(self.delta())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weight back, byte for byte: it was kept, subtraction would round. Idempotent."""
        if self._original is not None:
            self.base.weight.copy_(self._original)
            self._original = None


def attach_adapter(
    model: nn.Module,
    config: LoRAConfig,
    *,
    parent: Path | None = None,
    name: str = DEFAULT_NAME,
    is_float32: bool = False,
) -> Any:
    """Wrap `model` in a PeftModel with one trainable adapter, in the base's precision or in float32.

    The adapter starts as a copy of the folder `parent`, or fresh from `config.seed`. `model`'s layers are wrapped in
    place: `detach_adapter` undoes it. Raises: AdapterError if `parent` is unreadable or of another shape.
    """
    from peft import PeftModel, get_peft_model

    if parent is not None:
        _check_parent(parent, config=config)
        return PeftModel.from_pretrained(
            model, str(parent), adapter_name=name, is_trainable=True, autocast_adapter_dtype=is_float32,
            local_files_only=True,
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return get_peft_model(model, _peft_config(config), adapter_name=name, autocast_adapter_dtype=is_float32)


def add_adapter(adapted: Any, config: LoRAConfig, *, name: str, is_float32: bool = False) -> None:
    """Give a PeftModel one more adapter, fresh from `config.seed`. Which one is active does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted.add_adapter(name, _peft_config(config), autocast_adapter_dtype=is_float32)


def attach_saved(model: nn.Module, adapters: Mapping[str, Path]) -> Any:
    """Wrap `model` in a PeftModel with saved adapters under the given names, frozen, in the base's precision.

    The first is active; `set_adapter(name)` switches. Raises: AdapterError for an incomplete folder.
    """
    from peft import PeftModel

    adapted: Any = None
    for name, folder in adapters.items():
        adapter_sha256(folder)
        options = {"adapter_name": name, "autocast_adapter_dtype": False, "local_files_only": True}
        if adapted is None:
            adapted = PeftModel.from_pretrained(model, str(folder), **options)
        else:
            adapted.load_adapter(str(folder), **options)
    return adapted.eval()


def detach_adapter(adapted: Any) -> nn.Module:
    """Remove every adapter from a PeftModel and give the untouched base back."""
    base: nn.Module = adapted.unload()
    return base.requires_grad_(False)


def save_adapter(adapted: Any, *, folder: Path, base_name: str, name: str = DEFAULT_NAME) -> str:
    """Write an adapter as a new folder; returns its `adapter_sha256`.

    The folder appears complete or not at all: written beside its place, fsynced, renamed. `base_name` says which base
    model it belongs to. Raises: AdapterError if `folder` exists: a version's files never change.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if folder.exists():
        raise AdapterError(f"adapter folder {folder} exists already: save each version into a folder of its own")
    tensors = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    config = adapted.peft_config[name].to_dict() | {"base_model_name_or_path": base_name, "inference_mode": True}
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    partial.mkdir(parents=True)
    try:
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True, default=_sorted_list) + "\n")
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS_NAME
        )
        (partial / WEIGHTS_NAME).chmod(0o644)  # safetensors writes 0600
        sync_path(partial / CONFIG_NAME, partial / WEIGHTS_NAME, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_path(folder.parent)
    return adapter_sha256(folder)


def adapter_sha256(folder: Path) -> str:
    """Hash of the adapter's two files. Raises: AdapterError naming the file that is missing."""
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        path = folder / name
        if not path.is_file():
            raise AdapterError(f"adapter folder {folder} has no {name}: it is not a complete PEFT adapter")
        with path.open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _peft_config(config: LoRAConfig) -> Any:
    from peft import LoraConfig

    targets = config.target_modules
    return LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _check_parent(parent: Path, *, config: LoRAConfig) -> None:
    adapter_sha256(parent)
    found = json.loads((parent / CONFIG_NAME).read_bytes())
    if (found.get("r"), found.get("lora_alpha")) != (config.r, config.alpha):
        raise AdapterError(
            f"parent adapter {parent} has r={found.get('r')}, alpha={found.get('lora_alpha')}, the configuration asks for "
            f"r={config.r}, alpha={config.alpha}: set lora_r and lora_alpha as they were, or start without a parent"
        )


def _sorted_list(value: object) -> list[str]:
    """PEFT keeps module names in a set, whose order changes from process to process."""
    if isinstance(value, set):
        return sorted(value)
    raise TypeError(f"adapter configuration holds a {type(value).__name__}, which JSON cannot say")
