"""The fix of vLLM's CPU build for batches that mix base rows and adapter rows.

A row without an adapter carries index -1, and vLLM's torch operations index the stacked weights with it: -1 is the last
slot, so a base row gets the adapter of that slot (vllm#48421, vllm#49656, open for 0.32.0; GPU kernels skip -1).
The operations here leave base rows alone. They also work by group: one product per adapter instead of one gathered
weight copy per token, measured 1.6 times faster with one adapter at batch 16, and 2.6 times when prompts are read.

Shapes: inputs [rows, in], weights [slots, 1, out, in] or [slots, out, in], indices [rows], output [rows, >= out].
"""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import torch

TESTED_VERSIONS = ("0.32.0",)
"""vLLM versions on which tests/parity/test_lora_mixed_batch.py passes."""
MIN_ROWS_PER_GROUP = 2
"""With fewer rows per adapter than this, one gathered product of all rows costs less than a product per adapter."""

Rows = slice | torch.Tensor
_state = threading.local()


class UntestedVllmVersion(RuntimeError):
    """vLLM's CPU build is of a version for which the fix is not known to be right."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Rows of one step by adapter slot. `groups` is None where the row-wise product is cheaper."""

    indices: torch.Tensor
    groups: tuple[tuple[int, Rows], ...] | None
    has_base_rows: bool


def fix_mixed_batches() -> None:
    """Put the fixed operations into vLLM, once, in the process that computes. Does nothing on a GPU.

    Raises: UntestedVllmVersion on a CPU build of another version than the tested ones.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    version = str(vllm.__version__).split("+", maxsplit=1)[0]
    if version not in TESTED_VERSIONS:
        raise UntestedVllmVersion(
            f"vLLM {version} on a CPU: adapters may leak into other requests of a batch, and the fix was tested with "
            f"{', '.join(TESTED_VERSIONS)} only. Install the versions of requirements/cpu.txt, or run "
            "tests/parity/test_lora_mixed_batch.py and add the version to serve/lora_ops.py"
        )
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if getattr(lora_ops.bgmv_shrink, "skips_base_rows", False):
        return
    for name, build in (
        ("bgmv_shrink", build_shrink),
        ("bgmv_expand", build_expand),
        ("bgmv_expand_slice", build_expand_slice),
    ):
        fixed = build(getattr(lora_ops, name))
        fixed.skips_base_rows = True
        for module in (lora_ops, torch_ops, punica_cpu):  # each imports the functions by name
            setattr(module, name, fixed)


def group_rows(indices: torch.Tensor) -> Grouping:
    """Group rows by slot; the last result of this thread is used again while the indices stay the same.

    One step asks some 400 times with equal indices. Inference tensors have no version counter, so a copy is compared.
    """
    last: Grouping | None = getattr(_state, "grouping", None)
    if last is not None and last.indices.shape == indices.shape and torch.equal(last.indices, indices):
        return last
    slots = [slot for slot in torch.unique(indices).tolist() if slot >= 0]
    num_rows = int((indices >= 0).sum())
    groups: tuple[tuple[int, Rows], ...] | None = None
    if len(slots) <= 1 or num_rows >= MIN_ROWS_PER_GROUP * len(slots):
        groups = tuple((slot, _rows_of(indices, slot)) for slot in slots)
    grouping = Grouping(indices=indices.clone(), groups=groups, has_base_rows=num_rows < indices.shape[0])
    _state.grouping = grouping
    return grouping


def _rows_of(indices: torch.Tensor, slot: int) -> Rows:
    """The rows of `slot`: a slice where they follow each other, which copies nothing."""
    rows = torch.nonzero(indices == slot).flatten()
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == rows.shape[0] else rows


def build_shrink(original: Any) -> Any:
    """output[:, :rank] = scaling * inputs A^T; zero in base rows."""

    @functools.wraps(original)
    def shrink(
        inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, scaling: float = 1.0
    ) -> None:
        grouping = group_rows(indices)
        if grouping.groups is None:
            original(_without_base_rows(inputs, grouping), weights, output, indices.clamp(min=0), scaling)
            return
        target = output[:, : weights.shape[-2]]
        if grouping.has_base_rows:
            target.zero_()
        for slot, rows in grouping.groups:
            target[rows] = scaling * _product(inputs[rows], weights, slot=slot, dtype=output.dtype)

    return shrink


def build_expand(original: Any) -> Any:
    """output[:, :out] += inputs B^T, or = with `add_inputs` off; base rows add nothing."""

    @functools.wraps(original)
    def expand(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        add_inputs: bool = True,
    ) -> None:
        grouping = group_rows(indices)
        if grouping.groups is None:
            original(_without_base_rows(inputs, grouping), weights, output, indices.clamp(min=0), add_inputs)
            return
        # the adapter and the model may pad the output dimension differently
        width = min(weights.shape[-2], output.shape[1])
        _add_groups(inputs, weights, output[:, :width], grouping, is_sum=add_inputs)

    return expand


def build_expand_slice(original: Any) -> Any:
    """The same for the columns [slice_offset, slice_offset + slice_size) of a packed layer's output."""

    @functools.wraps(original)
    def expand_slice(  # noqa: PLR0917 - vLLM calls it by position
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        slice_offset: int,
        slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        grouping = group_rows(indices)
        if grouping.groups is None:
            rows = _without_base_rows(inputs, grouping)
            original(rows, weights, output, indices.clamp(min=0), slice_offset, slice_size, add_inputs)
            return
        _add_groups(inputs, weights, output[:, slice_offset : slice_offset + slice_size], grouping, is_sum=add_inputs)

    return expand_slice


def _add_groups(
    inputs: torch.Tensor, weights: torch.Tensor, target: torch.Tensor, grouping: Grouping, *, is_sum: bool
) -> None:
    """Add each group's product to its rows of `target`. Without `is_sum` it is overwritten, base rows with 0."""
    assert grouping.groups is not None
    if not is_sum:
        target.zero_()
    for slot, rows in grouping.groups:
        product = _product(inputs[rows], weights, slot=slot, dtype=target.dtype)[:, : target.shape[1]]
        if isinstance(rows, slice):
            target[rows] += product
        else:
            target.index_add_(0, rows, product)


def _product(inputs: torch.Tensor, weights: torch.Tensor, *, slot: int, dtype: torch.dtype) -> torch.Tensor:
    """inputs W^T in the output's precision, as the original computes it."""
    weight = weights[slot].view(weights.shape[-2:])
    return inputs.to(dtype) @ weight.to(dtype).T


def _without_base_rows(inputs: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    """Base rows as zeros: the operations are linear in `inputs`, so they then contribute nothing."""
    if not grouping.has_base_rows:
        return inputs
    return inputs.masked_fill((grouping.indices < 0).unsqueeze(1), 0)
