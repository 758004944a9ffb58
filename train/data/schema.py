"""The tables that flow through the pipeline: one row per document.

Readers yield RawDocument, which DataCleaner turns into rows of a document table; every later kernel is a plain function from
a document table to one of the same length. A kernel drops nothing: it appends to a row's `reasons`, and the pipeline divides
the rows at the end, so that an audit shows every reason and not the first one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

REASON = pa.struct([pa.field("rule", pa.string(), nullable=False), pa.field("value", pa.float64())])
"""Why a document was dropped: `rule` such as "gopher_quality.mean_word_length", and the value that broke it."""

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("happened_at", pa.float64(), nullable=False),
        pa.field("metadata", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("counts", pa.map_(pa.string(), pa.int32()), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("language_score", pa.float32(), nullable=False),
        pa.field("quality", pa.float32(), nullable=False),
        pa.field("reasons", pa.list_(REASON), nullable=False),
    ]
)
"""A cleaned document. `metadata` holds path, and offset, url, licence, kind, repository where they are known; `counts` what
the cleaner did (placeholders by kind, repairs); `language` an ISO 639 code or "" before detection; `quality` in [0, 1]."""

Reason = Mapping[str, Any]
"""{"rule": str, "value": float | None}"""


def with_reasons(table: pa.Table, reasons: Iterable[Sequence[Reason]]) -> pa.Table:
    """The table with these reasons, one sequence per row, appended to those that its rows have."""
    old = table["reasons"].to_pylist()
    joined = [[*before, *new] for before, new in zip(old, reasons, strict=True)]
    return set_column(table, "reasons", pa.array(joined, pa.list_(REASON)))


def set_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with the values of one of its columns replaced."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def text_bytes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(UTF-8 of all rows, row + 1 offsets into it) of a large_string column, without a copy where it is one chunk.

    Row i is data[offsets[i] : offsets[i + 1]]. For kernels that read bytes; a null counts as the empty text.
    """
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    _, offsets, data = array.buffers()
    if not offsets:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    starts = np.frombuffer(offsets, np.int64, count=len(array) + 1, offset=8 * array.offset)
    return np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), starts


def is_kept(table: pa.Table) -> pa.ChunkedArray:
    """Boolean per row: no rule dropped it."""
    return pc.equal(pc.list_value_length(table["reasons"]), 0)
