"""Parquet rows as documents: any string type, any split, another schema and damage refused by name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.source_items import documents_of, read_items, read_ranges, rejected_of, source_of
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import Rejected
from train.data.parquet_rows import read_parquet

LIMIT = 1 << 10


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    table = pa.table(
        {
            "id": list(range(1000)),
            "text": [f"text number {number}" for number in range(1000)],
            "meta": [{"url": f"u{number}", "when": number} for number in range(1000)],
            "unused": [b"x" * 100] * 1000,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, write_page_checksum=True)
    return tmp_path


def test_rows_of_all_row_groups_come_once_in_order_and_in_any_split(rows: Path) -> None:
    source = source_of("parquet", id_field="id", metadata_fields=("meta.url",))
    whole = documents_of(read_items(read_parquet, rows, "a.parquet", source=source))
    assert [document.content for document in whole] == [f"text number {number}".encode() for number in range(1000)]
    assert whole[123].metadata == {"path": "a.parquet", "offset": "123", "record_id": "123", "meta.url": "u123"}
    assert read_ranges(read_parquet, rows, "a.parquet", source=source, cuts=[1, 4, 9]) == whole


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_string_type_of_parquet_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["one", "two"], pa.string()).cast(kind)
    pq.write_table(pa.table({"text": texts, "when": pa.array([1, 2], pa.timestamp("ns"))}), tmp_path / "a.parquet")
    documents = documents_of(
        read_items(read_parquet, tmp_path, "a.parquet", source=source_of("parquet", time_field="when"))
    )
    assert [document.content for document in documents] == [b"one", b"two"]
    assert documents[0].happened_at == 0


def test_a_parquet_string_that_is_not_utf8_reaches_the_cleaner(tmp_path: Path) -> None:
    raw = pa.array(["Zürich über alles".encode("latin-1")], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 1, raw.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    (document,) = documents_of(read_items(read_parquet, tmp_path, "a.parquet", source=source_of("parquet")))
    assert DataCleaner(CleanConfig()).clean(document).text == "Zürich über alles"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text_field": "body"}, "has no column 'body'; its columns are id: int64, text: string, meta: struct"),
        ({"text_field": "id"}, "column 'id' is int64, expected string or binary; its columns are"),
        ({"text_field": "meta.title"}, "has no column 'meta.title'"),
        ({"id_field": "key"}, "has no column 'key'"),
    ],
)
def test_another_schema_is_one_refusal_with_column_expected_and_found(
    rows: Path, fields: dict[str, str], reason: str
) -> None:
    items = read_ranges(read_parquet, rows, "a.parquet", source=source_of("parquet", **fields), cuts=[5])
    (item,) = items
    assert isinstance(item, Rejected)
    assert (item.path, item.offset) == ("a.parquet", 0)
    assert reason in item.reason


def test_nulls_empty_and_long_texts_of_parquet_name_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["good", None, "", "x" * 2000]}), tmp_path / "a.parquet")
    items = read_items(read_parquet, tmp_path, "a.parquet", source=source_of("parquet", max_document_bytes=LIMIT))
    assert [item.offset for item in rejected_of(items)] == [1, 2, 3]
    assert all(item.reason.startswith(f"row {item.offset} has ") for item in rejected_of(items))


def test_a_damaged_row_group_is_passed_over_and_the_others_are_read(rows: Path) -> None:
    data = bytearray((rows / "a.parquet").read_bytes())
    column = pq.ParquetFile(rows / "a.parquet").metadata.row_group(3).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin + 40 : begin + 140] = bytes(100)
    (rows / "a.parquet").write_bytes(data)
    items = read_items(read_parquet, rows, "a.parquet", source=source_of("parquet"))
    numbers = [int(document.metadata["offset"]) for document in documents_of(items)]
    assert numbers == [*range(300), *range(400, 1000)]
    (item,) = rejected_of(items)
    assert item.offset == 300
    assert "row group 3" in item.reason
    assert item.lost_bytes > 0


@pytest.mark.parametrize("content", [b"", b"plain text", b"PAR1" + b"\x00" * 50 + b"PAR1"])
def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    (item,) = read_items(read_parquet, tmp_path, "a.parquet", source=source_of("parquet"))
    assert isinstance(item, Rejected)
    assert item.path == "a.parquet"
    assert "cannot be read as Parquet" in item.reason


def test_a_cut_parquet_file_is_refused_by_name(rows: Path) -> None:
    data = (rows / "a.parquet").read_bytes()
    (rows / "a.parquet").write_bytes(data[: len(data) // 2])
    (item,) = read_items(read_parquet, rows, "a.parquet", source=source_of("parquet"))
    assert isinstance(item, Rejected)
    assert item.lost_bytes == len(data) // 2
