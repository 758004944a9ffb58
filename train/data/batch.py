"""TokenBatch: packed rows of tokens as MoETransformer.forward takes them, with the borders of the documents in them.

In: rows of sequence_length + 1 tokens, in which every document ends with the end-of-document token. Out: inputs, labels that
are the inputs shifted by one, a number per document, and positions that start again at each document. A row begins with
document 0, whether or not that began in an earlier row: attention does not see that one. No document is empty, so an end
token that follows an end token is fill, as are the tokens beyond a row's `num_valid`: padding, without a label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from train.data.address import address_of, array_at
from train.data.jit import jit

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Label of a position that has no loss; train.model.loss has the same."""
PADDING = -1
"""Document id of a position that is no token."""

_SCANNED = 128
"""Tokens that are looked through at once for an end; most such pieces have none, and the compiler makes one comparison of
sixteen or more."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class BatchStats:
    """How far training has come with each source when a batch is done, over all ranks."""

    position: int = 0
    """Sequences that were read."""
    sources: tuple[str, ...] = ()
    """Names; the other tuples are in their order."""
    num_sequences: tuple[int, ...] = ()
    """Sequences that each source has."""
    num_taken: tuple[int, ...] = ()
    """Sequences that were read of it, each as often as it was."""

    @property
    def epochs(self) -> dict[str, int]:
        """Whole passes over each source."""
        counts = zip(self.sources, self.num_taken, self.num_sequences, strict=True)
        return {name: taken // size for name, taken, size in counts}


_NO_STATS = BatchStats()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of one rank. Arrays are [batch, seq] and nobody else's: a consumer may change them."""

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    """The token to predict at each position, or IGNORE."""
    document_ids: npt.NDArray[np.int32]
    """Counts up in a row; PADDING where there is no token."""
    position_ids: npt.NDArray[np.int64]
    num_loss_tokens: int
    """Labels that are not IGNORE."""
    stats: BatchStats = _NO_STATS

    def to_torch(self, device: "torch.device | str | None" = None) -> "dict[str, torch.Tensor]":
        """The arguments of MoETransformer.forward; on the CPU they share this batch's memory."""
        import torch

        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "document_ids": self.document_ids,
            "position_ids": self.position_ids,
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors if device is None else {name: tensor.to(device) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of tokens that lie anywhere in memory, each contiguous and `length` long."""

    addresses: npt.NDArray[np.uint64]
    num_valid: npt.NDArray[np.int64]
    """Tokens of each row; what follows is fill."""
    length: int
    dtype: np.dtype[Any]
    owners: Sequence[object]
    """What keeps the memory."""

    @classmethod
    def of(cls, array: Tokens, num_valid: npt.NDArray[np.int64]) -> Self:
        """The rows of an array [rows, length]."""
        owner = np.ascontiguousarray(array)
        starts = np.arange(len(owner), dtype=np.uint64) * np.uint64(owner.strides[0])
        addresses = np.uint64(address_of(owner)) + starts
        return cls(addresses, np.asarray(num_valid, np.int64), owner.shape[1], owner.dtype, (owner,))


def build_batch(
    rows: TokenRows,
    *,
    end_of_document_id: int,
    mask_documents: bool = True,
    predict_across_documents: bool = False,
    stats: BatchStats = _NO_STATS,
) -> TokenBatch:
    """The batch of these rows of seq + 1 tokens.

    Without `mask_documents` a row is one document. With `predict_across_documents` an end token has a label: the first token
    of the next document, which nothing foretells.
    """
    shape = (len(rows.addresses), rows.length - 1)
    inputs, labels, positions = (np.empty(shape, np.int64) for _ in range(3))
    documents = np.empty(shape, np.int32)
    num_loss_tokens = _fill(
        (rows.addresses, rows.num_valid),
        np.empty(0, rows.dtype),
        end_of_document_id,
        (mask_documents, predict_across_documents),
        (inputs, labels, documents, positions),
    )
    return TokenBatch(inputs, labels, documents, positions, num_loss_tokens, stats)


@jit
def _fill(
    rows: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]],
    like: Tokens,
    end_id: int,
    options: tuple[bool, bool],
    outputs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]],
) -> int:
    """The labels that are not IGNORE. Loops over slices of one row each: the compiler sees where they end, and widens them."""
    addresses, all_valid = rows
    mask_documents, predict_across = options
    num_loss_tokens = 0
    for b in range(addresses.size):
        inputs, labels, documents, positions = outputs[0][b], outputs[1][b], outputs[2][b], outputs[3][b]
        length = inputs.size
        tokens = array_at(addresses[b], length + 1, like)
        for i in range(length):
            inputs[i] = tokens[i]
            labels[i] = tokens[i + 1]
        num_tokens = min(all_valid[b], length)
        num_labels = max(min(all_valid[b] - 1, length), 0)
        num_loss_tokens += num_labels
        if not mask_documents:
            _fill_document(documents[:num_tokens], positions[:num_tokens], 0)
        start, document = 0, 0
        for piece_start in range(0, num_tokens, _SCANNED):
            piece = tokens[piece_start : min(piece_start + _SCANNED, num_tokens)]
            has_end = False
            for i in range(piece.size):
                has_end |= piece[i] == end_id
            if not has_end:
                continue
            for i in range(piece_start, piece_start + piece.size):
                if tokens[i] != end_id:
                    continue
                is_fill = i > 0 and tokens[i - 1] == end_id
                if i < num_labels and (is_fill or not predict_across or tokens[i + 1] == end_id):
                    labels[i] = IGNORE
                    num_loss_tokens -= 1
                if is_fill:
                    documents[i], positions[i] = PADDING, 0
                elif mask_documents:
                    _fill_document(documents[start : i + 1], positions[start : i + 1], document)
                    document += 1
                start = i + 1
        if mask_documents:
            _fill_document(documents[start:num_tokens], positions[start:num_tokens], document)
        labels[num_labels:] = IGNORE
        documents[num_tokens:] = PADDING
        positions[num_tokens:] = 0
    return num_loss_tokens


@jit
def _fill_document(documents: npt.NDArray[np.int32], positions: npt.NDArray[np.int64], document: int) -> None:
    for i in range(positions.size):
        positions[i] = i
    for i in range(documents.size):
        documents[i] = document
