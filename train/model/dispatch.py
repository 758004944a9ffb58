"""Expert parallelism: rows travel to the rank that holds their expert, and back, by all-to-all.

Rank r of n holds experts r * E / n to (r + 1) * E / n - 1. First the counts are exchanged, then the rows, unevenly; a
rank that sends or receives nothing still takes part in every exchange, and its experts get zero gradients.
Source: GShard (arXiv:2006.16668), without its capacity.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from train.model.experts import Experts, sort_rows


def dispatch_to_experts(
    x_TD: Float[Tensor, "tokens width"],
    expert_ids_TK: Int[Tensor, "tokens top_k"],
    weights_TK: Float[Tensor, "tokens top_k"],
    experts: Experts,
    group: ProcessGroup,
) -> Float[Tensor, "tokens width"]:
    """What all experts of the group give for this rank's tokens. `expert_ids_TK` counts over the whole group, -1 is none."""
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # before the rows travel: half the bytes
        x_TD = x_TD.to(torch.get_autocast_dtype(device))
    num_ranks, num_local = group.size(), experts.num_experts
    order, counts_E, places_TK = sort_rows(expert_ids_TK, num_experts=num_ranks * num_local)
    received_counts = torch.empty_like(counts_E)
    dist.all_to_all_single(received_counts, counts_E.contiguous(), group=group)
    sent = counts_E.view(num_ranks, num_local).sum(1).tolist()
    received_NE = received_counts.view(num_ranks, num_local)
    received = received_NE.sum(1).tolist()
    rows = _exchange(x_TD.index_select(0, order // expert_ids_TK.shape[1]), sent, received, group)
    local_ids = torch.arange(num_local, device=x_TD.device).repeat(num_ranks).repeat_interleave(received_counts)
    out = experts(rows, local_ids.unsqueeze(1), torch.ones_like(local_ids, dtype=torch.float32).unsqueeze(1))
    back = _exchange(out, received, sent, group)
    back = torch.cat([back, back.new_zeros(1, back.shape[1])])  # what places beyond the last row pick
    picked = back.index_select(0, places_TK.flatten()).view(*places_TK.shape, -1)
    return (picked.float() * weights_TK.float().unsqueeze(-1)).sum(1).to(out.dtype)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out = grad.new_empty(sum(ctx.sent), grad.shape[1])
        dist.all_to_all_single(out, grad.contiguous(), ctx.sent, ctx.received, group=ctx.group)
        return out, None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """Rows for each rank, in order of ranks, against the rows from each rank; gradients go the way back."""
    return cast(Tensor, _AllToAll.apply(rows, sent, received, group))  # type: ignore[no-untyped-call]
