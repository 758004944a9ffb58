"""The passes of DeepSpeed's engines over one process's stage: of a whole model, and of a pipeline.

In: this rank's micro-batches. Out: gradients, reduced and divided as ZeRO holds them, or the losses of an evaluation.

In the pipeline a process holds one layer, as DeepSpeed sees it: its StageModule. Hidden states and their gradients travel in
DeepSpeed's 1F1B schedule; what else a stage needs of the rows (labels, documents, positions) every process has, and takes it
in the order of its forward passes. That schedule ends in the optimizer's step, which here the caller takes, who asks for the
norm before. Source: deepspeed 0.19.8, runtime/pipe/engine.py and schedule.py; 1F1B (arXiv:2104.04473).
"""

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.schedule import OptimizerStep, ReduceGrads, ReduceTiedGrads, TrainSchedule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from train.model.plan import ParallelPlan
from train.pretrain.deepspeed_moe import MeshForDeepSpeed
from train.pretrain.stage import StageModule
from train.pretrain.step import MicroBatch


class Passes(Protocol):
    """What runs a stage."""

    optimizer: Any
    """ZeRO's."""

    def train(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Forward and backward of a step's micro-batches, and the reduction of gradients."""
        ...

    def step(self) -> None:
        """ZeRO's step."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Sum of the losses [] of these rows, nats; zero on a stage that has none."""
        ...


class WholePasses:
    """A model that is not cut into stages."""

    def __init__(
        self, stage: StageModule, *, mpu: MeshForDeepSpeed, optimizer: Optimizer, config: dict[str, Any], index: int
    ) -> None:
        """Every rank at once. `index` of the device."""
        self._engine = _ZeroEngine(
            args=SimpleNamespace(device_rank=index), model=stage, optimizer=optimizer, mpu=mpu, config=config,
            config_class=deepspeed.DeepSpeedConfig(config, mpu),
        )  # fmt: skip
        self.optimizer = self._engine.optimizer

    def train(self, micro_batches: Sequence[MicroBatch]) -> None:
        """See Passes."""
        self._engine.train()
        for index, batch in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self._engine.backward(self._forward(batch), scale_wrt_gas=False)

    def step(self) -> None:
        """See Passes."""
        self._engine.step()

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """See Passes."""
        self._engine.eval()
        return torch.stack([self._forward(batch).double() for batch in micro_batches]).sum()

    def _forward(self, batch: MicroBatch) -> Any:
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        return self._engine(batch["input_ids"], **rest)


class PipelinePasses:
    """One stage of a pipeline. ZeRO-1 alone: DeepSpeed's pipelines take no other."""

    def __init__(
        self,
        stage: StageModule,
        *,
        plan: ParallelPlan,
        optimizer: Optimizer,
        config: dict[str, Any],
        index: int,
        tied_weight: nn.Parameter | None,
        tied_group: ProcessGroup | None,
    ) -> None:
        """Every rank at once. `tied_weight`: the copy of a weight that another rank of `tied_group` holds as well."""
        self._layer, self._tied_weight, self._tied_group = _PipelineLayer(stage), tied_weight, tied_group
        self._num_micro_batches = plan.num_micro_batches
        with contextlib.redirect_stdout(None):  # it prints
            topology = PipeModelDataParallelTopology(num_pp=plan.pp, num_mp=plan.tp, num_dp=plan.dp * plan.cp)
            module = PipelineModule(
                [self._layer] * plan.pp, topology=topology, loss_fn=self._loss, partition_method="uniform"
            )
        mpu = module.mpu()
        self._engine = _ZeroPipelineEngine(
            args=SimpleNamespace(device_rank=index), model=module, optimizer=optimizer, mpu=mpu, config=config,
            config_class=deepspeed.DeepSpeedConfig(config, mpu),
        )  # fmt: skip
        self.optimizer = self._engine.optimizer

    def train(self, micro_batches: Sequence[MicroBatch]) -> None:
        """See Passes."""
        engine = self._engine
        engine.module.train()
        engine._compute_loss = True
        engine.set_dataiterator(self._begin(micro_batches))
        engine._exec_schedule(_PassSchedule(len(micro_batches), engine.num_stages, engine.stage_id))
        if self._tied_weight is not None and self._tied_group is not None:
            dist.all_reduce(self.optimizer.get_gradient_for_reduction(self._tied_weight), group=self._tied_group)
        engine._exec_reduce_grads()

    def step(self) -> None:
        """See Passes."""
        self._engine._exec_optimizer_step()

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """See Passes."""
        losses = self._engine.eval_batch(
            self._begin(micro_batches), reduce_output=None, bcast_loss=False, num_micro_batches=len(micro_batches)
        )
        return torch.stack([loss.double() for loss in losses or [torch.zeros((), device=self._engine.device)]]).sum()

    def _begin(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """What the first stage takes as input, and what the last one gives to the loss function, which needs nothing."""
        self._layer.rows = iter(micro_batches)
        return ((batch["input_ids"], batch["labels"]) for batch in micro_batches)

    def _loss(self, objective: Tensor, _: Tensor) -> Tensor:
        """DeepSpeed will divide by the number of micro-batches."""
        return objective * self._num_micro_batches if self._engine.module.training else objective


class _PipelineLayer(nn.Module):
    """A stage, and the rows that come next."""

    def __init__(self, stage: StageModule) -> None:
        super().__init__()
        self.stage = stage
        self.rows: Iterator[MicroBatch] = iter(())

    def forward(self, x: Tensor) -> Any:
        """What the stage gives."""
        rest = {name: value for name, value in next(self.rows).items() if name != "input_ids"}
        return self.stage(x, **rest)


class _PassSchedule(TrainSchedule):  # type: ignore[misc]
    """1F1B without what comes after the last backward pass."""

    def steps(self) -> Iterator[list[Any]]:
        for commands in super().steps():
            yield [one for one in commands if not isinstance(one, ReduceTiedGrads | ReduceGrads | OptimizerStep)]


class _WithZero:
    """In every precision with a ZeRO optimizer: for bfloat16 with float32 gradients at stage 1 DeepSpeed would take its
    BF16_Optimizer, which divides gradients otherwise and was measured to be less exact."""

    def _do_optimizer_sanity_check(self, basic_optimizer: Optimizer) -> str:
        return str(ZERO_OPTIMIZATION)


class _ZeroEngine(_WithZero, deepspeed.DeepSpeedEngine):  # type: ignore[misc]
    """What deepspeed.initialize makes of a model."""


class _ZeroPipelineEngine(_WithZero, PipelineEngine):  # type: ignore[misc]
    """What deepspeed.initialize makes of a pipeline."""
