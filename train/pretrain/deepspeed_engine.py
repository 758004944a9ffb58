"""DeepSpeedEngine: ZeRO 1 to 3 of DeepSpeed over dp x cp, with the model's own tensor, context and expert parallelism.

What DeepSpeed does here: float32 masters and their division, casts, reduction of gradients, gathering of weights. What it is
kept from: it neither averages (the objective is divided by the tokens of the whole step already, stage.py) nor clips; norm
and clipping are those of torch, over all ranks, and reach ZeRO's step as a loss scale to divide by. Its own checkpoints,
pickles of one division, are not used: `pieces` are views of its flat partitions.
Importing this module imports DeepSpeed, which takes seconds. Source: ZeRO (arXiv:1910.02054), deepspeed 0.19.8.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from train.model.collectives import add_up_together
from train.model.config import MoEConfig
from train.model.costs import stage_ranges
from train.model.generate import Generated, SamplingConfig
from train.model.moe import MoELayer
from train.model.plan import deepspeed_refusals
from train.model.ranks import local_box, split_of
from train.model.transformer import MoETransformer
from train.pretrain.deepspeed_moe import MeshForDeepSpeed, expert_groups, mark_experts
from train.pretrain.deepspeed_passes import Passes, PipelinePasses, WholePasses
from train.pretrain.deepspeed_zero import Fragment, ZeroState, whole_shape, zero_state
from train.pretrain.mesh import RankMesh
from train.pretrain.optimizer import (
    FUSED_DEVICES,
    OptimizerConfig,
    ParameterShard,
    check_flat_ranges,
    clip_factor,
    has_decay,
)
from train.pretrain.pieces import TensorPiece, flat_pieces
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

BUCKET_ELEMENTS = 200_000_000
"""Most gradients or weights that travel at once; DeepSpeed allocates as much."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
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
        """Weights are allocated, not set. `prepare` may exchange modules of the model before DeepSpeed gets it.
        `sequence_length` is taken for the sake of the other engine, and not used.

        Raises ValueError for an optimizer, a plan or a device that this engine does not run.
        """
        _check(mesh, optimizer, device)
        self.config, self.mesh, self.device = config, mesh, device
        self.plan, self.compute_dtype = mesh.plan, compute_dtype
        self._clip_norm, self._scale = optimizer.clip_norm, 1.0
        self._index = _join(device)
        self.stage = self._build(prepare)
        self._names = {one: whole_name(name, config) for name, one in self.stage.model.named_parameters()}
        self._passes = self._initialise(optimizer)
        self._zero: ZeroState = zero_state(self._passes.optimizer, stage=self.plan.zero_stage)
        self._states = [self._make_state(master) for master in self._zero.masters]

    # One optimizer step, in the order of the calls.

    def run(self, micro_batches: Sequence[MicroBatch], totals: StepTotals, *, scale: float = 1.0) -> StepSums:
        """See TrainingEngine."""
        self._scale = scale
        self.stage.totals, self.stage.scale = totals, scale
        self._passes.train(micro_batches)
        self._add_up_shared_gradients()
        return sum_up([self.stage], self.mesh, totals, device=self.device)

    def gradient_norm(self) -> float:
        """See TrainingEngine."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for fragment, gradient in zip(self._zero.fragments, self._zero.gradients(), strict=True):
            square = torch.linalg.vector_norm(gradient, dtype=torch.float32).double().square()
            total += square * self._share(fragment)
        dist.all_reduce(total)
        return math.sqrt(float(total)) * self._zero.divisor / self._scale

    def update(self, *, lr: float, norm: float) -> None:
        """See TrainingEngine."""
        factor = clip_factor(norm, clip_norm=self._clip_norm) * self._zero.divisor / self._scale
        zero = self._passes.optimizer
        for group in zero.param_groups:
            group["lr"] = lr
        zero.loss_scale = 1.0 / factor
        self._passes.step()
        zero.loss_scale = 1.0  # what the next objective is multiplied by
        self.stage.balance.finish_step(self.stage.model, group=self.mesh.stage_group)

    def discard(self) -> None:
        """See TrainingEngine."""
        self._zero.discard()
        self.stage.balance.discard_step()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See TrainingEngine."""
        total = self._passes.evaluate(micro_batches) * speaks([self.stage], self.mesh)
        dist.all_reduce(total)
        return float(total)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Generated]:
        """See TrainingEngine."""
        return self.stage.generate(prompts, sampling)

    # The state.

    @property
    def num_updates(self) -> int:
        """See TrainingEngine."""
        return int(self._states[0]["step"])

    @num_updates.setter
    def num_updates(self, count: int) -> None:
        for state in self._states:
            state["step"].fill_(count)

    def pieces(self) -> list[TensorPiece]:
        """See TrainingEngine. Boxes that together are the flat ranges of ZeRO, without their padding."""
        found = []
        for fragment in self._zero.fragments:
            master, state = self._zero.masters[fragment.flat], self._states[fragment.flat]
            found += self._pieces_of(fragment, "weight", master)
            for kind in MOMENTS:
                found += self._pieces_of(fragment, kind, state[kind])
        return found + list(balance_pieces(self.stage, self.mesh, device=self.device))

    def weights_changed(self) -> None:
        """See TrainingEngine."""
        self._zero.copy_masters()

    def expert_load(self) -> Tensor:
        """See TrainingEngine."""
        return gather_expert_load([self.stage], self.mesh, device=self.device)

    def _pieces_of(self, fragment: Fragment, kind: str, flat: Tensor) -> list[TensorPiece]:
        name = self._names[fragment.parameter]
        shape, offsets = local_box(name, fragment.shape, self.mesh.ranks)
        return flat_pieces(
            kind=kind, name=name, shape=shape, start=fragment.start, tensor_1d=fragment.view(flat),
            is_owner=self._share(fragment) == 1 or (self._share(fragment) > 0 and self.mesh.place("tp") == 0),
            base_offsets=offsets, base_shape=fragment.shape,
        )  # fmt: skip

    def _is_split(self, fragment: Fragment) -> bool:
        """Whether tensor parallel ranks hold different parts of it, and not each the whole."""
        return split_of(self._names[fragment.parameter]) is not None

    def _share(self, fragment: Fragment) -> float:
        """1 / ranks that hold the same; 0 for a copy that counts elsewhere."""
        if fragment.parameter is self._tied_copy:
            return 0.0
        return 1.0 if self._is_split(fragment) else 1 / self.plan.tp

    # Building.

    def _build(self, prepare: Callable[[MoETransformer], None]) -> StageModule:
        layers = stage_ranges(self.config.num_hidden_layers, self.plan.pp)[self.mesh.place("pp")]
        model = MoETransformer(
            self.config, device="meta", dtype=self.compute_dtype, ranks=self.mesh.ranks, layers=layers
        )
        model.set_recomputation(self.plan.recomputation)
        prepare(model)
        stage = StageModule(model, sequence_group=self.mesh.sequence_group)
        if self.plan.zero_stage == 3:
            self._allocate_divided(model)
        else:
            stage.to_empty(device=self.device)
            mark_experts(stage, self.mesh)
        model.tie_head()
        for layer in model.layers:
            if isinstance(layer.mlp, MoELayer) and layer.mlp.gate.bias is not None:
                layer.mlp.gate.bias.zero_()
        return stage

    def _allocate_divided(self, model: MoETransformer) -> None:
        """One layer after another, so that no more than one is ever here as a whole."""
        for layer in model.layers:
            layer.to_empty(device=self.device)
            mark_experts(layer, self.mesh)
            deepspeed.zero.Init(module=layer, data_parallel_group=self.mesh.shard.get_group(), dtype=self.compute_dtype)
        for module in (model.model.embed_tokens, model.model.norm, model.lm_head):
            module.to_empty(device=self.device)

    @property
    def _tied_copy(self) -> Tensor | None:
        """The head of a last stage, where the first one holds the same weight."""
        model = self.stage.model
        return model.lm_head.weight if self.mesh.tied_group is not None and model.is_last else None

    def _initialise(self, config: OptimizerConfig) -> Passes:
        groups: list[dict[str, Any]] = []
        for is_decayed in (True, False):
            members = [
                one for one, name in self._names.items()
                if has_decay(ParameterShard(name, one, len(whole_shape(one)))) == is_decayed
            ]  # fmt: skip
            decay = config.weight_decay if is_decayed else 0.0
            groups.append({"params": members, "weight_decay": decay, "name": f"decay {decay}"})
        optimizer = AdamW(
            expert_groups(groups), lr=config.lr, betas=config.betas, eps=config.eps,
            fused=self.device.type in FUSED_DEVICES,
        )  # fmt: skip
        options: dict[str, Any] = {"optimizer": optimizer, "config": self._deepspeed_config(), "index": self._index}
        if self.plan.pp == 1:
            return WholePasses(self.stage, mpu=MeshForDeepSpeed(self.mesh), **options)
        tied = [one for one, name in self._names.items() if name == EMBEDDING]
        return PipelinePasses(
            self.stage, plan=self.plan, tied_weight=tied[0] if tied else None,
            tied_group=self.mesh.tied_group, **options,
        )  # fmt: skip

    def _deepspeed_config(self) -> dict[str, Any]:
        bucket = min(BUCKET_ELEMENTS, sum(whole_shape(one).numel() for one in self._names))
        zero: dict[str, Any] = {
            "stage": self.plan.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket + bucket % 2,
        }  # fmt: skip
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.plan.micro_batch,
            "gradient_accumulation_steps": self.plan.num_micro_batches if self.plan.pp > 1 else 1,
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            "zero_optimization": zero,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        if self.plan.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = self.config.hidden_size  # norms stay gathered
        else:
            zero["compute_grad_norm"] = False
            config["gradient_allreduce_op"] = "sum"
        if self.compute_dtype == torch.bfloat16:
            config["bf16"] = {"enabled": True}
        elif self.compute_dtype == torch.float16:
            config["fp16"] = {"enabled": True, "loss_scale": 1.0}
        return config

    def _make_state(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's, before the first step, so that a checkpoint can be read into it."""
        state = {"step": torch.zeros((), device=self.device)} | {kind: torch.zeros_like(master) for kind in MOMENTS}
        self._passes.optimizer.optimizer.state[master] = state
        return state

    # Passes.

    def _add_up_shared_gradients(self) -> None:
        """Of what every tensor parallel rank holds for its own positions. All of them have the same ranges of it."""
        if self.mesh.ranks.tp is None:
            return
        pairs = zip(self._zero.fragments, self._zero.gradients(), strict=True)
        shared = [gradient for fragment, gradient in pairs if not self._is_split(fragment)]
        if shared:
            add_up_together(shared, self.mesh.ranks.tp)


def _join(device: torch.device) -> int:
    """Give DeepSpeed the processes that there are. Returns the index of the device."""
    # Else init_distributed compiles it; a compile that is killed leaves a lock on which all later runs wait for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    index = device.index
    if device.type == "cuda":
        index = torch.cuda.current_device() if index is None else index
        os.environ["LOCAL_RANK"] = str(index)  # which DeepSpeed takes for the device
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(dist.get_backend())
    return index or 0


def _check(mesh: RankMesh, optimizer: OptimizerConfig, device: torch.device) -> None:
    check_flat_ranges(optimizer)
    for reason in deepspeed_refusals(mesh.plan):
        raise ValueError(f"the engine deepspeed: {reason}")
    chosen = deepspeed.get_accelerator().device_name()
    if chosen != device.type:
        raise ValueError(
            f"device = {device.type}, but DeepSpeed has chosen {chosen}; set the environment variable "
            f"DS_ACCELERATOR={device.type} before the process starts"
        )
