"""A PDF as one raw document.

In: an open file. Out: RawDocument with the text of all pages, or Rejected: encrypted, a scan without text, damaged, or above a
limit. Text comes from pypdf. Two things are put right: gaps between words that pypdf takes for kerning (TeX's fonts), and
what stands on every page (page_text.py). pypdf's warnings become a count in the metadata.

A hostile file is stopped by counts, never by a clock, so that every machine decides alike: operators and their operands are
counted as they are carried out, and pypdf's own limits bound what is decoded and parsed before that.
"""

import logging
from contextvars import ContextVar
from functools import cache
from typing import Any

import pypdf
from pypdf.generic import ArrayObject, FloatObject

from train.data.document import RawDocument, Rejected, document_id
from train.data.lines import WatchedFile
from train.data.page_text import join_pages
from train.data.readers import BadContent, describe_limit
from train.data.source_config import SourceConfig

GAP = 170.0
"""Thousandths of the font size. In TeX's PDFs a space is a gap of 180 to 400 in a TJ array and kerning is below 60; pypdf
takes half a space's width for the threshold, up to 250, and glues the words of tight lines together."""
WIDE_GAP = 600.0
"""A gap that pypdf takes for a space with any font."""

BYTES_PER_WORK = 32
"""Bytes of a page's content that count as one unit of work; some 30 of them make an operator."""
FORM_WORK = 20_000
"""What drawing a form counts: pypdf decodes and parses it each time."""
LIMITS: dict[str, Any] = {
    "stream_parsing_work_maximum_count": 500_000,
    "xform_maximum_invocations_per_extraction": 500,
    **dict.fromkeys(
        (
            "zlib_maximum_output_length",
            "lzw_maximum_output_length",
            "run_length_maximum_output_length",
            "array_based_stream_maximum_output_length",
        ),
        16 << 20,
    ),
}
"""pypdf's own, for what is done before an operator can be counted; its defaults are 4 to 10 times as much."""

_ENCRYPTED_FIX = "remove its password (qpdf --decrypt), or leave it out of the source"
_SCAN_FIX = "recognise its text first (ocrmypdf), or leave it out of the source"
_DAMAGED_FIX = "fetch it again, or repair it (qpdf, mutool clean)"
_num_warnings: ContextVar[int] = ContextVar("num_pdf_warnings", default=0)


class _TooMuchWork(Exception):
    """A page is above its limit."""


class _Counter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _num_warnings.set(_num_warnings.get() + 1)


def read_pdf(
    file: Any, path: str, *, watched: WatchedFile, source: SourceConfig, happened_at: float
) -> RawDocument | Rejected:
    """`file` is `watched`, buffered. Raises OSError if the disk or network fails, nothing because of the content."""
    _silence_warnings()
    _num_warnings.set(0)
    try:
        with pypdf.apply_configuration(**LIMITS):
            item: RawDocument | Rejected = _read(file, path, source=source, happened_at=happened_at)
    except BadContent as error:
        item = Rejected(path, str(error), error.fix)
    except Exception as error:  # pypdf's documentation: broken files may cause any exception
        text = " ".join(str(error).split())[:200] or type(error).__name__
        item = Rejected(path, f"cannot be read as PDF ({text})", _DAMAGED_FIX)
    if watched.error is not None:  # whatever pypdf made of it
        raise watched.error
    return item


