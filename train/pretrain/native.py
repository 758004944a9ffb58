"""NativeEngine: PyTorch's own parallelism. FSDP2 over dp x cp, pipeline schedules, and the model's own tensor, context and
expert parallelism; on one process none of them.

Master weights, gradients and optimizer state are float32 shards; FSDP2 casts what a layer computes with. ZeRO-1 adds up
whole gradients and scatters them once per step, ZeRO-2 scatters them after every micro-batch, ZeRO-3 also gives gathered
weights back after each layer; a pipeline adds up whole gradients in every stage. Gradients are sums: the objective is
divided by the tokens of the whole step already (stage.py).
Sources: FSDP2 (torch.distributed.fsdp), 1F1B and its interleaved form (arXiv:2104.04473), ZeRO (arXiv:1910.02054).
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from train.model.collectives import add_up_together
from train.model.config import MoEConfig
from train.model.costs import stage_ranges
from train.model.generate import Generated, SamplingConfig
from train.model.moe import MoELayer
from train.model.plan import native_refusals
from train.model.ranks import local_box, split_of
from train.model.transformer import MoETransformer
from train.pretrain.mesh import RankMesh
from train.pretrain.optimizer import (
    OptimizerConfig,
    ParameterShard,
    build_optimizer,
    clip_factor,
    optimizer_step_count,
    optimizer_tensors,
    set_optimizer_step_count,
)
from train.pretrain.pieces import TensorPiece
from train.pretrain.stage import (
    EMBEDDING,
    StageModule,
    balance_pieces,
    gather_expert_load,
    speaks,
    sum_up,
    whole_name,
)
from train.pretrain.step import MicroBatch, StepSums, StepTotals

warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
"""It warns of in-place operations on such outputs; the model has none there."""


@dataclass(frozen=True, slots=True)
class Master:
    """A parameter as the optimizer sees it: this process's float32 shard."""

    name: str
    """In the whole model."""
    parameter: nn.Parameter
    shard: Tensor
    """A view of the parameter's memory."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Of the shard in it."""
    share: float
    """1 / ranks that hold the same shard; 0 for a copy that counts elsewhere."""

    def gradient(self) -> Tensor:
        """Of the shard. Every parameter has one after a pass: zeros, if nothing used it."""
        grad = self.parameter.grad
        if grad is None:
            raise AssertionError(f"{self.name} has no gradient")
        return grad.to_local() if isinstance(grad, DTensor) else grad


