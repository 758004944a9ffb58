"""Which answer a model would rather give: the losses of several answers to one question, the question computed once.

In: chat questions with the same number of answers each. Out: what `train.adapt.scoring.score_items` gives for each answer as a
chat item, up to rounding, for half of the work where there are two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from train.adapt.base import BaseModelInMemory
from train.adapt.scoring import BATCH_SIZE
from train.continual.items import encode_text, render_chat

MAX_TOKENS = 640
"""Of a question with its longest answer; a longer question loses its beginning."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question and answers to it."""

    question: str
    answers: tuple[str, ...]


@torch.no_grad()
def score_choices(model: Any, choices: Sequence[Choice], *, base: BaseModelInMemory) -> list[list[float]]:
    """Of each question the negative log-likelihood of each answer, nats per token with its end.

    Raises ValueError for questions with different numbers of answers, and for an empty answer.
    """
    if len({len(one.answers) for one in choices}) > 1:
        raise ValueError("choices have different numbers of answers: give every question the same number")
    encoded = [_encode(one, base=base) for one in choices]
    num_shared = _shared_length([prompt for prompt, _ in encoded])
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row][0]))
    scores: list[list[float]] = [[] for _ in choices]
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        batch = [encoded[row] for row in rows]
        for row, losses in zip(rows, _score_batch(model, batch, num_shared=num_shared, base=base), strict=True):
            scores[row] = losses
    return scores


def _shared_length(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with, but for the last of the shortest: the template's opening."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return max(0, min(sum(1 for _ in columns), min(map(len, prompts), default=1) - 1))


Encoded = tuple[list[int], list[list[int]]]


def _encode(choice: Choice, *, base: BaseModelInMemory) -> Encoded:
    answers = []
    for answer in choice.answers:
        if not answer.strip():
            raise ValueError(f"an answer to {choice.question!r:.80} is empty: give it some text")
        answers.append([*base.tokenizer(answer, add_special_tokens=False)["input_ids"], base.tokenizer.eos_token_id])
    prompt = encode_text(base.tokenizer, text=render_chat(base.tokenizer, question=choice.question))
    room = MAX_TOKENS - max(map(len, answers), default=0)
    return prompt[-room:], answers


def _score_batch(
    model: Any, batch: Sequence[Encoded], *, num_shared: int, base: BaseModelInMemory
) -> list[list[float]]:
    """What all questions begin with is computed for one row, the rest of each question once, and then each answer."""
    shared = torch.tensor([batch[0][0][:num_shared]], device=base.device)
    rests = [prompt[num_shared:] for prompt, _ in batch]
    length = num_shared + max(map(len, rests))
    prompts, mask = torch.full((len(batch), length), base.pad_id), torch.zeros(len(batch), length, dtype=torch.long)
    for row, rest in enumerate(rests):
        prompts[row, length - len(rest) :] = torch.tensor(rest)
        mask[row, :num_shared] = mask[row, length - len(rest) :] = 1
    prompts, mask = prompts[:, num_shared:].to(base.device), mask.to(base.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    if num_shared:
        cache = model(input_ids=shared, logits_to_keep=shared.new_tensor([0]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch))
    last = torch.tensor([prompts.shape[1] - 1], device=base.device)  # see train.continual.items.target_logits
    output = model(
        input_ids=prompts,
        attention_mask=mask,
        position_ids=positions[:, num_shared:],
        past_key_values=cache,
        logits_to_keep=last,
        use_cache=True,
    )
    cache, first = output.past_key_values, output.logits
    losses: list[list[float]] = [[] for _ in batch]
    for number in range(len(batch[0][1])):
        answers = [answers[number] for _, answers in batch]
        size = max(map(len, answers))
        targets, is_target = torch.full((len(batch), size), base.pad_id), torch.zeros(len(batch), size)
        for row, answer in enumerate(answers):
            targets[row, : len(answer)] = torch.tensor(answer)
            is_target[row, : len(answer)] = 1
        targets, is_target = targets.to(base.device), is_target.to(base.device)
        output = model(
            input_ids=targets[:, :-1],
            attention_mask=torch.cat([mask, is_target[:, :-1].to(mask.dtype)], dim=1),
            position_ids=positions[:, -1:] + torch.arange(1, size, device=base.device),
            past_key_values=cache,
            use_cache=True,
        )
        cache.crop(1 - size)  # the next answer follows the question, not this answer
        logits = torch.cat([first, output.logits], dim=1).float()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        sums = (nll.view_as(targets) * is_target).sum(dim=1) / is_target.sum(dim=1)
        for row, loss in enumerate(sums.tolist()):
            losses[row].append(loss)
    return losses
