"""Storage of tables and of packed tokens: whole or absent, the same bytes for the same content, errors that name the file."""

import errno
import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.schema import DOCUMENT_SCHEMA
from train.data.storage import HDF5Storage, ParquetConfig, ParquetStorage
from train.data.stored_file import DiskFull, UnreadableFile
from train.data.token_shard import TokenFormat

TEXTS = list(topics.topics.values())
TABLE = pa.table({"number": pa.array(range(len(TEXTS))), "text": pa.array(TEXTS, pa.large_string())})
LONG_TABLE = pa.table({"text": pa.array([text * 8 for text in TEXTS], pa.large_string())})
"""Row groups of several pages."""
FORMAT = TokenFormat(sequence_length=8, vocab_size=300, end_of_document_id=256, tokenizer_sha256="ab" * 32)
LOCAL = pafs.LocalFileSystem()


def _write_table(
    path: str,
    cuts: list[int],
    *,
    table: pa.Table = TABLE,
    filesystem: pafs.FileSystem = LOCAL,
    rows_per_group: int = 16,
) -> Any:
    storage = ParquetStorage(filesystem, config=ParquetConfig(rows_per_group=rows_per_group))
    with storage.writer(path, schema=table.schema) as writer:
        for start, stop in zip([0, *cuts], [*cuts, len(table)], strict=True):
            writer.write(table.slice(start, stop - start))
    return writer.summary


def _write_tokens(
    path: str, tokens: Any, *, cuts: tuple[int, ...] = (), filesystem: pafs.FileSystem = LOCAL, **changes: Any
) -> Any:
    with HDF5Storage(filesystem).writer(path, token_format=TokenFormat(**(_fields() | changes))) as writer:
        for part in np.split(np.asarray(tokens), cuts):
            writer.write(part)
    return writer.summary


def _fields() -> dict[str, Any]:
    return {name: getattr(FORMAT, name) for name in FORMAT.__slots__}


@pytest.fixture
def small_files(tmp_path: Path) -> Iterator[int]:
    """No file of this process can grow beyond 4,000 bytes: what a full disk does, on a real file system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    yield 4000
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class FullFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A file system without any room left."""

    protocol = "full"
    store: dict[str, Any] = {}  # noqa: RUF012 - the base class has it so

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super()._open(path, mode)


