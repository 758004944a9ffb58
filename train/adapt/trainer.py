"""One optimizer step of online learning: new and replayed items in, cross-entropy and KL to the frozen base out.

    loss = mean over target tokens of -log p(token)  +  kl_weight * mean over anchor tokens of KL(base || trained)

and the terms of the continual-learning methods (train.continual.method): on the target tokens of new and replayed items,
and on the weights. Trained is whatever asks for gradients: an adapter, or all weights. The model computes in its own precision
(bf16); the optimizer works on float32 copies of 16-bit weights, on float32 weights themselves.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from train.adapt.base import BaseModelInMemory
from train.continual.items import EncodedItem, ItemBatch, build_batch, target_logits, token_losses
from train.continual.method import ContinualMethod
from train.continual.rows import Batch, Rows, trainable
from train.model.loss import IGNORE

MAX_CACHED_BYTES = 512 << 20
Original = Callable[[], AbstractContextManager[Any]]
"""In its block the frozen original, as a model: the base beside the trained one, or the trained one without its adapter."""


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
    penalty: float = 0.0
    """What the continual-learning methods added to the loss."""

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
    def logits(self, anchor: EncodedItem, *, original: Original) -> Float[Tensor, "1 keep vocab"]:
        """Logits of the original, in its precision."""
        if (kept := self._logits.get(anchor)) is not None:
            return kept
        batch = build_batch([anchor], pad_id=self._base.pad_id, device=self._base.device)
        with original() as model:
            logits = target_logits(model, batch).clone()
        if logits.nbytes <= self._room_bytes:
            self._room_bytes -= logits.nbytes
            self._logits[anchor] = logits
        return logits


class OnlineTrainer:
    """AdamW without weight decay on the weights of a model that ask for gradients."""

    def __init__(
        self,
        model: Any,
        *,
        base: BaseModelInMemory,
        references: AnchorReferences,
        original: Original,
        kl_weight: float,
        max_grad_norm: float,
        methods: Sequence[ContinualMethod] = (),
    ) -> None:
        """`methods` are attached to the model, and in a task (`before_task`)."""
        self._model = model
        self._base = base
        self._references = references
        self._original = original
        self._kl_weight = kl_weight
        self._max_grad_norm = max_grad_norm
        self._methods = methods
        self._weights = trainable(model)
        self._masters: list[Tensor] = [
            weight if weight.dtype == torch.float32 else weight.detach().float().clone()
            for weight in self._weights.values()
        ]
        self._optimizer = torch.optim.AdamW(self._masters, weight_decay=0.0)
        self._has_row_terms = any(type(method).rows_penalty is not ContinualMethod.rows_penalty for method in methods)
        self._apart: dict[int, Tensor] = {}
        self.num_trainable = sum(weight.numel() for weight in self._masters)

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
        losses = [self._backward_items(items, num_targets=num_new + num_old) for items in (new, replayed)]
        (loss_sum, of_new), (replay_loss_sum, of_old) = losses
        self._show_gradients()
        kl = self._backward_anchors(anchors) if self._kl_weight > 0 else 0.0
        penalty = of_new + of_old + self._backward_weights()
        grad_norm = self._take_gradients()
        if not all(math.isfinite(value) for value in (loss_sum, replay_loss_sum, kl, penalty, grad_norm)):
            raise NonFiniteLoss(
                f"loss {loss_sum / num_new}, KL {kl}, penalty {penalty}, gradient norm {grad_norm}: nothing was saved; "
                "lower the learning rate, or set dtype to float32"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        guard()
        self._optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights.values(), strict=True):
                if master is not weight:
                    weight.copy_(master)
        for method in self._methods:
            method.after_step()
        num_tokens = sum(len(item.token_ids) for item in (*new, *replayed, *anchors))
        return StepMetrics(
            loss_sum=loss_sum,
            num_targets=num_new,
            replay_loss_sum=replay_loss_sum,
            num_replay_targets=num_old,
            kl=kl,
            grad_norm=grad_norm,
            num_tokens=num_tokens,
            penalty=penalty,
        )

    def _backward_items(self, items: Sequence[EncodedItem], *, num_targets: int) -> tuple[float, float]:
        """Gradients of the items' part of the mean; returns their summed loss, nats, and what methods add to the mean."""
        weight = math.prod(method.loss_weight for method in self._methods)
        total, penalty = 0.0, 0.0
        for group in group_by_kind(items):
            batch = build_batch(group, pad_id=self._base.pad_id, device=self._base.device)
            if self._has_row_terms:
                rows = item_rows(self._model, batch)
                loss, term = rows.loss_sum, self._row_term(batch, rows)
            else:
                loss, term = token_losses(self._model, batch).sum(), None
            torch.autograd.backward(weight * loss / num_targets, retain_graph=term is not None)
            total += float(loss.detach())
            if term is not None:
                self._keep_apart(term / num_targets)
                penalty += float(term.detach()) / num_targets
        return total, penalty

    def _row_term(self, batch: ItemBatch, rows: Rows) -> Tensor | None:
        fields = rows_batch(batch)
        terms = [method.rows_penalty(fields, rows) for method in self._methods]
        held = [term for term in terms if term is not None]
        return torch.stack(held).sum() if held else None

    def _keep_apart(self, term: Tensor) -> None:
        """Gradients of a term that methods added: methods look at those of the items' loss alone."""
        found = torch.autograd.grad(term, list(self._weights.values()), allow_unused=True)
        for index, gradient in enumerate(found):
            if gradient is not None:
                kept = self._apart.get(index)
                self._apart[index] = gradient if kept is None else kept + gradient

    def _show_gradients(self) -> None:
        """Let methods see the gradients of the items' loss; then the terms that were kept apart join."""
        if any(method.sees_gradients for method in self._methods):
            seen = {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
                for name, weight in self._weights.items()
            }
            for method in self._methods:
                method.see_gradients(seen)
        for index, weight in enumerate(self._weights.values()):
            if (gradient := self._apart.pop(index, None)) is not None:
                weight.grad = gradient if weight.grad is None else weight.grad + gradient

    def _backward_weights(self) -> float:
        """Gradients of the terms on the weights; returns their sum."""
        terms = [method.weights_penalty() for method in self._methods]
        total = 0.0
        for term in terms:
            if term is not None:
                torch.autograd.backward(term)
                total += float(term.detach())
        return total

    def _take_gradients(self) -> float:
        """Move the gradients to what the optimizer works on, clipped; returns their norm before."""
        for master, weight in zip(self._masters, self._weights.values(), strict=True):
            gradient, weight.grad = weight.grad, None
            # an expert that no token went to has none
            master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
        return float(torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm))

    def _backward_anchors(self, anchors: Sequence[EncodedItem]) -> float:
        """Gradients of the KL term; returns the mean KL, nats per token."""
        num_tokens = sum(anchor.num_targets for anchor in anchors)
        total = 0.0
        for group in group_by_kind(anchors):
            references = [self._references.logits(anchor, original=self._original)[0] for anchor in group]
            batch = build_batch(group, pad_id=self._base.pad_id, device=self._base.device)
            logits = target_logits(self._model, batch)
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


def item_rows(model: Any, batch: ItemBatch) -> Rows:
    """The target tokens of a batch as continual-learning methods see them."""
    logits = target_logits(model, batch)
    return Rows(logits[batch.is_target], batch.targets[batch.is_target])


def rows_batch(batch: ItemBatch) -> Batch:
    """The batch in the fields of a causal language model (train.continual.rows.write): its rows are those of `item_rows`."""
    labels = torch.full_like(batch.input_ids, IGNORE)
    length, keep = batch.input_ids.shape[1], batch.targets.shape[1]
    labels[:, length - keep - 1 : length - 1] = batch.targets.masked_fill(~batch.is_target, IGNORE)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "labels": labels,
    }
