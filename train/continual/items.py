"""Learning items: what a model is taught, as text, as tokens and as a batch with its loss.

A chat item (`prompt` given) costs only on the answer's tokens; a plain item (`prompt` None) costs on all but the first.
Batches are padded on the *left*, so that every token that costs lies in the last positions and a model computes its
logits for those alone (`logits_to_keep`): the output layer is a fifth of a small model's work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LearningItem:
    """One thing to learn, from one episode. `id` is unique."""

    id: str
    prompt: str | None
    answer: str
    episode_id: str


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """Tokens of an item. The first `num_prompt` of them cost nothing."""

    token_ids: tuple[int, ...]
    num_prompt: int

    @property
    def num_targets(self) -> int:
        """Tokens that cost."""
        return len(self.token_ids) - self.num_prompt


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """Left-padded items. The last `keep` positions hold every target.

    Shapes: input_ids, attention_mask, position_ids Int[batch seq]; targets Int[batch keep]; is_target Bool[batch keep].
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch keep"]
    is_target: Bool[Tensor, "batch keep"]

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def num_targets(self) -> int:
        """Tokens that cost."""
        return int(self.is_target.sum())


def render_chat(tokenizer: Any, *, question: str) -> str:
    """The question as the serving engine puts it before the model: one user turn and the opening of the answer."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return text


def encode_text(tokenizer: Any, *, text: str) -> list[int]:
    """Token ids with the special tokens exactly once, as the serving engine encodes a prompt (serve.engine_text).

    A rendered chat may hold its beginning-of-sequence token already.
    """
    bos = tokenizer.bos_token
    has_bos = bool(bos) and text.startswith(bos)
    token_ids: list[int] = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    return token_ids


def encode_item(item: LearningItem, *, tokenizer: Any, max_tokens: int) -> EncodedItem:
    """Tokens of an item, at most `max_tokens`.

    A chat answer ends with the end-of-sequence token, so that answers learn to end. What is too long loses the end of
    its answer; a prompt that leaves less than half of the room to the answer loses its beginning.
    Raises: ValueError for an item without two tokens.
    """
    if item.prompt is None:
        token_ids = encode_text(tokenizer, text=item.answer)[:max_tokens]
        num_prompt = 1
    else:
        prompt = encode_text(tokenizer, text=render_chat(tokenizer, question=item.prompt))
        answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        if len(prompt) + len(answer) + 1 > max_tokens:
            answer = answer[: max(max_tokens - len(prompt) - 1, max_tokens // 2 - 1)]
            prompt = prompt[-(max_tokens - len(answer) - 1) :]
        token_ids, num_prompt = [*prompt, *answer, tokenizer.eos_token_id], len(prompt)
    if len(token_ids) < 2 or not item.answer.strip():
        raise ValueError(f"learning item {item.id} has an answer of {item.answer!r}: give it some text to learn")
    return EncodedItem(token_ids=tuple(token_ids), num_prompt=num_prompt)


def build_batch(encoded: Sequence[EncodedItem], *, pad_id: int, device: torch.device) -> ItemBatch:
    """Pad on the left and mark the targets."""
    length, keep = max(len(item.token_ids) for item in encoded), max(item.num_targets for item in encoded)
    shape = (len(encoded), length)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    is_target = torch.zeros((len(encoded), keep), dtype=torch.bool)
    for row, item in enumerate(encoded):
        input_ids[row, length - len(item.token_ids) :] = torch.tensor(item.token_ids)
        attention_mask[row, length - len(item.token_ids) :] = 1
        is_target[row, keep - item.num_targets :] = True
    return ItemBatch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device),
        targets=input_ids[:, length - keep :].to(device),
        is_target=is_target.to(device),
    )


def target_logits(model: Any, batch: ItemBatch) -> Float[Tensor, "batch keep vocab"]:
    """Logits that predict the last `keep` tokens of each row, in the model's precision."""
    length, keep = batch.input_ids.shape[1], batch.targets.shape[1]
    # positions as a tensor, not as a count: a count gives a slice, for which the output layer copies its weight per row
    positions = torch.arange(length - keep - 1, length, device=batch.input_ids.device)
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=positions,
        use_cache=False,
    ).logits
    return logits[:, :-1]


def token_losses(model: Any, batch: ItemBatch) -> Float[Tensor, "batch keep"]:
    """Negative log-likelihood of each target, nats; 0 where `is_target` is False."""
    logits = target_logits(model, batch).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return losses.view_as(batch.targets) * batch.is_target


def text_item(text: str, *, item_id: str) -> LearningItem:
    """A generic text as an item of no episode. With a blank line in it, it is a chat: question before, answer after."""
    question, blank, answer = text.partition("\n\n")
    if blank:
        return LearningItem(id=item_id, prompt=question, answer=answer, episode_id="")
    return LearningItem(id=item_id, prompt=None, answer=text, episode_id="")
