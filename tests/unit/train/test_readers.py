"""Lines, text and Markdown: each document once in any split, nothing held that is too long, refusals with file and offset."""

import gzip
import itertools
import tracemalloc
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.source_items import documents_of, read_items, read_ranges, rejected_of, source_of
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument, Rejected
from train.data.lines import Damaged, open_bytes, read_lines
from train.data.readers import cell_bytes, read_text

LIMIT = 1 << 10


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")), max_size=12),
    has_end=st.booleans(),
    cuts=st.lists(st.integers(1, 150), max_size=4),
    max_bytes=st.integers(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_any_ranges_give_each_line_once_at_its_offset(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], has_end: bool, cuts: list[int], max_bytes: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = b"\n".join(lines) + (b"\n" if has_end else b"")
    (folder / "lines").write_bytes(content)
    edges = [0, *sorted(cuts), None]
    found = []
    for start, stop in itertools.pairwise(edges):
        with open_bytes(pafs.LocalFileSystem(), str(folder / "lines")) as file:
            found += list(read_lines(file, start=start or 0, stop=stop, max_bytes=max_bytes))
    assert not any(isinstance(line, Damaged) for line in found)
    assert [line.size_bytes for line in found] == [len(line) for line in content.splitlines(keepends=True)] or (
        b"".join(content[line.offset : line.offset + line.size_bytes] for line in found) == content
    )
    for line in found:
        whole = content[line.offset : line.offset + line.size_bytes].removesuffix(b"\n")
        assert line.data == (whole if len(whole) <= max_bytes else None)


def test_a_file_is_a_document_with_its_type_path_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(topics["if"])
    (document,) = read_items(read_text, tmp_path, "a.md", source=source_of("text"))
    assert isinstance(document, RawDocument)
    assert document.content == topics["if"].encode()
    assert (document.media_type, document.title, document.source_id) == ("text/markdown", "a.md", "books")
    assert document.metadata == {"path": "a.md", "offset": "0"}
    assert document.happened_at == pytest.approx((tmp_path / "a.md").stat().st_mtime)


def test_a_compressed_text_has_the_type_of_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(b"<p>hello"))
    (document,) = documents_of(read_items(read_text, tmp_path, "a.html.gz", source=source_of("text")))
    assert (document.content, document.media_type) == (b"<p>hello", "text/html")


def test_bytes_that_are_not_utf8_are_left_to_the_cleaner(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Zürich über alles".encode("latin-1"))
    (document,) = documents_of(read_items(read_text, tmp_path, "a.txt", source=source_of("text")))
    assert DataCleaner(CleanConfig()).clean(document).text == "Zürich über alles"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\x7fELF\x00", "is binary"), (b"%PDF-1.4", "is a PDF")],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (item,) = rejected_of(read_items(read_text, tmp_path, "a.txt", source=source_of("text")))
    assert (item.path, item.offset) == ("a.txt", 0)
    assert reason in item.reason


def test_a_file_above_the_limit_is_refused_unread_with_the_limit_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"word " * 300)
    (item,) = rejected_of(read_items(read_text, tmp_path, "a.txt", source=source_of("text", max_document_bytes=LIMIT)))
    assert item.lost_bytes == 1500
    assert "1,500 bytes, above max_document_bytes = 1,024" in item.reason
    assert 'oversize = "split"' in item.fix


def test_one_document_per_line_keeps_its_id_in_any_split(tmp_path: Path) -> None:
    content = "".join(f"{text.splitlines()[0]}\n\n" for text in topics.values() if text.strip())
    (tmp_path / "a.txt").write_text(content)
    source = source_of("text", document="line")
    whole = documents_of(read_items(read_text, tmp_path, "a.txt", source=source))
    assert len(whole) == content.count("\n\n")
    assert whole[3].content == content.split("\n\n")[3].encode()
    assert read_ranges(read_text, tmp_path, "a.txt", source=source, cuts=[100, 101, 999]) == whole
    assert len({document.id for document in whole}) == len(whole)


def test_a_line_above_the_limit_is_a_counted_skip_and_its_neighbours_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n" + b"x" * 5000 + b"\nthree")
    items = read_items(
        read_text, tmp_path, "a.txt", source=source_of("text", document="line", max_document_bytes=LIMIT)
    )
    assert [document.content for document in documents_of(items)] == [b"one", b"three"]
    (item,) = rejected_of(items)
    assert (item.path, item.offset, item.lost_bytes) == ("a.txt", 4, 5001)
    assert "has a line that has 5,001 bytes" in item.reason


@pytest.mark.parametrize("fields", [{"oversize": "split"}, {"document": "line"}])
def test_a_giant_single_line_is_never_held(tmp_path: Path, fields: dict[str, str]) -> None:
    size = 128 << 20
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"first\n")
        file.truncate(size)
    source = source_of("text", max_document_bytes=1 << 20, **fields)
    tracemalloc.start()
    items = read_items(read_text, tmp_path, "a.txt", source=source)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.content.strip() for document in documents_of(items)] == [b"first"]
    (item,) = rejected_of(items)
    assert (item.path, item.offset, item.lost_bytes) == ("a.txt", 6, size - 6)
    assert peak_bytes < 8 << 20


@given(
    pieces=st.lists(
        st.sampled_from(["\n\n", "\n", "word ", "long" * 60, "y" * 700, "ü" * 900, "line\r\n \t\r\n"]),
        min_size=20,
        max_size=80,
    ),
    cuts=st.lists(st.integers(1, 60), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_pieces_of_a_big_text_and_its_losses_tile_it_however_it_is_split(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], cuts: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = "".join(pieces).encode()
    (folder / "big.txt").write_bytes(content)
    source = source_of("text", oversize="split", max_document_bytes=LIMIT)
    items = read_items(read_text, folder, "big.txt", source=source)
    if len(content) > LIMIT:
        cell = cell_bytes(source)
        assert read_ranges(read_text, folder, "big.txt", source=source, cuts=[cut * cell for cut in cuts]) == items
    position = 0
    for item in items:
        offset = int(item.metadata["offset"]) if isinstance(item, RawDocument) else item.offset or 0
        assert not content[position:offset].strip()
        size = len(item.content) if isinstance(item, RawDocument) else item.lost_bytes
        if isinstance(item, RawDocument):
            assert item.content == content[offset : offset + size]
            assert size <= LIMIT
        position = offset + size
    assert not content[position:].strip()


def test_a_big_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    content = "\n\n".join(topics[name] for name in ("if", "for", "while", "try"))
    (tmp_path / "a.md").write_text(content)
    documents = documents_of(
        read_items(read_text, tmp_path, "a.md", source=source_of("text", oversize="split", max_document_bytes=4096))
    )
    assert len(documents) > 3
    assert b"".join(document.content for document in documents).decode() == content  # type: ignore[arg-type]
    assert all(document.content.endswith(b"\n\n") for document in documents[:-1])  # type: ignore[arg-type]


def test_utf16_above_the_limit_cannot_be_cut_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("paragraph\n\n" * 200).encode("utf-16"))
    (item,) = read_items(
        read_text, tmp_path, "a.txt", source=source_of("text", oversize="split", max_document_bytes=LIMIT)
    )
    assert isinstance(item, Rejected)
    assert "UTF-16" in item.reason
    assert item.fix == "convert it to UTF-8"
