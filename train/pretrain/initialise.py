"""Initial weights that do not depend on the plan: each process makes the part that it holds.

A matrix is drawn in blocks of rows (of stacked experts: one expert at a time), each from a generator of its own that is
seeded by the run's seed, the tensor's name and the block's number. So any box of any tensor can be made without the rest,
and every plan begins with the same weights. Norms are one, biases zero.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from train.pretrain.pieces import TensorPiece

BLOCK_ROWS = 256
"""Rows that are drawn together; part of what decides the weights."""


@torch.no_grad()
def initialise(pieces: Iterable[TensorPiece], *, seed: int, std: float) -> None:
    """Fill the weights: normal with deviation `std`."""
    for piece in pieces:
        if piece.kind != "weight" or piece.tensor.numel() == 0:
            continue
        if len(piece.shape) == 1:
            piece.tensor.fill_(0.0 if piece.name.endswith("bias") else 1.0)
        elif len(piece.shape) == 3:
            first, *inside = piece.offsets
            for index, matrix in enumerate(piece.tensor):
                name = f"{piece.name}[{first + index}]"
                _fill(matrix, shape=piece.shape[1:], offsets=(inside[0], inside[1]), name=name, seed=seed, std=std)
        else:
            rows, columns = piece.offsets
            _fill(piece.tensor, shape=piece.shape, offsets=(rows, columns), name=piece.name, seed=seed, std=std)


def _fill(box: Tensor, *, shape: tuple[int, ...], offsets: tuple[int, int], name: str, seed: int, std: float) -> None:
    num_rows, num_columns = shape
    first, column = offsets
    generator = torch.Generator()
    for start in range(first // BLOCK_ROWS * BLOCK_ROWS, first + box.shape[0], BLOCK_ROWS):
        digest = hashlib.sha256(f"{seed}/{name}/{start // BLOCK_ROWS}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little"))
        block = torch.empty(min(BLOCK_ROWS, num_rows - start), num_columns).normal_(std=std, generator=generator)
        low, high = max(start, first), min(start + len(block), first + box.shape[0])
        part = block[low - start : high - start, column : column + box.shape[1]]
        box[low - first : high - first].copy_(part)
