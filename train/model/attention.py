"""Attention layers: projections, optional norms of queries and keys, rotation, and a kernel of attention_kernels.py.

FlashAttentionLayer sees all that came before, SparseAttention a window, sinks and perhaps selected blocks. Both take
grouped-query attention without repeating keys, packed and padded batches (Segments), and a cache (KVCache). A tensor parallel
rank computes its share of the heads; among context parallel ranks heads are exchanged for positions around the kernel.
Shape letters: B batch, S sequence, D width, H heads, K key-value heads, d head dimension.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from train.model.attention_kernels import attend
from train.model.cache import KVCache
from train.model.collectives import gather_sequence, heads_for_positions, positions_for_heads, scatter_sequence
from train.model.config import MoEConfig
from train.model.layers import RMSNorm, apply_rotary
from train.model.ranks import ALONE, ModelRanks, key_head_copies
from train.model.segments import Segments

QUERIES_PER_CALL = 1024
"""New tokens that look at a cache at a time: bounds the mask of tokens times kept keys."""


class _Attention(nn.Module):
    """What both layers share: everything but which positions are seen, which is `kind`."""

    def __init__(self, config: MoEConfig, layer: int, *, ranks: ModelRanks = ALONE) -> None:
        super().__init__()
        self.config = config.attention
        self.ranks = ranks
        self.kind = config.attention_kind(layer)
        self.layer = layer
        self.head_dim = config.head_dim
        self.key_head_copies = key_head_copies(config.num_key_value_heads, tp=ranks.tp_size, cp=ranks.cp_size)
        queries, keys = (
            heads // ranks.tp_size * config.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.qk_norm = config.qk_norm
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(config.head_dim if per_head else queries, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim if per_head else keys, eps=config.rms_norm_eps)

    def forward(
        self,
        x_BSD: Float[Tensor, "batch seq width"],
        rotary: tuple[Tensor, Tensor],
        *,
        segments: Segments | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq width"]:
        """Attention over this pass and, with a cache, over what came before. Padded slots give o_proj(0) = 0.

        Of a split sequence `x_BSD` and the result are this rank's part, `rotary` its context part, `segments` all of it.
        """
        tp, cp = self.ranks.tp, self.ranks.cp
        if tp is not None:
            x_BSD = gather_sequence(x_BSD, tp)
        q, k, v = self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_proj(x_BSD)
        if self.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q.transpose(1, 2), k.transpose(1, 2), *rotary)
        v = v.transpose(1, 2)
        if cp is not None:
            if self.key_head_copies > 1:
                k, v = (t.repeat_interleave(self.key_head_copies, dim=1) for t in (k, v))
            q, k, v = (heads_for_positions(t, cp) for t in (q, k, v))
        if cache is None or cache.is_empty:
            out = attend(q, k, v, kind=self.kind, config=self.config, segments=segments)
            if cache is not None:
                cache.append(self.layer, q, k, v)
        else:
            out = self._attend_cached(q, k, v, cache)
        if cp is not None:
            out = positions_for_heads(out, cp)
        out = self.o_proj(out.transpose(1, 2).flatten(2))
        return out if tp is None else scatter_sequence(out, tp)

    def _attend_cached(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        kept = cache.append(self.layer, q, k, v)
        keys, values = kept.keys[:, :, : kept.size], kept.values[:, :, : kept.size]
        parts = []
        for at in range(0, q.shape[2], QUERIES_PER_CALL):
            new = slice(at, at + QUERIES_PER_CALL)
            mask = cache.visible(self.layer, kept, new)
            parts.append(F.scaled_dot_product_attention(q[:, :, new], keys, values, attn_mask=mask, enable_gqa=True))
        return torch.cat(parts, dim=2)


class FlashAttentionLayer(_Attention):
    """Full causal attention: fused, O(N) memory; FlashAttention-2 on a GPU, PyTorch's flash kernel on the CPU."""


class SparseAttention(_Attention):
    """Window, sinks and, in `sparse` layers, selected blocks, for contexts of 128K to 1M tokens: O(N) time and memory, but
    for the selection of `sparse` layers, which compares each block with all before it: (N / block_size)^2 small products.
    """


def build_attention(
    config: MoEConfig, layer: int, *, ranks: ModelRanks = ALONE
) -> FlashAttentionLayer | SparseAttention:
    """The attention of layer `layer`, as the configuration's pattern says."""
    is_full = config.attention_kind(layer) == "full"
    kind = FlashAttentionLayer if is_full else SparseAttention
    return kind(config, layer, ranks=ranks)
