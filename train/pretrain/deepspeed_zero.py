"""The state of DeepSpeed's ZeRO optimizers, seen alike for all stages: which flat range of which parameter is here.

ZeRO lays parameters one behind another in flat float32 tensors. Stages 1 and 2 cut such a tensor among the ranks, so a
partition begins and ends within parameters; stage 3 cuts each parameter for itself, and pads it. Both become Fragments.
Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py, whose attributes are read here and nowhere else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed.runtime.zero.utils as zero_utils
import torch
import torch.distributed as dist
from torch import Tensor, nn

zero_utils.warned = True
"""It warns of outputs that are no tensors, of modules that have no weights of their own (a router has: deepspeed_moe.py)."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A flat range of one parameter, in one of the flat masters of this process. Without padding, never empty."""

    parameter: nn.Parameter
    shape: tuple[int, ...]
    """Of the parameter as this process's model has it."""
    start: int
    """Where the range begins in the parameter."""
    flat: int
    """Index of the flat master."""
    place: int
    """Where the range begins in it."""
    size: int
    """Elements."""

    def view(self, flat: Tensor) -> Tensor:
        """The range in a tensor of the layout of its flat master."""
        return flat.detach()[self.place : self.place + self.size]


class ZeroOneTwo:
    """Stages 1 and 2: DeepSpeedZeroOptimizer. Its gradients are sums over the ranks ("gradient_allreduce_op": "sum")."""

    divisor = 1

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer
        self.masters: list[Tensor] = optimizer.single_partition_of_fp32_groups
        self.fragments = list(self._list_fragments())

    def _list_fragments(self) -> Iterator[Fragment]:
        zero = self._zero
        for index, parameters in enumerate(zero.params_in_partition):
            rank = dist.get_rank(zero.real_dp_process_group[index])
            for parameter in parameters:
                key = zero.get_param_id(parameter)
                start = int(zero.grad_start_offset[index][rank][key])
                place = int(zero.grad_partition_insertion_offset[index][rank][key])
                size = min(parameter.numel() - start, int(zero.partition_size[index]) - place)
                yield Fragment(parameter, tuple(parameter.shape), start, index, place, size)

    def gradients(self) -> list[Tensor]:
        """Of the fragments, in order; views of what `step` will take."""
        zero = self._zero
        return [
            gradient.view(-1)  # what lies behind the last parameter is padding
            for index, parameters in enumerate(zero.params_in_partition)
            for gradient, _ in zip(zero.averaged_gradients[index], parameters, strict=False)
        ]

    def copy_masters(self) -> None:
        """Masters into the weights that passes use, on all ranks."""
        self._zero.update_lp_params()

    def discard(self) -> None:
        """Forget gradients, as ZeRO's own step does at an overflow."""
        zero = self._zero
        zero.zero_grad(set_to_none=True)
        for index in range(len(self.masters)):
            zero.averaged_gradients[index] = zero.all_grad_tensors[index] = None


class ZeroThree:
    """Stage 3: DeepSpeedZeroOptimizer_Stage3. Its gradients are divided by the number of ranks that hold dense weights,
    those of experts as well."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer
        self.divisor = dist.get_world_size(optimizer.dp_process_group)
        self.masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        self.fragments = [fragment for _, _, fragment in self._list_fragments()]

    def _list_fragments(self) -> Iterator[tuple[int, int, Fragment]]:
        for index, parameters in enumerate(self._zero.fp16_groups):
            place = 0
            for number, parameter in enumerate(parameters):
                padded = parameter.partition_numel()
                start = dist.get_rank(parameter.ds_process_group) * padded
                size = min(padded, parameter.ds_numel - start)
                if size > 0:
                    yield index, number, Fragment(parameter, tuple(whole_shape(parameter)), start, index, place, size)
                place += padded

    def gradients(self) -> list[Tensor]:
        """Of the fragments, in order; views of what `step` will take."""
        gradients = self._zero.averaged_gradients
        return [gradients[index][number][: one.size] for index, number, one in self._list_fragments()]

    def copy_masters(self) -> None:
        """Masters into the parts that passes gather, and what stays gathered once more: the end of ZeRO's own step."""
        zero = self._zero
        zero._partition_all_parameters()
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def discard(self) -> None:
        """Forget gradients, as ZeRO's own step does at an overflow."""
        self._zero.zero_grad(set_to_none=True)
        self._zero.averaged_gradients = {}


ZeroState = ZeroOneTwo | ZeroThree


def whole_shape(parameter: Tensor) -> torch.Size:
    """Of a parameter that ZeRO-3 may have divided."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def zero_state(optimizer: Any, *, stage: int) -> ZeroState:
    """The view of the optimizer that deepspeed.initialize gave."""
    return ZeroThree(optimizer) if stage == 3 else ZeroOneTwo(optimizer)
