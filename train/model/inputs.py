"""What a forward pass is given, checked before anything is computed: each sentence names the argument, its value, the fix.

Values are looked at on a CPU alone; on a GPU a look would wait for all that is queued, and the kernels' own assertions stand.
"""

import torch
from torch import Tensor

from train.model.config import MoEConfig
from train.model.loss import IGNORE


def check_inputs(
    config: MoEConfig,
    *,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    embedding_dtype: torch.dtype | None,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    labels: Tensor | None = None,
    replay_routes: Tensor | None = None,
    logits_to_keep: int | None = None,
    sequence_parts: int = 1,
) -> None:
    """Raises ValueError for what MoETransformer.forward cannot take; its docstring says what each argument is.

    `sequence_parts`: ranks among which the positions of `inputs_embeds` are split.
    """
    rows, length = _check_tokens(config, input_ids, inputs_embeds, embedding_dtype)
    shape = (rows, length * sequence_parts)
    one_each = {"attention_mask": attention_mask, "document_ids": document_ids, "labels": labels}
    for name, value in ({"position_ids": position_ids} | one_each).items():
        allowed = (shape, (1, shape[1])) if name == "position_ids" else (shape,)
        if value is not None and tuple(value.shape) not in allowed:
            raise ValueError(f"{name} has shape {list(value.shape)}; give one number per token, {list(shape)}")
    if attention_mask is not None and document_ids is not None:
        raise ValueError("attention_mask and document_ids: both given; document_ids alone says padding too, with -1")
    if labels is not None:
        _check_integers("labels", labels)
        _check_range("labels", labels[labels != IGNORE], stop=config.vocab_size, what="tokens of the vocabulary")
    if position_ids is not None and config.rope.kind != "dynamic":
        _check_range(
            "position_ids",
            position_ids,
            stop=config.max_position_embeddings,
            what="positions of max_position_embeddings",
        )
    if replay_routes is not None:
        wanted = (len(config.moe_layers), *shape, config.num_experts_per_token)
        if tuple(replay_routes.shape) != wanted:
            raise ValueError(
                f"replay_routes has shape {list(replay_routes.shape)}; give {list(wanted)}: layers with experts, batch, seq, "
                "top_k"
            )
        _check_integers("replay_routes", replay_routes)
        _check_range("replay_routes", replay_routes, start=-1, stop=config.num_experts, what="experts, -1 for none")
    if logits_to_keep is not None and logits_to_keep < 1:
        raise ValueError(f"logits_to_keep = {logits_to_keep}: keep at least the last position, or None for all")


def _check_tokens(
    config: MoEConfig, input_ids: Tensor | None, inputs_embeds: Tensor | None, embedding_dtype: torch.dtype | None
) -> tuple[int, int]:
    """(batch, seq)."""
    if (input_ids is None) == (inputs_embeds is None):
        both = "both" if input_ids is not None else "neither"
        raise ValueError(f"input_ids and inputs_embeds: {both} given; give one of them")
    if input_ids is not None:
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ValueError(f"input_ids has shape {list(input_ids.shape)}; give [batch, seq], at least one token")
        if input_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"input_ids has dtype {input_ids.dtype}; give token ids as torch.int64")
        _check_range("input_ids", input_ids, stop=config.vocab_size, what="tokens of the vocabulary")
        return input_ids.shape[0], input_ids.shape[1]
    assert inputs_embeds is not None
    if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != config.hidden_size:
        raise ValueError(
            f"inputs_embeds has shape {list(inputs_embeds.shape)}; give [batch, seq, hidden_size = {config.hidden_size}]: "
            "project the encoder's output to it"
        )
    if inputs_embeds.numel() == 0:
        raise ValueError(f"inputs_embeds has shape {list(inputs_embeds.shape)}; give at least one token")
    if embedding_dtype not in (None, inputs_embeds.dtype) and not torch.is_autocast_enabled(inputs_embeds.device.type):
        raise ValueError(f"inputs_embeds has dtype {inputs_embeds.dtype}, the model {embedding_dtype}; convert it")
    return inputs_embeds.shape[0], inputs_embeds.shape[1]


def _check_integers(name: str, value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {value.dtype}; give integers")


def _check_range(name: str, value: Tensor, *, stop: int, what: str, start: int = 0) -> None:
    if value.device.type != "cpu" or value.numel() == 0:
        return
    low, high = (int(bound) for bound in value.aminmax())
    if low < start or high >= stop:
        raise ValueError(f"{name} holds {low if low < start else high}; {what} go from {max(start, 0)} to {stop - 1}")