class NativeEngine:
    """One process's part of a plan. Built by every rank at once; the weights are filled through `pieces`."""

    def __init__(
        self,
        config: MoEConfig,
        mesh: RankMesh,
        *,
        device: torch.device,
        optimizer: OptimizerConfig,
        compute_dtype: torch.dtype = torch.float32,
        sequence_length: int,
        prepare: Callable[[MoETransformer], None] = lambda _: None,
    ) -> None:
        """Weights are allocated, not set. `sequence_length`: tokens of a row, which pipeline stages have to know. `prepare`
        may exchange modules of the model before it is sharded. Raises ValueError for a plan that this engine does not run.
        """
        for reason in native_refusals(mesh.plan):
            raise ValueError(reason)
        self.config, self.mesh, self.device = config, mesh, device
        self._prepare = prepare
        self._clip_norm, self._scale = optimizer.clip_norm, 1.0
        self.plan, self.compute_dtype = mesh.plan, compute_dtype
        plan = self.plan
        ranges = stage_ranges(config.num_hidden_layers, plan.pp * plan.virtual_stages)
        self.stages = [self._build(ranges[index]) for index in self.stage_indices]
        self.masters = list(self._list_masters())
        self._optimizer = build_optimizer([self._optimized(master) for master in self.masters], optimizer)
        self._pipeline = self._build_pipeline(sequence_length) if plan.pp > 1 else None

    @property
    def stage_indices(self) -> list[int]:
        """Pieces of the model that are here: every pp-th."""
        return [piece * self.plan.pp + self.mesh.place("pp") for piece in range(self.plan.virtual_stages)]

    # One optimizer step, in the order of the calls.

    def run(self, micro_batches: Sequence[MicroBatch], totals: StepTotals, *, scale: float = 1.0) -> StepSums:
        """See TrainingEngine."""
        self._scale = scale
        for stage in self.stages:
            stage.train()
            stage.totals, stage.scale = totals, scale
            stage.zero_grad()
        if self._pipeline is None:
            for index, batch in enumerate(micro_batches):
                self._prepare_backward(is_last=index == len(micro_batches) - 1)
                self._forward(batch).backward()
        else:
            self._step_pipeline(self._pipeline.step, micro_batches, [])
        self._add_up_shared_gradients()
        return sum_up(self.stages, self.mesh, totals, device=self.device)

    def gradient_norm(self) -> float:
        """See TrainingEngine."""
        squares = [
            torch.linalg.vector_norm(master.gradient(), dtype=torch.float32).double().square() * master.share
            for master in self.masters
        ]
        total = torch.stack(squares).sum()
        dist.all_reduce(total)
        return math.sqrt(float(total)) / self._scale

    def update(self, *, lr: float, norm: float) -> None:
        """See TrainingEngine."""
        factor = clip_factor(norm, clip_norm=self._clip_norm) / self._scale
        gradients = [master.gradient() for master in self.masters]
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.shard.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._forget_gradients()
        for stage in self.stages:
            stage.balance.finish_step(stage.model, group=self.mesh.stage_group)

    def discard(self) -> None:
        """See TrainingEngine."""
        self._forget_gradients()
        for stage in self.stages:
            stage.balance.discard_step()

    def _forget_gradients(self) -> None:
        for stage in self.stages:
            stage.zero_grad()
        for master in self.masters:
            master.shard.grad = None

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See TrainingEngine."""
        for stage in self.stages:
            stage.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if self._pipeline is None:
            for batch in micro_batches:
                total += self._forward(batch)
        else:
            losses: list[Tensor] = []
            self._step_pipeline(self._pipeline.eval, micro_batches, losses)
            if losses:
                total += torch.stack(losses).sum()
        total *= speaks(self.stages, self.mesh)
        dist.all_reduce(total)
        return float(total)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Generated]:
        """See TrainingEngine."""
        (stage,) = self.stages
        return stage.generate(prompts, sampling)

    # The state.

    @property
    def num_updates(self) -> int:
        """See TrainingEngine."""
        return optimizer_step_count(self._optimizer)

    @num_updates.setter
    def num_updates(self, count: int) -> None:
        set_optimizer_step_count(self._optimizer, count)

    def pieces(self) -> list[TensorPiece]:
        """See TrainingEngine. The optimizer's tensors are in boxes of the weights' shape."""
        found = [self._piece_of(master, "weight", master.shard) for master in self.masters]
        kept = optimizer_tensors(self._optimizer)
        for master in self.masters:
            found += [self._piece_of(master, kind, tensor) for kind, tensor in kept[master.name].items()]
        for stage in self.stages:
            found += balance_pieces(stage, self.mesh, device=self.device)
        return found

    def weights_changed(self) -> None:
        """See TrainingEngine. An evaluation may have left gathered weights behind."""
        for stage in self.stages:
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def expert_load(self) -> Tensor:
        """See TrainingEngine."""
        return gather_expert_load(self.stages, self.mesh, device=self.device)

    def _piece_of(self, master: Master, kind: str, tensor: Tensor) -> TensorPiece:
        """The box of `master`, for its shard or an optimizer's tensor of the same shape."""
        is_owner = master.share > 0 and (split_of(master.name) is not None or self.mesh.place("tp") == 0)
        return TensorPiece(kind, master.name, master.shape, master.offsets, tensor, is_owner)

    # Building.

    def _build(self, layers: range) -> StageModule:
        model = MoETransformer(self.config, device="meta", dtype=torch.float32, ranks=self.mesh.ranks, layers=layers)
        model.set_recomputation(self.plan.recomputation)
        self._prepare(model)
        stage = StageModule(model, sequence_group=self.mesh.sequence_group)
        is_cast = self.compute_dtype != torch.float32
        if is_cast or self.mesh.shard.size() > 1 or self.mesh.expert_shard.size() > 1:
            self._shard(stage)
        stage.to_empty(device=self.device)
        model.tie_head()
        if isinstance(stage, FSDPModule):
            stage._get_fsdp_state()._lazy_init()  # it may move shards: before views of them are taken
        for module in model.modules():
            if isinstance(module, MoELayer) and module.gate.bias is not None:
                module.gate.bias.zero_()
        return stage

    def _shard(self, stage: StageModule) -> None:
        policy = MixedPrecisionPolicy(
            param_dtype=self.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        options: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": self.plan.zero_stage == 3}
        replicas = self.mesh.expert_shard.size()
        for layer in stage.model.layers:
            if isinstance(layer.mlp, MoELayer):
                held = layer.mlp.experts.num_experts
                along = 0 if held % replicas == 0 or self.config.moe_intermediate_size % replicas else 1
                fully_shard(
                    layer.mlp.experts, mesh=self.mesh.expert_shard, **options,
                    shard_placement_fn=partial(_shard_along, along),
                )  # fmt: skip
            fully_shard(layer, mesh=self.mesh.shard, **options)
        fully_shard(stage, mesh=self.mesh.shard, **options)
        register_fsdp_forward_method(cast(nn.Module, stage), "generate")
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _list_masters(self) -> Iterator[Master]:
        tp = self.plan.tp
        for stage in self.stages:
            for name, parameter in stage.model.named_parameters():
                name_ = whole_name(name, self.config)
                shape, offsets = local_box(name_, tuple(parameter.shape), self.mesh.ranks)
                shard: Tensor = parameter.data
                if isinstance(parameter, DTensor):
                    shard = cast(DTensor, parameter.detach()).to_local()
                    _, inside = compute_local_shape_and_global_offset(
                        parameter.shape, parameter.device_mesh, parameter.placements
                    )
                    offsets = tuple(start + step for start, step in zip(offsets, inside, strict=True))
                share = 1.0 if split_of(name_) is not None else 1 / tp
                yield Master(name_, parameter, shard, shape, offsets, share if name_ == name else 0.0)

    def _optimized(self, master: Master) -> ParameterShard:
        """With muon, matrices are made whole along what FSDP and tensor parallelism cut; experts stay where they are."""

        def gather(part: Tensor) -> Tensor:
            if isinstance(master.parameter, DTensor):
                whole = master.parameter
                part = DTensor.from_local(
                    part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
                ).full_tensor()
            if split is None or split.axis != "tp" or self.mesh.ranks.tp is None:
                return part
            parts = [torch.empty_like(part) for _ in range(self.plan.tp)]
            dist.all_gather(parts, part.contiguous(), group=self.mesh.ranks.tp)
            return torch.cat(parts, dim=split.dim)

        def take(whole: Tensor) -> Tensor:
            is_of_experts = split is not None and split.axis == "ep"
            first = self.mesh.ranks.coordinate("ep")[0] * len(whole) if is_of_experts else 0
            starts = (master.offsets[0] - first, *master.offsets[1:])
            return whole[tuple(slice(a, a + n) for a, n in zip(starts, master.shard.shape, strict=True))]

        split = split_of(master.name)
        return ParameterShard(master.name, master.shard, len(master.shape), gather=gather, take=take)

    def _build_pipeline(self, length: int) -> Any:
        plan, ranks = self.plan, self.mesh.ranks
        part = len(range(length)[ranks.token_part(length)])
        tokens = torch.empty(plan.micro_batch, length, dtype=torch.long, device="meta")
        hidden = torch.empty(
            plan.micro_batch, part, self.config.hidden_size, dtype=self.compute_dtype, device="meta", requires_grad=True
        )
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        stages = [
            PipelineStage(
                stage, index, plan.pp * plan.virtual_stages, self.device,
                input_args=tokens if stage.model.is_first else hidden,
                output_args=loss if stage.model.is_last else hidden,
                group=self.mesh.dense.get_group("pp"),
            )
            for index, stage in zip(self.stage_indices, self.stages, strict=True)
        ]  # fmt: skip
        options: dict[str, Any] = {"loss_fn": lambda loss, _: loss, "scale_grads": False}
        if plan.virtual_stages > 1:
            return ScheduleInterleaved1F1B(cast(Any, stages), plan.num_micro_batches, **options)
        return Schedule1F1B(stages[0], plan.num_micro_batches, **options)

    # Passes.

    def _prepare_backward(self, *, is_last: bool) -> None:
        (stage,) = self.stages
        if isinstance(stage, FSDPModule):
            stage.set_is_last_backward(is_last)
            stage.set_requires_gradient_sync(is_last or self.plan.zero_stage > 1)
            stage.set_reshard_after_backward(is_last or self.plan.zero_stage == 3)

    def _forward(self, batch: MicroBatch) -> Tensor:
        (stage,) = self.stages
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        return cast(Tensor, stage(batch["input_ids"], **rest))

    def _step_pipeline(self, step: Any, micro_batches: Sequence[MicroBatch], losses: list[Tensor]) -> None:
        whole = {name: torch.cat([batch[name] for batch in micro_batches]) for name in micro_batches[0]}
        tokens = whole.pop("input_ids")
        inputs = (tokens,) if self.stages[0].model.is_first else ()
        has_loss = self.stages[-1].model.is_last
        target = tokens if has_loss else None
        step(*inputs, target=target, losses=losses if has_loss else None, return_outputs=False, **whole)

    def _add_up_shared_gradients(self) -> None:
        """Of what every tensor parallel rank holds for its own positions, and of a weight that two stages hold."""
        if self.mesh.ranks.tp is not None:
            shared = [master.gradient() for master in self.masters if split_of(master.name) is None]
            add_up_together(shared, self.mesh.ranks.tp)
        if self.mesh.tied_group is not None:
            for master in self.masters:
                if master.name == EMBEDDING:
                    dist.all_reduce(master.gradient(), group=self.mesh.tied_group)


def _shard_along(dim: int, _: nn.Parameter) -> Shard:
    return Shard(dim)
