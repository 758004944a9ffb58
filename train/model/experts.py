"""Experts: the feed-forward parts of one layer, stacked, and the kernels that send each row through its expert.

Rows are sorted by expert, each expert computes its rows in one matmul, and the k results of a token are summed with its
weights. No atomics, no scatter: the same input gives the same bits. Kernels (`KINDS`):
- loop: one hand-written autograd function over preallocated buffers, the fastest on the CPU: its gain over autograd is in
  fewer allocations and in weight gradients written once (a view per expert would make a full-size gradient each). A CPU
  compiles a bfloat16 matmul for each number of rows it meets, which takes ten times as long as the matmul: each expert's
  rows are filled up to a multiple of `ROW_MULTIPLE`, so that few numbers occur.
- grouped_mm: torch.nn.functional.grouped_mm, for GPUs.

Weights are w1 (gate), w3 (up) [experts, width, hidden] and w2 (down) [experts, hidden, width]: DeepSpeed's contract.
Source: sorted dropless dispatch of MegaBlocks (arXiv:2211.15841); SwiGLU (arXiv:2002.05202).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from train.model.config import GROUPED_MM_MULTIPLE
from train.model.layers import compiled, silu_product

Kernel = Literal["loop", "grouped_mm"]
ROW_MULTIPLE = 64
"""Rows of an expert on a CPU in 16 bits. Measured at 300 to 800 rows of 256: 0.06 ms for a matmul, and 0.75 without it."""
Rows = Float[Tensor, "tokens hidden"]
Matrices = tuple[Tensor, Tensor, Tensor]
"""w1, w3, w2 of all experts."""


class Experts(nn.Module):
    """`num_experts` SwiGLU parts of one layer; under expert parallelism this rank's share."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        kernel: Literal["auto", "loop", "grouped_mm"],
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.kernel, self.is_compiled = kernel, False
        self.w1 = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.w3 = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(
        self, x_TD: Rows, expert_ids_TK: Int[Tensor, "tokens top_k"], weights_TK: Float[Tensor, "tokens top_k"]
    ) -> Rows:
        """Sum over k of weight * expert(x). Ids of -1 take part in nothing; a token without experts gives zeros.

        The sum is given in the dtype of `x_TD` (under autocast: of autocast); grouped_mm adds up in float32, the loop by
        a matmul of that dtype.
        """
        matrices: Matrices = (self.w1, self.w3, self.w2)
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):
            x_TD, *cast_ones = (t.to(torch.get_autocast_dtype(device)) for t in (x_TD, *matrices))
            matrices = (cast_ones[0], cast_ones[1], cast_ones[2])
        is_aligned = all(width % GROUPED_MM_MULTIPLE == 0 for width in self.w1.shape[1:])
        fastest: Kernel = "grouped_mm" if x_TD.is_cuda and is_aligned else "loop"
        kind: Kernel = fastest if self.kernel == "auto" else self.kernel
        with torch.autocast(device, enabled=False):
            return KINDS[kind](x_TD, expert_ids_TK, weights_TK, matrices, is_compiled=self.is_compiled)


def run_loop(x: Rows, expert_ids: Tensor, weights: Tensor, matrices: Matrices, *, is_compiled: bool = False) -> Rows:
    """The experts by one matmul per expert and projection. `is_compiled`: what is between them is one kernel."""
    out = _ExpertsLoop.apply(x, expert_ids, weights, *matrices, is_compiled)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


def run_grouped_mm(
    x: Rows, expert_ids: Tensor, weights: Tensor, matrices: Matrices, *, is_compiled: bool = False
) -> Rows:
    """The experts by torch's grouped matmul. Widths are multiples of 16 bytes, which it asks for."""
    product = compiled(silu_product) if is_compiled else silu_product
    w1, w3, w2 = matrices
    order, counts, places = sort_rows(expert_ids, num_experts=len(w1))
    if len(order) == 0:  # grouped_mm has no backward for no rows; an idle rank still has gradients, all zero
        return x.new_zeros(x.shape) + sum(t[:0].sum() for t in (x, weights, *matrices))
    ends = counts.cumsum(0).to(torch.int32)
    rows = x.index_select(0, order // expert_ids.shape[1])
    gate, up = (_grouped_mm(rows, w, ends) for w in (w1, w3))
    return _combine(_grouped_mm(product(gate, up), w2, ends), places, weights)


class _GroupedMatmul(torch.autograd.Function):
    """Keeps the parameter itself for the backward pass: of a view DeepSpeed's ZeRO-3 could not free the gathered weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, matrices, ends)
        return F.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, matrices, ends = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = F.grouped_mm(grad, matrices, offs=ends) if ctx.needs_input_grad[0] else None
        grad_matrices = F.grouped_mm(grad.T, rows, offs=ends) if ctx.needs_input_grad[1] else None
        return grad_rows, grad_matrices, None


def _grouped_mm(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """rows @ matrices[expert].T of each expert's rows."""
    return cast(Tensor, _GroupedMatmul.apply(rows, matrices, ends))  # type: ignore[no-untyped-call]


def sort_rows(
    expert_ids_TK: Int[Tensor, "tokens top_k"], *, num_experts: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " experts"], Int[Tensor, "tokens top_k"]]:
    """Rows in the order of their experts.

    Returns the flat index (token * top_k + k) of each row, the rows of each expert, and the row of each (token, k):
    `rows` (one beyond the last) where the id is -1.
    """
    flat = expert_ids_TK.flatten()
    counts = (flat + 1).bincount(minlength=num_experts + 1)
    order = flat.argsort(stable=True)[int(counts[0]) :]
    places = torch.full_like(flat, len(order))
    places[order] = torch.arange(len(order), device=flat.device)
    return order, counts[1:], places.view_as(expert_ids_TK)


