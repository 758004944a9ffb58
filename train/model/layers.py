"""TokenEmbedding, RMSNorm, and rotary position encoding (RoPE) in every kind that transformers knows.

The frequencies of a kind are one pure function of the configuration and, for `dynamic` and `longrope`, of the length of
the sequence; they are computed when they are needed, so a model that was built without memory is right after it got some.
Rotations pair dimension i with i + rotary_dim / 2 (Llama's layout, not the interleaved one).

Sources: RMSNorm (arXiv:1910.07467), RoPE (arXiv:2104.09864), YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753),
Llama 3.1 (arXiv:2407.21783); equal to transformers.modeling_rope_utils (tests/parity/test_model_attention.py).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from train.model.collectives import scatter_sequence
from train.model.config import MoEConfig, RopeKind

Frequencies = tuple[Float[Tensor, " pairs"], float]
"""Radians per position of each pair of dimensions, and the factor on cos and sin."""


class TokenEmbedding(nn.Embedding):
    """A row per token. With `tp` a rank holds its share of the rows, and gives its part of the sequence."""

    def __init__(self, vocab_size: int, hidden_size: int, *, tp: ProcessGroup | None = None) -> None:
        super().__init__(vocab_size // (1 if tp is None else tp.size()), hidden_size)
        self.tp = tp

    def forward(self, ids_BS: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch part width"]:
        """The rows of these tokens."""
        if self.tp is None:
            return super().forward(ids_BS)
        local = ids_BS - self.tp.rank() * self.num_embeddings
        is_elsewhere = (local < 0) | (local >= self.num_embeddings)
        rows = super().forward(local.masked_fill(is_elsewhere, 0))
        return scatter_sequence(rows.masked_fill(is_elsewhere.unsqueeze(-1), 0), self.tp)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; the mean is float32 for any dtype."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.is_compiled = False

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Same shape and dtype as `x`."""
        norm = compiled(_rms_norm) if self.is_compiled else _rms_norm
        return norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)


def _rms_norm(x: Float[Tensor, "rows dim"], weight: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "rows dim"]:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def silu_product(gate: Float[Tensor, "*rows width"], up: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """silu(gate) * up."""
    return F.silu(gate) * up


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one kernel, for tensors of any size; made at its first call, and once for all layers of a process."""
    return torch.compile(function, dynamic=True)


class RoPEEmbedding(nn.Module):
    """Positions to cos and sin. Without parameters; frequencies are kept per device and computed on first use."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self._kept: dict[tuple[torch.device, int | None], tuple[Tensor, float]] = {}

    def forward(
        self, position_ids_BS: Int[Tensor, "batch seq"], *, dtype: torch.dtype, seq_len: int | None = None
    ) -> tuple[Float[Tensor, "batch seq rotary"], Float[Tensor, "batch seq rotary"]]:
        """cos and sin in `dtype`; angles are float32. `seq_len`: None takes the largest position + 1."""
        inv_freq, factor = self._frequencies(position_ids_BS, seq_len)
        angles = position_ids_BS.unsqueeze(-1).float() * inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)

    def _frequencies(self, position_ids: Tensor, seq_len: int | None) -> tuple[Tensor, float]:
        """Only `dynamic` and `longrope` look at the positions, which waits for a GPU."""
        length: int | None = None
        if self.config.rope.kind in ("dynamic", "longrope"):
            length = int(position_ids.max()) + 1 if seq_len is None else seq_len
        if length is not None and self.config.rope.kind == "dynamic":
            length = max(length, self.config.max_position_embeddings)
        elif length is not None:
            length = self.config.rope_original_context + int(length > self.config.rope_original_context)
        key = (position_ids.device, length)
        if key not in self._kept:
            inv_freq, factor = inverse_frequencies(self.config, seq_len=length)
            if len(self._kept) > 8:
                self._kept.clear()
            self._kept[key] = (inv_freq.to(position_ids.device), factor)
        return self._kept[key]


def inverse_frequencies(config: MoEConfig, *, seq_len: int | None = None) -> Frequencies:
    """Frequencies of `config.rope.kind` on the CPU, float32 [rotary_dim / 2]. `seq_len` matters to dynamic and longrope."""
    with torch.device("cpu"):
        return KINDS[config.rope.kind](config, seq_len)