def _read(file: Any, path: str, *, source: SourceConfig, happened_at: float) -> RawDocument:
    book = source.book
    try:
        reader = pypdf.PdfReader(file)
    except pypdf.errors.DependencyError as error:
        raise BadContent(f"is encrypted in a way that needs another package ({error})", fix=_ENCRYPTED_FIX) from error
    if reader.is_encrypted and not reader.decrypt(""):
        raise BadContent("is encrypted: it needs a password", fix=_ENCRYPTED_FIX)
    info = {key: " ".join(str(value).split()) for key, value in (reader.metadata or {}).items()}
    num_pages = len(reader.pages)
    if num_pages > book.max_pages:
        fix = f"set book.max_pages of source {source.name!r} to at least {num_pages}, or cut the book"
        raise BadContent(f"has {num_pages:,} pages, above book.max_pages = {book.max_pages:,}", fix=fix)
    pages, num_skipped = _extract(reader, num_pages, source=source)
    if num_skipped == num_pages:
        raise BadContent(f"has no page of {num_pages} that can be read", fix=_DAMAGED_FIX)
    num_letters = sum(sum(map(str.isalpha, page)) for page in pages)
    if num_letters < max(book.min_page_letters * num_pages, 1):
        raise BadContent(f"has no text layer: {num_letters} letters on {num_pages} pages, as a scan has", fix=_SCAN_FIX)
    text = join_pages(pages, repeated_share=book.repeated_share, join_lines=book.join_lines)
    content = text.encode("utf-8", "replace")
    if len(content) > source.max_document_bytes:
        reason, fix = describe_limit(len(content), source=source)
        raise BadContent(reason, fix=fix)
    counts = {"pages": num_pages, "skipped_pages": num_skipped, "pdf_warnings": _num_warnings.get()}
    metadata = {"path": path, "offset": "0", "author": info.get("/Author", "")}
    metadata |= {name: str(count) for name, count in counts.items() if count}
    return RawDocument(
        id=document_id(source.name, relative_path=f"{path}#0"),
        source_id=source.name,
        title=info.get("/Title") or path,
        content=content,
        media_type="text/plain",
        happened_at=happened_at,
        metadata={key: value for key, value in metadata.items() if value},
    )


def _extract(reader: pypdf.PdfReader, num_pages: int, *, source: SourceConfig) -> tuple[list[str], int]:
    """(text of each page, number of pages that could not be read)."""
    book = source.book
    work = page_work = 0

    def enter(operator: Any, operands: list[Any], _cm: Any, _tm: Any) -> None:
        nonlocal page_work
        page_work += 1 + len(operands) + (FORM_WORK if operator == b"Do" else 0)
        if operator == b"TJ" and operands and isinstance(operands[0], ArrayObject):
            page_work += len(operands[0])
            operands[0] = _widen_gaps(operands[0])
        if page_work > book.max_page_work:
            raise _TooMuchWork

    pages: list[str] = []
    num_skipped = num_chars = 0
    for index in range(num_pages):
        page_work = 0
        try:
            page = reader.pages[index]
            contents = page.get_contents()
            page_work = len(contents.get_data()) // BYTES_PER_WORK if contents is not None else 0
            if page_work > book.max_page_work:
                raise _TooMuchWork
            pages.append(page.extract_text(visitor_operand_before=enter))
        except Exception:  # as above; a page that is too much work is one of them
            num_skipped += 1
            pages.append("")
            page_work = book.max_page_work  # parsing that failed is not counted otherwise
        work += page_work
        num_chars += len(pages[-1])
        for name, count, most in (
            ("book.max_book_work", work, book.max_book_work),
            ("max_document_bytes", num_chars, source.max_document_bytes),
        ):
            if count > most:
                fix = f"raise {name} of source {source.name!r}, or leave the file out"
                raise BadContent(f"is above {name} = {most:,} at page {index + 1} of {num_pages}", fix=fix)
    return pages, num_skipped


def _widen_gaps(shown: ArrayObject) -> ArrayObject:
    """Make a gap between words wide enough for pypdf, and take the difference back behind it: nothing moves."""
    items: list[Any] = []
    for item in shown:
        if isinstance(item, int | float) and GAP <= -item < WIDE_GAP:
            items += [FloatObject(-WIDE_GAP), FloatObject(item + WIDE_GAP)]
        else:
            items.append(item)
    return ArrayObject(items)


@cache
def _silence_warnings() -> None:
    """pypdf logs each oddity of each file; here they are counted, once for the process."""
    logger = logging.getLogger("pypdf")
    logger.addHandler(_Counter(logging.WARNING))
    logger.propagate = False
