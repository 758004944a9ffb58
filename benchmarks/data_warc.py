"""Reading web archives, beside warcio and bare fastwarc, on a whole file and on a damaged one.

Run as a script it measures one reader in a process of its own, in process CPU seconds. The archive (gzip, one member for each
record: warcinfo, then request, response and metadata of every page) is written with warcio from HTML that the machine has:
pydoc's pages of the standard library, or the .html files below the folder in AUTONOMOUS_BENCH_CORPUS; and again from those
in AUTONOMOUS_HTML_PAGES, if it is set (see cluster/bench_html_pages.py). Each reader delivers what makes a document:
address, time, status, media type, body. Ours also checks where each record begins, and reads the ends of its range twice to
find what fastwarc and warcio pass over in silence. What CommonCrawlProcessor adds, which makes documents with ids, metadata
and decoded bodies of them, is reported beside it: some 15 microseconds a page, so that its ratio depends on their size.
"""

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim
from cluster.bench_corpus import VARIABLE as FOLDER_VARIABLE
from cluster.bench_html_pages import FOLDER_VARIABLE as PAGES_VARIABLE
from cluster.bench_html_pages import PYDOC_NAME, pydoc_pages
from cluster.bench_variants import child_main, run_variants, speed_up

ARCHIVE_BYTES = 64 << 20
"""Pages, unpacked."""
DAMAGED_BYTES = 200
TARGETS = {"fastwarc": 0.9, "warcio": 2.5}
Page = tuple[str, str | float, int, str, bytes]
"""Address, time, status, media type, body."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    for number, (name, source) in enumerate(_corpora()):
        pages = _take(source, ARCHIVE_BYTES)
        path = context.folder / f"pages-{number}.warc.gz"
        write_archive(path, pages)
        num_bytes = sum(map(len, pages))
        size = f"{len(pages)} pages, {num_bytes / 1e6:.1f} MB, mean {num_bytes / len(pages) / 1e3:.0f} kB"
        corpus = f"{size}: {name}, {path.stat().st_size / 1e6:.1f} MB gzip"
        context.note(corpus)
        arguments = {"path": str(path)}
        found = run_variants(
            Path(__file__), list(READERS), arguments=arguments, rounds=rounds, num_threads=1, note=context.note
        )
        rates = ", ".join(f"{name} {1 / one.median_s:.0f} MB/s" for name, one in found.items())
        conditions = f"process CPU time per MB of body, {rounds} rounds of processes in turns; {rates}; {corpus}"
        for peer, least in TARGETS.items():
            speed = speed_up(found["ours"], found[peer])
            yield Claim(
                f"WARC reading vs {'bare ' if peer == 'fastwarc' else ''}{peer}", f">= {least}x", round(speed.ratio, 3),
                "x", speed.ratio >= least, f"95 % interval {speed.low:.2f}-{speed.high:.2f}; {conditions}",
            )  # fmt: skip
        speed = speed_up(found["ours, documents"], found["fastwarc"])
        yield Claim(
            "WARC to documents with ids and metadata, of the rate of bare fastwarc", "reported", round(speed.ratio, 3), "x",
            None, f"95 % interval {speed.low:.2f}-{speed.high:.2f}; {conditions}",
        )  # fmt: skip
        hashes = {name: one.reports[0]["hash"] for name, one in found.items() if name != "fastwarc, body only"}
        yield Claim(
            "WARC records and payload hashes equal to warcio's", "equal", float(len(pages)), "pages",
            len(set(hashes.values())) == 1, f"SHA-256 over addresses and bodies of {', '.join(hashes)}; {corpus}",
        )  # fmt: skip
        yield _damage_claim(path, num_pages=len(pages))


def _damage_claim(path: Path, *, num_pages: int) -> Claim:
    """200 zero bytes in the middle of the archive: how many pages each reader still gives."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + DAMAGED_BYTES] = bytes(DAMAGED_BYTES)
    damaged = path.with_name("damaged.warc.gz")
    damaged.write_bytes(data)
    counts = {}
    for name in ("ours", "fastwarc", "warcio"):
        urls = set()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # warcio prints hundreds of lines
                for page in READERS[name](damaged):
                    urls.add(page[0])
        except Exception as error:  # whatever the library raises is its answer
            counts[f"{name} ({type(error).__name__})"] = len(urls)
        else:
            counts[name] = len(urls)
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Claim(
        "WARC pages read past a damaged gzip member", f">= {num_pages - 2} of {num_pages}", float(counts.get("ours", 0)),
        "pages", counts.get("ours", 0) >= num_pages - 2, f"{DAMAGED_BYTES} bytes zeroed in the middle; {told}",
    )  # fmt: skip


