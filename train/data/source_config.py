"""SourceConfig: where documents come from, of which kind, and how they are cut into records.

In: a table of the configuration file. Out: a frozen, checked config that units.py plans and reads. The kinds:
web          .warc, .wet and their .gz: pages of a crawl (common_crawl.py)
code         git repositories, folders and archives of source code (source_code.py)
text         plain text, Markdown, HTML, reStructuredText: a file is a document, or a line is one
jsonl        one JSON object per line, plain or compressed by gzip or Zstandard
parquet      one row per document
book         EPUB and PDF
annotations  JSONL that people wrote or judged (annotations.py says the fields)
"""

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SourceKind = Literal["web", "code", "text", "jsonl", "parquet", "book", "annotations"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""By suffix. A compressed file has one beginning, so it is one unit."""

_TEXT = (".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm", ".xhtml", ".tex", ".org", ".adoc")
_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json.gz", ".json.zst")

SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "web": (".warc", ".warc.gz", ".wet", ".wet.gz"),
    "code": (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".whl"),
    "text": tuple(f"{suffix}{packed}" for suffix in _TEXT for packed in ("", *COMPRESSIONS)),
    "jsonl": _JSONL,
    "parquet": (".parquet",),
    "book": (".epub", ".pdf"),
    "annotations": _JSONL,
}
"""What is read of a folder when `include` is empty; for text also the names without any dot, such as README."""

_RECORDS: tuple[SourceKind, ...] = ("jsonl", "parquet")
_FIELD_KINDS: dict[str, tuple[SourceKind, ...]] = {
    "max_document_bytes": ("text", "jsonl", "parquet", "book", "annotations"),
    "document": ("text",),
    "oversize": ("text",),
    "text_field": _RECORDS,
    "id_field": _RECORDS,
    "title_field": _RECORDS,
    "time_field": _RECORDS,
    "licence_field": _RECORDS,
    "metadata_fields": _RECORDS,
    "media_type": ("text", *_RECORDS),
    "repositories": ("code",),
    "book": ("book",),
}
"""Fields that mean something for some kinds only; set for another kind they are a mistake."""


class BookConfig(BaseModel):
    """How EPUB and PDF become text, and what stops a hostile one. All limits count work, none is a clock: a slow machine
    must take the same decisions as a fast one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: Literal["book", "chapter"] = "book"
    """EPUB: one document per book, or one per chapter (item of the spine). A PDF is always one document."""
    max_pages: int = Field(5_000, gt=0)
    """PDF: a longer one is rejected."""
    max_page_work: int = Field(4_000_000, gt=0)
    """PDF: a page with more work is skipped and counted. Work: drawing operators and their operands, a dense page of text has
    some 6,000; a form that is drawn counts 20,000 (pdf.py)."""
    max_book_work: int = Field(200_000_000, gt=0)
    """PDF: a book with more work is rejected. A page that cannot be read counts as max_page_work."""
    repeated_share: float = Field(0.5, gt=0, le=1)
    """PDF: a first or last line is a running header or footer if it stands on more than this share of the odd or of the
    even pages, numbers aside."""
    join_lines: bool = True
    """PDF: join the lines of a paragraph, so that line ends mean something to the quality filters."""
    min_page_letters: int = Field(20, ge=0)
    """PDF: with fewer letters per page on average it is a scan without a text layer, and rejected."""


class SourceConfig(BaseModel):
    """One source: a file, a folder or a glob, all of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Its id in tables, manifests and reports: letters, digits and . _ - (at most 64)."""
    kind: SourceKind
    """What the files are; see the head of this file."""
    location: str = Field(min_length=1)
    """Local path or URI (s3://bucket/folder) of a file, a folder, or a glob such as "crawl/**/*.warc.gz"."""
    include: tuple[str, ...] = ()
    """Globs of what is read below a folder: * within a name, ** across folders; one without "/" matches the name in any
    folder. Empty: the suffixes of the kind."""
    exclude: tuple[str, ...] = ()
    """Globs of what is not read; they beat `include`."""
    licence: str = ""
    """SPDX expression of the whole source; goes into each document's metadata. Empty: not stated."""
    language: str = Field("", pattern=r"^([a-z]{2,3})?$")
    """ISO 639 code of every document, where it is known; detection then believes it. Empty: detect."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Share of this source in the mix, in any unit: all weights are divided by their sum."""
    unit_bytes: int = Field(64 << 20, ge=1 << 10)
    """Size of a work unit, bytes of input (a Parquet file: of uncompressed columns)."""
    max_document_bytes: int = Field(16 << 20, ge=1 << 10)
    """A longer document is rejected and counted (text with oversize = "split" is cut); the most that a reader holds. A
    line of JSON may have 4 times as much, because of its escapes and other fields. web: web.max_record_bytes says it, code:
    code.filters.max_bytes."""

    document: Literal["file", "line"] = "file"
    """text: what one document is."""
    oversize: Literal["reject", "split"] = "reject"
    """text, document = "file": what happens to a file above max_document_bytes. "split" cuts between paragraphs."""
    media_type: str | None = None
    """text, jsonl, parquet: what the text is, such as "text/html". None: by suffix, and plain text for records."""
    text_field: str = Field("text", min_length=1)
    """jsonl, parquet: the field with the text. Here and below a dot leads into a record: "page.body"."""
    id_field: str | None = None
    """jsonl, parquet: a field that is unique within the source; the document's id is derived from it. None: derived from
    path and offset."""
    title_field: str | None = None
    """jsonl, parquet: the field with the title."""
    time_field: str | None = None
    """jsonl, parquet: seconds since the epoch, or ISO 8601. None: the file's time of change."""
    licence_field: str | None = None
    """jsonl, parquet: the record's own licence, where it has one."""
    metadata_fields: tuple[str, ...] = ()
    """jsonl, parquet: further fields kept as metadata, under their own names."""
    repositories: Literal["git", "children", "location"] = "git"
    """code: what one repository is: a folder with .git, each child folder of the location, or the location itself."""
    book: BookConfig = BookConfig()
    """book: limits and repairs."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(f"name is {name!r}: give 1 to 64 letters, digits and . _ -, the first a letter or a digit")
        return name

    @field_validator("include", "exclude")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(
                    f"the pattern {pattern!r} is empty or leads out of the source: give a glob that is relative to its "
                    'location, such as "*.md" or "docs/**/*.md"'
                )
        return patterns

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        for name, kinds in _FIELD_KINDS.items():
            is_set = (
                getattr(self, name) != type(self).model_fields[name].default
            )  # a saved configuration names all fields
            if is_set and self.kind not in kinds:
                raise ValueError(
                    f"source {self.name!r} has kind {self.kind!r}, and {name} is a field of {' and '.join(kinds)}: "
                    f"remove {name}, or correct the kind"
                )
        if self.document == "line" and self.oversize == "split":
            raise ValueError(
                f'source {self.name!r} has document = "line" and oversize = "split", but lines are not cut: '
                'remove oversize, or set document = "file"'
            )
        return self
