"""Causal attention of short rows in bfloat16 on a CPU: blocks of queries against all keys before them, by plain products.

PyTorch's flash kernel for CPUs multiplies tiles that are too small for oneDNN. Rows of 512 tokens took 0.4 to 0.5 of its
time so, forward and backward, and rows of 1,024 two thirds (AVX-512; benchmarks/model_attention_blocks.py). Probabilities are
kept for the backward pass, half of [seq, seq] per head; so long rows stay with the flash kernel, of linear memory. Scores
are rounded to bfloat16 before the softmax, which computes in float32, as in transformers' eager attention.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from train.dtype import has_fast_bfloat16

BLOCK = 128
"""Queries of a block: of 64, 128 and 256 the fastest from 512 positions on; the half block on the diagonal is wasted."""
LONGEST = 1024
"""Positions above which the probabilities would weigh more than the speed is worth."""
HAS_FAST_BFLOAT16 = has_fast_bfloat16()
"""Asked once: within a compiled region the question would cut it in two."""


def prefers_blocks(q_BHSd: Tensor) -> bool:
    """Whether attend_blocks is the faster kernel for these queries."""
    is_short = BLOCK < q_BHSd.shape[2] <= LONGEST
    return is_short and q_BHSd.device.type == "cpu" and q_BHSd.dtype == torch.bfloat16 and HAS_FAST_BFLOAT16


def attend_blocks(
    q_BHSd: Float[Tensor, "batch heads seq dim"], k_BKSd: Float[Tensor, "batch kv seq dim"],
    v_BKSd: Float[Tensor, "batch kv seq dim"],
) -> Float[Tensor, "batch heads seq dim"]:  # fmt: skip
    """Every position sees itself and all before it; query head h uses key head h // (heads / kv)."""
    batch, _, length, dim = q_BHSd.shape
    kv = k_BKSd.shape[1]
    queries = (q_BHSd * dim**-0.5).unflatten(1, (kv, -1))
    groups = queries.shape[2]
    keys, values = k_BKSd.flatten(0, 1), v_BKSd.flatten(0, 1)
    parts = []
    for start, part in zip(range(0, length, BLOCK), queries.split(BLOCK, 3), strict=True):
        size = part.shape[3]
        stop = start + size
        scores = part.reshape(batch * kv, groups * size, dim) @ keys[:, :stop].mT
        ahead = torch.full((size, size), -torch.inf, dtype=q_BHSd.dtype, device=q_BHSd.device).triu_(1)
        scores.detach()[:, :, start:] += ahead.repeat(
            groups, 1
        )  # detached: adding a constant has no gradient to compute
        parts.append((scores.softmax(-1) @ values[:, :stop]).unflatten(1, (groups, size)))
    out = torch.cat(parts, dim=2)
    return out.view(q_BHSd.shape)
