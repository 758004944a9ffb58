"""How this model's parts look to DeepSpeed: layers with experts, and the process groups of a plan.

DeepSpeed knows a layer with experts by its type, and asks two places for groups: an `mpu` object, and its own table of expert
groups. It gets those of the RankMesh in both. Of AutoEPMoELayer only the type is used; nothing of it runs.
Source: deepspeed 0.19.8, runtime/engine.py (_configure_distributed_model), utils/groups.py, runtime/zero/stage3.py.
"""

from dataclasses import fields
from typing import Any, cast

import torch.distributed as dist
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from deepspeed.utils import groups
from torch import nn
from torch.distributed import ProcessGroup

from train.model.moe import ExpertRouter, MoELayer, RouterStats, Routing
from train.pretrain.mesh import RankMesh


class DeepSpeedMoELayer(MoELayer, AutoEPMoELayer):  # type: ignore[misc]
    """A layer that `mark_experts` made of a MoELayer. It computes as before."""

    def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
        """Called where DeepSpeed's own layers would make groups: these have theirs."""


class DeepSpeedRouter(ExpertRouter):
    """A router that `mark_experts` made of an ExpertRouter. It gives the same; the hooks of ZeRO-3, which run within
    nn.Module's call, find tensors in its output, and so gather the weight again before the backward pass."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The fields of ExpertRouter.forward, one after another."""
        routing, stats = super().forward(*inputs, **options)
        return (routing.expert_ids, routing.weights, *(getattr(stats, field.name) for field in fields(stats)))

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Routing, RouterStats]:
        """What ExpertRouter gives."""
        expert_ids, weights, *stats = super().__call__(*inputs, **options)
        return Routing(expert_ids, weights), RouterStats(*stats)


def mark_experts(module: nn.Module, mesh: RankMesh) -> None:
    """Make each layer with experts one of DeepSpeed's, and give DeepSpeed the groups of this mesh."""
    group_name = f"ep_size_{mesh.plan.ep}"
    replicas, sharers = mesh.expert_shard.get_group(), mesh.sparse.get_group("ep")
    groups._EXPERT_PARALLEL_GROUP[group_name] = sharers
    groups._EXPERT_PARALLEL_GROUP_RANKS[group_name] = dist.get_process_group_ranks(sharers)
    groups._EXPERT_DATA_PARALLEL_GROUP[group_name] = replicas
    groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[group_name] = dist.get_process_group_ranks(replicas)
    for layer in module.modules():
        if isinstance(layer, MoELayer):
            layer.__class__ = DeepSpeedMoELayer
            layer.gate.__class__ = DeepSpeedRouter
            layer.num_experts = layer.gate.num_experts  # type: ignore[assignment]
            for weight in layer.experts.parameters():
                marked: Any = weight
                marked.allreduce, marked.group_name = False, group_name  # what ZeRO-1 and 2 read
                marked.ds_zero_placement_family = "autoep_expert"  # what ZeRO-3 reads
                marked.ds_zero_partition_group_name = group_name
                marked.ds_zero_partition_process_group = replicas


def expert_groups(parameter_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups, each with a `name`, cut so that experts are in groups of their own."""
    if not any(is_moe_param(one) for group in parameter_groups for one in group["params"]):
        return parameter_groups
    return cast(list[dict[str, Any]], split_params_into_different_moe_groups_for_optimizer(parameter_groups))


class MeshForDeepSpeed:
    """The `mpu` of deepspeed.initialize. Data parallel ranks are all that hold the same dense weights: dp x cp."""

    def __init__(self, mesh: RankMesh) -> None:
        self._data, self._model = mesh.shard.get_group(), mesh.dense.get_group("tp")

    def get_data_parallel_group(self) -> ProcessGroup:
        """Ranks among which ZeRO divides."""
        return self._data

    def get_data_parallel_world_size(self) -> int:
        """Their number."""
        return self._data.size()

    def get_data_parallel_rank(self) -> int:
        """This process's place among them."""
        return self._data.rank()

    def get_model_parallel_group(self) -> ProcessGroup:
        """Tensor parallel ranks."""
        return self._model

    def get_model_parallel_world_size(self) -> int:
        """Their number."""
        return self._model.size()

    def get_model_parallel_rank(self) -> int:
        """This process's place among them."""
        return self._model.rank()
