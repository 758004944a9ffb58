"""Whether the stream that is learned from has changed: the episodes of a batch as observations of a drift monitor.

Per episode: the mean embedding of the tokens that it teaches, in the frozen original, so that the space stays the same
whatever was learned meanwhile; and the loss of the parent on them. Episodes of a batch come in their given order.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.adapt.base import BaseModelInMemory
from train.continual.drift import DriftKind, DriftMonitor, Observation
from train.continual.items import EncodedItem, LearningItem, build_batch, token_losses

logger = logging.getLogger(__name__)

BATCH_SIZE = 8


@torch.no_grad()
def observe_batch(
    monitor: DriftMonitor,
    items: Sequence[LearningItem],
    encoded: Sequence[EncodedItem],
    *,
    parent: Any,
    base: BaseModelInMemory,
) -> DriftKind | None:
    """Show the monitor a batch; the kind of the last drift that shows in it. `parent`: the model before the batch."""
    embedding = base.model.get_input_embeddings()
    points: dict[str, list[Any]] = {}
    losses: dict[str, list[float]] = {}
    for begin in range(0, len(items), BATCH_SIZE):
        some = encoded[begin : begin + BATCH_SIZE]
        batch = build_batch(some, pad_id=base.pad_id, device=base.device)
        sums = token_losses(parent, batch).sum(dim=1).tolist()
        for item, one, total in zip(items[begin : begin + BATCH_SIZE], some, sums, strict=True):
            targets = torch.tensor(one.token_ids[one.num_prompt :], device=base.device)
            points.setdefault(item.episode_id, []).append(embedding(targets).float().mean(0).cpu().numpy())
            losses.setdefault(item.episode_id, []).append(total / one.num_targets)
    found: DriftKind | None = None
    for episode, vectors in points.items():
        error = sum(losses[episode]) / len(vectors)
        if not np.isfinite(error):  # training on it will refuse; the monitor need not
            continue
        drift = monitor.update(Observation(inputs=np.mean(vectors, axis=0), error=error))
        if drift is not None:
            logger.info("the stream has drifted: kind=%s at=%d p_values=%s", drift.kind, drift.begin, drift.p_values)
            found = drift.kind
    return found
