"""Attention in its three kinds against dense masks and FlexAttention, forward and backward; which kernels run."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask, sliding_window_causal_mask_function

from tests.attention_reference import (
    FP32,
    RecordedOperators,
    assert_same,
    attend_dense,
    random_qkv,
    sparse_by_hand,
    window_by_hand,
)
from train.model import attention_blocks, attention_kernels
from train.model.attention_blocks import BLOCK, LONGEST, attend_blocks
from train.model.attention_kernels import attend, attend_flex, attend_full, attend_sliding, attend_sparse, sliding_mask
from train.model.config import AttentionConfig, AttentionKind
from train.model.segments import Segments

pytestmark = pytest.mark.usefixtures("one_thread")


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
    q, k, v = random_qkv(length, seed=length, kv=kv, groups=groups)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    assert_same(attend_full(q, k, v), attend_dense(q, k, v, mask), (q, k, v))


def test_attention_is_softmax_of_scaled_products_as_written_in_the_paper():
    """The dense references above go through PyTorch's SDPA; this one does not."""
    q, k, v = random_qkv(17, seed=0, kv=1, groups=1, dim=8)
    scores = (q.double() @ k.double().mT / 8**0.5).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    assert_same(attend_full(q, k, v), (scores.softmax(-1) @ v.double()).float(), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 2049])
def test_full_attention_is_the_fused_kernel_forward_and_backward(length: int, dtype: torch.dtype):
    q, k, v = random_qkv(length, seed=0, batch=1, kv=1, groups=2, dim=2, dtype=dtype)
    with RecordedOperators() as operators:
        attend_full(q, k, v).sum().backward()
    assert operators.attention == FLASH


@pytest.mark.parametrize(("kv", "groups"), [(4, 1), (2, 3)])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_blocks_of_plain_products_equal_dense_attention_forward_and_backward(kv: int, groups: int, length: int):
    q, k, v = random_qkv(length, seed=length, kv=kv, groups=groups)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    assert_same(attend_blocks(q, k, v), attend_dense(q, k, v, mask), (q, k, v))


def test_blocks_round_in_bfloat16_about_as_the_fused_kernel_does():
    """Against float32, both 0.2 to 0.4 % of the norm: one unit in the last place is 0.4 %."""
    wide = random_qkv(300, seed=1, dim=64)
    narrow = [t.detach().bfloat16().requires_grad_() for t in wide]
    exact = torch.autograd.grad(attend_full(*wide).square().sum(), wide)
    rounded = torch.autograd.grad(attend_blocks(*narrow).float().square().sum(), narrow)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("length", [BLOCK + 1, LONGEST])
def test_short_rows_in_bfloat16_go_through_blocks_where_the_cpu_multiplies_in_it(
    length: int, monkeypatch: pytest.MonkeyPatch
):
    for is_fast, kernels in ((True, {"_softmax", "_softmax_backward_data"}), (False, FLASH)):
        monkeypatch.setattr(attention_blocks, "HAS_FAST_BFLOAT16", is_fast)
        q, k, v = random_qkv(length, seed=0, batch=1, kv=1, groups=2, dim=2, dtype=torch.bfloat16)
        with RecordedOperators() as operators:
            attend_full(q, k, v).sum().backward()
        assert operators.attention == kernels


@pytest.mark.filterwarnings("ignore:.*attention:UserWarning")  # PyTorch says why each kernel declined
def test_what_only_the_quadratic_backend_could_compute_is_an_error_above_the_limit_and_allowed_below():
    def inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, _ = random_qkv(length, seed=0, batch=1, kv=1, groups=1)
        return q, k, torch.zeros(1, 1, length, 3)  # values narrower than keys: no fused kernel takes them

    limit = attention_kernels.FUSED_ONLY_ABOVE
    with torch.no_grad(), RecordedOperators() as operators:
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
        assert torch.equal(sliding_mask(30, config, device=torch.device("cpu")), window_by_hand(30, config))


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
    q, k, v = random_qkv(length, seed=length)
    config = _sliding(window, sinks)
    wanted = attend_dense(q, k, v, window_by_hand(length, config))
    assert_same(attend_sliding(q, k, v, config), wanted, (q, k, v))


