"""TrainingEngine: what the training loop asks of an engine, whatever runs below it.

One optimizer step is `run`, `gradient_norm`, and then either `update` or `discard`. Every method that is not marked as local
has collectives: all ranks call it, in the same order. native.py and deepspeed_engine.py are the two engines.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.model.config import MoEConfig
from train.model.generate import Generated, SamplingConfig
from train.pretrain.mesh import RankMesh
from train.pretrain.pieces import TensorPiece

MicroBatch = dict[str, Int[Tensor, "rows seq"]]
"""input_ids, labels, document_ids, position_ids: the arguments of MoETransformer.forward."""


class StepTotals(NamedTuple):
    """Of a whole optimizer step, over all ranks and micro-batches."""

    num_loss_tokens: int
    """Labels that count."""
    num_tokens: int
    """Tokens that are not padding."""


class StepSums(NamedTuple):
    """What a step's passes gave, over all ranks."""

    loss: float
    """Nats per labelled token, without balance terms."""
    auxiliary: float
    """Balance terms with their coefficients."""


class TrainingEngine(Protocol):
    """One process's part of a plan, with its optimizer."""

    config: MoEConfig
    mesh: RankMesh
    device: torch.device
    num_updates: int
    """Updates of the optimizer so far: fewer than steps, where some were discarded. Set when a checkpoint was loaded."""

    def run(self, micro_batches: Sequence[MicroBatch], totals: StepTotals, *, scale: float = 1.0) -> StepSums:
        """Forward and backward of this rank's micro-batches of a step. `scale`: factor on gradients, for fp16."""
        ...

    def gradient_norm(self) -> float:
        """Of all parameters of the model, of the gradients of `run` without its scale; NaN or inf after an overflow."""
        ...

    def update(self, *, lr: float, norm: float) -> None:
        """Clip to the optimizer's clip_norm, `norm` being what `gradient_norm` gave, and step; then move selection biases."""
        ...

    def discard(self) -> None:
        """Forget the gradients and the counts of `run`: weights, optimizer and selection biases stay as they are."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Sum of the losses of these rows over all ranks, nats. As many micro-batches as the plan has."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Generated]:
        """Continue each prompt (token ids), the same on every rank. For plans without tp, pp and cp."""
        ...

    def expert_load(self) -> Float[Tensor, "layers experts"]:
        """Choices per token of each expert in the last step, on every rank; [0, experts] before the first."""
        ...

    def pieces(self) -> list[TensorPiece]:
        """Local. Weights, the optimizer's tensors, selection biases and load: views, to read or to fill."""
        ...

    def weights_changed(self) -> None:
        """After `pieces` were filled, before the next pass: copies that the engine keeps are made again."""
        ...
