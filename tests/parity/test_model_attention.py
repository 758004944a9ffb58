"""Attention against dense masks, and rotations and norms against transformers: forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Glm4MoeConfig, LlamaConfig, MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask, sliding_window_causal_mask_function
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm4_moe import modeling_glm4_moe as glm
from transformers.models.llama import modeling_llama as llama

from train.model import attention_kernels
from train.model.attention_kernels import attend, attend_flex, attend_full, attend_sliding, attend_sparse, sliding_mask
from train.model.config import AttentionConfig, AttentionKind, MoEConfig, RopeConfig
from train.model.layers import RMSNorm, RoPEEmbedding, apply_rotary, inverse_frequencies
from train.model.segments import Segments

FP32 = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The shapes are so small that threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    q, k = _random((2, 4, rope.length, HEAD_DIM), (2, 2, rope.length, HEAD_DIM), seed=1)
    apply = llama.apply_rotary_pos_emb if rope.partial == 1 or rope.kind == "proportional" else glm.apply_rotary_pos_emb
    wanted = apply(q, k, *_their_rope(rope)(q, positions))
    found = apply_rotary(q, k, *RoPEEmbedding(_our_rope(rope))(positions, dtype=torch.float32))
    _assert_same(found, wanted, (q, k))


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
    (x,) = _random((3, 5, 48), seed=2)
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
    x = (_random((64, 48), seed=4)[0] * scale).to(torch.bfloat16)
    exact = F.rms_norm(x.double(), (48,), ours.weight.double(), 1e-5)
    found = ours(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=1.01 * 2**-8)
    torch.testing.assert_close(found, theirs(x), atol=0, rtol=3.03 * 2**-8)


# References


def _random(*shapes: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _qkv(
    length: int,
    *,
    seed: int,
    batch: int = 2,
    kv: int = 2,
    groups: int = 2,
    dim: int = 4,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    queries, keys = (batch, kv * groups, length, dim), (batch, kv, length, dim)
    return _random(queries, keys, keys, seed=seed, dtype=dtype)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """SDPA over keys that are repeated by hand, [query head h uses key head h // groups]."""
    groups = q.shape[1] // k.shape[1]
    k, v = (torch.stack([t[:, head // groups] for head in range(q.shape[1])], dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _assert_same(found: Any, wanted: Any, inputs: Any) -> None:
    """Outputs and, weighted at random so that nothing cancels, the gradients of all inputs."""
    found, wanted = ((one,) if isinstance(one, Tensor) else tuple(one) for one in (found, wanted))
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(9), dtype=t.dtype) for t in wanted]
    gradients = []
    for outputs in (found, wanted):
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(total, list(inputs)))
    for mine, theirs in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(mine, theirs, **FP32)


def _window_by_hand(length: int, config: AttentionConfig) -> Tensor:
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            mask[i, j] = j > i - config.window or j < config.num_sinks
    return mask


def _sparse_by_hand(q: Tensor, k: Tensor, config: AttentionConfig) -> tuple[Tensor, float]:
    """The mask [batch, heads, seq, seq] of sparse attention out of its definition, and how clear the choices were.

    The second value is the smallest distance between the worst chosen score and the best one that was left: where it is
    a rounding error wide, two right implementations may choose differently.
    """
    batch, heads, length, _ = q.shape
    block, groups = config.block_size, heads // k.shape[1]
    mask = _window_by_hand(length, config).repeat(batch, heads, 1, 1)
    clearance = float("inf")
    for row in range(batch):
        for head in range(heads):
            group = [other for other in range(heads) if other // groups == head // groups]
            for first in range(block, length, block):
                mean_q = q.detach()[row, group, first - block : first].double().mean((0, 1))
                scores = {}
                for start in range(0, length, block):
                    last = start + block - 1
                    if start >= config.num_sinks and last <= first - config.window:
                        mean_k = k.detach()[row, head // groups, start : start + block].double().mean(0)
                        scores[start] = float(mean_q @ mean_k)
                ranked = sorted(scores, key=lambda start: -scores[start])
                for start in ranked[: config.num_selected_blocks]:
                    mask[row, head, first : first + block, start : start + block] = True
                if len(ranked) > config.num_selected_blocks:
                    place = config.num_selected_blocks
                    clearance = min(clearance, scores[ranked[place - 1]] - scores[ranked[place]])
    return mask, clearance


class _Operators(TorchDispatchMode):
    """Which operators ran, and the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.most_elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.most_elements = max(self.most_elements, tensor.numel())
        return out

    @property
    def attention(self) -> set[str]:
        """Fused attention or softmax, which the MATH backend is made of."""
        return {name for name in self.names if "attention" in name or "softmax" in name}


FLASH = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}


def _sliding(window: int, sinks: int) -> AttentionConfig:
    return AttentionConfig(pattern=("sliding",), window=window, num_sinks=sinks)


def _sparse(*, block: int, blocks_in_window: int, sinks: int, selected: int) -> AttentionConfig:
    return AttentionConfig(
        pattern=("sparse",), window=block * blocks_in_window, num_sinks=sinks, block_size=block,
        num_selected_blocks=selected,
    )  # fmt: skip


# Full attention


@pytest.mark.parametrize(("kv", "groups"), [(4, 1), (2, 3), (1, 4)])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_grouped_queries_equal_keys_repeated_by_hand(kv: int, groups: int, length: int):
    q, k, v = _qkv(length, seed=length, kv=kv, groups=groups)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    _assert_same(attend_full(q, k, v), _dense(q, k, v, mask), (q, k, v))


def test_attention_is_softmax_of_scaled_products_as_written_in_the_paper():
    """The dense references above go through PyTorch's SDPA; this one does not."""
    q, k, v = _qkv(17, seed=0, kv=1, groups=1, dim=8)
    scores = (q.double() @ k.double().mT / 8**0.5).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    _assert_same(attend_full(q, k, v), (scores.softmax(-1) @ v.double()).float(), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 2049])
def test_full_attention_is_the_fused_kernel_forward_and_backward(length: int, dtype: torch.dtype):
    q, k, v = _qkv(length, seed=0, batch=1, kv=1, groups=2, dim=2, dtype=dtype)
    with _Operators() as operators:
        attend_full(q, k, v).sum().backward()
    assert operators.attention == FLASH


@pytest.mark.filterwarnings("ignore:.*attention:UserWarning")  # PyTorch says why each kernel declined
def test_what_only_the_quadratic_backend_could_compute_is_an_error_above_the_limit_and_allowed_below():
    def inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, _ = _qkv(length, seed=0, batch=1, kv=1, groups=1)
        return q, k, torch.zeros(1, 1, length, 3)  # values narrower than keys: no fused kernel takes them

    limit = attention_kernels.FUSED_ONLY_ABOVE
    with torch.no_grad(), _Operators() as operators:
        attend_full(*inputs(limit))
    assert not operators.attention & FLASH
    with pytest.raises(RuntimeError, match="No available kernel"):
        attend_full(*inputs(limit + 1))


# Sliding attention


@pytest.mark.parametrize("window", [1, 3, 16, 100])
def test_the_window_mask_is_that_of_transformers(window: int):
    length = 40
    found = sliding_mask(length, _sliding(window, 0), device=torch.device("cpu"))
    visible, at = sliding_window_causal_mask_function(window), torch.arange(length)
    zero = torch.zeros((), dtype=torch.long)
    assert torch.equal(found, torch.stack([visible(zero, zero, i, at) for i in at]))
    config = MistralConfig(sliding_window=window, attn_implementation="sdpa")
    used = create_sliding_window_causal_mask(
        config, torch.zeros(1, length, 8), None, past_key_values=None, allow_is_causal_skip=False
    )
    assert torch.equal(found, used[0, 0])


def test_window_and_sinks_are_those_of_the_definition():
    for window, sinks in ((1, 0), (4, 2), (3, 7), (50, 3)):
        config = _sliding(window, sinks)
        assert torch.equal(sliding_mask(30, config, device=torch.device("cpu")), _window_by_hand(30, config))


@pytest.mark.parametrize(
    ("length", "window", "sinks"),
    [
        (5, 8, 2),  # shorter than the window
        (8, 8, 2),  # equal to it
        (9, 8, 0),  # one beyond
        (11, 8, 2),  # within window and sinks: one masked call
        (16, 8, 0),  # ends with a block
        (16, 8, 8),  # as many sinks as a block
        (17, 8, 8),
        (29, 8, 2),  # ends within a block
        (29, 6, 3),  # the window is not whole blocks
        (30, 7, 12),  # more sinks than the window
        (40, 1, 1),  # every token sees itself and the first
        (41, 3, 0),
        (150, 8, 2),  # several calls
        (97, 13, 5),
    ],
)
def test_sliding_attention_equals_the_dense_mask(monkeypatch: pytest.MonkeyPatch, length: int, window: int, sinks: int):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_kernels, "BLOCKS_PER_CALL", 3)
    q, k, v = _qkv(length, seed=length)
    config = _sliding(window, sinks)
    wanted = _dense(q, k, v, _window_by_hand(length, config))
    _assert_same(attend_sliding(q, k, v, config), wanted, (q, k, v))


def test_sliding_attention_with_the_constants_as_they_are_equals_the_dense_mask():
    """More than one block of 512 queries, and more than 32 blocks of a window's width."""
    for length, window, sinks in ((1300, 520, 5), (310, 8, 3)):
        q, k, v = _qkv(length, seed=length, batch=1, kv=1)
        config = _sliding(window, sinks)
        i, j = torch.arange(length).unsqueeze(1), torch.arange(length)
        mask = (j <= i) & ((i - j < window) | (j < sinks))
        _assert_same(attend_sliding(q, k, v, config), _dense(q, k, v, mask), (q, k, v))


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 70),
    window=st.integers(1, 24),
    sinks=st.integers(0, 11),
    query_block=st.integers(1, 9),
    blocks_per_call=st.integers(1, 4),
    batch=st.integers(1, 2),
    kv=st.integers(1, 2),
    groups=st.integers(1, 3),
)
def test_sliding_attention_equals_the_dense_mask_for_any_shape(
    *, length: int, window: int, sinks: int, query_block: int, blocks_per_call: int, batch: int, kv: int, groups: int
):
    q, k, v = _qkv(length, seed=length * 31 + window, batch=batch, kv=kv, groups=groups)
    config = _sliding(window, sinks)
    wanted = _dense(q, k, v, _window_by_hand(length, config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_kernels, "QUERY_BLOCK", query_block)
        patch.setattr(attention_kernels, "BLOCKS_PER_CALL", blocks_per_call)
        found = attend_sliding(q, k, v, config)
    _assert_same(found, wanted, (q, k, v))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("length", "window", "sinks"), [(50, 7, 3), (130, 32, 0)])
