"""Scores of a model on texts: negative log-likelihoods, log-probabilities and greedy answers. No gradients.

Every function takes the model as it is switched now: a PeftModel with one of its adapters active, or with all off.
"""

from collections.abc import Sequence
from typing import Any

import torch

from train.adapt.base import BaseModelInMemory
from train.continual.items import LearningItem, build_batch, encode_item, encode_text, render_chat, token_losses

BATCH_SIZE = 8
MAX_TOKENS = 256
"""Longer items are cut."""


@torch.no_grad()
def score_items(model: Any, items: Sequence[LearningItem], *, base: BaseModelInMemory) -> list[float]:
    """Mean negative log-likelihood of each item's targets, nats per token, in the order of `items`."""
    encoded = [encode_item(item, tokenizer=base.tokenizer, max_tokens=MAX_TOKENS) for item in items]
    order = sorted(range(len(items)), key=lambda row: (encoded[row].num_prompt > 1, len(encoded[row].token_ids)))
    scores = [0.0] * len(items)
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        batch = build_batch([encoded[row] for row in rows], pad_id=base.pad_id, device=base.device)
        sums = token_losses(model, batch).sum(dim=1)
        for row, total in zip(rows, sums.tolist(), strict=True):
            scores[row] = total / encoded[row].num_targets
    return scores


@torch.no_grad()
def score_tokens(model: Any, text: str, *, base: BaseModelInMemory) -> list[float]:
    """Log-probability, nats, of each token of `text` after the first, teacher-forced."""
    token_ids = torch.tensor([encode_text(base.tokenizer, text=text)], device=base.device)
    log_probs = model(input_ids=token_ids, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
    scores: list[float] = log_probs.gather(1, token_ids[0, 1:, None])[:, 0].tolist()
    return scores


@torch.no_grad()
def answer_questions(
    model: Any, questions: Sequence[str], *, base: BaseModelInMemory, max_new_tokens: int
) -> list[str]:
    """Greedy answers to chat questions, each without the others' influence but for the batch's rounding."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # a model folder's own default must not colour a measurement
        eos_token_id=base.tokenizer.eos_token_id,
        pad_token_id=base.pad_id,
    )
    prompts = [
        encode_text(base.tokenizer, text=render_chat(base.tokenizer, question=question)) for question in questions
    ]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    for begin in range(0, len(order), 2 * BATCH_SIZE):
        rows = order[begin : begin + 2 * BATCH_SIZE]
        length = max(len(prompts[row]) for row in rows)
        input_ids = torch.full((len(rows), length), base.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for position, row in enumerate(rows):
            input_ids[position, length - len(prompts[row]) :] = torch.tensor(prompts[row])
            attention_mask[position, length - len(prompts[row]) :] = 1
        output = model.generate(
            input_ids=input_ids.to(base.device), attention_mask=attention_mask.to(base.device), generation_config=config
        )
        texts = base.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip()
    return answers
