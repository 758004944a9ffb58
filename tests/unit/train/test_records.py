"""JSONL and annotations: fields to documents, refusals with line, offset and field."""

import gzip
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tests.source_items import Item, documents_of, read_items, read_ranges, readmes, rejected_of, source_of, write_jsonl
from train.data.annotations import pseudonym, read_annotations
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import Rejected
from train.data.lines import MAX_EXPANSION
from train.data.parquet_rows import read_parquet
from train.data.records import read_jsonl

LIMIT = 1 << 10


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Name and README of the installed packages."""
    return [{"name": name, "text": text} for name, text in readmes().items()]


def test_jsonl_of_real_readmes_is_the_same_in_any_split_and_by_either_compression(
    tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", list(rows))
    content = (tmp_path / "a.jsonl").read_bytes()
    source = source_of("jsonl")
    whole = documents_of(read_items(read_jsonl, tmp_path, "a.jsonl", source=source))
    assert [document.content for document in whole] == [row["text"].encode("utf-8", "replace") for row in rows]
    cuts = [random.Random(seed).randrange(1, len(content)) for seed in range(7)]
    assert read_ranges(read_jsonl, tmp_path, "a.jsonl", source=source, cuts=cuts) == whole
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(content, "zstd", asbytes=True))
    for suffix in (".gz", ".zst"):
        packed = documents_of(read_items(read_jsonl, tmp_path, f"a.jsonl{suffix}", source=source))
        assert [document.content for document in packed] == [document.content for document in whole]
        assert [document.metadata["offset"] for document in packed] == [one.metadata["offset"] for one in whole]


def test_fields_become_text_title_time_licence_and_metadata(tmp_path: Path) -> None:
    row = {
        "page": {"body": "text", "url": "u", "tags": ["a"]},
        "n": 7,
        "t": "A title",
        "when": "2026-01-02T00:00:00Z",
        "l": "MIT",
    }
    write_jsonl(tmp_path / "a.jsonl", [row])
    source = source_of(
        "jsonl", text_field="page.body", id_field="n", title_field="t", time_field="when", licence_field="l",
        metadata_fields=("page.url", "page.tags", "absent"), media_type="text/html",
    )  # fmt: skip
    (document,) = documents_of(read_items(read_jsonl, tmp_path, "a.jsonl", source=source))
    assert (document.content, document.title, document.media_type) == (b"text", "A title", "text/html")
    assert document.happened_at == 1767312000
    assert document.metadata == {
        "path": "a.jsonl", "offset": "0", "record_id": "7", "licence": "MIT", "page.url": "u", "page.tags": '["a"]',
    }  # fmt: skip


def test_an_id_field_gives_the_same_id_wherever_the_record_stands(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "1"}, {"id": "y", "text": "2"}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "y", "text": "2"}, {"id": "x", "text": "1"}])
    source = source_of("jsonl", id_field="id")
    first, second = (
        documents_of(read_items(read_jsonl, tmp_path, name, source=source)) for name in ("a.jsonl", "b.jsonl")
    )
    assert [document.id for document in first] == [document.id for document in reversed(second)]
    assert first[0].id != first[1].id


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "cut', "is no JSON"),
        (b'["text"]', "is a JSON list, not an object"),
        ({"body": "x", "id": 1}, "has no field 'text' (its fields: body, id)"),
        ({"text": None}, "has no field 'text'"),
        ({"text": 5}, "has a text of type int, expected a string"),
        ({"text": "  "}, "has an empty 'text'"),
        (b"[" * 100_000, "is nested too deeply"),
        ({"text": "x" * 2000}, "has a text that has 2,000 bytes, above max_document_bytes = 1,024"),
        (b'{"text": "' + b"x" * 5000 + b'"}', "has 5,013 bytes, above 4 x max_document_bytes"),
    ],
)
def test_a_bad_record_names_file_line_and_offset_and_the_next_is_read(tmp_path: Path, row: Any, reason: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "before"}, row, {"text": "after"}])
    limit = 100_000 if reason == "is nested too deeply" else LIMIT
    items = read_items(read_jsonl, tmp_path, "a.jsonl", source=source_of("jsonl", max_document_bytes=limit))
    assert [document.content for document in documents_of(items)] == [b"before", b"after"]
    (item,) = rejected_of(items)
    assert (item.path, item.offset) == ("a.jsonl", 19)
    assert item.reason.startswith("line 2 ")
    assert reason in item.reason
    assert item.lost_bytes == len((tmp_path / "a.jsonl").read_bytes().split(b"\n")[1]) + 1


def test_a_json_string_that_is_not_utf8_reaches_the_cleaner_as_the_bytes_it_has(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl",
        ['{"text": "Zürich über alles"}'.encode("latin-1"), b'{"text": "half \\ud83d a face \\udcf7"}'],
    )
    documents = documents_of(read_items(read_jsonl, tmp_path, "a.jsonl", source=source_of("jsonl")))
    clean = [DataCleaner(CleanConfig()).clean(document).text for document in documents]
    assert clean == ["Zürich über alles", "half \ufffd a face \ufffd"]


def test_a_cut_or_damaged_gzip_gives_the_records_before_and_ends_with_a_refusal(
    tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", list(rows))
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    cut = packed[: len(packed) // 2]
    damaged = bytearray(packed)
    damaged[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    for content in (cut, bytes(damaged)):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        items = read_items(read_jsonl, tmp_path, "a.jsonl.gz", source=source_of("jsonl"))
        texts = [document.content for document in documents_of(items)]
        num_whole = len(rows) // 4
        assert texts[:num_whole] == [row["text"].encode() for row in rows[:num_whole]]
        assert isinstance(items[-1], Rejected)
        assert "is damaged" in items[-1].reason
        assert items[-1].offset is not None


def test_a_decompression_bomb_stops_at_the_expansion_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    (item,) = read_items(read_jsonl, tmp_path, "a.jsonl.gz", source=source_of("jsonl"))
    assert isinstance(item, Rejected)
    assert f"expands more than {MAX_EXPANSION} times" in item.reason


def test_a_disk_that_fails_raises_instead_of_losing_records(tmp_path: Path) -> None:
    class Failing:
        def __init__(self, path: str) -> None:
            self._file = (tmp_path / path).open("rb")
            self._num_reads = 0

        def readinto(self, buffer: Any) -> int:
            self._num_reads += 1
            if self._num_reads > 1:
                raise OSError(5, "Input/output error")
            return self._file.readinto(buffer)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    class FailingSystem:
        def open_input_file(self, path: str) -> Failing:
            return Failing(path)

        def get_file_info(self, path: str) -> Any:
            return pafs.LocalFileSystem().get_file_info(str(tmp_path / path))

    content = b'{"text": "%s"}\n' % (b"one " * 500) * 1000
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, 0))
    pq.write_table(pa.table({"text": ["one"] * 50_000}), tmp_path / "a.parquet")
    for read, kind, name in (
        (read_jsonl, "jsonl", "a.jsonl"),
        (read_jsonl, "jsonl", "a.jsonl.gz"),
        (read_parquet, "parquet", "a.parquet"),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            list(read(FailingSystem(), name, source=source_of(kind)))


def test_annotations_become_text_by_the_template_without_the_judgement(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "response": "3", "rating": 5, "annotator": "eva@example.com"},
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            "labels": ["b", "a"],
        },
        {"text": "A plain text.", "labels": {"toxic": 0.1}, "item": 7},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    documents = documents_of(_annotations(tmp_path, "a.jsonl"))
    assert [document.content for document in documents] == [
        b"### User\nAdd.\n\n1 2\n\n### Assistant\n3",
        b"### User\nHi\n\n### Assistant\nHello",
        b"A plain text.",
    ]
    assert all(document.metadata["kind"] == "annotation" for document in documents)
    assert documents[0].metadata["rating"] == "5"
    assert documents[1].metadata["labels"] == "a, b"
    assert (documents[2].metadata["labels"], documents[2].metadata["item"]) == ('{"toxic": 0.1}', "7")


def test_an_annotator_leaves_as_a_pseudonym_that_is_stable_within_the_source(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"text": f"text {n}", "rating": 1, "annotator": "eva@example.com"} for n in range(2)]
    )
    first, second = documents_of(_annotations(tmp_path, "a.jsonl"))
    assert "eva" not in str(first)
    assert (
        first.metadata["annotator"] == second.metadata["annotator"] == pseudonym("eva@example.com", source_name="books")
    )
    assert first.metadata["annotator"] != pseudonym("eva@example.com", source_name="other")


def test_conflicting_judgements_of_an_item_are_kept_and_counted_across_files(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"text": "same", "labels": ["good", "short"]}, {"text": "other", "labels": "good"}]
    )
    write_jsonl(
        tmp_path / "b.jsonl", [{"text": "same", "labels": ["bad"]}, {"text": "same", "labels": ["short", "good"]}]
    )
    documents = documents_of(_annotations(tmp_path, "a.jsonl", "b.jsonl"))
    facts = [(one.content, one.metadata["annotations"], one.metadata.get("conflict")) for one in documents]
    assert facts == [(b"same", "3", "2"), (b"other", "1", None), (b"same", "3", "2"), (b"same", "3", "2")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"labels": ["x"]}, "has neither messages, nor instruction and response, nor text (its fields: labels)"),
        ({"text": "x"}, "has a text but neither labels nor a rating"),
        ({"instruction": "x"}, "has no text in 'response'"),
        ({"messages": []}, "has messages that are no list, or an empty one"),
        ({"messages": [{"role": "user"}]}, "has no text in 'content'"),
        ({"text": "x", "rating": "five"}, "has the rating 'five'"),
        ({"text": "x", "labels": [1]}, "has labels of type list"),
        ({"text": "x", "rating": 1, "annotator": {}}, "has annotator {}"),
        (b"{", "is no JSON"),
    ],
)
def test_a_bad_annotation_names_line_offset_and_field(tmp_path: Path, row: Any, reason: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "good", "rating": 1}, row])
    items = _annotations(tmp_path, "a.jsonl")
    assert len(documents_of(items)) == 1
    (item,) = rejected_of(items)
    assert item.reason.startswith("line 2 ")
    assert reason in item.reason
    assert item.offset == 30


def _annotations(folder: Path, *paths: str) -> list[Item]:
    filesystem = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    return list(read_annotations(filesystem, paths, source=source_of("annotations")))
