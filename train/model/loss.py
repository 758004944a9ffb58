"""LanguageHead: hidden states to logits, or straight to the loss without ever holding all logits.

The loss works through chunks of tokens: logits of a chunk, their loss, their gradient, and at once the gradients of the
hidden states and of the weight. So the memory is that of one chunk, and unlike with recomputation no matmul is done
twice. Under tensor parallelism each rank holds some rows of the vocabulary, and what a softmax needs of the others is three
numbers per token. Sources: the fused linear cross-entropy of Liger Kernel (arXiv:2410.10989), here in plain torch; the split
vocabulary of Megatron-LM (arXiv:1909.08053).
"""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from train.model.collectives import gather_sequence

IGNORE = -100
"""Label of a position that has no loss."""
CHUNK_LOGITS = 2**24
"""Logits of one chunk: 1,024 tokens at a vocabulary of 16,384; 64 MB in float32."""
CPU_CHUNK_LOGITS = 2**21
"""The same on a CPU, whose caches hold 8 MB and not 64: measured, the loss then takes half the time."""


class LanguageHead(nn.Linear):
    """The output projection, `vocab_size` rows without bias. May share its weight with the embedding.

    With `tp` a rank holds its share of the rows, and takes its part of the sequence's hidden states.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, tp: ProcessGroup | None = None) -> None:
        super().__init__(hidden_size, vocab_size // (1 if tp is None else tp.size()), bias=False)
        self.tp = tp

    def forward(
        self, hidden_BSD: Float[Tensor, "batch seq width"], labels_BS: Int[Tensor, "batch seq"] | None = None
    ) -> Tensor:
        """Logits [batch, seq, vocab]; with labels, the sum of the losses in nats, float32 [], instead.

        `labels_BS` holds the token that each position has to predict (already shifted), or IGNORE. With `tp`: the loss of
        all positions, the same on every rank; logits of the rank's own rows of the vocabulary.
        """
        if self.tp is not None:
            hidden_BSD = gather_sequence(hidden_BSD, self.tp)
        if labels_BS is None:
            return super().forward(hidden_BSD)
        return linear_cross_entropy(hidden_BSD.flatten(0, 1), self.weight, labels_BS.flatten(), group=self.tp)


def linear_cross_entropy(
    hidden_TD: Float[Tensor, "tokens width"],
    weight_VD: Float[Tensor, "vocab width"],
    labels_T: Int[Tensor, " tokens"],
    *,
    chunk_tokens: int | None = None,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Sum over tokens of -log softmax(hidden @ weight.T)[label], in nats, float32; IGNORE labels add nothing.

    Softmax and loss are float32 for any dtype of the matmuls, which is that of `hidden_TD`. Not twice differentiable.
    `group`: ranks that hold the rows of the vocabulary in turn; the gradient of `hidden_TD` is then that of the own rows.
    """
    device = hidden_TD.device.type
    chunk = chunk_tokens or max(1, (CPU_CHUNK_LOGITS if device == "cpu" else CHUNK_LOGITS) // len(weight_VD))
    if torch.is_autocast_enabled(device):
        hidden_TD = hidden_TD.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        loss = _LinearCrossEntropy.apply(hidden_TD, weight_VD, labels_T, chunk, group)  # type: ignore[no-untyped-call]
        return cast(Tensor, loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int, group: ProcessGroup | None
    ) -> Tensor:
        rows = (labels != IGNORE).nonzero().squeeze(1)
        has_gaps = len(rows) < len(labels)
        kept, targets = (hidden[rows], labels[rows]) if has_gaps else (hidden, labels)
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_kept = torch.empty_like(kept) if needs_hidden else None
        grad_weight: Tensor | None = None
        for start in range(0, len(kept), chunk_tokens):
            part, target = kept[start : start + chunk_tokens], targets[start : start + chunk_tokens].unsqueeze(1)
            if group is None:
                log_probs = F.log_softmax(part @ matrix.T, dim=-1, dtype=torch.float32)
                total -= log_probs.gather(1, target).sum()
                probs = log_probs.exp_()
                probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=probs.dtype))
            else:
                losses, probs = _split_vocabulary_loss((part @ matrix.T).float(), target, group)
                total += losses.sum()
            if not (needs_hidden or needs_weight):
                continue
            grad_logits = probs.to(hidden.dtype)
            if grad_kept is not None:
                torch.mm(grad_logits, matrix, out=grad_kept[start : start + chunk_tokens])
            if needs_weight:  # added up in float32
                of_chunk = grad_logits.T @ part
                grad_weight = of_chunk.float() if grad_weight is None else grad_weight.add_(of_chunk)
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        ctx.has_gaps, ctx.shape = has_gaps, hidden.shape
        if grad_weight is not None and weight.dtype != torch.float16:  # which a sum over many tokens can overflow
            grad_weight = grad_weight.to(weight.dtype)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(rows if has_gaps else None, grad_kept, grad_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        rows, grad_kept, grad_weight = ctx.saved_tensors
        grad_hidden = None
        if grad_kept is not None:
            grad_hidden = (grad_kept.float() * grad_total).to(grad_kept.dtype)
            if ctx.has_gaps:
                grad_hidden = grad_hidden.new_zeros(ctx.shape).index_copy_(0, rows, grad_hidden)
        if grad_weight is not None:
            grad_weight = (grad_weight.float() * grad_total).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _split_vocabulary_loss(logits: Tensor, target: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """(loss of each token, gradient of the own logits), float32, from the logits of this rank's rows of the vocabulary."""
    largest = logits.amax(1, keepdim=True)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - largest
    local = target - group.rank() * logits.shape[1]
    is_here = (local >= 0) & (local < logits.shape[1])
    local = local.clamp(0, logits.shape[1] - 1)
    at_target = shifted.gather(1, local) * is_here
    probs = shifted.exp_()
    sums = torch.cat([probs.sum(1, keepdim=True), at_target], dim=1)
    dist.all_reduce(sums, group=group)
    denominator, at_target = sums.split(1, dim=1)
    probs /= denominator
    probs.scatter_add_(1, local, -is_here.to(probs.dtype))
    return denominator.log() - at_target, probs


def next_token_labels(
    input_ids_BS: Int[Tensor, "batch seq"], document_ids_BS: Int[Tensor, "batch seq"] | None = None
) -> Int[Tensor, "batch seq"]:
    """The next token of the same document; IGNORE at a document's end and at padding (id < 0)."""
    labels = torch.full_like(input_ids_BS, IGNORE)
    labels[:, :-1] = input_ids_BS[:, 1:]
    if document_ids_BS is not None:
        ends = torch.ones_like(document_ids_BS, dtype=torch.bool)
        ends[:, :-1] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
        labels[ends | (document_ids_BS < 0)] = IGNORE
    return labels