def _corpora() -> Iterator[tuple[str, Iterator[bytes]]]:
    """What the pages are, and the pages."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        yield f"the .html files of {FOLDER_VARIABLE}", _pages_below(Path(folder))
    else:
        yield PYDOC_NAME, (page.encode("utf-8", "replace") for page in pydoc_pages())
    real = os.environ.get(PAGES_VARIABLE)
    if real:
        yield f"web pages, the .html files of {PAGES_VARIABLE}", _pages_below(Path(real))


def _take(pages: Iterator[bytes], max_bytes: int) -> list[bytes]:
    """Pages of at least 2,000 bytes, together about `max_bytes`."""
    taken: list[bytes] = []
    num_bytes = 0
    for page in pages:
        if num_bytes >= max_bytes:
            break
        if len(page) >= 2000:
            taken.append(page)
            num_bytes += len(page)
    return taken


def _pages_below(folder: Path) -> Iterator[bytes]:
    """In an order of hashes, so that the pages of one manual do not stand together."""
    paths = (path for path in folder.rglob("*.html") if path.is_file() and not path.is_symlink())
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        yield path.read_bytes()


def write_archive(path: Path, pages: Iterable[bytes]) -> None:
    """One gzip member for each record."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "benchmark"}))
        for number, page in enumerate(pages):
            url = f"http://example.org/{number}"
            request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True)
            headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))]
            response = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
            for kind, body, http in (("request", b"", request), ("response", page, response)):
                writer.write_record(writer.create_warc_record(url, kind, payload=io.BytesIO(body), http_headers=http))
            notes = io.BytesIO(b"fetchTimeMs: 321\r\ncharset-detected: UTF-8\r\n")
            writer.write_record(writer.create_warc_record(url, "metadata", payload=notes))


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per megabyte of body, the best of three readings after a first one."""
    path = Path(arguments["path"])
    digest = hashlib.sha256()
    num_bytes = 0
    for url, _, _, _, body in READERS[variant](path):
        digest.update(url.encode() + hashlib.sha256(body).digest())
        num_bytes += len(body)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for _ in READERS[variant](path):
            pass
        seconds.append(time.process_time() - start)
    return {"seconds": float(np.min(seconds)) / (num_bytes / 1e6), "hash": digest.hexdigest()}


def _ours(path: Path) -> Iterator[Page]:
    import pyarrow.fs as pafs
    from fastwarc.warc import WarcHeader, WarcRecordType

    from train.data.document import Rejected
    from train.data.warc import RecordReader

    response = WarcRecordType.response

    def convert(record: Any, length: int, offset: int, inner: int) -> Page | None:
        if record.record_type is not response:
            return None
        record.parse_http(auto_decode="all")
        headers, http = record.headers, record.http_headers
        url, date = headers.get(WarcHeader.WARC_TARGET_URI) or "", headers.get(WarcHeader.WARC_DATE) or ""
        return url, date, http.status_code or 0, record.http_content_type or "", record.reader.read()

    with pafs.LocalFileSystem().open_input_file(str(path)) as file:
        size_bytes = file.size()
        reader = RecordReader[Page](file, convert, path=str(path), size_bytes=size_bytes, max_record_bytes=16 << 20)
        for item in reader.read(0, size_bytes):
            if not isinstance(item, Rejected):
                yield item


def _documents(path: Path) -> Iterator[Page]:
    import pyarrow.fs as pafs

    from train.data.common_crawl import CommonCrawlConfig, CommonCrawlProcessor
    from train.data.document import RawDocument

    processor = CommonCrawlProcessor(CommonCrawlConfig())
    for item in processor.read(pafs.LocalFileSystem(), str(path), source_id="bench"):
        if isinstance(item, RawDocument):
            assert isinstance(item.content, bytes)
            yield item.metadata["url"], item.happened_at, 200, item.media_type or "", item.content


def _fastwarc(path: Path) -> Iterator[Page]:
    from fastwarc.warc import ArchiveIterator, WarcHeader, WarcRecordType

    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response, auto_decode="all"):
            headers, http = record.headers, record.http_headers
            url, date = headers.get(WarcHeader.WARC_TARGET_URI) or "", headers.get(WarcHeader.WARC_DATE) or ""
            yield url, date, http.status_code or 0, record.http_content_type or "", record.reader.read()


def _fastwarc_bodies(path: Path) -> Iterator[Page]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            yield "", "", 0, "", record.reader.read()


def _warcio(path: Path) -> Iterator[Page]:
    from warcio.archiveiterator import ArchiveIterator

    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type == "response":
                headers, http = record.rec_headers, record.http_headers
                url, date = headers.get_header("WARC-Target-URI"), headers.get_header("WARC-Date")
                media_type = http.get_header("Content-Type") or ""
                yield url, date, int(http.get_statuscode()), media_type, record.content_stream().read()


READERS: dict[str, Callable[[Path], Iterator[Page]]] = {
    "ours": _ours,
    "ours, documents": _documents,
    "fastwarc": _fastwarc,
    "fastwarc, body only": _fastwarc_bodies,
    "warcio": _warcio,
}

if __name__ == "__main__":
    child_main(measure)
