"""Attention of one document after another: full causal, sliding window with sinks, block-sparse. Exact, never S x S.

Queries and keys come in and outputs go out as [batch, heads, seq, dim]; positions count from 0 in each document.
- full: PyTorch's fused attention; memory grows with the length, never with its square. Short rows in bfloat16 on a CPU go
  through attention_blocks.py.
- sliding: position i sees j with i - window < j <= i, and the first `num_sinks` positions. Blocks of queries against
  the window before them and the sinks, so time and memory are linear.
- sparse: as sliding, and each block of queries selects `num_selected_blocks` whole blocks before its window: those whose
  mean key has the largest product with the mean query of the *preceding* block. So no token's choice looks ahead, and
  step-by-step decoding selects the same blocks. The selection passes no gradient; it compares means of blocks, so its
  own time is (seq / block_size)^2 small products.

Sources: FlashAttention-2 (arXiv:2307.08691), attention sinks (arXiv:2309.17453), block selection after MoBA
(arXiv:2502.13189) and NSA (arXiv:2502.11089). tests/parity/test_model_attention.py compares with dense masks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from train.model.attention_blocks import attend_blocks, prefers_blocks
from train.model.config import AttentionConfig, AttentionKind
from train.model.segments import Segments

Queries = Float[Tensor, "batch heads seq dim"]
Keys = Float[Tensor, "batch kv seq dim"]

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
"""Backends whose memory is linear in the length."""
FUSED_ONLY_ABOVE = 2048
"""Positions above which the quadratic MATH backend is an error instead of a silent choice."""
QUERY_BLOCK = 512
"""Queries of a sliding block: larger ones compute more masked scores, smaller ones copy the window more often."""
BLOCKS_PER_CALL = 32
"""Blocks that one fused call takes: bounds the copies of windows that exist at a time."""


def attend(
    q_BHSd: Queries,
    k_BKSd: Keys,
    v_BKSd: Keys,
    *,
    kind: AttentionKind,
    config: AttentionConfig,
    segments: Segments | None,
) -> Queries:
    """Causal attention within each document; zeros at padding. Without segments a row is one document."""
    kernel = KINDS[kind]
    if segments is None:
        return kernel(q_BHSd, k_BKSd, v_BKSd, config)
    if len(set(segments.rows)) == 1:
        return _by_document(q_BHSd, k_BKSd, v_BKSd, segments.rows[0], partial(kernel, config=config))
    rows = [
        _by_document(q, k, v, documents, partial(kernel, config=config))
        for q, k, v, documents in zip(*(t.split(1) for t in (q_BHSd, k_BKSd, v_BKSd)), segments.rows, strict=True)
    ]
    return torch.cat(rows)


def _by_document(
    q: Tensor, k: Tensor, v: Tensor, documents: tuple[tuple[int, int], ...], kernel: Callable[..., Tensor]
) -> Tensor:
    """Rows that share their documents. One split and one cat: a slice per document would make a full gradient each."""
    if not documents:  # zeros that stay connected, so that projections get zero gradients and not None
        return torch.zeros_like(q) + sum(t[:0].sum() for t in (q, k, v))
    sizes, is_document, end = [], [], 0
    for start, stop in documents:
        sizes += [start - end, stop - start]
        is_document += [False, True]
        end = stop
    sizes, is_document = [*sizes, q.shape[2] - end], [*is_document, False]
    parts = zip(q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), is_document, strict=True)
    return torch.cat([kernel(*part) if real else torch.zeros_like(part[0]) for *part, real in parts], dim=2)


def attend_full(q_BHSd: Queries, k_BKSd: Keys, v_BKSd: Keys, config: AttentionConfig | None = None) -> Queries:
    """Every position sees itself and all before it.

    Raises RuntimeError for long inputs if only the quadratic backend could take them, instead of filling the memory.
    """
    if prefers_blocks(q_BHSd):
        return attend_blocks(q_BHSd, k_BKSd, v_BKSd)
    if q_BHSd.shape[2] <= FUSED_ONLY_ABOVE:
        return F.scaled_dot_product_attention(q_BHSd, k_BKSd, v_BKSd, is_causal=True, enable_gqa=True)
    with sdpa_kernel(FUSED):
        return F.scaled_dot_product_attention(q_BHSd, k_BKSd, v_BKSd, is_causal=True, enable_gqa=True)


def attend_sliding(q_BHSd: Queries, k_BKSd: Keys, v_BKSd: Keys, config: AttentionConfig) -> Queries:
    """Window and sinks. Short inputs are one masked call; on a GPU FlexAttention skips what the mask hides."""
    length, window, sinks = q_BHSd.shape[2], config.window, config.num_sinks
    if length <= window:
        return attend_full(q_BHSd, k_BKSd, v_BKSd)
    if q_BHSd.is_cuda:
        return attend_flex(q_BHSd, k_BKSd, v_BKSd, config)
    block = min(QUERY_BLOCK, window)
    before = _round_up(window, block)
    head = _round_up(before + sinks, block)
    if length <= head:
        return _masked(q_BHSd, k_BKSd, v_BKSd, sliding_mask(length, config, device=q_BHSd.device))
    padded = _round_up(length, block)
    q, k, v = (_pad_to(t, padded) for t in (q_BHSd, k_BKSd, v_BKSd))
    sizes = [head, *[min(BLOCKS_PER_CALL * block, padded - at) for at in range(head, padded, BLOCKS_PER_CALL * block)]]
    return _join(_sliding_parts(q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), config), q_BHSd)


def _sliding_parts(
    q: Sequence[Tensor], k: Sequence[Tensor], v: Sequence[Tensor], config: AttentionConfig
) -> Iterator[Tensor]:
    """Outputs of consecutive parts; the first holds the sinks and one window, the others are whole blocks.

    Parts come from one split: a slice per block would make a full-size gradient each.
    """
    block, sinks, head = min(QUERY_BLOCK, config.window), config.num_sinks, q[0].shape[2]
    before = _round_up(config.window, block)
    yield _masked(q[0], k[0], v[0], sliding_mask(head, config, device=q[0].device))
    tail_k, tail_v = k[0][:, :, head - before :], v[0][:, :, head - before :]
    sink_k, sink_v = k[0][:, :, :sinks], v[0][:, :, :sinks]
    mask = _block_mask(block, before, config, device=q[0].device)
    for part_q, part_k, part_v in zip(q[1:], k[1:], v[1:], strict=True):
        keys = _windows(part_k, tail_k, sink_k, block=block)
        values = _windows(part_v, tail_v, sink_v, block=block)
        yield _unfold_blocks(_masked(_fold_blocks(part_q, block), keys, values, mask), batch=len(part_q))
        tail_k, tail_v = (
            torch.cat([tail, new], 2)[:, :, -before:] for tail, new in ((tail_k, part_k), (tail_v, part_v))
        )


def attend_sparse(q_BHSd: Queries, k_BKSd: Keys, v_BKSd: Keys, config: AttentionConfig) -> Queries:
    """Window, sinks and selected blocks. The part before any block can be selected is plain sliding attention."""
    length, block, window, sinks = q_BHSd.shape[2], config.block_size, config.window, config.num_sinks
    head = window + _round_up(sinks, block) + block
    if length <= head:
        return _masked(q_BHSd, k_BKSd, v_BKSd, sliding_mask(length, config, device=q_BHSd.device))
    padded = _round_up(length, block)
    q, k, v = (_pad_to(t, padded) for t in (q_BHSd, k_BKSd, v_BKSd))
    return _join(_sparse_parts(q, k, v, config, head=head), q_BHSd)


def _sparse_parts(q: Tensor, k: Tensor, v: Tensor, config: AttentionConfig, *, head: int) -> Iterator[Tensor]:
    """Outputs of the first `head` positions, and of the blocks behind them."""
    block, window, sinks = config.block_size, config.window, config.num_sinks
    chosen, is_chosen = select_blocks(q, k, config, first=head // block)
    num_blocks = chosen.shape[2]
    yield _masked(q[:, :, :head], k[:, :, :head], v[:, :, :head], sliding_mask(head, config, device=q.device))
    tail_q, tail_k, tail_v = q[:, :, head:], k[:, :, head - window :], v[:, :, head - window :]
    mask = _block_mask(block, window, config, device=q.device)
    # with gradients one gather: each gather's gradient is as large as all keys, so many would cost their square
    step = num_blocks if torch.is_grad_enabled() else BLOCKS_PER_CALL
    for at in range(0, num_blocks, step):
        count = min(step, num_blocks - at)
        near = slice(at * block, (at + count) * block + window)
        parts = []
        for t, tail in ((k, tail_k), (v, tail_v)):
            here = tail[:, :, near]
            windows = _windows(here[:, :, window:], here[:, :, :window], t[:, :, :sinks], block=block)
            parts.append(torch.cat([windows, _gather_blocks(t, chosen[:, :, at : at + count], block)], dim=2))
        keys, values = parts
        far = is_chosen[at : at + count].repeat_interleave(block, dim=1).unsqueeze(1).expand(-1, block, -1)
        whole = torch.cat([mask.expand(count, -1, -1), far], dim=2).unsqueeze(1).repeat(len(q), 1, 1, 1)
        queries = _fold_blocks(tail_q[:, :, at * block : (at + count) * block], block)
        yield _unfold_blocks(_masked(queries, keys, values, whole), batch=len(q))


@torch.no_grad()
def select_blocks(
    q_BHSd: Queries, k_BKSd: Keys, config: AttentionConfig, *, first: int
) -> tuple[Int[Tensor, "batch kv blocks chosen"], Bool[Tensor, "blocks chosen"]]:
    """For the query blocks from `first` on: the blocks each selects, and which of these places hold one.

    A candidate lies wholly after the sinks and before the window of the block's first query.
    """
    block, kv = config.block_size, k_BKSd.shape[1]
    mean_k = k_BKSd.unflatten(2, (-1, block)).float().mean(3)
    mean_q = q_BHSd.unflatten(1, (kv, -1)).float().mean(2).unflatten(2, (-1, block)).mean(3)[:, :, first - 1 : -1]
    blocks = torch.arange(first, mean_k.shape[2], device=q_BHSd.device)
    # some at a time: all scores together are blocks x blocks, 8 GB at 1M tokens
    parts = zip(mean_q.split(BLOCKS_PER_CALL, 2), blocks.split(BLOCKS_PER_CALL), strict=True)
    chosen, is_chosen = zip(*(choose_blocks(part_q, mean_k, at, config) for part_q, at in parts), strict=True)
    return torch.cat(chosen, dim=2), torch.cat(is_chosen)


def choose_blocks(
    mean_q_BKQd: Float[Tensor, "batch kv queries dim"], mean_k_BKNd: Float[Tensor, "batch kv blocks dim"],
    block_Q: Int[Tensor, " queries"], config: AttentionConfig,
) -> tuple[Int[Tensor, "batch kv queries chosen"], Bool[Tensor, "queries chosen"]]:  # fmt: skip
    """The best candidates of queries in blocks `block_Q`, by the mean query of the block before each."""
    index = torch.arange(mean_k_BKNd.shape[2], device=mean_k_BKNd.device)
    num_after_sinks = -(-config.num_sinks // config.block_size)
    num_before_window = block_Q - config.window // config.block_size
    is_candidate = (index >= num_after_sinks) & (index < num_before_window.unsqueeze(1))
    scores = (mean_q_BKQd @ mean_k_BKNd.transpose(2, 3)).masked_fill(~is_candidate, -torch.inf)
    count = min(config.num_selected_blocks, scores.shape[-1])
    chosen = scores.topk(count, dim=-1).indices
    num_candidates = is_candidate.sum(1, keepdim=True)
    return chosen, torch.arange(count, device=chosen.device) < num_candidates


def sliding_mask(length: int, config: AttentionConfig, *, device: torch.device) -> Bool[Tensor, "seq seq"]:
    """What position i (row) sees of j (column), as a dense mask: for short inputs and for comparison."""
    i, j = torch.arange(length, device=device).unsqueeze(1), torch.arange(length, device=device)
    return is_visible(i, j, config)


def is_visible(i: Tensor, j: Tensor, config: AttentionConfig) -> Tensor:
    """Whether position i sees position j through its window or as a sink."""
    return (j <= i) & ((j > i - config.window) | (j < config.num_sinks))


def attend_flex(q_BHSd: Queries, k_BKSd: Keys, v_BKSd: Keys, config: AttentionConfig) -> Queries:
    """Sliding attention by FlexAttention: with gradients on a GPU; on the CPU forward only, where it is a test's oracle."""
    mask = _flex_mask(q_BHSd.shape[2], config, q_BHSd.device)
    kernel = torch.compile(flex_attention) if q_BHSd.is_cuda else flex_attention
    return cast(Tensor, kernel(q_BHSd, k_BKSd, v_BKSd, block_mask=mask, enable_gqa=True))  # type: ignore[redundant-cast]


