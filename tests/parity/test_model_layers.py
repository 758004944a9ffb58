"""Rotations in every kind, and RMSNorm, against transformers: forward and backward."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Glm4MoeConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm4_moe import modeling_glm4_moe as glm
from transformers.models.llama import modeling_llama as llama

from tests.attention_reference import FP32, assert_same, random_tensors
from train.model.config import MoEConfig, RopeConfig
from train.model.layers import RMSNorm, RoPEEmbedding, apply_rotary, inverse_frequencies

pytestmark = pytest.mark.usefixtures("one_thread")


# Rotations


@dataclass(frozen=True)
class Rope:
    """A kind with its fields, which both sides call the same, and the positions that are looked at."""

    kind: str
    fields: dict[str, Any]
    length: int = 48
    """Positions are 0 .. length - 1."""

    @property
    def partial(self) -> float:
        return float(self.fields.get("partial_rotary_factor", 1.0))


HEAD_DIM, CONTEXT = 32, 64
SHORT, LONG = [1.0 + 0.05 * pair for pair in range(16)], [2.0 + 0.5 * pair for pair in range(16)]
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"original_max_position_embeddings": 16, "short_factor": SHORT, "long_factor": LONG}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "default": Rope("default", {}),
    "default, large theta": Rope("default", {"rope_theta": 1e6}),
    "default, half of the head": Rope("default", {"partial_rotary_factor": 0.5}),
    "linear": Rope("linear", {"factor": 2.5}),
    "linear, quarter of the head": Rope("linear", {"factor": 2.0, "partial_rotary_factor": 0.25}),
    "dynamic within its context": Rope("dynamic", {"factor": 2.0}, length=48),
    "dynamic at its context": Rope("dynamic", {"factor": 2.0}, length=CONTEXT),
    "dynamic one beyond its context": Rope("dynamic", {"factor": 2.0}, length=CONTEXT + 1),
    "dynamic far beyond its context": Rope("dynamic", {"factor": 3.0}, length=5 * CONTEXT),
    "dynamic beyond, half of the head": Rope("dynamic", {"factor": 2.0, "partial_rotary_factor": 0.5}, length=200),
    "yarn": Rope("yarn", YARN),
    "yarn without truncation": Rope("yarn", YARN | {"truncate": False}),
    "yarn with other betas": Rope("yarn", YARN | {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False}),
    "yarn with one dimension's ramp": Rope("yarn", YARN | {"beta_fast": 2.0, "beta_slow": 2.0, "truncate": False}),
    "yarn with a pair of mscales": Rope("yarn", YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}),
    "yarn with half a pair of mscales": Rope("yarn", YARN | {"mscale": 0.7}),
    "yarn with an explicit attention factor": Rope("yarn", YARN | {"attention_factor": 1.3}),
    "yarn with factor 1": Rope("yarn", {"factor": 1.0, "original_max_position_embeddings": 64}),
    "yarn whose ramp ends beyond the last pair": Rope(
        "yarn", {"factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10.0, "beta_fast": 2.0}
    ),
    "yarn whose ramp ends beyond the last dimension": Rope(  # all dimensions turn fast, so angles round early
        "yarn", {"factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 2.0, "beta_fast": 8.0}, length=16
    ),
    "yarn, half of the head": Rope("yarn", YARN | {"partial_rotary_factor": 0.5}),
    "longrope within its original context": Rope("longrope", LONGROPE, length=16),
    "longrope one beyond it": Rope("longrope", LONGROPE, length=17),
    "longrope with a factor": Rope("longrope", LONGROPE | {"factor": 8.0}),
    "longrope with factor 1": Rope("longrope", LONGROPE | {"factor": 1.0}),
    "longrope with an explicit attention factor": Rope("longrope", LONGROPE | {"attention_factor": 1.25}),
    "longrope, half of the head": Rope(
        "longrope", LONGROPE | {"short_factor": SHORT[:8], "long_factor": LONG[:8], "partial_rotary_factor": 0.5}
    ),
    "llama3": Rope("llama3", LLAMA3),
    "llama3 with other steps": Rope("llama3", LLAMA3 | {"low_freq_factor": 0.5, "high_freq_factor": 2.0}),
    "llama3, half of the head": Rope("llama3", LLAMA3 | {"partial_rotary_factor": 0.5}),
    "proportional": Rope("proportional", {}),
    "proportional, a quarter turns": Rope("proportional", {"partial_rotary_factor": 0.25}),
    "proportional with a factor": Rope("proportional", {"partial_rotary_factor": 0.4, "factor": 2.0}),
}
ropes = pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)


def _our_rope(rope: Rope) -> MoEConfig:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in rope.fields.items()}
    theta = fields.pop("rope_theta", 10_000.0)
    return MoEConfig(
        hidden_size=4 * HEAD_DIM, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        rope=RopeConfig.model_validate({"kind": rope.kind, "theta": theta} | fields),
    )  # fmt: skip


def _their_rope(rope: Rope) -> Any:
    """transformers' module. A partly rotated head without scaling is GLM's; Llama's default turns whole heads only."""
    shape = {
        "hidden_size": 4 * HEAD_DIM, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    parameters = {"rope_type": rope.kind, "rope_theta": 10_000.0} | rope.fields
    if rope.partial < 1 and rope.kind == "default":
        return glm.Glm4MoeRotaryEmbedding(Glm4MoeConfig(**shape, rope_parameters=parameters))
    return llama.LlamaRotaryEmbedding(LlamaConfig(**shape, rope_parameters=parameters))


@ropes
def test_inverse_frequencies_and_attention_factor_equal_transformers(rope: Rope):
    theirs = _their_rope(rope)
    compute = ROPE_INIT_FUNCTIONS.get(rope.kind, theirs.compute_default_rope_parameters)
    wanted, wanted_factor = compute(theirs.config, seq_len=rope.length)
    found, factor = inverse_frequencies(_our_rope(rope), seq_len=rope.length)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0, rtol=1e-6)
    assert factor == pytest.approx(wanted_factor, rel=1e-12)


