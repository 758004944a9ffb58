"""StageModule: the part of the model that one process runs, as training calls it.

In: rows of tokens (first stage) or hidden states (later ones), and the rows' labels, documents and positions, whole on every
rank. Out: hidden states, or on the last stage the objective: its gradient is that of the whole optimizer step's loss, so
ranks and micro-batches add up and nothing is averaged.

objective = sum of losses / labelled tokens of the step + balance terms of this stage's layers, all times `scale`.
Earlier stages have no loss; the gradient of their balance terms enters where their output's gradient comes back.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from train.model.balance import RouterBalance, auxiliary_loss
from train.model.config import MoEConfig
from train.model.generate import Generated, SamplingConfig, generate
from train.model.moe import RouterStats
from train.model.transformer import ModelOutput, MoETransformer
from train.pretrain.mesh import RankMesh
from train.pretrain.pieces import TensorPiece
from train.pretrain.step import StepSums, StepTotals

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
LOAD_NAME = "router.load"
"""Piece with the experts' load, which is of no model."""


class StageModule(nn.Module):
    """Layers of a model with what training keeps beside them. `sequence_group`: ranks that share the rows' positions."""

    def __init__(self, model: MoETransformer, *, sequence_group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.model = model
        self.balance = RouterBalance(model.config, num_layers=len(model.moe_layers))
        self.totals = StepTotals(1, 1)
        self.scale = 1.0
        self._sequence_group = sequence_group
        self._sums: list[tuple[Tensor, Tensor]] = []

    def forward(
        self,
        x: Int[Tensor, "batch seq"] | Float[Tensor, "batch part width"],
        *,
        labels: Int[Tensor, "batch seq"],
        document_ids: Int[Tensor, "batch seq"] | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Tensor:
        """Hidden states, or the objective []; in evaluation mode the sum of losses []."""
        output: ModelOutput = self.model(
            **{"input_ids" if self.model.is_first else "inputs_embeds": x},
            labels=labels, document_ids=document_ids, position_ids=position_ids,
        )  # fmt: skip
        if not self.training:
            return cast(Tensor, output.hidden if output.loss_sum is None else output.loss_sum)
        self.balance.record(output.router_stats)
        auxiliary = auxiliary_loss(
            self._of_whole_sequences(output.router_stats),
            config=self.model.config, load_LE=self.balance.load, num_tokens=self.totals.num_tokens,
            num_layers=len(self.model.config.moe_layers),
        )  # fmt: skip
        auxiliary = auxiliary.to(x.device)
        loss_sum = torch.zeros((), device=x.device) if output.loss_sum is None else output.loss_sum
        self._sums.append((loss_sum.detach(), auxiliary.detach()))
        if output.hidden is not None:
            return cast(Tensor, _AddGradient.apply(output.hidden, auxiliary * self.scale))  # type: ignore[no-untyped-call]
        return (loss_sum / self.totals.num_loss_tokens + auxiliary) * self.scale

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Generated]:
        """Texts of the whole model, rank 0's on all ranks at once."""
        return generate(self.model, prompts, sampling, decide=_as_rank_0)

    def take_sums(self) -> tuple[float, float]:
        """(sum of losses, balance terms) of this process's passes since the last call."""
        sums, self._sums = self._sums, []
        if not sums:
            return 0.0, 0.0
        totals = torch.stack([torch.stack([part.float() for part in one]) for one in sums]).double().sum(0)
        return float(totals[0]), float(totals[1])

    def _of_whole_sequences(self, stats: tuple[RouterStats, ...]) -> list[RouterStats]:
        """Counts of all positions of each row, where the balance term asks for them; probabilities stay this rank's."""
        group, scope = self._sequence_group, self.model.config.router.aux_loss_scope
        if group is None or group.size() == 1 or scope == "global_batch" or not stats:
            return list(stats)
        whole = torch.stack([torch.cat([layer.counts, layer.num_tokens.unsqueeze(1)], dim=1) for layer in stats])
        dist.all_reduce(whole, group=group)
        return [
            RouterStats(
                layer.expert_ids, counts[:, :-1], layer.prob_sum, counts[:, -1], layer.z_sum, layer.entropy_sum,
                layer.num_dropped,
            )
            for layer, counts in zip(stats, whole, strict=True)
        ]  # fmt: skip


def whole_name(name: str, config: MoEConfig) -> str:
    """In the whole model: a head that is the embedding as well is a copy of that, on another stage."""
    return EMBEDDING if name == HEAD and config.tie_word_embeddings else name


def speaks(stages: Sequence[StageModule], mesh: RankMesh) -> bool:
    """Whether this rank's loss counts: all tensor parallel ranks have the same one, and only the last stage has any."""
    return mesh.place("tp") == 0 and stages[-1].model.is_last


def sum_up(stages: Sequence[StageModule], mesh: RankMesh, totals: StepTotals, *, device: torch.device) -> StepSums:
    """What the passes of all ranks since the last call gave."""
    loss_sum, auxiliary = (sum(parts) for parts in zip(*(stage.take_sums() for stage in stages), strict=True))
    sums = torch.tensor([loss_sum * speaks(stages, mesh), auxiliary], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return StepSums(float(sums[0]) / totals.num_loss_tokens, float(sums[1]))


def balance_pieces(stage: StageModule, mesh: RankMesh, *, device: torch.device) -> Iterator[TensorPiece]:
    """Selection biases and load of the layers that are here."""
    config, indices = stage.model.config, stage.model.moe_layers
    for name, buffer in stage.model.named_buffers():
        yield TensorPiece("buffer", name, tuple(buffer.shape), (0,), buffer, mesh.is_first_of_stage)
    if indices:
        if stage.balance.load is None:  # what it counts as
            even = config.num_experts_per_token / config.num_experts
            stage.balance.load = torch.full((len(indices), config.num_experts), even, device=device)
        shape = (len(config.moe_layers), config.num_experts)
        first = config.moe_layers.index(indices[0])
        yield TensorPiece("buffer", LOAD_NAME, shape, (first, 0), stage.balance.load, mesh.is_first_of_stage)


def gather_expert_load(
    stages: Sequence[StageModule], mesh: RankMesh, *, device: torch.device
) -> Float[Tensor, "layers experts"]:
    """Choices per token in the last step, of all layers with experts on every rank; even before the first step."""
    config = stages[0].model.config
    load = torch.zeros(len(config.moe_layers), config.num_experts, device=device)
    if mesh.is_first_of_stage:
        for stage in stages:
            for piece in balance_pieces(stage, mesh, device=device):
                if piece.name == LOAD_NAME:
                    load[piece.offsets[0] : piece.offsets[0] + len(piece.tensor)] = piece.tensor
    dist.all_reduce(load)
    return load


class _AddGradient(torch.autograd.Function):
    """x unchanged; in the backward pass `term` gets the gradient one. As Megatron-LM's MoEAuxLossAutoScaler."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor) -> Tensor:
        ctx.term = term.new_ones(())
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.term


def _as_rank_0(tokens: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Rank 0's, on all: they have the same prompts."""
    dist.broadcast(tokens, src=0)
    return tokens