def apply_rotary(
    q_BHSd: Float[Tensor, "batch heads seq dim"],
    k_BKSd: Float[Tensor, "batch kv seq dim"],
    cos_BSr: Float[Tensor, "batch seq rotary"],
    sin_BSr: Float[Tensor, "batch seq rotary"],
) -> tuple[Float[Tensor, "batch heads seq dim"], Float[Tensor, "batch kv seq dim"]]:
    """Queries and keys, their first `rotary` dimensions turned by the angle of their position."""
    cos, sin = cos_BSr.unsqueeze(1), sin_BSr.unsqueeze(1)
    return _rotate(q_BHSd, cos, sin), _rotate(k_BKSd, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = cos.shape[-1]
    turned, rest = x[..., :rotary], x[..., rotary:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return turned if rest.shape[-1] == 0 else torch.cat([turned, rest], dim=-1)


def _powers(config: MoEConfig, *, theta: float | None = None, dim: int | None = None) -> Tensor:
    """Wavelength over 2 pi of each pair: theta^(2 i / dim)."""
    dim = dim or config.rotary_dim
    return torch.tensor(theta or config.rope.theta) ** (torch.arange(0, dim, 2).float() / dim)


def _default(config: MoEConfig, _: int | None) -> Frequencies:
    return 1 / _powers(config), 1.0


def _linear(config: MoEConfig, _: int | None) -> Frequencies:
    return 1 / _powers(config) / config.rope_factor, 1.0


def _proportional(config: MoEConfig, _: int | None) -> Frequencies:
    """Rotates a share of the pairs with the frequencies of the whole head; the others turn by zero."""
    turning = int(config.rope.partial_rotary_factor * config.head_dim // 2)
    inv_freq = 1 / _powers(config, dim=config.head_dim)
    inv_freq[turning:] = 0
    return inv_freq / config.rope_factor, 1.0


def _dynamic(config: MoEConfig, seq_len: int | None) -> Frequencies:
    """NTK-aware: the base grows with the sequence once it is longer than the context."""
    context, dim, factor = config.max_position_embeddings, config.rotary_dim, config.rope_factor
    length = max(seq_len or context, context)
    theta = config.rope.theta * (factor * length / context - (factor - 1)) ** (dim / (dim - 2))
    return 1 / _powers(config, theta=theta), 1.0


def _yarn(config: MoEConfig, _: int | None) -> Frequencies:
    """Slow dimensions are interpolated, fast ones left alone, a linear ramp between."""
    rope, dim, factor = config.rope, config.rotary_dim, config.rope_factor

    def dimension_with(num_rotations: float) -> float:
        turns = config.rope_original_context / (num_rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2).float() - low) / (high - low)).clamp(0, 1)
    powers = _powers(config)
    inv_freq = ramp / (factor * powers) + (1 - ramp) / powers
    return inv_freq, rope.attention_factor or _yarn_attention_factor(config)


def _yarn_attention_factor(config: MoEConfig) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(config.rope_factor) + 1 if config.rope_factor > 1 else 1.0

    if config.rope.mscale and config.rope.mscale_all_dim:
        return scale(config.rope.mscale) / scale(config.rope.mscale_all_dim)
    return scale(1)


def _longrope(config: MoEConfig, seq_len: int | None) -> Frequencies:
    """One divisor per pair, others beyond the original context."""
    original, factor = config.rope_original_context, config.rope_factor
    is_long = seq_len is not None and seq_len > original
    divisors = torch.tensor(config.rope.long_factor if is_long else config.rope.short_factor)
    attention_factor = config.rope.attention_factor
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return 1 / (divisors * _powers(config)), attention_factor


def _llama3(config: MoEConfig, _: int | None) -> Frequencies:
    """Long wavelengths are interpolated, short ones stay, a smooth step between."""
    rope, original, factor = config.rope, config.rope_original_context, config.rope_factor
    inv_freq, _factor = _default(config, None)
    wavelengths = 2 * math.pi / inv_freq
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelengths > original / rope.low_freq_factor, inv_freq / factor, blended)
    return torch.where(wavelengths < original / rope.high_freq_factor, inv_freq, scaled), 1.0


KINDS: dict[RopeKind, Callable[[MoEConfig, int | None], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