@lru_cache(maxsize=16)
def _flex_mask(length: int, config: AttentionConfig, device: torch.device) -> BlockMask:

    def visible(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return is_visible(i, j, config)

    return create_block_mask(visible, None, None, length, length, device=str(device))


def _block_mask(block: int, before: int, config: AttentionConfig, *, device: torch.device) -> Tensor:
    """[block, sinks + before + block]: what a block's queries see of the sinks, the keys before it, and itself.

    Two dimensions: with three, the CPU's fused kernel declines the mask and the scores are materialised.
    """
    i, j = torch.arange(block, device=device).unsqueeze(1), torch.arange(before + block, device=device)
    near = (j <= i + before) & (j > i + before - config.window)
    return F.pad(near, (config.num_sinks, 0), value=True)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def _windows(new: Tensor, tail: Tensor, sink: Tensor, *, block: int) -> Tensor:
    """[batch * blocks, kv, sinks + before + block, dim]: for each block of `new`, the sinks, the keys before it, its own."""
    blocks = torch.cat([tail, new], 2).unflatten(2, (-1, block))
    before = tail.shape[2] // block
    count = blocks.shape[2] - before
    near = torch.cat([blocks[:, :, at : at + count] for at in range(before + 1)], dim=3)
    return torch.cat([sink.unsqueeze(2).expand(-1, -1, count, -1, -1), near], dim=3).transpose(1, 2).flatten(0, 1)


def _gather_blocks(keys: Tensor, chosen: Tensor, block: int) -> Tensor:
    """[batch * queries, kv, chosen * block, dim]: the blocks that `chosen` [batch, kv, queries, chosen] names."""
    batch, kv, length, dim = keys.shape
    rows = keys.reshape(batch * kv * (length // block), block * dim)
    offset = torch.arange(batch * kv, device=keys.device).view(batch, kv, 1, 1) * (length // block)
    picked = rows.index_select(0, (chosen + offset).flatten())
    return picked.view(batch, kv, chosen.shape[2], chosen.shape[3] * block, dim).transpose(1, 2).flatten(0, 1)


def _fold_blocks(t: Tensor, block: int) -> Tensor:
    """[batch, heads, blocks * block, dim] -> [batch * blocks, heads, block, dim]."""
    batch, heads, length, dim = t.shape
    return t.reshape(batch, heads, length // block, block, dim).transpose(1, 2).flatten(0, 1)


def _unfold_blocks(t: Tensor, *, batch: int) -> Tensor:
    """The inverse of _fold_blocks."""
    folded, heads, block, dim = t.shape
    return t.reshape(batch, folded // batch, heads, block, dim).transpose(1, 2).flatten(2, 3)


def _pad_to(t: Tensor, length: int) -> Tensor:
    """Zeros behind the last position; no copy where none are needed, which F.pad would make."""
    return t if t.shape[2] == length else F.pad(t, (0, 0, 0, length - t.shape[2]))


def _join(parts: Iterator[Tensor], like: Tensor) -> Tensor:
    """The parts one behind the other, as long as `like`. Without gradients each is freed as soon as it is copied."""
    if torch.is_grad_enabled():
        return torch.cat(list(parts), dim=2)[:, :, : like.shape[2]]
    joined, at = torch.empty_like(like), 0
    for part in parts:
        kept = min(part.shape[2], like.shape[2] - at)
        joined[:, :, at : at + kept] = part[:, :, :kept]
        at += kept
    return joined


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


KINDS: dict[AttentionKind, Callable[..., Tensor]] = {
    "full": attend_full,
    "sliding": attend_sliding,
    "sparse": attend_sparse,
}
