"""Rows of a Parquet file as raw documents.

In: a file and a range of its row groups; only the columns that the source names are read, in batches of few rows. Out:
RawDocument, or Rejected with the row's number in the file as offset. Another schema, or a file that is no Parquet, is one
Rejected that says what was expected and what is there; a damaged row group is passed over and the next one read.

A row group's `column()` metadata is never asked for: in pyarrow 26.0 damaged size statistics there end the whole process.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from train.data.document import RawDocument, Rejected
from train.data.lines import WatchedFile
from train.data.readers import BadContent, file_time
from train.data.records import make_document
from train.data.source_config import SourceConfig

BATCH_ROWS = 64
"""A dictionary can make a small file a huge column: few rows at a time bound what a batch may grow to."""
BATCH_BYTES = 32 << 20
BUFFER_BYTES = 1 << 20

_SCHEMA_FIX = "correct the field's name in the source, or write the file with that column"
_DAMAGED_FIX = "fetch or write the file again; the other row groups were read"
BROKEN = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for damaged content, depending on where the damage is."""


def read_parquet(
    filesystem: pafs.FileSystem, path: str, *, source: SourceConfig, start: int = 0, stop: int | None = None
) -> Iterator[RawDocument | Rejected]:
    """Documents of the row groups [start, stop)."""
    happened_at = file_time(filesystem, path)
    with WatchedFile(filesystem.open_input_file(path)) as file:
        try:
            parquet = open_parquet(file)
        except BROKEN as error:
            yield Rejected(path, *_describe_broken(file, error), offset=0, lost_bytes=file.size_bytes)
            return
        columns, problem = _choose_columns(parquet.schema_arrow, source=source)
        if problem is not None:
            if start == 0:
                yield Rejected(path, problem, _SCHEMA_FIX, offset=0, lost_bytes=file.size_bytes)
            return
        metadata = parquet.metadata
        row = sum(metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, metadata.num_row_groups if stop is None else min(stop, metadata.num_row_groups)):
            num_rows = metadata.row_group(group).num_rows
            yield from _read_group(
                parquet, group, file=file, path=path, source=source, columns=columns, row=row, happened_at=happened_at
            )
            row += num_rows


def open_parquet(file: WatchedFile) -> pq.ParquetFile:
    """Reads the footer. Pages stream through a small buffer, and their checksums are compared where they have any."""
    return pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)


def _read_group(
    parquet: pq.ParquetFile,
    group: int,
    *,
    file: WatchedFile,
    path: str,
    source: SourceConfig,
    columns: Sequence[str],
    row: int,
    happened_at: float,
) -> Iterator[RawDocument | Rejected]:
    metadata = parquet.metadata.row_group(group)
    mean_bytes = metadata.total_byte_size / max(metadata.num_rows, 1)
    batches = parquet.iter_batches(
        batch_size=max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(mean_bytes, 1)))),
        row_groups=[group],
        columns=list(columns),
        use_threads=False,
    )
    num_read = 0
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else _rows(batch)
        except BROKEN as error:
            reason, fix = _describe_broken(file, error)
            reason = f"row group {group}, after {num_read:,} of its {metadata.num_rows:,} rows: {reason}"
            share = (metadata.num_rows - num_read) / max(parquet.metadata.num_rows, 1)
            yield Rejected(path, reason, fix, offset=row + num_read, lost_bytes=int(share * file.size_bytes))
            return
        if batch is None:
            return
        for fields in rows:
            yield _read_row(fields, path=path, source=source, row=row + num_read, happened_at=happened_at)
            num_read += 1


def _read_row(
    fields: dict[str, Any], *, path: str, source: SourceConfig, row: int, happened_at: float
) -> RawDocument | Rejected:
    try:
        return make_document(fields, path=path, offset=row, source=source, happened_at=happened_at)
    except BadContent as error:
        return Rejected(path, f"row {row} {error}", error.fix, offset=row)


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python values. Strings come as bytes: Parquet's need not be UTF-8, and DataCleaner decodes them."""
    fields = [pa.field(field.name, _plain(field.type)) for field in batch.schema]
    rows: list[dict[str, Any]] = pa.Table.from_batches([batch]).cast(pa.schema(fields), safe=False).to_pylist()
    return rows


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type whose Python values are bytes for text, and datetime (it has no nanoseconds) for moments."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.large_binary() if _is_text(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _choose_columns(schema: pa.Schema, *, source: SourceConfig) -> tuple[list[str], str | None]:
    """The columns to read, or what is wrong with the file's schema. `licence` and metadata fields may be missing."""
    needed = [name for name in (source.text_field, source.id_field, source.time_field) if name is not None]
    wanted = [name for name in (source.title_field, source.licence_field, *source.metadata_fields) if name is not None]
    there = ", ".join(f"{field.name}: {field.type}" for field in schema)
    for name in needed:
        if _type_of(schema, name) is None:
            return [], f"has no column {name!r}; its columns are {there or 'none'}"
    kind = _type_of(schema, source.text_field)
    if kind is None or not _is_text(kind):
        return [], f"column {source.text_field!r} is {kind}, expected string or binary; its columns are {there}"
    return [*needed, *(name for name in wanted if _type_of(schema, name) is not None)], None


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    if first not in schema.names:
        return None
    kind = schema.field(first).type
    for part in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _describe_broken(file: WatchedFile, error: Exception) -> tuple[str, str]:
    """A damaged content is a reason. A disk or network that failed is not: it is raised, and the unit runs again."""
    if file.error is not None:
        raise file.error
    text = str(error).partition("\n")[0].rstrip(".")
    return f"cannot be read as Parquet ({text})", _DAMAGED_FIX
