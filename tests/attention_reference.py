"""Attention written as its definition, inputs to compare on, and a record of the operators that ran."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train.model.config import AttentionConfig

FP32 = {"atol": 1e-5, "rtol": 1e-5}
"""Tolerance of float32 against a reference."""


def random_tensors(*shapes: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def random_qkv(
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
    return random_tensors(queries, keys, keys, seed=seed, dtype=dtype)


def attend_dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """SDPA over keys that are repeated by hand, [query head h uses key head h // groups]."""
    groups = q.shape[1] // k.shape[1]
    k, v = (torch.stack([t[:, head // groups] for head in range(q.shape[1])], dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def assert_same(found: Any, wanted: Any, inputs: Any) -> None:
    """Outputs and, weighted at random so that nothing cancels, the gradients of all inputs."""
    found, wanted = ((one,) if isinstance(one, Tensor) else tuple(one) for one in (found, wanted))
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(9), dtype=t.dtype) for t in wanted]
    gradients = []
    for outputs in (found, wanted):
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(total, list(inputs)))
    for mine, theirs in zip((*found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(mine, theirs, **FP32)


def window_by_hand(length: int, config: AttentionConfig) -> Tensor:
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            mask[i, j] = j > i - config.window or j < config.num_sinks
    return mask


def sparse_by_hand(q: Tensor, k: Tensor, config: AttentionConfig) -> tuple[Tensor, float]:
    """The mask [batch, heads, seq, seq] of sparse attention out of its definition, and how clear the choices were.

    The second value is the smallest distance between the worst chosen score and the best one that was left: where it is
    a rounding error wide, two right implementations may choose differently.
    """
    batch, heads, length, _ = q.shape
    block, groups = config.block_size, heads // k.shape[1]
    mask = window_by_hand(length, config).repeat(batch, heads, 1, 1)
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


class RecordedOperators(TorchDispatchMode):
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
