"""One optimizer step of an adapter: new and replayed items in, cross-entropy and KL to the frozen base out.

    loss = mean over target tokens of -log p(token)  +  kl_weight * mean over anchor tokens of KL(base || adapted)

The model computes in its own precision (bf16); the optimizer works on float32 copies of the adapter's weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from train.adapt.base import BaseModelInMemory
from train.continual.items import EncodedItem, build_batch, target_logits, token_losses

MAX_CACHED_BYTES = 512 << 20


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite: the step was not taken."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Of one step, before it was taken: summed losses of new and replayed items in nats, `kl` in nats per anchor token.

    `num_tokens` counts the tokens of items and anchors, without padding.
    """

    loss_sum: float
    num_targets: int
    replay_loss_sum: float
    num_replay_targets: int
    kl: float
    grad_norm: float
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean loss of the new items, nats per target token."""
        return self.loss_sum / self.num_targets


class AnchorReferences:
    """The frozen base's logits on anchor texts: computed once per text, kept while there is room."""

    def __init__(self, base: BaseModelInMemory, *, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._base = base
        self._room_bytes = max_bytes
        self._logits: dict[EncodedItem, Float[Tensor, "1 keep vocab"]] = {}

    @torch.no_grad()
    def logits(self, anchor: EncodedItem, *, adapted: Any) -> Float[Tensor, "1 keep vocab"]:
        """Logits with the adapter switched off, in the model's precision."""
        if (kept := self._logits.get(anchor)) is not None:
            return kept
        batch = build_batch([anchor], pad_id=self._base.pad_id, device=self._base.device)
        with adapted.disable_adapter():
            logits = target_logits(adapted, batch).clone()
        if logits.nbytes <= self._room_bytes:
            self._room_bytes -= logits.nbytes
            self._logits[anchor] = logits
        return logits


class AdapterTrainer:
    """AdamW without weight decay on the trainable weights of a PeftModel."""

    def __init__(
        self,
        adapted: Any,
        *,
        base: BaseModelInMemory,
        references: AnchorReferences,
        kl_weight: float,
        max_grad_norm: float,
    ) -> None:
        self._adapted = adapted
        self._base = base
        self._references = references
        self._kl_weight = kl_weight
        self._max_grad_norm = max_grad_norm
        self._weights: list[Tensor] = [weight for weight in adapted.parameters() if weight.requires_grad]
        self._masters = [weight.detach().float().clone() for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._masters, weight_decay=0.0)
        self.num_trainable = sum(weight.numel() for weight in self._weights)

    def step(
        self,
        new: Sequence[EncodedItem],
        *,
        replayed: Sequence[EncodedItem],
        anchors: Sequence[EncodedItem],
        learning_rate: float,
        guard: Callable[[], None],
    ) -> StepMetrics:
        """Forward, backward and one update. `guard` is asked right before the update.

        Raises: NonFiniteLoss, or what `guard` raises; the weights are then as before.
        """
        num_new, num_old = (sum(item.num_targets for item in items) for items in (new, replayed))
        loss_sum = self._backward_items(new, num_targets=num_new + num_old)
        replay_loss_sum = self._backward_items(replayed, num_targets=num_new + num_old)
        kl = self._backward_anchors(anchors) if self._kl_weight > 0 else 0.0
        for master, weight in zip(self._masters, self._weights, strict=True):
            assert weight.grad is not None, "every adapter weight takes part in every forward pass"
            master.grad = weight.grad.float()
            weight.grad = None
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm))
        if not all(math.isfinite(value) for value in (loss_sum, replay_loss_sum, kl, grad_norm)):
            raise NonFiniteLoss(
                f"loss {loss_sum / num_new}, KL {kl}, gradient norm {grad_norm}: nothing was saved; "
                "lower learning_rate, or set dtype to float32"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        guard()
        self._optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights, strict=True):
                weight.copy_(master)
        num_tokens = sum(len(item.token_ids) for item in (*new, *replayed, *anchors))
        return StepMetrics(
            loss_sum=loss_sum,
            num_targets=num_new,
            replay_loss_sum=replay_loss_sum,
            num_replay_targets=num_old,
            kl=kl,
            grad_norm=grad_norm,
            num_tokens=num_tokens,
        )

    def _backward_items(self, items: Sequence[EncodedItem], *, num_targets: int) -> float:
        """Gradients of the items' part of the mean; returns their summed loss, nats."""
        total = 0.0
        for group in group_by_kind(items):
            batch = build_batch(group, pad_id=self._base.pad_id, device=self._base.device)
            loss = token_losses(self._adapted, batch).sum()
            torch.autograd.backward(loss / num_targets)
            total += float(loss.detach())
        return total

    def _backward_anchors(self, anchors: Sequence[EncodedItem]) -> float:
        """Gradients of the KL term; returns the mean KL, nats per token."""
        num_tokens = sum(anchor.num_targets for anchor in anchors)
        total = 0.0
        for group in group_by_kind(anchors):
            references = [self._references.logits(anchor, adapted=self._adapted)[0] for anchor in group]
            batch = build_batch(group, pad_id=self._base.pad_id, device=self._base.device)
            logits = target_logits(self._adapted, batch)
            kl = torch.stack(
                [
                    kl_per_token(reference, row[-len(reference) :]).sum()
                    for reference, row in zip(references, logits, strict=True)
                ]
            ).sum()
            torch.autograd.backward(self._kl_weight * kl / num_tokens)
            total += float(kl.detach())
        return total / num_tokens if anchors else 0.0


def kl_per_token(
    reference: Float[Tensor, "token vocab"], logits: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(reference || logits) of each token's distribution, nats, computed in float32."""
    log_p, log_q = reference.float().log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
    return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)


def group_by_kind(items: Sequence[EncodedItem]) -> list[list[EncodedItem]]:
    """Chat items and plain ones apart: a plain item's targets would force a chat's whole prompt through the output layer."""
    chats = [item for item in items if item.num_prompt > 1]
    plain = [item for item in items if item.num_prompt == 1]
    return [group for group in (chats, plain) if group]