def test_flex_attention_equals_sliding_attention(length: int, window: int, sinks: int):
    q, k, v = (tensor.detach() for tensor in _qkv(length, seed=length, dim=8))  # it refuses what wants a gradient
    config = _sliding(window, sinks)
    torch.testing.assert_close(attend_flex(q, k, v, config), attend_sliding(q, k, v, config), **FP32)


# Sparse attention

SPARSE = {
    "no sinks": _sparse(block=4, blocks_in_window=2, sinks=0, selected=2),
    "sinks of whole blocks": _sparse(block=4, blocks_in_window=1, sinks=8, selected=1),
    "sinks within a block": _sparse(block=4, blocks_in_window=2, sinks=3, selected=2),
    "one block": _sparse(block=8, blocks_in_window=1, sinks=1, selected=1),
    "more blocks asked for than there are": _sparse(block=3, blocks_in_window=2, sinks=2, selected=50),
}
sparse_configs = pytest.mark.parametrize("config", SPARSE.values(), ids=SPARSE)


@sparse_configs
@pytest.mark.parametrize("length", [3, 8, 16, 17, 23, 24, 61, 72])
def test_sparse_attention_equals_its_definition(monkeypatch: pytest.MonkeyPatch, config: AttentionConfig, length: int):
    """With gradients in one call, without them in several."""
    monkeypatch.setattr(attention_kernels, "BLOCKS_PER_CALL", 3)
    q, k, v = _qkv(length, seed=length)
    mask, clearance = _sparse_by_hand(q, k, config)
    assert clearance > 1e-5
    wanted = _dense(q, k, v, mask)
    _assert_same(attend_sparse(q, k, v, config), wanted, (q, k, v))
    with torch.no_grad():
        torch.testing.assert_close(attend_sparse(q, k, v, config), wanted, **FP32)


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 60),
    block=st.integers(2, 6),
    blocks_in_window=st.integers(1, 3),
    sinks=st.integers(0, 9),
    selected=st.integers(1, 4),
    kv=st.integers(1, 2),
    groups=st.integers(1, 3),
)
def test_sparse_attention_equals_its_definition_for_any_shape(
    *, length: int, block: int, blocks_in_window: int, sinks: int, selected: int, kv: int, groups: int
):
    q, k, v = _qkv(length, seed=length * 31 + block, batch=1, kv=kv, groups=groups)
    config = _sparse(block=block, blocks_in_window=blocks_in_window, sinks=sinks, selected=selected)
    mask, clearance = _sparse_by_hand(q, k, config)
    assume(clearance > 1e-5)
    _assert_same(attend_sparse(q, k, v, config), _dense(q, k, v, mask), (q, k, v))


