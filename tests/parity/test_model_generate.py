"""Sampling against transformers' logits warpers; greedy generation against transformers' generate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.model_families import FAMILIES, SHAPE
from train.model.checkpoint_hf import load_model
from train.model.generate import SamplingConfig, choose_tokens, generate
from train.model.transformer import MoETransformer

NUM_DRAWS = 8192


pytestmark = pytest.mark.usefixtures("one_thread")


# Sampling


def _warped(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """transformers' distribution: temperature, then top-k, then top-p, as its generate orders them."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.unsqueeze(0))
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)[0]


def _shares(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Share of each token among draws that are spread evenly over [0, 1)."""
    draws = (torch.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    tokens = choose_tokens(logits.expand(NUM_DRAWS, -1), draws, sampling)
    return torch.bincount(tokens, minlength=len(logits)) / NUM_DRAWS


def _assert_same_distribution(logits: Tensor, sampling: SamplingConfig) -> None:
    """A token takes an interval of draws, so its share is its probability to within one draw at either end."""
    wanted, shares = _warped(logits, sampling), _shares(logits, sampling)
    assert not shares[wanted == 0].any()
    assert (shares[wanted > 1.5 / NUM_DRAWS] > 0).all()
    torch.testing.assert_close(shares, wanted, atol=1.5 / NUM_DRAWS, rtol=0)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.4},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_k": 12},
        {"temperature": 1.0, "top_k": 50},  # more than there are tokens
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 0.6, "top_p": 0.95},
        {"temperature": 1.7, "top_k": 4, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8},
    ],
    ids=str,
)
def test_the_distribution_equals_that_of_transformers_warpers(sampling: dict[str, Any]):
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(3))
    _assert_same_distribution(logits, SamplingConfig.model_validate(sampling))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999),
    vocab=st.integers(1, 24),
    spread=st.floats(0.1, 5),
    temperature=st.floats(0.2, 3),
    top_k=st.none() | st.integers(1, 30),
    top_p=st.floats(0.02, 1),
)
def test_the_distribution_equals_that_of_transformers_warpers_for_any_settings(
    *, seed: int, vocab: int, spread: float, temperature: float, top_k: int | None, top_p: float
):
    logits = spread * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    reached = _warped(logits, sampling.model_copy(update={"top_p": 1.0})).sort(descending=True).values.cumsum(0)
    if top_p < 1:  # at a border, rounding decides whether a token is in: they sum from the other end
        assume((reached - top_p).abs().min() > 1e-5)
    _assert_same_distribution(logits, sampling)


def test_top_p_is_reached_within_what_top_k_left():
    """Cut before top_k, .5 would be reached by one token of .5; renormalised after it, two of .5 / .7 and .2 / .7 need .72."""
    logits = torch.tensor([0.5, 0.2, 0.2 - 1e-3, 0.1 + 1e-3]).log()
    sampling = SamplingConfig(temperature=1.0, top_k=2, top_p=0.72)
    shares = _shares(logits, sampling)
    assert (shares > 0).tolist() == [True, True, False, False]
    without_top_k = _shares(logits, sampling.model_copy(update={"top_k": None}))
    assert (without_top_k > 0).tolist() == [True, True, True, False]
    _assert_same_distribution(logits, sampling)


def test_equal_logits_at_the_border_of_top_k_are_cut_to_k_where_transformers_keeps_all():
    """The one known difference: top_k is a limit here, and the lower token id is the one kept."""
    logits, sampling = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0]), SamplingConfig(temperature=1.0, top_k=2)
    assert (_warped(logits, sampling) > 0).tolist() == [True, True, True, True, False]
    assert (_shares(logits, sampling) > 0).tolist() == [True, True, False, False, False]


# Greedy generation

WIDE: dict[str, Any] = SHAPE | {"initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": None}
"""Weights spread so far that no two logits are close."""
GENERATING = ("mixtral", "mixtral window", "qwen3_moe")
PROMPTS = [
    [5, 17, 60, 33, 8, 90, 41, 12, 77, 4, 23],
    [3],
    [40, 41, 42, 40, 41],
    [88, 9, 88, 9, 88, 9, 88, 9, 88, 9, 88],
]
NEW_TOKENS = 24


@dataclass(frozen=True)
class Family:
    """transformers' model with random weights, and where it can be saved."""

    theirs: Any
    folders: Path

    def save(self, *, eos: int | list[int] | None) -> Path:
        """A folder whose config.json names these ends of text."""
        folder = self.folders / f"eos-{eos}"
        if not folder.exists():
            self.theirs.config.eos_token_id = self.theirs.generation_config.eos_token_id = eos
            self.theirs.save_pretrained(folder)
        return folder


@pytest.fixture(params=GENERATING, scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name, fields = FAMILIES[request.param]
    torch.manual_seed(11 + GENERATING.index(request.param))
    config = getattr(transformers, f"{name}Config")(**WIDE | fields)
    return Family(getattr(transformers, f"{name}ForCausalLM")(config).eval(), tmp_path_factory.mktemp("family"))


def _load_both(family: Family, *, eos: int | list[int] | None) -> tuple[Any, MoETransformer]:
    folder = family.save(eos=eos)
    theirs = type(family.theirs).from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    return theirs.eval(), load_model(folder)


@torch.no_grad()
def _their_greedy(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """New tokens of each prompt, left-padded into one batch; what follows an end of text is left out."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    rows = []
    for row in out[:, width:].tolist():
        stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:stop])
    return rows


def test_greedy_tokens_of_a_left_padded_batch_equal_transformers(family: Family):
    theirs, ours = _load_both(family, eos=None)
    wanted = _their_greedy(theirs, PROMPTS)
    results = ours.generate(PROMPTS, SamplingConfig(max_new_tokens=NEW_TOKENS))
    assert [one.token_ids for one in results] == wanted
    assert {one.finish_reason for one in results} == {"length"}
    assert all(len(set(row)) > 3 for row in wanted)  # a model that repeats one token would hide errors


def test_generation_goes_on_with_the_tokens_that_are_decided_on(family: Family):
    """Processes that share a model take one's."""
    _, ours = _load_both(family, eos=None)
    results = generate(
        ours, PROMPTS, SamplingConfig(max_new_tokens=3), decide=lambda tokens: torch.full_like(tokens, 7)
    )
    assert [one.token_ids for one in results] == [[7, 7, 7]] * len(PROMPTS)


def test_log_probabilities_equal_those_of_transformers_scores(family: Family):
    theirs, ours = _load_both(family, eos=None)
    prompt = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        out = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    wanted = torch.stack(out.logits, 1)[0].log_softmax(-1).max(-1).values
    (result,) = ours.generate([PROMPTS[0]], SamplingConfig(max_new_tokens=NEW_TOKENS))
    torch.testing.assert_close(torch.tensor(result.logprobs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_ends", [1, 2])
def test_rows_end_at_an_end_of_text_as_in_transformers_while_others_go_on(family: Family, num_ends: int):
    """The ends are taken from what is generated freely: at different places of the rows, so that rows leave one by one."""
    free = [
        one.token_ids
        for one in _load_both(family, eos=None)[1].generate(PROMPTS, SamplingConfig(max_new_tokens=NEW_TOKENS))
    ]
    ends = [free[0][3], free[1][9]][:num_ends]
    theirs, ours = _load_both(family, eos=ends[0] if num_ends == 1 else ends)
    wanted = _their_greedy(theirs, PROMPTS)
    results = ours.generate(PROMPTS, SamplingConfig(max_new_tokens=NEW_TOKENS))
    assert [one.token_ids for one in results] == wanted
    assert len({len(row) for row in wanted}) > 1
    for one in results:
        assert one.finish_reason == ("stop" if one.token_ids[-1] in ends else "length")