def _combine(rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over k in float32; places beyond the last row count nothing."""
    tokens, top_k = places.shape
    weights = weights.masked_fill(places == len(rows), 0)
    picked = rows.index_select(0, places.clamp(max=len(rows) - 1).flatten()).view(tokens, top_k, -1)
    return (picked.float() * weights.float().unsqueeze(-1)).sum(1).to(rows.dtype)


class _ExpertsLoop(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, x: Tensor, expert_ids: Tensor, weights: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, is_compiled: bool
    ) -> Tensor:
        product = compiled(silu_product) if is_compiled else silu_product
        layout = _lay_out(expert_ids, num_experts=len(w1), multiple=_row_multiple(x))
        rows = x.index_select(0, layout.tokens)
        gate, up = (x.new_empty(len(rows), w1.shape[1]) for _ in range(2))
        out = x.new_empty(len(rows), x.shape[1])
        parts = (t.split(layout.sizes) for t in (rows, gate, up, out))
        for expert, (row, g, u, o) in enumerate(zip(*parts, strict=True)):
            torch.mm(row, w1[expert].T, out=g)
            torch.mm(row, w3[expert].T, out=u)
            torch.mm(product(g, u), w2[expert].T, out=o)
        ctx.sizes, ctx.is_whole, ctx.is_compiled = layout.sizes, layout.is_whole, is_compiled
        ctx.save_for_backward(rows, gate, up, out, layout.tokens, layout.order, layout.places, weights, w1, w3, w2)
        return _weighted_sum(out, layout.places, weights.to(out.dtype), is_whole=layout.is_whole)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, out, tokens, order, places, weights, w1, w3, w2 = ctx.saved_tensors
        used = places.flatten()[order]
        grad_out = grad.index_select(0, tokens)
        grad_weights = weights.new_zeros(weights.numel())
        grad_weights[order] = torch.linalg.vecdot(grad_out, out)[used].to(weights.dtype)
        row_weights = grad_out.new_zeros(len(grad_out))  # zero where a row is there to fill up
        row_weights[used] = weights.flatten()[order].to(grad_out.dtype)
        grad_out *= row_weights.unsqueeze(1)
        grad_rows = torch.empty_like(rows)
        grad_w1, grad_w3, grad_w2 = (torch.empty_like(w) for w in (w1, w3, w2))
        through_product = compiled(_through_product) if ctx.is_compiled else _through_product
        parts = (t.split(ctx.sizes) for t in (rows, gate, up, grad_out, grad_rows))
        for expert, (row, g, u, go, gr) in enumerate(zip(*parts, strict=True)):
            product, grad_gate, grad_up = through_product(g, u, go @ w2[expert])
            torch.mm(go.T, product, out=grad_w2[expert])
            torch.mm(grad_gate.T, row, out=grad_w1[expert])
            torch.mm(grad_up.T, row, out=grad_w3[expert])
            torch.mm(grad_gate, w1[expert], out=gr)
            gr.addmm_(grad_up, w3[expert])
        grad_x = _weighted_sum(grad_rows, places, None, is_whole=ctx.is_whole)
        return grad_x, None, grad_weights.view_as(weights), grad_w1, grad_w3, grad_w2, None


def _through_product(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) * up, and its gradients from that of itself: of gate, of up."""
    activated = F.silu(gate)
    return activated * up, torch.ops.aten.silu_backward(grad * up, gate), activated * grad


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the rows of each expert lie."""

    sizes: list[int]
    """Rows of each expert, those that fill up included."""
    tokens: Int[Tensor, " rows"]
    """The token of each row; any one for a row that fills up."""
    order: Int[Tensor, " used"]
    """Flat index (token * top_k + k) of each row that is used."""
    places: Int[Tensor, "tokens top_k"]
    """The row of each (token, k); one beyond the last where there is none."""
    is_whole: bool
    """Whether every (token, k) has a row."""


def _row_multiple(x: Tensor) -> int:
    return ROW_MULTIPLE if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else 1


def _lay_out(expert_ids: Tensor, *, num_experts: int, multiple: int) -> _Layout:
    order, counts, places = sort_rows(expert_ids, num_experts=num_experts)
    tokens = order // expert_ids.shape[1]
    is_whole = len(order) == expert_ids.numel()
    if multiple == 1:
        return _Layout(counts.tolist(), tokens, order, places, is_whole)
    sizes = (counts + multiple - 1) // multiple * multiple
    shifts = (sizes - counts).cumsum(0) - (sizes - counts)
    rows = torch.arange(len(order), device=order.device) + shifts.repeat_interleave(counts)
    num_rows = int(sizes.sum())
    filled = tokens.new_zeros(num_rows)
    filled[rows] = tokens
    places = torch.full_like(places.flatten(), num_rows)
    places[order] = rows
    return _Layout(sizes.tolist(), filled, order, places.view_as(expert_ids), is_whole)


def _weighted_sum(rows: Tensor, places: Tensor, weights: Tensor | None, *, is_whole: bool) -> Tensor:
    """Sum over k of weight * row, one pass per k; places beyond the last row add nothing. Rounded once per k."""
    tokens, top_k = places.shape
    if len(rows) == 0:
        return rows.new_zeros(tokens, rows.shape[1])
    if not is_whole:
        rows = F.pad(rows, (0, 0, 0, 1))
    picked = rows.index_select(0, places.flatten()).view(tokens, top_k, -1)
    if weights is None:
        return picked.sum(1)
    return torch.bmm(weights.unsqueeze(1), picked).squeeze(1)


KINDS: dict[Kernel, Callable[..., Tensor]] = {
    "loop": run_loop,
    "grouped_mm": run_grouped_mm,
}
