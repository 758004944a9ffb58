"""The frozen base model in memory. A model folder flows in; weights that need no gradient and a tokenizer flow out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from train.dtype import TrainingDtype, pick_dtype
from train.model.embedded import check_model_folder


@dataclass(frozen=True, slots=True)
class BaseModelInMemory:
    """A loaded base. `model` is a transformers causal language model in eval mode, `tokenizer` its tokenizer."""

    model: Any
    tokenizer: Any
    folder: Path
    sha256: str
    """Hash of the folder it was read from (train.model.embedded)."""
    device: torch.device

    @property
    def pad_id(self) -> int:
        """Token that fills up batches; masked everywhere, so any will do."""
        pad_id: int = self.tokenizer.eos_token_id
        return pad_id


def pick_device(kind: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that `kind` names; auto takes a GPU if there is one."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def load_base_model(folder: Path, *, dtype: TrainingDtype, device: torch.device) -> BaseModelInMemory:
    """Read a Hugging Face folder. Heavy: seconds and the model's size in memory.

    Raises: ModelFolderProblem for an incomplete folder; ValueError for a tokenizer without a chat template.
    """
    checked = check_model_folder(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise ValueError(
            f"base model folder {folder} has no chat template or no end-of-sequence token: "
            "use an instruction-tuned model, or add chat_template.jinja and eos_token to its tokenizer"
        )
    model = load_model(folder, dtype=getattr(torch, pick_dtype(dtype, device_type=device.type)), device=device)
    return BaseModelInMemory(model=model, tokenizer=tokenizer, folder=folder, sha256=checked.sha256, device=device)


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A causal language model of transformers, in evaluation mode, without gradients. Nothing of the folder is executed."""
    from transformers import AutoModelForCausalLM

    # on the CPU the fused kernel's backward pass is several times slower than plain matrix products at these lengths
    attention = "eager" if device.type == "cpu" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, local_files_only=True
    )
    model.requires_grad_(False)
    return model.eval().to(device)


def weights_sha256(model: nn.Module) -> str:
    """Hash of all parameters' and buffers' names and bytes: equal before and after means untouched."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
