"""Web archives: the same records as warcio, whatever the ranges, and all that can be read of damaged files."""

import gzip
import hashlib
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import brotli
import pyarrow.fs as pafs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from train.data.clean import CleanConfig, DataCleaner
from train.data.common_crawl import CommonCrawlConfig, CommonCrawlProcessor
from train.data.document import RawDocument, Rejected, document_id
from train.data.filesystem import resolve

Item = RawDocument | Rejected
DATE = "2026-11-24T12:00:00Z"
SECONDS = 1795521600.0
LOCAL = pafs.LocalFileSystem()
TOPICS = sorted(topics.items())[:24]


def _page(title: str, text: str) -> bytes:
    return f"<html><head><title>{title}</title></head><body><pre>{text}</pre></body></html>".encode()


PAGES = [(f"http://example.org/{name}", _page(name, text)) for name, text in TOPICS]


def _write(
    pages: Iterable[tuple[str, bytes]], headers: Sequence[tuple[str, str]] = (), status: str = "200 OK"
) -> bytes:
    """A plain WARC file: warcinfo, then request, response and metadata of each page."""
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=False)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "test"}))
    for url, body in pages:
        warc = {"WARC-Date": DATE}
        request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True)
        http = StatusAndHeaders(status, _typed(headers), protocol="HTTP/1.1")
        for kind, payload, http_headers in (("request", b"", request), ("response", body, http)):
            writer.write_record(
                writer.create_warc_record(
                    url, kind, payload=io.BytesIO(payload), http_headers=http_headers, warc_headers_dict=dict(warc)
                )
            )
        writer.write_record(writer.create_warc_record(url, "metadata", payload=io.BytesIO(b"fetchTimeMs: 3\r\n")))
    return file.getvalue()