def test_selection_reaches_beyond_the_window_and_differs_between_key_heads():
    """Otherwise the comparisons above would say nothing about selection."""
    config = SPARSE["sinks within a block"]
    q, k, _ = _qkv(72, seed=72)
    mask, _ = _sparse_by_hand(q, k, config)
    far = mask & ~_window_by_hand(72, config)
    assert far.any()
    assert not torch.equal(far[:, 0], far[:, 2])
    assert torch.equal(far[:, 0], far[:, 1])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "sliding", "sparse"])
def test_no_output_depends_on_a_later_token(monkeypatch: pytest.MonkeyPatch, kind: AttentionKind):
    """Whatever comes later, huge values too: not through keys, not through values, not through what is selected."""
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_kernels, "BLOCKS_PER_CALL", 3)
    config = SPARSE["sinks within a block"]
    inputs = _qkv(45, seed=5)
    before = attend(*inputs, kind=kind, config=config, segments=None)
    for cut in range(1, 45):
        changed = [tensor.clone() for tensor in inputs]
        for tensor, other in zip(changed, _qkv(45, seed=6), strict=True):
            tensor[:, :, cut:] = 100 * other[:, :, cut:]
        after = attend(*changed, kind=kind, config=config, segments=None)
        torch.testing.assert_close(after[:, :, :cut], before[:, :, :cut], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(after[:, :, cut:], before[:, :, cut:], atol=1e-3)


def test_blocked_kinds_use_the_fused_kernel_and_make_no_tensor_of_the_length_squared():
    """Twice the length makes tensors twice as large, not four times; the MATH backend would keep all scores."""
    configs: list[tuple[Callable[..., Tensor], AttentionConfig]] = [
        (attend_sliding, _sliding(8, 3)),
        (attend_sparse, SPARSE["sinks within a block"]),
    ]
    for kernel, config in configs:
        most = []
        for length in (512, 1024):
            q, k, v = _qkv(length, seed=0, batch=1)
            with _Operators() as operators:
                kernel(q, k, v, config).sum().backward()
            assert operators.attention == FLASH, kernel.__name__
            most.append(operators.most_elements)
        assert most[1] <= 2.1 * most[0], kernel.__name__


# Documents

PACKINGS = {
    "one packing for all rows": (((0, 9), (9, 10), (10, 40)),) * 2,
    "each row its own": (((0, 25), (25, 40)), ((0, 3), (3, 4), (4, 40))),
    "padding left and right": (((12, 40),), ((0, 31),)),
    "padding between": (((2, 20), (23, 38)), ((0, 40),)),
    "a row of padding": (((0, 40),), ()),
}


def _visible_by_hand(q: Tensor, k: Tensor, kind: AttentionKind, config: AttentionConfig) -> Tensor:
    length = q.shape[2]
    if kind == "sparse":
        return _sparse_by_hand(q, k, config)[0]
    mask = torch.ones(length, length, dtype=torch.bool).tril() if kind == "full" else _window_by_hand(length, config)
    return mask.expand(*q.shape[:2], -1, -1)


@pytest.mark.parametrize("kind", ["full", "sliding", "sparse"])
@pytest.mark.parametrize("rows", PACKINGS.values(), ids=PACKINGS)
def test_documents_equal_a_block_diagonal_mask_and_padding_is_zero(
    rows: tuple[tuple[tuple[int, int], ...], ...], kind: AttentionKind
):
    config = _sparse(block=3, blocks_in_window=1, sinks=2, selected=2)
    segments = Segments(rows, 40)
    q, k, v = _qkv(40, seed=7)
    mask = torch.eye(40, dtype=torch.bool).repeat(2, 4, 1, 1)  # padding sees itself, lest softmax be over nothing
    for row, start, stop in segments.documents():
        inside = slice(start, stop)
        document = q[row : row + 1, :, inside], k[row : row + 1, :, inside]
        mask[row, :, inside, inside] = _visible_by_hand(*document, kind, config)[0]
    is_token = segments.token_mask(q.device)[:, None, :, None]
    wanted = _dense(q, k, v, mask) * is_token
    found = attend(q, k, v, kind=kind, config=config, segments=segments)
    assert (found.masked_select(~is_token) == 0).all()
    _assert_same(found, wanted, (q, k, v))


# Gradients in float64


@pytest.mark.parametrize(
    ("kernel", "config"),
    [
        (attend_sliding, _sliding(2, 1)),
        (attend_sliding, _sliding(3, 0)),
        (attend_sparse, _sparse(block=2, blocks_in_window=1, sinks=1, selected=1)),
    ],
    ids=["sliding with a sink", "sliding", "sparse"],
)
def test_gradients_are_right_in_float64(kernel: Callable[..., Tensor], config: AttentionConfig):
    q, k, v = _qkv(13, seed=8, batch=1, kv=1, groups=2, dim=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: kernel(*inputs, config), (q, k, v))
