"""ParquetStorage for tables of documents, HDF5Storage for packed tokens, on any pyarrow filesystem.

Out: a file that is whole or absent, the same bytes for the same rows or tokens however they were cut into calls of `write`.
In: tables of bounded size, or tokens by their place.
The file formats: Parquet; token_shard.py says what is in an HDF5 shard.
"""

import contextlib
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from train.data.jit import jit
from train.data.stored_file import FileSummary, HashedOutput, UnreadableFile, explain_reading, open_hashed, reaching
from train.data.token_shard import SHARD_FIX, SHARD_SUFFIX, TokenFormat, Tokens, TokenShard, build_frame, read_header

_COPY_BYTES = 1 << 22
_BUFFER_BYTES = 1 << 20
"""Of a column that is being read: with a buffer its pages are read one by one, not a whole row group's."""
_PARQUET_FIX = "give a Parquet file, or write it again"


class ParquetConfig(BaseModel):
    """How tables of documents are written and read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compression_level: int = Field(3, ge=1, le=22)
    """Of ZSTD; 3 writes 163 MB/s of text to a third of its size, 9 writes 44 to a quarter."""
    rows_per_group: int = Field(1024, gt=0)
    """Rows of a row group, and the most of a table that is read: memory is bounded by it."""


class ParquetWriter:
    """Appends tables of one schema; `summary` is known when the block that gave the writer has ended."""

    summary: FileSummary

    def __init__(self, path: str, *, schema: pa.Schema, output: HashedOutput, config: ParquetConfig) -> None:
        self.path = path
        self.num_rows = 0
        self._schema, self._output, self._rows_per_group = schema, output, config.rows_per_group
        self._writer = pq.ParquetWriter(
            pa.PythonFile(output, mode="w"),
            schema,
            compression="zstd",
            compression_level=config.compression_level,
            write_page_checksum=True,
        )
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def write(self, table: pa.Table) -> None:
        """Append rows. Raises ValueError naming the column if the table has another schema."""
        check_schema(self.path, table.schema, expected=self._schema)
        self._pending.append(table.select(self._schema.names))
        self._num_pending += table.num_rows
        self.num_rows += table.num_rows
        if self._num_pending >= self._rows_per_group:
            self._flush(self._num_pending - self._num_pending % self._rows_per_group)

    def finish(self) -> None:
        """Write the rest and the footer."""
        self._flush(self._num_pending)
        self._writer.close()
        self.summary = self._output.summary(self.path, num_items=self.num_rows)

    def abandon(self) -> None:
        """Let go of a file that may be unfinished and then gets no name."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False  # else its destructor tries again

    def _flush(self, num_rows: int) -> None:
        """Row groups of one chunk each: then pages and dictionaries do not depend on how the rows came."""
        table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
        for start in range(0, num_rows, self._rows_per_group):
            group = table.slice(start, min(self._rows_per_group, num_rows - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=self._rows_per_group)
        self._pending, self._num_pending = [table.slice(num_rows)], table.num_rows - num_rows


class ParquetStorage:
    """Tables in Parquet files, compressed with ZSTD, in row groups by count."""

    suffix = ".parquet"

    def __init__(self, filesystem: pafs.FileSystem | None = None, *, config: ParquetConfig | None = None) -> None:
        """Local files unless another filesystem is given."""
        self.filesystem = filesystem or pafs.LocalFileSystem()
        self.config = config or ParquetConfig()

    @contextlib.contextmanager
    def writer(self, path: str, *, schema: pa.Schema) -> Iterator[ParquetWriter]:
        """A writer whose file gets its name when the block ends well. Memory: one row group and one table.

        Raises DiskFull; after this and any other exception nothing is left under the name.
        """
        with open_hashed(self.filesystem, path) as output:
            writer = ParquetWriter(path, schema=schema, output=output, config=self.config)
            try:
                yield writer
                writer.finish()
            finally:
                writer.abandon()

    def read(
        self,
        path: str,
        *,
        columns: Sequence[str] | None = None,
        row_groups: Sequence[int] | None = None,
        schema: pa.Schema | None = None,
    ) -> Iterator[pa.Table]:
        """Tables of at most `rows_per_group` rows, in order; none reaches beyond a row group.

        Raises UnreadableFile for a missing or damaged file, for columns that are not those of `schema`, for a column or a row
        group that the file has not.
        """
        with self._open(path) as file:
            _check_request(path, file, columns=columns, row_groups=row_groups, schema=schema)
            for group in range(file.num_row_groups) if row_groups is None else row_groups:
                batches = file.iter_batches(
                    self.config.rows_per_group, row_groups=[group], columns=columns, use_threads=False
                )
                while True:
                    with explain_reading(path, kind="a Parquet file", fix=_PARQUET_FIX):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield pa.Table.from_batches([batch])

    def num_row_groups(self, path: str) -> int:
        """Row groups of a file: the units in which it can be divided. Raises UnreadableFile."""
        with self._open(path) as file:
            return int(file.num_row_groups)

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            with explain_reading(path, kind="a Parquet file", fix=_PARQUET_FIX):
                source = stack.enter_context(self.filesystem.open_input_file(path))
                file = pq.ParquetFile(
                    source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
                )
            yield file


def check_schema(path: str, found: pa.Schema, *, expected: pa.Schema) -> None:
    """Raises UnreadableFile naming the first column that differs in type or is missing, or is one too many."""
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 or not found.field(index).equals(field):
            has = "no such column" if index < 0 else _describe(found.field(index))
            raise UnreadableFile(
                f"{path}: column {field.name!r} is expected to be {_describe(field)}, found {has}; convert the table, or give "
                "a file of this pipeline"
            )
    for name in found.names:
        if name not in expected.names:
            raise UnreadableFile(
                f"{path}: column {name!r} is not expected, found {_describe(found.field(name))}; drop it"
            )


def _describe(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _check_request(
    path: str, file: Any, *, columns: Sequence[str] | None, row_groups: Sequence[int] | None, schema: pa.Schema | None
) -> None:
    found = file.schema_arrow
    for name in columns or ():
        if name not in found.names:
            raise UnreadableFile(f"{path} has no column {name!r}; it has {', '.join(found.names)}")
    for group in row_groups or ():
        if not 0 <= group < file.num_row_groups:
            raise UnreadableFile(f"{path} has no row group {group}; it has {file.num_row_groups}, counted from 0")
    if schema is not None:
        check_schema(path, found, expected=schema)


class TokenWriter:
    """Appends tokens; `summary` is known when the block that gave the writer has ended."""

    summary: FileSummary

    def __init__(self, path: str, *, token_format: TokenFormat, output: HashedOutput, spool: IO[bytes]) -> None:
        self.path = path
        self.num_tokens = 0
        self._format, self._output, self._spool = token_format, output, spool

    @property
    def num_sequences(self) -> int:
        """Sequences so far, the last one perhaps not full."""
        return -(-max(self.num_tokens - 1, 0) // self._format.sequence_length)

    def write(self, tokens: npt.ArrayLike) -> None:
        """Append ids of whole or cut documents, end tokens included. Raises ValueError for an id beyond the vocabulary."""
        ids = np.asarray(tokens)
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if ids.dtype.kind not in "iu" or low < 0 or high >= self._format.vocab_size:
            raise ValueError(
                f"{self.path}: tokens of {ids.dtype} from {low} to {high}, but vocab_size = {self._format.vocab_size}; give "
                "integer ids of the tokenizer that the shard's format names"
            )
        self._spool.write(np.ascontiguousarray(ids, self._format.dtype).data)
        self.num_tokens += ids.size

    def finish(self) -> None:
        """The header is first in a file but known last: so tokens wait in the spool until here."""
        num_stored = self.num_sequences * self._format.sequence_length + 1
        fill = np.full(max(num_stored - self.num_tokens, 0), self._format.end_of_document_id, self._format.dtype)
        self._spool.write(fill.data)
        self._spool.seek(0)
        head, foot = build_frame(self._format, num_sequences=self.num_sequences, num_tokens=self.num_tokens)
        self._output.write(head)
        shutil.copyfileobj(self._spool, cast(IO[bytes], self._output), _COPY_BYTES)
        self._output.write(foot)
        self.summary = self._output.summary(self.path, num_items=self.num_sequences)


class HDF5Storage:
    """Packed tokens in HDF5 shards."""

    suffix = SHARD_SUFFIX

    def __init__(self, filesystem: pafs.FileSystem | None = None) -> None:
        """Local files unless another filesystem is given."""
        self.filesystem = filesystem or pafs.LocalFileSystem()

    @contextlib.contextmanager
    def writer(self, path: str, *, token_format: TokenFormat) -> Iterator[TokenWriter]:
        """A writer whose shard gets its name when the block ends well. Tokens wait in a nameless temporary file.

        Raises DiskFull; after this and any other exception nothing is left under the name.
        """
        is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        folder = path.rpartition("/")[0] if is_local else None
        with open_hashed(self.filesystem, path) as output, tempfile.TemporaryFile(dir=folder) as spool:
            writer = TokenWriter(path, token_format=token_format, output=output, spool=spool)
            yield writer
            writer.finish()

    def open(self, path: str, *, sequence_length: int | None = None) -> TokenShard:
        """Read a shard's header. Raises UnreadableFile for a missing, damaged or foreign file, or another length."""
        found = read_header(self.filesystem, path)
        if sequence_length not in (None, found.format.sequence_length):
            raise UnreadableFile(
                f"{path} has sequences of {found.format.sequence_length} tokens, not {sequence_length}: set sequence_length = "
                f"{found.format.sequence_length}, or pack the tokens again"
            )
        return found

    def reader(self, shard: TokenShard) -> "TokenReader":
        """The tokens of an opened shard. Raises UnreadableFile if the file is gone."""
        return TokenReader(self.filesystem, shard)


@jit
def _copy_sequences(
    tokens: Tokens, numbers: npt.NDArray[np.int64], num_sequences: int, out: npt.NDArray[np.int64]
) -> int:
    """How many were copied: all, or those before the first number that is no sequence's."""
    for i in range(numbers.size):
        number = numbers[i]
        if number < 0 or number >= num_sequences:
            return i
        row = out[i]
        source = tokens[number * (row.size - 1) : (number + 1) * (row.size - 1) + 1]
        for j in range(row.size):
            row[j] = source[j]
    return numbers.size


class TokenReader:
    """Tokens of one shard by their place: of a local file mapped into memory, of others by ranged reads."""

    def __init__(self, filesystem: pafs.FileSystem, shard: TokenShard) -> None:
        self.shard = shard
        self._file: Any = None
        self._memory: mmap.mmap | None = None
        self.mapped: Tokens | None = None
        """All tokens of a local file; a file that is cut off while it is mapped ends the process."""
        with reaching(shard.path, fix=SHARD_FIX):
            if isinstance(filesystem, pafs.LocalFileSystem):
                with open(shard.path, "rb") as file:
                    self._memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                tokens = np.frombuffer(self._memory, shard.format.dtype, shard.num_stored, shard.offset)
                self.mapped = cast(Tokens, tokens)
            else:
                self._file = filesystem.open_input_file(shard.path)

    def read(self, start: int, stop: int) -> Tokens:
        """tokens[start:stop], for 0 <= start <= stop <= num_stored; not to be written to."""
        if self.mapped is not None:
            return self.mapped[start:stop]
        dtype = self.shard.format.dtype
        with reaching(self.shard.path, fix=SHARD_FIX):
            data = self._fetch(self.shard.offset + start * dtype.itemsize, (stop - start) * dtype.itemsize)
        if len(data) < (stop - start) * dtype.itemsize:
            raise UnreadableFile(f"{self.shard.path} ends before token {stop}: {SHARD_FIX}")
        return cast(Tokens, np.frombuffer(data, dtype))

    def _fetch(self, offset: int, size: int) -> bytes:
        return cast(bytes, self._file.read_at(size, offset))

    def read_sequences(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences in any order, [numbers, sequence_length + 1], with the fill. Raises ValueError for one beyond them."""
        length, count = self.shard.format.sequence_length, self.shard.num_sequences
        out = np.empty((len(numbers), length + 1), np.int64)
        if self.mapped is not None:
            stop = _copy_sequences(self.mapped, numbers, count, out)
        else:
            inside = (numbers >= 0) & (numbers < count)
            stop = len(numbers) if inside.all() else int(np.argmin(inside))
            for row, number in zip(out, numbers[:stop].tolist(), strict=False):
                row[:] = self.read(number * length, (number + 1) * length + 1)
        if stop < len(numbers):
            raise ValueError(f"{self.shard.path} has no sequence {numbers[stop]}; it has {count}, counted from 0")
        return out

    def forget(self) -> None:
        """Take the pages that were read out of this process's memory; the page cache still has them."""
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay valid."""
        self.mapped = self._memory = None
        if self._file is not None:
            self._file.close()