def test_sliding_attention_with_the_constants_as_they_are_equals_the_dense_mask():
    """More than one block of 512 queries, and more than 32 blocks of a window's width."""
    for length, window, sinks in ((1300, 520, 5), (310, 8, 3)):
        q, k, v = random_qkv(length, seed=length, batch=1, kv=1)
        config = _sliding(window, sinks)
        i, j = torch.arange(length).unsqueeze(1), torch.arange(length)
        mask = (j <= i) & ((i - j < window) | (j < sinks))
        assert_same(attend_sliding(q, k, v, config), attend_dense(q, k, v, mask), (q, k, v))


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
    q, k, v = random_qkv(length, seed=length * 31 + window, batch=batch, kv=kv, groups=groups)
    config = _sliding(window, sinks)
    wanted = attend_dense(q, k, v, window_by_hand(length, config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_kernels, "QUERY_BLOCK", query_block)
        patch.setattr(attention_kernels, "BLOCKS_PER_CALL", blocks_per_call)
        found = attend_sliding(q, k, v, config)
    assert_same(found, wanted, (q, k, v))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("length", "window", "sinks"), [(50, 7, 3), (130, 32, 0)])
def test_flex_attention_equals_sliding_attention(length: int, window: int, sinks: int):
    q, k, v = (tensor.detach() for tensor in random_qkv(length, seed=length, dim=8))  # it refuses what wants a gradient
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
    q, k, v = random_qkv(length, seed=length)
    mask, clearance = sparse_by_hand(q, k, config)
    assert clearance > 1e-5
    wanted = attend_dense(q, k, v, mask)
    assert_same(attend_sparse(q, k, v, config), wanted, (q, k, v))
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
    q, k, v = random_qkv(length, seed=length * 31 + block, batch=1, kv=kv, groups=groups)
    config = _sparse(block=block, blocks_in_window=blocks_in_window, sinks=sinks, selected=selected)
    mask, clearance = sparse_by_hand(q, k, config)
    assume(clearance > 1e-5)
    assert_same(attend_sparse(q, k, v, config), attend_dense(q, k, v, mask), (q, k, v))


def test_selection_reaches_beyond_the_window_and_differs_between_key_heads():
    """Otherwise the comparisons above would say nothing about selection."""
    config = SPARSE["sinks within a block"]
    q, k, _ = random_qkv(72, seed=72)
    mask, _ = sparse_by_hand(q, k, config)
    far = mask & ~window_by_hand(72, config)
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
    inputs = random_qkv(45, seed=5)
    before = attend(*inputs, kind=kind, config=config, segments=None)
    for cut in range(1, 45):
        changed = [tensor.clone() for tensor in inputs]
        for tensor, other in zip(changed, random_qkv(45, seed=6), strict=True):
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
            q, k, v = random_qkv(length, seed=0, batch=1)
            with RecordedOperators() as operators:
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
        return sparse_by_hand(q, k, config)[0]
    mask = torch.ones(length, length, dtype=torch.bool).tril() if kind == "full" else window_by_hand(length, config)
    return mask.expand(*q.shape[:2], -1, -1)


@pytest.mark.parametrize("kind", ["full", "sliding", "sparse"])
@pytest.mark.parametrize("rows", PACKINGS.values(), ids=PACKINGS)
def test_documents_equal_a_block_diagonal_mask_and_padding_is_zero(
    rows: tuple[tuple[tuple[int, int], ...], ...], kind: AttentionKind
):
    config = _sparse(block=3, blocks_in_window=1, sinks=2, selected=2)
    segments = Segments(rows, 40)
    q, k, v = random_qkv(40, seed=7)
    mask = torch.eye(40, dtype=torch.bool).repeat(2, 4, 1, 1)  # padding sees itself, lest softmax be over nothing
    for row, start, stop in segments.documents():
        inside = slice(start, stop)
        document = q[row : row + 1, :, inside], k[row : row + 1, :, inside]
        mask[row, :, inside, inside] = _visible_by_hand(*document, kind, config)[0]
    is_token = segments.token_mask(q.device)[:, None, :, None]
    wanted = attend_dense(q, k, v, mask) * is_token
    found = attend(q, k, v, kind=kind, config=config, segments=segments)
    assert (found.masked_select(~is_token) == 0).all()
    assert_same(found, wanted, (q, k, v))


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
    q, k, v = random_qkv(13, seed=8, batch=1, kv=1, groups=2, dim=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: kernel(*inputs, config), (q, k, v))
