"""Text generation with a key-value cache: greedy or sampled, in batches of prompts of any length.

Rows are left-padded, so that every row's next token comes from the last slot; a finished row leaves the batch. The
random numbers of a row depend on the seed and its index alone: the same prompt gives the same text in any batch (up to
rounding; but rotations of kind dynamic and longrope look at the longest row, as in transformers). vLLM is what serves
users; this is what training, evaluation and tests use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from train.model.cache import KVCache, check_context

if TYPE_CHECKING:
    from train.model.transformer import MoETransformer


class SamplingConfig(BaseModel):
    """How the next token is chosen: temperature first, then top_k, then top_p, as transformers does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens that are added to a prompt."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """0 takes the most probable token; otherwise, from 0.001 on, logits are divided by it."""
    top_k: int | None = Field(None, gt=0)
    """Only this many most probable tokens are drawn from."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the fewest tokens whose probabilities reach this sum are drawn from."""
    stop: tuple[tuple[int, ...], ...] = ()
    """Token sequences that end the text, beside the model's ends of text. They are part of what is returned."""
    seed: int = Field(0, ge=0, lt=2**62)
    """Row i draws with the generator of seed + i."""

    @model_validator(mode="after")
    def _temperature_divides(self) -> Self:
        if 0 < self.temperature < 1e-3:
            raise ValueError(f"temperature = {self.temperature}: use 0 for the most probable token, or at least 0.001")
        return self


@dataclass(slots=True)
class Generated:
    """What was added to one prompt."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token in nats under the model itself: temperature 1, nothing cut off."""
    finish_reason: Literal["stop", "length"] = "length"


Decide = Callable[[Int[Tensor, " batch"]], Int[Tensor, " batch"]]
"""Takes the tokens that were chosen here and gives those that count: processes that share a model have to go on with the same
ones, and end together, though their logits may differ in the last bits."""


@torch.no_grad()
def generate(
    model: "MoETransformer",
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    decide: Decide = lambda tokens: tokens,
) -> list[Generated]:
    """Continue each prompt (token ids); results in the order of the prompts.

    Raises ValueError for an empty prompt, for token ids beyond the vocabulary, and where the longest prompt and
    max_new_tokens go beyond the model's context.
    """
    _check_prompts(model, prompts, sampling)
    was_training = model.training
    model.eval()
    try:
        return _generate(model, prompts, sampling, decide)
    finally:
        model.train(was_training)


def _generate(
    model: "MoETransformer", prompts: Sequence[Sequence[int]], sampling: SamplingConfig, decide: Decide
) -> list[Generated]:
    device = model.device
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(prompt) for prompt in prompts])
    input_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    attention_mask = (torch.arange(width) >= padding.unsqueeze(1)).to(device) if padding.any() else None
    cache = KVCache(model.config, batch=len(prompts), device=device)
    draws = torch.stack(
        [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(sampling.seed + row))
            for row in range(len(prompts))
        ]
    )
    results = [Generated() for _ in prompts]
    active = list(range(len(prompts)))
    for step in range(sampling.max_new_tokens):
        output = model(input_ids, attention_mask=attention_mask if step == 0 else None, cache=cache, logits_to_keep=1)
        assert output.logits is not None
        logits = output.logits[:, -1].float()
        tokens = decide(choose_tokens(logits, draws[active, step].to(device), sampling))
        logprobs = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        for row, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
            results[row].token_ids.append(token)
            results[row].logprobs.append(logprob)
            if _ends(results[row].token_ids, eos=model.config.eos_token_ids, stop=sampling.stop):
                results[row].finish_reason = "stop"
        going_on = [place for place, row in enumerate(active) if results[row].finish_reason != "stop"]
        if not going_on:
            break
        if len(going_on) < len(active):
            kept = torch.tensor(going_on, device=device)
            cache.reorder(kept)
            tokens, active = tokens[kept], [active[place] for place in going_on]
        input_ids = tokens.unsqueeze(1)
    return results


def choose_tokens(
    logits_BV: Float[Tensor, "batch vocab"], draws_B: Float[Tensor, " batch"], sampling: SamplingConfig
) -> Int[Tensor, " batch"]:
    """The next token of each row: the most probable one, or the one at the draw (uniform in [0, 1)) of what is left.

    Equal to transformers' temperature, top-k and top-p warpers in this order (tests/parity/test_model_generate.py).
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    probs, order = (logits_BV.float() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        probs[:, sampling.top_k :] = 0
        probs /= probs.sum(-1, keepdim=True)
    if sampling.top_p < 1:  # else rounding of the sum would cut the tail
        probs[probs.cumsum(-1) - probs >= sampling.top_p] = 0
    reached = probs.cumsum(-1)
    places = torch.searchsorted(reached, draws_B.unsqueeze(1) * reached[:, -1:], right=True)
    last_left = (probs > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, places.minimum(last_left)).squeeze(1)


def _ends(token_ids: list[int], *, eos: tuple[int, ...], stop: tuple[tuple[int, ...], ...]) -> bool:
    return token_ids[-1] in eos or any(tuple(token_ids[-len(end) :]) == end for end in stop if end)


def _check_prompts(model: "MoETransformer", prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
    if not prompts:
        raise ValueError("prompts is empty: give at least one list of token ids")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{index}] is empty: give at least one token, such as the begin of text")
        if (worst := max(prompt)) >= model.config.vocab_size or min(prompt) < 0:
            raise ValueError(
                f"prompts[{index}] holds token {worst if worst >= model.config.vocab_size else min(prompt)}; ids go from 0 "
                f"to vocab_size - 1 = {model.config.vocab_size - 1}: use the tokenizer of this model"
            )
    check_context(model.config, max(map(len, prompts)) + sampling.max_new_tokens - 1)
