"""Segments: which slots of a batch's rows belong to one document. Padding and packing are the same thing here.

A row is a line of slots; a document takes consecutive ones; what is in no document is padding. Attention never crosses a
document's border. Made once per forward pass and given to every layer; no mask of S x S is ever made.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """`rows[b]` holds (start, stop) of each document of row b, in slots and in order; `length` counts slots of a row."""

    rows: tuple[tuple[tuple[int, int], ...], ...]
    length: int

    @classmethod
    def from_attention_mask(cls, mask_BS: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"]) -> "Segments | None":
        """One document per row, padded at either side; None if nothing is padded.

        Raises ValueError if the ones of a row are not consecutive.
        """
        if mask_BS.dim() != 2:
            raise ValueError(f"attention_mask has shape {list(mask_BS.shape)}; give one number per token, [batch, seq]")
        if bool(mask_BS.all()):
            return None
        segments = cls.from_document_ids(mask_BS.to(torch.long) - 1)
        for row, documents in enumerate(segments.rows):
            if len(documents) > 1:
                raise ValueError(
                    f"attention_mask row {row} has zeros between ones, at slot {documents[0][1]}; pad at one side only, or "
                    "give document_ids"
                )
        return segments

    @classmethod
    def from_document_ids(cls, ids_BS: Int[Tensor, "batch seq"]) -> "Segments":
        """A document is a run of equal ids; negative ids are padding."""
        length = ids_BS.shape[1]
        rows = []
        for ids in ids_BS.cpu():
            starts = [0, *((ids[1:] != ids[:-1]).nonzero().flatten() + 1).tolist()] if length else []
            borders = zip(starts, [*starts[1:], length], strict=True)
            rows.append(tuple((start, stop) for start, stop in borders if int(ids[start]) >= 0))
        return cls(tuple(rows), length)

    @property
    def longest(self) -> int:
        """Slots of the longest document."""
        return max((stop - start for _, start, stop in self.documents()), default=0)

    def documents(self) -> Iterator[tuple[int, int, int]]:
        """(row, start, stop) of every document."""
        for row, documents in enumerate(self.rows):
            for start, stop in documents:
                yield row, start, stop

    def positions(self, device: torch.device) -> Int[Tensor, "batch seq"]:
        """Position of each slot in its document, from 0; 0 at padding."""
        positions = torch.zeros(len(self.rows), self.length, dtype=torch.long)
        for row, start, stop in self.documents():
            positions[row, start:stop] = torch.arange(stop - start)
        return positions.to(device)

    def token_mask(self, device: torch.device) -> Bool[Tensor, "batch seq"]:
        """True at tokens, False at padding."""
        mask = torch.zeros(len(self.rows), self.length, dtype=torch.bool)
        for row, start, stop in self.documents():
            mask[row, start:stop] = True
        return mask.to(device)