@ropes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_cos_and_sin_equal_transformers(rope: Rope, dtype: torch.dtype):
    """The length, on which dynamic and longrope depend, is taken from the positions. bfloat16: one unit in the last place."""
    positions = torch.stack([torch.arange(rope.length), torch.arange(rope.length).flip(0)])
    wanted = _their_rope(rope)(torch.zeros(1, dtype=dtype), positions)
    found = RoPEEmbedding(_our_rope(rope))(positions, dtype=dtype)
    tolerance = FP32 if dtype == torch.float32 else {"atol": 2**-7, "rtol": 0}
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, **tolerance)


@ropes
def test_rotated_queries_and_keys_and_their_gradients_equal_transformers(rope: Rope):
    positions = torch.arange(rope.length).expand(2, -1)
    q, k = random_tensors((2, 4, rope.length, HEAD_DIM), (2, 2, rope.length, HEAD_DIM), seed=1)
    apply = llama.apply_rotary_pos_emb if rope.partial == 1 or rope.kind == "proportional" else glm.apply_rotary_pos_emb
    wanted = apply(q, k, *_their_rope(rope)(q, positions))
    found = apply_rotary(q, k, *RoPEEmbedding(_our_rope(rope))(positions, dtype=torch.float32))
    assert_same(found, wanted, (q, k))


def test_an_embedding_asked_for_short_and_long_inputs_in_turn_answers_each_as_a_fresh_one_does():
    """Kept frequencies must not leak from one length into another."""
    for rope in (ROPES["dynamic far beyond its context"], ROPES["longrope one beyond it"]):
        embedding = RoPEEmbedding(_our_rope(rope))
        for length in (rope.length, 12, rope.length + 9, rope.length, *range(65, 80), 12):
            positions = torch.arange(length).unsqueeze(0)
            wanted = _their_rope(rope)(torch.zeros(1), positions)
            for mine, theirs in zip(embedding(positions, dtype=torch.float32), wanted, strict=True):
                torch.testing.assert_close(mine, theirs, **FP32)


# RMSNorm


def _norms(dim: int) -> tuple[RMSNorm, llama.LlamaRMSNorm]:
    ours, theirs = RMSNorm(dim, eps=1e-5), llama.LlamaRMSNorm(dim, eps=1e-5)
    with torch.no_grad():
        ours.weight.uniform_(-2, 2, generator=torch.Generator().manual_seed(dim))
        theirs.weight.copy_(ours.weight)
    return ours, theirs


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])  # at 1e-3 eps counts as much as the mean square
def test_rms_norm_in_float32_equals_transformers(scale: float):
    ours, theirs = _norms(48)
    (x,) = random_tensors((3, 5, 48), seed=2)
    torch.testing.assert_close(ours(x * scale), theirs(x * scale), atol=1e-6, rtol=1e-6)
    weight = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(3))
    mine = torch.autograd.grad((ours(x * scale) * weight).sum(), [x, ours.weight])
    wanted = torch.autograd.grad((theirs(x * scale) * weight).sum(), [x, theirs.weight])
    for found, expected in zip(mine, wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * max(scale, 1), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm_in_bfloat16_rounds_once_where_transformers_rounds_twice(scale: float):
    """A rounding is off by 2^-8 at most: ours by one, transformers' by two, so they differ by three."""
    ours, theirs = (norm.to(torch.bfloat16) for norm in _norms(48))
    x = (random_tensors((64, 48), seed=4)[0] * scale).to(torch.bfloat16)
    exact = F.rms_norm(x.double(), (48,), ours.weight.double(), 1e-5)
    found = ours(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=1.01 * 2**-8)
    torch.testing.assert_close(found, theirs(x), atol=0, rtol=3.03 * 2**-8)