def _typed(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    has_type = any(name.lower() == "content-type" for name, _ in headers)
    return [*headers, *([] if has_type else [("Content-Type", "text/html; charset=UTF-8")])]


def _records(plain: bytes) -> list[bytes]:
    return re.split(rb"(?=WARC/1\.0\r\nWARC-)|(?<=\r\n\r\n)(?=WARC/1\.0\r\n)", plain)[1:]


def _pack(records: Sequence[bytes], *, each: int = 1) -> bytes:
    """Gzip, `each` records to a member."""
    groups = (b"".join(records[at : at + each]) for at in range(0, len(records), each))
    return b"".join(gzip.compress(group, mtime=0) for group in groups)


PLAIN = _write(PAGES)
RECORDS = _records(PLAIN)
PACKED = _pack(RECORDS)
MEMBERS = [0, *(at for at in range(1, len(PACKED)) if PACKED.startswith(b"\x1f\x8b\x08", at))]
"""Offsets of the gzip members: the magic occurs nowhere else in this file."""
FORMS = {
    "plain": PLAIN,
    "a member each": PACKED,
    "three to a member": _pack(RECORDS, each=3),
    "one member": gzip.compress(PLAIN, mtime=0),
    "members that end anywhere": b"".join(gzip.compress(PLAIN[at : at + 5000]) for at in range(0, len(PLAIN), 5000)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warc")


def _read(
    folder: Path, data: bytes, *, cuts: Iterable[int] = (), name: str = "a.warc.gz", **config: object
) -> list[Item]:
    """All that the ranges between the cuts give, in order."""
    path = folder / name
    path.write_bytes(data)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    processor = CommonCrawlProcessor(CommonCrawlConfig.model_validate(config))
    ranges = itertools.pairwise(edges)
    return [
        item
        for start, stop in ranges
        for item in processor.read(LOCAL, str(path), source_id="s", start=start, stop=stop)
    ]


def _documents(items: Iterable[Item]) -> list[RawDocument]:
    return [item for item in items if isinstance(item, RawDocument)]


def _rejected(items: Iterable[Item]) -> list[Rejected]:
    return [item for item in items if isinstance(item, Rejected)]


def _content(document: RawDocument) -> bytes:
    assert isinstance(document.content, bytes)
    return document.content


def _hashes_of_warcio(data: bytes) -> list[tuple[str, str]]:
    found = []
    for record in ArchiveIterator(io.BytesIO(data)):
        if record.rec_type == "response":
            body = record.content_stream().read()
            found.append((record.rec_headers.get_header("WARC-Target-URI"), hashlib.sha256(body).hexdigest()))
    return found


def _hashes(items: Iterable[Item]) -> list[tuple[str, str]]:
    return [(doc.metadata["url"], hashlib.sha256(_content(doc)).hexdigest()) for doc in _documents(items)]


def _brotli(body: bytes) -> bytes:
    return brotli.compress(body, quality=1)


def _chunks(body: bytes) -> bytes:
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return b"".join(b"%x;x=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


ENCODED = {
    "chunks": ([("Transfer-Encoding", "chunked")], _chunks),
    "gzip": ([("Content-Encoding", "gzip")], gzip.compress),
    "deflate": ([("Content-Encoding", "deflate")], zlib.compress),
    "deflate without zlib's header": ([("Content-Encoding", "deflate")], lambda body: zlib.compress(body)[2:-4]),
    "brotli": ([("Content-Encoding", "br")], brotli.compress),
    "gzip in chunks": (
        [("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")],
        lambda body: _chunks(gzip.compress(body)),
    ),
    "a lie about chunks": ([("Transfer-Encoding", "chunked")], lambda body: body),
    "a lie about gzip": ([("Content-Encoding", "gzip")], lambda body: body),
    "an unknown encoding": ([("content-encoding", "exi")], lambda body: body),
}


@pytest.mark.parametrize("form", ["plain", "a member each"])
def test_pages_are_those_of_warcio_byte_by_byte(folder: Path, form: str) -> None:
    items = _read(folder, FORMS[form])
    assert _hashes(items) == _hashes_of_warcio(FORMS[form])
    assert [doc.metadata["url"] for doc in _documents(items)] == [url for url, _ in PAGES]


@pytest.mark.parametrize("kind", ENCODED)
def test_bodies_are_decoded_as_warcio_decodes_them_also_where_the_header_lies(folder: Path, kind: str) -> None:
    headers, encode = ENCODED[kind]
    data = _pack(_records(_write([(url, encode(body)) for url, body in PAGES[:3]], headers)))
    if kind != "brotli":  # warcio 1.8.1 fails with brotli 1.2
        assert _hashes(_read(folder, data)) == _hashes_of_warcio(data)
    assert [_content(doc) for doc in _documents(_read(folder, data))] == [body for _, body in PAGES[:3]]


def test_a_document_says_where_and_when_it_was_found_and_in_which_charset(folder: Path) -> None:
    document = _documents(_read(folder, PACKED))[0]
    path = str(folder / "a.warc.gz")
    assert document.metadata == {"path": path, "offset": str(MEMBERS[2]), "url": PAGES[0][0]}
    assert document.id == document_id("s", relative_path=f"{path}#{MEMBERS[2]}")
    assert (document.media_type, document.happened_at, document.title) == ("text/html; charset=utf-8", SECONDS, "")
    assert DataCleaner(CleanConfig()).clean(document).title == TOPICS[0][0]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranges_of_a_file_give_the_documents_of_the_whole_each_once(
    folder: Path, form: str, data: st.DataObject
) -> None:
    content = FORMS[form]
    cuts = data.draw(st.lists(st.one_of(st.integers(0, len(content)), st.sampled_from(MEMBERS)), max_size=5))
    found = _documents(_read(folder, content, cuts=cuts))
    whole = _documents(_read(folder, content))
    assert found == whole
    assert [_content(document) for document in whole] == [body for _, body in PAGES]
    assert len({document.id for document in found}) == len(PAGES)


DAMAGE = st.one_of(
    st.tuples(st.just("zero"), st.integers(0, len(PACKED) - 1), st.integers(1, 400)),
    st.tuples(st.just("flip"), st.integers(0, len(PACKED) - 1), st.just(1)),
    st.tuples(st.just("remove"), st.integers(0, len(PACKED) - 1), st.integers(1, 4000)),
    st.tuples(st.just("insert"), st.integers(0, len(PACKED) - 1), st.integers(1, 400)),
    st.tuples(st.just("cut"), st.integers(1, len(PACKED) - 1), st.just(len(PACKED))),
)


def _damage(data: bytes, kind: str, at: int, size: int) -> bytes:
    end = min(at + size, len(data))
    if kind == "zero":
        return data[:at] + bytes(end - at) + data[end:]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 0x41]) + data[end:]
    if kind == "insert":
        return data[:at] + bytes(range(1, 200)) * 2 + data[at:]
    return data[:at] + data[end:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, cuts=st.lists(st.integers(0, len(PACKED)), max_size=3))
def test_damage_loses_the_members_that_it_touches_and_no_others_and_says_so(
    folder: Path, damage: tuple[str, int, int], cuts: list[int]
) -> None:
    kind, at, size = damage
    data = _damage(PACKED, kind, at, size)
    items = _read(folder, data, cuts=cuts)
    end = at if kind == "insert" else min(at + size, len(PACKED))
    ends = [*MEMBERS[1:], len(PACKED)]
    is_hit = [
        (start < end and at < stop) if kind != "insert" else start < at < stop
        for start, stop in zip(MEMBERS, ends, strict=True)
    ]
    spared = [PAGES[(number - 2) // 3][0] for number, hit in enumerate(is_hit) if number % 3 == 2 and not hit]
    found = [document.metadata["url"] for document in _documents(items)]
    assert [url for url in found if url in spared] == spared
    assert len(found) - len(spared) <= 1  # a flipped bit in an unused header field harms nothing
    contents = dict(PAGES)
    assert all(_content(document) == contents[document.metadata["url"]] for document in _documents(items))
    if len(found) < len(PAGES):
        whole = _read(folder, data)
        if len(data) and not (kind in ("cut", "remove") and at in MEMBERS and end in ends):
            assert _rejected(items)
        assert [(one.offset, one.lost_bytes) for one in _rejected(items)] == [
            (one.offset, one.lost_bytes) for one in _rejected(whole)
        ]


def test_a_cut_last_member_is_reported_although_fastwarc_and_warcio_end_silently(folder: Path) -> None:
    items = _read(folder, PACKED[:-7])
    assert len(_documents(items)) == len(PAGES)
    (loss,) = _rejected(items)
    assert (loss.offset, loss.lost_bytes) == (MEMBERS[-1], len(PACKED) - 7 - MEMBERS[-1])
    assert "cut off" in loss.reason


@pytest.mark.parametrize("is_gzip", [True, False])
@pytest.mark.parametrize("delta", [-700, -5, -1, 3, 5, 300, 4000, 10**9])
def test_a_wrong_content_length_costs_that_record_only(folder: Path, is_gzip: bool, delta: int) -> None:
    number = 5  # the second page's response
    length = re.search(rb"Content-Length: (\d+)", RECORDS[number])
    assert length is not None
    changed = b"%d" % (int(length[1]) + delta)
    records = list(RECORDS)
    records[number] = RECORDS[number][: length.start(1)] + changed + RECORDS[number][length.end(1) :]
    items = _read(folder, _pack(records) if is_gzip else b"".join(records))
    found = [document.metadata["url"] for document in _documents(items)]
    others = [url for url, _ in PAGES if url != PAGES[1][0]]
    if delta == 3:  # line ends after the content are no damage
        assert len(found) == len(PAGES)
    else:
        assert found == others
        (loss,) = _rejected(items)
        assert loss.lost_bytes > 0


@pytest.mark.parametrize("is_gzip", [True, False])
def test_garbage_before_between_and_after_records_is_passed_and_counted(folder: Path, is_gzip: bool) -> None:
    garbage = b"\x00garbage \x1f\x8b\x08 WARC/1.0 " * 3
    parts = [gzip.compress(record) if is_gzip else record for record in RECORDS]
    data = garbage + b"".join(parts[:6]) + garbage + b"".join(parts[6:]) + garbage
    items = _read(folder, data, name="a.warc.gz" if is_gzip else "a.warc")
    assert [_content(document) for document in _documents(items)] == [body for _, body in PAGES]
    middle = len(garbage) + sum(map(len, parts[:6]))
    expected = [(0, len(garbage)), (middle, len(garbage)), (len(data) - len(garbage), len(garbage))]
    assert [(one.offset, one.lost_bytes) for one in _rejected(items)] == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"no archive\n" * 500, "is no web archive"), (bytes(9000), "is no web archive")],
)
def test_what_is_no_archive_is_refused_by_name(folder: Path, data: bytes, reason: str) -> None:
    (refused,) = _read(folder, data, name="text.warc")
    assert isinstance(refused, Rejected)
    assert reason in refused.reason
    assert (refused.path, refused.offset, refused.lost_bytes) == (str(folder / "text.warc"), 0, len(data))


def test_a_missing_file_raises_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.warc"):
        list(CommonCrawlProcessor(CommonCrawlConfig()).read(LOCAL, str(folder / "missing.warc"), source_id="s"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cuts", [(), (20_000,)])
def test_a_long_record_is_passed_over_and_named(folder: Path, form: str, cuts: tuple[int, ...]) -> None:
    limit = sorted(len(body) for _, body in PAGES)[-4] + 200  # with its HTTP header
    items = _read(folder, FORMS[form], cuts=cuts, max_record_bytes=limit)
    lengths = [len(_content(document)) for document in _documents(items)]
    assert lengths == [len(body) for _, body in PAGES if len(body) <= limit - 60]
    assert all("max_record_bytes" in one.reason and one.lost_bytes > 0 for one in _rejected(items))
    assert len(lengths) + len(_rejected(items)) == len(PAGES)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_a_decompression_bomb_is_refused_without_being_unpacked(folder: Path, encoding: str) -> None:
    body = bytes(30_000_000)
    for one in reversed(encoding.split(", ")):
        body = {"gzip": gzip.compress, "deflate": zlib.compress, "br": _brotli}[one](body)
    data = _pack(_records(_write([("http://example.org/", body)], [("Content-Encoding", encoding)]))) + PACKED
    items = _read(folder, data, max_record_bytes=1_000_000)
    assert ["max_record_bytes" in one.reason for one in _rejected(items)] == [True]
    assert len(_documents(items)) == len(PAGES)


@pytest.mark.parametrize(
    ("headers", "status", "body", "count"),
    [
        ([], "404 Not Found", b"<p>x</p>", "status"),
        ([("Content-Type", "image/png")], "200 OK", b"\x89PNG", "media_type"),
        ([("Content-Type", "application/octet-stream")], "200 OK", b"PK\x03\x04", "media_type"),
        ([], "200 OK", b"", "empty"),
    ],
)
def test_other_responses_are_passed_over_and_counted(
    folder: Path, headers: list[tuple[str, str]], status: str, body: bytes, count: str
) -> None:
    path = folder / "other.warc"
    path.write_bytes(_write([("http://example.org/", body)], headers, status) * 2)
    processor = CommonCrawlProcessor(CommonCrawlConfig())
    assert list(processor.read(LOCAL, str(path), source_id="s")) == []
    assert processor.counts == {count: 2}


def test_a_page_without_a_type_is_kept_if_it_begins_as_html_does(folder: Path) -> None:
    data = _write([("http://example.org/", b"\n<!-- x --><!DOCTYPE html><p>text")], [("Content-Type", "")])
    (document,) = _documents(_read(folder, data))
    assert document.media_type == "text/html"


def test_wet_files_give_their_plain_text(folder: Path) -> None:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    for name, text in TOPICS:
        payload = io.BytesIO(text.encode())
        writer.write_record(
            writer.create_warc_record(
                f"http://e.org/{name}", "conversion", payload=payload, warc_content_type="text/plain"
            )
        )
    documents = _documents(_read(folder, file.getvalue(), name="a.wet.gz"))
    assert [_content(document).decode() for document in documents] == [text for _, text in TOPICS]
    assert {document.media_type for document in documents} == {"text/plain; charset=utf-8"}
    assert documents[0].title == f"http://e.org/{TOPICS[0][0]}"


@pytest.mark.parametrize("is_kept", [True, False])
def test_pages_cut_by_the_crawler_are_marked_and_counted_or_left_out(folder: Path, is_kept: bool) -> None:
    path = folder / "cut.warc"
    path.write_bytes(PLAIN.replace(b"WARC-Type: response\r\n", b"WARC-Type: response\r\nWARC-Truncated: length\r\n", 3))
    processor = CommonCrawlProcessor(CommonCrawlConfig(keep_truncated=is_kept))
    documents = _documents(processor.read(LOCAL, str(path), source_id="s"))
    assert len(documents) == len(PAGES) - (0 if is_kept else 3)
    assert [document.metadata.get("truncated") for document in documents].count("length") == (3 if is_kept else 0)
    assert processor.counts["truncated" if is_kept else "cut"] == 3


def test_the_same_documents_come_from_a_file_system_of_fsspec() -> None:
    filesystem, path = resolve("memory://crawl/a.warc.gz")
    with filesystem.open_output_stream(path, compression=None) as file:  # else the name's .gz packs it again
        file.write(PACKED)
    items = CommonCrawlProcessor(CommonCrawlConfig()).read(filesystem, path, source_id="s", start=3000, stop=30_000)
    assert [document.metadata["offset"] for document in _documents(items)] == [
        str(offset) for offset in MEMBERS[2::3] if 3000 <= offset < 30_000
    ]