@given(st.lists(st.integers(0, len(TEXTS)), max_size=6).map(sorted))
@settings(deadline=None, max_examples=15)
def test_a_table_gives_the_same_bytes_however_it_was_cut_into_writes(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    summary = _write_table(str(folder / "cut.parquet"), cuts, table=LONG_TABLE, rows_per_group=64)
    whole = _write_table(str(folder / "whole.parquet"), [], table=LONG_TABLE, rows_per_group=64)
    assert summary.sha256 == whole.sha256
    assert (folder / "cut.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()


def test_the_summary_of_a_parquet_file_is_that_of_the_file_on_disk(tmp_path: Path) -> None:
    summary = _write_table(str(tmp_path / "deep" / "a.parquet"), [5])
    content = (tmp_path / "deep" / "a.parquet").read_bytes()
    assert (summary.num_items, summary.size_bytes) == (len(TABLE), len(content))
    assert summary.sha256 == hashlib.sha256(content).hexdigest()


def test_pyarrow_reads_a_file_of_ours_in_zstd_row_groups_by_count(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    _write_table(path, [], rows_per_group=16)
    assert pq.read_table(path).equals(TABLE)
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes == [16] * (len(TABLE) // 16) + [len(TABLE) % 16] * bool(len(TABLE) % 16)
    assert metadata.row_group(0).column(1).compression == "ZSTD"


def test_tables_come_back_by_column_and_row_group(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    _write_table(path, [], rows_per_group=16)
    storage = ParquetStorage()
    assert pa.concat_tables(storage.read(path, schema=TABLE.schema)).equals(TABLE)
    assert storage.num_row_groups(path) == -(-len(TABLE) // 16)
    found = list(storage.read(path, columns=["number"], row_groups=[2, 0]))
    assert [table["number"].to_pylist() for table in found] == [list(range(32, 48)), list(range(16))]


def test_the_large_row_group_of_a_foreign_file_comes_in_small_tables(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(TABLE, path)
    found = list(ParquetStorage(config=ParquetConfig(rows_per_group=10)).read(path))
    assert max(table.num_rows for table in found) == 10
    assert pa.concat_tables(found).equals(TABLE)


def test_document_tables_survive_with_their_schema(tmp_path: Path) -> None:
    row = {
        "id": "a", "source_id": "s", "title": "", "text": "naïve", "happened_at": 1.5, "metadata": [("path", "x")],
        "counts": [("email", 1)], "language": "fr", "language_score": 0.5, "quality": 1.0,
        "reasons": [{"rule": "gopher_quality.mean_word_length", "value": None}],
    }  # fmt: skip
    table = pa.Table.from_pylist([row, row | {"reasons": []}], schema=DOCUMENT_SCHEMA)
    path = str(tmp_path / "a.parquet")
    with ParquetStorage().writer(path, schema=DOCUMENT_SCHEMA) as writer:
        writer.write(table)
    assert pa.concat_tables(ParquetStorage().read(path, schema=DOCUMENT_SCHEMA)).equals(table)


def test_a_file_without_rows_is_a_file_with_a_schema(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    with ParquetStorage().writer(path, schema=DOCUMENT_SCHEMA) as writer:
        pass
    assert writer.summary.num_items == 0
    assert list(ParquetStorage().read(path, schema=DOCUMENT_SCHEMA)) == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            pa.schema([("number", pa.int32()), ("text", pa.large_string())]),
            "'number' is expected to be int32, found int64",
        ),
        (TABLE.schema.append(pa.field("url", pa.string())), "'url' is expected to be string, found no such column"),
        (pa.schema([("number", pa.int64())]), "'text' is not expected, found large_string"),
        (
            pa.schema([pa.field("number", pa.int64(), nullable=False), ("text", pa.large_string())]),
            "'number' is expected to be int64 not null, found int64",
        ),
    ],
)
def test_another_schema_is_refused_by_file_and_column(tmp_path: Path, schema: pa.Schema, words: str) -> None:
    path = str(tmp_path / "a.parquet")
    _write_table(path, [])
    with pytest.raises(UnreadableFile, match=words) as read:
        list(ParquetStorage().read(path, schema=schema))
    other = str(tmp_path / "b.parquet")
    with pytest.raises(UnreadableFile, match=words), ParquetStorage().writer(other, schema=schema) as writer:
        writer.write(TABLE)
    assert path in str(read.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_what_a_parquet_file_has_not_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    _write_table(path, [], rows_per_group=64)
    with pytest.raises(UnreadableFile, match=r"a\.parquet has no column 'url'; it has number, text"):
        list(ParquetStorage().read(path, columns=["url"]))
    with pytest.raises(UnreadableFile, match="has no row group 7; it has 2, counted from 0"):
        list(ParquetStorage().read(path, row_groups=[7]))
    with pytest.raises(UnreadableFile, match=r"none\.parquet does not exist"):
        ParquetStorage().num_row_groups(str(tmp_path / "none.parquet"))


def test_a_damaged_parquet_file_never_gives_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _write_table(str(path), [])
    content = path.read_bytes()
    num_refused = 0
    for place in np.linspace(0, len(content) - 1, 60, dtype=int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = pa.concat_tables(ParquetStorage().read(str(path), schema=TABLE.schema))
        except UnreadableFile:
            num_refused += 1
        else:
            assert found.equals(TABLE)
    assert num_refused > 50


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path, small_files: int) -> None:
    table, tokens = tmp_path / "a.parquet", tmp_path / "a.h5"
    table.write_bytes(b"old")
    tokens.write_bytes(b"old")
    with pytest.raises(DiskFull, match=f"{table} was not written: the disk is full") as full:
        _write_table(str(table), [40])
    assert full.value.errno == errno.EFBIG
    with pytest.raises(DiskFull, match=f"{tokens} was not written: the disk is full"):
        _write_tokens(str(tokens), np.arange(100_000) % 300)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.parquet": b"old", "a.h5": b"old"}


def test_no_room_on_a_remote_file_system_is_said_too() -> None:
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(FullFileSystem()))
    with pytest.raises(DiskFull, match=r"/data/a\.h5 was not written: the disk is full") as full:
        _write_tokens("/data/a.h5", [1, 2], filesystem=filesystem)
    assert full.value.errno == errno.ENOSPC


def test_an_error_of_the_caller_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("caller")

    with pytest.raises(KeyError), ParquetStorage().writer(str(tmp_path / "a.parquet"), schema=TABLE.schema) as writer:
        _ = writer.write(TABLE), fail()
    with pytest.raises(KeyError), HDF5Storage().writer(str(tmp_path / "a.h5"), token_format=FORMAT) as tokens:
        _ = tokens.write([1, 2, 3]), fail()
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 299), max_size=60), st.lists(st.integers(0, 60), max_size=4).map(sorted))
@settings(deadline=None, max_examples=15)
def test_h5py_reads_the_tokens_and_their_bytes_do_not_depend_on_how_they_were_cut(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], cuts: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "a.h5"
    summary = _write_tokens(str(path), np.array(tokens, np.int64), cuts=tuple(cuts))
    assert summary.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert summary == _write_tokens(str(path), np.array(tokens, np.int64))
    num_sequences = -(-max(len(tokens) - 1, 0) // 8)
    with h5py.File(path) as file:
        dataset = file["tokens"]
        stored = dataset[:].tolist()
        assert stored[: len(tokens)] == tokens[: len(stored)]
        assert set(stored[len(tokens) :]) <= {256}
        assert len(stored) == num_sequences * 8 + 1
        assert (dataset.chunks, dataset.compression, dataset.dtype.str) == (None, None, "<u2")
        assert {name: dataset.attrs[name] for name in ("format_version", "num_sequences", "num_tokens")} == {
            "format_version": 1, "num_sequences": num_sequences, "num_tokens": len(tokens)
        }  # fmt: skip


def test_a_shard_holds_no_time_of_its_making(tmp_path: Path) -> None:
    _write_tokens(str(tmp_path / "a.h5"), [1, 2, 3])
    with h5py.File(tmp_path / "a.h5") as file:
        assert h5py.h5g.get_objinfo(file.id).mtime == 0
        assert h5py.h5g.get_objinfo(file["tokens"].id).mtime == 0


@given(st.integers(0, 9), st.data())
@settings(deadline=None, max_examples=15)
def test_ranged_reads_and_mapped_reads_give_the_same_tokens(
    tmp_path_factory: pytest.TempPathFactory, num_sequences: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    tokens = np.random.default_rng(num_sequences).integers(0, 70_000, num_sequences * 8 + 1)
    remote = pafs.SubTreeFileSystem(str(folder), LOCAL)
    _write_tokens(str(folder / "a.h5"), tokens, vocab_size=70_000)
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    for filesystem, path in ((LOCAL, str(folder / "a.h5")), (remote, "a.h5")):
        storage = HDF5Storage(filesystem)
        shard = storage.open(path, sequence_length=8)
        assert (shard.num_sequences, shard.num_tokens, shard.format.dtype) == (num_sequences, len(tokens), np.uint32)
        reader = storage.reader(shard)
        assert reader.read(start, stop).tolist() == tokens[start:stop].tolist()
        some = st.lists(st.integers(0, max(num_sequences - 1, 0)), max_size=5 * bool(num_sequences))
        numbers = np.array(data.draw(some), np.int64)
        expected = [tokens[number * 8 : number * 8 + 9].tolist() for number in numbers]
        assert reader.read_sequences(numbers).tolist() == expected
        for beyond in (-1, num_sequences):
            with pytest.raises(ValueError, match=f"has no sequence {beyond}; it has {num_sequences}, counted from 0"):
                reader.read_sequences(np.append(numbers, beyond))
        reader.close()


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    _write_tokens(str(path), np.arange(200))
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(UnreadableFile, match=r"a\.h5 cannot be read as HDF5"):
            HDF5Storage().open(str(path))


def test_shards_that_cannot_be_read_are_named_with_a_fix(tmp_path: Path) -> None:
    path = str(tmp_path / "a.h5")
    storage = HDF5Storage()
    with pytest.raises(UnreadableFile, match=r"a\.h5 does not exist: give a token shard"):
        storage.open(path)
    (tmp_path / "a.h5").write_text("plain text")
    with pytest.raises(UnreadableFile, match=r"a\.h5 cannot be read as HDF5"):
        storage.open(path)
    with h5py.File(path, "w") as file:
        file["tokens"] = np.arange(9)
    with pytest.raises(UnreadableFile, match="is HDF5 but no token shard"):
        storage.open(path)
    _write_tokens(path, np.arange(50))
    with pytest.raises(UnreadableFile, match="has sequences of 8 tokens, not 16: set sequence_length = 8"):
        storage.open(path, sequence_length=16)


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("format_version", 2, "is a token shard of format_version 2, this program reads 1"),
        ("num_sequences", 9, r"holds \(57,\) tokens of uint16, its header says 9 sequences of 8"),
        ("vocab_size", 100_000, "its header says"),
        ("end_of_document_id", 5000, "damaged header"),
    ],
)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path: Path, attribute: str, value: int, words: str) -> None:
    _write_tokens(str(tmp_path / "a.h5"), np.arange(50))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["tokens"].attrs[attribute] = value
    with pytest.raises(UnreadableFile, match=words):
        HDF5Storage().open(str(tmp_path / "a.h5"))


@pytest.mark.parametrize("tokens", [[1, 300], [-1], [0.5]])
def test_ids_beyond_the_vocabulary_are_refused_and_leave_no_shard(tmp_path: Path, tokens: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a\.h5: tokens of .* but vocab_size = 300"):
        _write_tokens(str(tmp_path / "a.h5"), tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"sequence_length": 0}, {"vocab_size": 0}, {"vocab_size": 1 << 33}, {"end_of_document_id": 300}]
)
def test_a_format_that_cannot_be_is_refused_by_field(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} = {next(iter(changes.values()))}"):
        TokenFormat(**(_fields() | changes))
