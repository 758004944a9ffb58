"""Exchanges between the ranks of one model, each an autograd function whose backward pass is the opposite exchange.

Between the matrices of a layer a tensor parallel rank holds a part of the sequence. `gather_sequence` brings the parts
together before matrices that are split by output, `scatter_sequence` adds up what matrices split by input gave and leaves
each rank its part: together one all-reduce, cut in two (arXiv:2205.05198). `heads_for_positions` and its opposite are the
all-to-all of Ulysses (arXiv:2309.14509).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup


def gather_sequence(x_BSD: Float[Tensor, "batch part width"], group: ProcessGroup) -> Float[Tensor, "batch seq width"]:
    """The parts of all ranks, in their order; backward: the gradients of all ranks added up, this rank's part of them."""
    return cast(Tensor, _GatherSequence.apply(x_BSD, group))  # type: ignore[no-untyped-call]


def scatter_sequence(x_BSD: Float[Tensor, "batch seq width"], group: ProcessGroup) -> Float[Tensor, "batch part width"]:
    """What all ranks hold added up, this rank's part of it; backward: the gradients of all parts, in their order."""
    return cast(Tensor, _ScatterSequence.apply(x_BSD, group))  # type: ignore[no-untyped-call]


def heads_for_positions(
    x_BHSd: Float[Tensor, "batch heads part dim"], group: ProcessGroup
) -> Float[Tensor, "batch fewer seq dim"]:
    """Some positions of all heads become all positions of some heads."""
    return cast(Tensor, _SwapDimensions.apply(x_BHSd, 1, 2, group))  # type: ignore[no-untyped-call]


def positions_for_heads(
    x_BHSd: Float[Tensor, "batch fewer seq dim"], group: ProcessGroup
) -> Float[Tensor, "batch heads part dim"]:
    """All positions of some heads become some positions of all heads."""
    return cast(Tensor, _SwapDimensions.apply(x_BHSd, 2, 1, group))  # type: ignore[no-untyped-call]


def add_up(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over all ranks, without gradient."""
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def add_up_together(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """Each of them becomes the sum over all ranks, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def _gather(x_BSD: Tensor, group: ProcessGroup) -> Tensor:
    parts = x_BSD.new_empty(group.size(), *x_BSD.shape)
    dist.all_gather_single(parts.flatten(0, 1), x_BSD.contiguous(), group=group)
    return parts.movedim(0, 1).flatten(1, 2)


def _scatter(x_BSD: Tensor, group: ProcessGroup) -> Tensor:
    parts = x_BSD.unflatten(1, (group.size(), -1)).movedim(1, 0).contiguous()
    out = x_BSD.new_empty(parts.shape[1:])
    dist.reduce_scatter_single(out, parts.flatten(0, 1), group=group)
    return out


def _swap(x: Tensor, split_dim: int, cat_dim: int, group: ProcessGroup) -> Tensor:
    parts = x.unflatten(split_dim, (group.size(), -1)).movedim(split_dim, 0).contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received.movedim(0, cat_dim).flatten(cat_dim, cat_dim + 1)


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scatter(grad, ctx.group), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None


class _SwapDimensions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split_dim: int, cat_dim: int, group: ProcessGroup) -> Tensor:
        ctx.dims, ctx.group = (split_dim, cat_dim), group
        return _swap(x, split_dim, cat_dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        split_dim, cat_dim = ctx.dims
        return _swap(grad, cat_dim, split_dim, ctx.group), None, None, None
