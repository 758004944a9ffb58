"""Lines or paragraphs that stand in many documents: each stays where it comes first and goes everywhere else.

In: document tables of the documents that stay. Out: the numbers of the pieces that repeat an earlier one, and the tables
without them. Pieces are compared without the white space around them; short ones, which repeat by nature, are left alone.
Source: CCNet (arXiv:1911.00359), section 3.1; RefinedWeb (arXiv:2306.01116), appendix G.3.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from train.data.dedup_edges import Numbers, make_rows, sorted_runs
from train.data.minhash import hash_texts
from train.data.schema import set_column, with_reasons

EMPTY_RULE = "line_dedup.nothing_left"
LINES_DROPPED = "repeated_lines_dropped"
_SEPARATORS = {"line": "\n", "paragraph": "\n\n"}


class LineDedupConfig(BaseModel):
    """Removal of repeated pieces of text. Off by default: FineWeb (arXiv:2406.17557) found that it harms web text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: Literal["off", "line", "paragraph"] = "off"
    """What is compared."""
    min_chars: int = Field(30, ge=1)
    """Shorter pieces stay, characters."""
    skip_code: bool = True
    """Leave source code alone: without the lines it shares with others it is broken."""


def hash_pieces(table: pa.Table, config: LineDedupConfig) -> npt.NDArray[np.uint64]:
    """uint64 [pieces, 2]: a hash for each piece that can be dropped, in order of documents and of their text."""
    pieces, is_candidate = _pieces(table, config)
    chosen = pc.list_flatten(pieces).filter(is_candidate)
    return hash_texts(pa.chunked_array([pc.utf8_trim_whitespace(chosen)]))


def find_repeated(hashes: Iterable[npt.NDArray[np.uint64]], *, num_pieces: int, memory_bytes: int) -> Numbers:
    """The pieces, numbered through all tables, that repeat an earlier one; ascending."""

    def parts() -> Iterable[npt.NDArray[np.void]]:
        first = 0
        for part in hashes:
            yield make_rows(part[:, 0], part[:, 1], first=first)
            first += len(part)

    repeated = []
    for runs in sorted_runs(parts(), num_rows=num_pieces, memory_bytes=memory_bytes):
        is_later = np.ones(len(runs.number), np.bool_)
        is_later[runs.starts[:-1]] = False
        repeated.append(runs.number[is_later])
    return np.sort(np.concatenate([np.zeros(0, np.int64), *repeated]))


def drop_pieces(table: pa.Table, dropped: Numbers, config: LineDedupConfig) -> pa.Table:
    """The table without these pieces, numbered within it as `hash_pieces` does.

    A document that has nothing left gets a reason, and keeps its text for the audit: others may be duplicates of it.
    """
    pieces, is_candidate = _pieces(table, config)
    candidates = np.flatnonzero(is_candidate.to_numpy(zero_copy_only=False))
    goes = np.zeros(len(is_candidate), np.bool_)
    goes[candidates[dropped]] = True
    starts = pieces.offsets.to_numpy()
    num_dropped = np.add.reduceat(np.append(goes, False), starts[:-1]) if len(table) else np.zeros(0, np.int64)
    num_dropped[starts[:-1] == starts[1:]] = 0
    separator = _SEPARATORS[config.pieces]
    texts, counts = table["text"].to_pylist(), table["counts"].to_pylist()
    reasons: list[list[dict[str, object]]] = [[] for _ in texts]
    for row in np.flatnonzero(num_dropped).tolist():
        kept = [
            piece
            for piece, gone in zip(texts[row].split(separator), goes[starts[row] : starts[row + 1]], strict=True)
            if not gone
        ]
        counts[row] = [*counts[row], (LINES_DROPPED, int(num_dropped[row]))]
        if text := separator.join(kept).strip():
            texts[row] = text
        else:
            reasons[row] = [{"rule": EMPTY_RULE, "value": float(num_dropped[row])}]
    table = set_column(table, "text", pa.array(texts, pa.large_string()))
    table = set_column(table, "counts", pa.array(counts, table.schema.field("counts").type))
    return with_reasons(table, reasons)


def _pieces(table: pa.Table, config: LineDedupConfig) -> tuple[pa.LargeListArray, pa.BooleanArray]:
    """(the pieces of each document, whether each may be dropped)."""
    texts = table["text"].combine_chunks() if table["text"].num_chunks != 1 else table["text"].chunk(0)
    pieces = pc.split_pattern(texts, _SEPARATORS[config.pieces])
    pieces = pieces.cast(pa.large_list(pa.large_string()))
    flat = pc.list_flatten(pieces)
    is_candidate = pc.greater_equal(pc.utf8_length(pc.utf8_trim_whitespace(flat)), config.min_chars)
    if config.skip_code:
        is_code = [dict(row).get("kind") == "code" for row in table["metadata"].to_pylist()]
        is_prose = pa.array(~np.array(is_code, np.bool_)).take(pc.list_parent_indices(pieces))
        is_candidate = pc.and_(is_candidate, is_prose)
    return pieces, is_candidate
