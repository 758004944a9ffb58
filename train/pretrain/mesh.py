"""RankMesh: the process groups of a plan.

Ranks count through pp, dp, cp, tp, the last one fastest, so that tensor parallel ranks are neighbours. The ranks of a
pipeline stage are counted a second time for its experts: `ep` consecutive ones share them, and the dp x cp x tp / ep ranks
at the same place hold the same experts (arXiv:2504.14960).
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from train.model.plan import ParallelPlan
from train.model.ranks import ModelRanks


@dataclass(frozen=True)
class RankMesh:
    """Where this process stands in the plan, and whom it shares what with. Groups of one are None in `ranks`."""

    plan: ParallelPlan
    dense: DeviceMesh
    """(pp, dp, cp, tp)."""
    sparse: DeviceMesh
    """(pp, edp, ep)."""
    shard: DeviceMesh
    """The dp x cp ranks among which all but experts is replicated: ZeRO shares it there."""
    stage_group: ProcessGroup
    """All ranks of this pipeline stage."""
    sequence_group: ProcessGroup
    """The cp x tp ranks that have the same rows of the batch."""
    tied_group: ProcessGroup | None
    """First and last stage, where head and embedding are one weight in two places."""
    ranks: ModelRanks = field(default_factory=ModelRanks)

    @classmethod
    def build(cls, plan: ParallelPlan, *, device_type: str, is_tied: bool) -> "RankMesh":
        """Make all groups; every rank calls this. Raises ValueError if the plan is not of this number of ranks."""
        world = dist.get_world_size()
        if plan.world_size != world:
            raise ValueError(
                f"plan: dp x cp x tp x pp = {plan.dp} x {plan.cp} x {plan.tp} x {plan.pp} = {plan.world_size}, but there are "
                f"{world} processes; change the plan, or start {plan.world_size}"
            )
        dense = init_device_mesh(
            device_type, (plan.pp, plan.dp, plan.cp, plan.tp), mesh_dim_names=("pp", "dp", "cp", "tp")
        )
        per_stage = plan.dp * plan.cp * plan.tp
        sparse = init_device_mesh(
            device_type, (plan.pp, per_stage // plan.ep, plan.ep), mesh_dim_names=("pp", "edp", "ep")
        )
        return cls(
            plan=plan, dense=dense, sparse=sparse,
            shard=_flat(dense, ("dp", "cp"), "shard"),
            stage_group=_flat(dense, ("dp", "cp", "tp"), "stage").get_group(),
            sequence_group=_flat(dense, ("cp", "tp"), "sequence").get_group(),
            tied_group=_tied_group(dense) if is_tied and plan.pp > 1 else None,
            ranks=ModelRanks(
                tp=dense.get_group("tp") if plan.tp > 1 else None,
                cp=dense.get_group("cp") if plan.cp > 1 else None,
                ep=sparse.get_group("ep") if plan.ep > 1 else None,
            ),
        )  # fmt: skip

    def place(self, axis: str) -> int:
        """This process's place along pp, dp, cp or tp."""
        return int(self.dense.get_local_rank(axis))

    @property
    def expert_shard(self) -> DeviceMesh:
        """The ranks that hold the same experts: ZeRO shares those there."""
        return self.sparse["edp"]

    @property
    def is_first_of_stage(self) -> bool:
        """Whether this rank speaks for its stage."""
        return self.stage_group.rank() == 0


def limit_waiting(timeout_s: float) -> None:
    """Of collectives in all groups that there are, DeepSpeed's too: new ones take torch's default, not the first one's."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def _flat(mesh: DeviceMesh, names: tuple[str, ...], name: str) -> DeviceMesh:
    flat: Any = mesh[names]._flatten(name)
    assert isinstance(flat, DeviceMesh)
    return flat


def _tied_group(dense: DeviceMesh) -> ProcessGroup | None:
    """One group for each pair of a first and a last stage's rank; all ranks make all of them, in order."""
    mine: ProcessGroup | None = None
    first, last = dense.mesh[0].flatten().tolist(), dense.mesh[-1].flatten().tolist()
    for pair in zip(first, last, strict=True):
        group = dist.new_group(list(pair))
        if dist.get_rank() in pair:
            mine = group
    return mine
