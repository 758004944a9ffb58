"""Books and papers as raw documents: EPUB (epub.py) and PDF (pdf.py), told apart by content.

In: a file system and a path. Out: RawDocument, or Rejected with reason and fix.
"""

import io
from collections.abc import Iterator

import pyarrow.fs as pafs

from train.data.document import RawDocument, Rejected
from train.data.epub import read_epub
from train.data.lines import READ_BYTES, WatchedFile
from train.data.pdf import read_pdf
from train.data.readers import file_time
from train.data.source_config import SourceConfig

PDF_HEADER_BYTES = 1024
"""Readers accept a PDF whose mark comes within so many bytes (ISO 32000, annex on compatibility)."""


def read_book(filesystem: pafs.FileSystem, path: str, *, source: SourceConfig) -> Iterator[RawDocument | Rejected]:
    """The documents of one book."""
    happened_at = file_time(filesystem, path)
    watched = WatchedFile(filesystem.open_input_file(path))
    with io.BufferedReader(watched, READ_BYTES) as file:
        head = file.read(PDF_HEADER_BYTES)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            yield from read_epub(file, path, watched=watched, source=source, happened_at=happened_at)
        elif b"%PDF-" in head:
            yield read_pdf(file, path, watched=watched, source=source, happened_at=happened_at)
        else:
            reason = "is neither EPUB nor PDF" if head else "is empty"
            yield Rejected(path, reason, "convert it to EPUB or PDF, or exclude it", offset=0)
