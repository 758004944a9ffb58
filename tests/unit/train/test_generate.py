"""Generation: batches equal solo runs, sampling keeps to its limits, texts end where they should."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.model.config import AttentionConfig, MoEConfig
from train.model.generate import SamplingConfig, choose_tokens
from train.model.transformer import MoETransformer

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [40, 41, 42]]


@pytest.fixture(scope="module", params=["full", "sliding"])
def model(request: pytest.FixtureRequest) -> MoETransformer:
    torch.manual_seed(1)
    config = MoEConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        moe_intermediate_size=16, max_position_embeddings=64, initializer_range=0.3,
        attention=AttentionConfig(pattern=(request.param,), window=4, num_sinks=1),
    )  # fmt: skip
    return MoETransformer(config)


def test_a_batch_of_prompts_of_any_length_gives_what_each_gives_alone(model: MoETransformer):
    sampling = SamplingConfig(max_new_tokens=12)
    together = model.generate(PROMPTS, sampling)
    for prompt, result in zip(PROMPTS, together, strict=True):
        (alone,) = model.generate([prompt], sampling)
        assert result.token_ids == alone.token_ids
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@torch.no_grad()
def test_greedy_tokens_and_logprobs_are_those_of_full_passes(model: MoETransformer):
    (result,) = model.generate([PROMPTS[0]], SamplingConfig(max_new_tokens=10))
    tokens = list(PROMPTS[0])
    for token, logprob in zip(result.token_ids, result.logprobs, strict=True):
        logprobs = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        assert int(logprobs.argmax()) == token
        assert float(logprobs[token]) == pytest.approx(logprob, abs=1e-4)
        tokens.append(token)


def test_sampling_depends_on_the_seed_alone(model: MoETransformer):
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.5, seed=3)
    first, again = model.generate(PROMPTS, sampling), model.generate(PROMPTS, sampling)
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    other = model.generate(PROMPTS, sampling.model_copy(update={"seed": 4}))
    assert [one.token_ids for one in first] != [one.token_ids for one in other]
    (second_row,) = model.generate([PROMPTS[1]], sampling.model_copy(update={"seed": 4}))
    assert second_row.token_ids == first[1].token_ids


def test_a_stop_sequence_and_an_end_of_text_finish_their_row_only(model: MoETransformer):
    free = model.generate(PROMPTS, SamplingConfig(max_new_tokens=12))
    stop = tuple(free[0].token_ids[2:5])
    stopped = model.generate(PROMPTS, SamplingConfig(max_new_tokens=12, stop=(stop,)))
    assert stopped[0].finish_reason == "stop"
    assert tuple(stopped[0].token_ids[-3:]) == stop
    assert len(stopped[0].token_ids) <= 5
    others = [n for n in (1, 2) if not any(tuple(free[n].token_ids[i : i + 3]) == stop for i in range(10))]
    assert others
    for n in others:
        assert stopped[n].token_ids == free[n].token_ids
        assert stopped[n].finish_reason == "length"
    ends = model.config.replace(eos_token_id=(free[2].token_ids[0], 60))
    previous, model.config = model.config, ends
    try:
        results = model.generate(PROMPTS, SamplingConfig(max_new_tokens=12))
    finally:
        model.config = previous
    assert results[2].token_ids == free[2].token_ids[:1]
    assert results[2].finish_reason == "stop"


def test_a_capacity_drops_nothing_in_generation_so_a_batch_changes_no_text():
    torch.manual_seed(0)
    config = MoEConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        moe_intermediate_size=16, max_position_embeddings=64, initializer_range=0.3, router={"capacity_factor": 0.5},
    )  # fmt: skip
    capped = MoETransformer(config)
    tokens = torch.randint(0, 61, (2, 12))
    assert sum(float(stats.num_dropped) for stats in capped.train()(tokens).router_stats) > 0
    assert sum(float(stats.num_dropped) for stats in capped.eval()(tokens).router_stats) == 0
    sampling = SamplingConfig(max_new_tokens=6)
    together = capped.generate(tokens.tolist(), sampling)
    alone = [capped.generate([prompt], sampling)[0] for prompt in tokens.tolist()]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_training_mode_is_restored(model: MoETransformer):
    model.train()
    model.generate([[3]], SamplingConfig(max_new_tokens=1))
    assert model.training


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "prompts is empty"),
        ([[1], []], r"prompts\[1\] is empty"),
        ([[61]], r"prompts\[0\] holds token 61.*vocab_size - 1 = 60"),
        ([[-1]], r"prompts\[0\] holds token -1"),
        ([[1] * 60], "max_position_embeddings = 64"),
    ],
)
def test_bad_prompts_are_named(model: MoETransformer, prompts: list[list[int]], words: str):
    with pytest.raises(ValueError, match=words):
        model.generate(prompts, SamplingConfig(max_new_tokens=10))


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"temperature": 1e-42}, "at least 0.001"), ({"seed": 2**64}, "seed"), ({"top_p": 0}, "top_p")],
)
def test_settings_that_cannot_be_drawn_with_are_named(fields: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        SamplingConfig.model_validate(fields)


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens = choose_tokens(logits.expand(20_000, 4), draws, SamplingConfig(temperature=0.7))
    wanted = (logits / 0.7).softmax(-1)
    for token, count in Counter(tokens.tolist()).items():
        assert count / 20_000 == pytest.approx(float(wanted[token]), abs=0.012)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    top_k=st.integers(1, 12),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.1, 3.0),
    draw=st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_chosen_token_is_always_among_those_left(
    seed: int, top_k: int, top_p: float, temperature: float, draw: float
):
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed)) * 3
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    token = int(choose_tokens(logits, torch.tensor([draw]), sampling))
    probs = (logits[0] / temperature).softmax(-1)
    better = probs[probs > probs[token]]
    assert len(better) < top_k
    kept = probs.sort(descending=True).values[:top_k].sum()
    assert float(better.sum() / kept) < top_p + 1e-5
