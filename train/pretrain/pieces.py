"""TensorPiece: how an engine tells the checkpoint which box of which logical tensor it holds.

In: an engine's own views of its state. Out: boxes, that a checkpoint of any other division is saved from and loaded into.
A flat range, as ZeRO cuts it, becomes the few boxes that cover it.
"""

import math
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where it begins, and its extent."""


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """A box of one logical tensor that this process holds: saved from, and loaded into, `tensor`."""

    kind: str
    """weight, exp_avg, exp_avg_sq, momentum_buffer, buffer."""
    name: str
    """Logical parameter name, that of MoETransformer.state_dict() of the undivided model."""
    shape: tuple[int, ...]
    """Of the whole logical tensor (experts: all of them, on axis 0)."""
    offsets: tuple[int, ...]
    """Where this piece begins in it; the piece's extent is tensor.shape."""
    tensor: Tensor
    """A view of the training state, any strides; may be empty."""
    is_owner: bool
    """Whether this process saves it: replicas are saved once."""


def flat_pieces(
    *,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    start: int,
    tensor_1d: Shaped[Tensor, " elements"],
    is_owner: bool,
    base_offsets: tuple[int, ...] | None = None,
    base_shape: tuple[int, ...] | None = None,
) -> list[TensorPiece]:
    """Boxes that cover the flat range [start, start + len(tensor_1d)) of a row-major tensor; each a view of `tensor_1d`.

    That tensor has `base_shape` and is the box at `base_offsets` of the logical tensor of `shape`; None: all of it.
    At most 2 * dimensions - 1 boxes. Raises ValueError for a range or a box that reaches beyond.
    """
    base_shape = shape if base_shape is None else base_shape
    base_offsets = (0,) * len(shape) if base_offsets is None else base_offsets
    stop = start + tensor_1d.numel()
    if tensor_1d.dim() != 1 or start < 0 or stop > math.prod(base_shape):
        raise ValueError(
            f"{kind} {name}: [{start}, {stop}) of a tensor of {tensor_1d.dim()} dimensions is no flat range of shape "
            f"{list(base_shape)}; leave the padding away"
        )
    ends = [offset + size for offset, size in zip(base_offsets, base_shape, strict=True)]
    if any(end > size for end, size in zip(ends, shape, strict=True)):
        raise ValueError(
            f"{kind} {name}: the box at {list(base_offsets)} of {list(base_shape)} reaches beyond {list(shape)}"
        )
    pieces = []
    place = start
    for offsets, extent in flat_boxes(base_shape, start=start, stop=stop):
        size = math.prod(extent)
        view = tensor_1d[place - start : place - start + size].view(extent)
        moved = tuple(base + offset for base, offset in zip(base_offsets, offsets, strict=True))
        pieces.append(TensorPiece(kind, name, shape, moved, view, is_owner))
        place += size
    return pieces


def flat_boxes(shape: tuple[int, ...], *, start: int, stop: int) -> list[Box]:
    """The boxes that the row-major range [start, stop) of a tensor of `shape` consists of, in order."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    boxes: list[Box] = []
    place = start
    while place < stop:
        index = [place // stride % size for stride, size in zip(strides, shape, strict=True)]
        # The outermost axis along which whole rows begin here and fit.
        fits = (axis for axis, stride in enumerate(strides) if place % stride == 0 and stop - place >= stride)
        axis = next(fits, None)
        if axis is None:  # a scalar
            boxes.append(((), ()))
            break
        count = min((stop - place) // strides[axis], shape[axis] - index[axis])
        boxes.append((tuple(index), (1,) * axis + (count,) + shape[axis + 1 :]))
        place += count * strides[axis]
    return boxes
