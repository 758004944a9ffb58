"""The embedded base model in our transformer: loaded as it is, upcycled without a change, and given back to transformers."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.model.checkpoint_hf import load_model
from train.model.embedded import materialise_base_model
from train.model.generate import SamplingConfig
from train.model.transformer import MoETransformer
from train.model.upcycle import add_experts, upcycle

TEXT = "A lighthouse keeper lights the lamp at dusk. In the morning he writes the weather into his book, and then"
LAYERS = 4
"""Layers that are upcycled: every layer holds the same code, and all thirty would need 6 GB."""


@pytest.fixture(scope="module")
def folder() -> Path:
    logger = logging.getLogger(__name__)
    return materialise_base_model(
        Path.home() / ".autonomous" / "models" / "smollm2-135m-instruct", progress=logger.info
    )


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tensor:
    ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(TEXT).input_ids
    return torch.tensor([ids])


@pytest.fixture(scope="module")
def dense(folder: Path) -> MoETransformer:
    return load_model(folder, dtype=torch.float32)


@torch.no_grad()
def test_the_base_model_gives_the_logits_and_the_text_of_transformers(
    folder: Path, tokens: Tensor, dense: MoETransformer
):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    torch.testing.assert_close(dense(tokens).logits, theirs(tokens).logits, atol=2e-4, rtol=1e-4)
    continued = theirs.generate(tokens, max_new_tokens=12, do_sample=False)[0, tokens.shape[1] :].tolist()
    (found,) = dense.generate(tokens.tolist(), SamplingConfig(max_new_tokens=12))
    assert found.token_ids == continued


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 2, 1), (8, 4, 4)], ids=["copies", "slices"])
def test_the_upcycled_base_model_has_the_logits_of_the_dense_one_and_transformers_loads_it(
    tokens: Tensor, dense: MoETransformer, tmp_path: Path, shape: tuple[int, int, int]
):
    short = MoETransformer(dense.config.replace(num_hidden_layers=LAYERS)).eval()
    kept = {name: value for name, value in dense.state_dict().items() if name in short.state_dict()}
    short.load_state_dict(kept)
    experts, top_k, granularity = shape
    sparse = upcycle(short, num_experts=experts, num_experts_per_token=top_k, granularity=granularity)
    expected = short(tokens).logits
    torch.testing.assert_close(sparse(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(add_experts(sparse, 1)(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(sparse.save_pretrained(tmp_path / "sparse")).eval()
    assert theirs.config.model_type == "mixtral"
    torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_layer_of_the_base_model_can_be_upcycled(tokens: Tensor, dense: MoETransformer):
    sparse = upcycle(dense, num_experts=2, num_experts_per_token=1)
    assert len(sparse.config.moe_layers) == 30
    torch.testing.assert_close(sparse(tokens).logits, dense(tokens).logits, atol=2e-4, rtol=1e-4)
