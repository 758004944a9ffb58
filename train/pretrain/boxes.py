"""Boxes of a tensor: what two share, and whether many cover it exactly once.

In: boxes as (offsets, extent). Out: slices, or a sentence about a gap or an overlap.
"""

import math
from collections.abc import Sequence

import numpy as np

from train.pretrain.pieces import Box


def overlap(first: Box, second: Box) -> Box | None:
    """The box that both hold; None if there is none. A scalar's is ((), ())."""
    starts = tuple(map(max, first[0], second[0]))
    ends = tuple(min(a + n, b + m) for a, n, b, m in zip(*first, *second, strict=True))
    extent = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return (starts, extent) if all(size > 0 for size in extent) else None


def slices_of(box: Box, *, within: Box) -> tuple[slice, ...]:
    """How `box` is indexed in the tensor of the box `within`, which holds it."""
    return tuple(
        slice(start - origin, start - origin + size) for start, size, origin in zip(*box, within[0], strict=True)
    )


def cover_problem(shape: tuple[int, ...], boxes: Sequence[Box]) -> str | None:
    """Why `boxes`, none of them empty, are not `shape` cut into parts; None if they are."""
    for offsets, extent in boxes:
        ends = [offset + size for offset, size in zip(offsets, extent, strict=True)]
        if min(offsets, default=0) < 0 or any(end > size for end, size in zip(ends, shape, strict=True)):
            return f"the piece at {list(offsets)} of {list(extent)} reaches beyond {list(shape)}"
    if pair := _first_overlap(boxes):
        first, second = (f"{list(boxes[i][1])} at {list(boxes[i][0])}" for i in pair)
        return f"the pieces {first} and {second} overlap"
    covered, total = sum(math.prod(extent) for _, extent in boxes), math.prod(shape)
    return None if covered == total else f"the pieces hold {covered} of {total} elements"


def _first_overlap(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Two that share an element. In the order of axis 0 a box meets only those that begin before it ends."""
    if len(boxes) < 2 or not boxes[0][0]:
        return (0, 1) if len(boxes) > 1 else None
    order = np.array(sorted(range(len(boxes)), key=lambda i: boxes[i][0]))
    starts = np.array([boxes[i][0] for i in order])
    ends = starts + np.array([boxes[i][1] for i in order])
    stops = np.searchsorted(starts[:, 0], ends[:, 0], side="left")
    for i, stop in enumerate(stops):
        if stop > i + 1:
            rivals = slice(i + 1, stop)
            meets = ((starts[rivals] < ends[i]) & (starts[i] < ends[rivals])).all(axis=1)
            if meets.any():
                return int(order[i]), int(order[i + 1 + int(meets.argmax())])
    return None
