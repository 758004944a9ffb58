"""Work units: sources cut into pieces of like size, and the reading of one piece.

In: sources. Out: units in a fixed order: the same listing gives the same units. A unit is what a worker does at a stretch
and what a killed run repeats. Big files are cut where a record begins anew without what comes before: JSONL and text at line
or paragraph, WARC at a gzip member, all by ranges of bytes in which records begin; Parquet by row groups. Small files go
together; a repository, an archive and a compressed file are whole; annotations of a source are one unit.
Content that cannot be read, or a file that is gone, becomes a Rejected; a disk or network that fails and a lack of permission
raise, so that the unit is run again.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow.fs as pafs

from train.data.annotations import read_annotations
from train.data.books import read_book
from train.data.common_crawl import CommonCrawlConfig, CommonCrawlProcessor
from train.data.document import RawDocument, Rejected
from train.data.language import SOURCE_LANGUAGE
from train.data.lines import WatchedFile, compression_of
from train.data.listing import (
    LEADS_OUT,
    InputFile,
    Location,
    describe_os_error,
    explain_access,
    leads_out,
    list_files,
    open_location,
)
from train.data.parquet_rows import BROKEN, open_parquet, read_parquet
from train.data.readers import cell_bytes, read_text
from train.data.records import read_jsonl
from train.data.repositories import list_repositories
from train.data.source_code import CodeConfig, CodeDataProcessor
from train.data.source_config import SourceConfig, SourceKind

LEAST_BYTES = 4 << 10
"""What opening a file costs, as bytes: bounds the number of small files in a unit."""

Items = Iterator[RawDocument | Rejected]


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of one source. `start` and `stop` are bytes, or row groups of Parquet; stop None: to the end.

    `paths` are relative to the source's location; only a single path is ever cut. `size_bytes` is the input's. `fingerprint`
    changes when an input does (path, size, time of change or ETag). `rejected`: what planning refused, on a source's first
    unit.
    """

    index: int
    source: str
    paths: tuple[str, ...]
    start: int
    stop: int | None
    size_bytes: int
    fingerprint: str
    rejected: tuple[Rejected, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a plan file: equal to what JSON gives back."""
        row = dataclasses.asdict(self)
        return {**row, "paths": list(row["paths"]), "rejected": list(row["rejected"])}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Unit":
        """What `to_json` gave."""
        refused = tuple(Rejected(**item) for item in row["rejected"])
        return cls(**{**row, "paths": tuple(row["paths"]), "rejected": refused})


class ReadConfig(Protocol):
    """What reading needs of a pipeline's configuration."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]: ...

    @property
    def web(self) -> CommonCrawlConfig: ...

    @property
    def code(self) -> CodeConfig: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """A file, or a range of one."""

    file: InputFile
    start: int
    stop: int | None
    size_bytes: int


def plan_units(sources: Iterable[SourceConfig]) -> list[Unit]:
    """The units of all sources, in the order of the sources and, within one, of the paths.

    Raises: ValueError if a location does not exist; EmptySource if it holds nothing to read; NoAccess if it may not be read.
    """
    units: list[Unit] = []
    for source in sources:
        location = open_location(source)
        list_source = list_repositories if source.kind == "code" else list_files
        with explain_access(source):
            listing = list_source(source, location=location)
            pieces = [piece for file in listing.files for piece in _cut(file, source=source, location=location)]
        for number, group in enumerate(_group(pieces, source=source)):
            units.append(
                Unit(
                    index=len(units),
                    source=source.name,
                    paths=tuple(piece.file.path for piece in group),
                    start=group[0].start,
                    stop=group[0].stop,
                    size_bytes=sum(piece.size_bytes for piece in group),
                    fingerprint=_fingerprint(group),
                    rejected=tuple(listing.rejected) if number == 0 else (),
                )
            )
    return units


def read_unit(unit: Unit, config: ReadConfig, *, counts: Counter[str] | None = None) -> Items:
    """The documents of a unit, and what was no document, in a fixed order. `counts` gets what CommonCrawlProcessor counts.

    Raises: OSError if a disk or network fails; NoAccess if a file may not be read.
    """
    source = next((source for source in config.sources if source.name == unit.source), None)
    if source is None:
        raise ValueError(f"unit {unit.index} belongs to source {unit.source!r}, which the configuration does not have")
    location = open_location(source)
    yield from unit.rejected
    for item in KINDS[source.kind](unit, source, location, config, Counter() if counts is None else counts):
        yield _complete(item, source=source) if isinstance(item, RawDocument) else item


def _complete(document: RawDocument, *, source: SourceConfig) -> RawDocument:
    """With what is known of its source; what its reader said of the document itself stays."""
    known = {"kind": source.kind, "licence": source.licence, SOURCE_LANGUAGE: source.language}
    metadata = {**{key: value for key, value in known.items() if value}, **document.metadata}
    return dataclasses.replace(document, metadata=metadata)


def _cut(file: InputFile, *, source: SourceConfig, location: Location) -> list[_Piece]:
    """The pieces of a file: itself, if it is small or has no place to cut."""
    is_plain = compression_of(file.path) is None
    step = -(-file.size_bytes // max(1, -(-file.size_bytes // source.unit_bytes)))
    if file.size_bytes > source.unit_bytes:
        if source.kind == "parquet":
            return _cut_row_groups(file, source=source, location=location)
        if source.kind == "web" or (is_plain and (source.kind == "jsonl" or source.document == "line")):
            return _cut_bytes(file, step=step)
        if is_plain and source.kind == "text" and source.oversize == "split":
            cell = cell_bytes(source)
            return _cut_bytes(file, step=max(source.unit_bytes // cell, 1) * cell)
    return [_Piece(file, 0, None, file.size_bytes)]


def _cut_bytes(file: InputFile, *, step: int) -> list[_Piece]:
    stops = [*range(step, file.size_bytes, step), None]
    starts = range(0, file.size_bytes, step)
    return [
        _Piece(file, start, stop, (stop or file.size_bytes) - start) for start, stop in zip(starts, stops, strict=True)
    ]


def _cut_row_groups(file: InputFile, *, source: SourceConfig, location: Location) -> list[_Piece]:
    """By uncompressed size, which is the work. A file without a readable footer stays whole: its reader says why."""
    try:
        with WatchedFile(location.filesystem.open_input_file(file.path)) as opened:
            metadata = open_parquet(opened).metadata
            sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    except BROKEN:
        return [_Piece(file, 0, None, file.size_bytes)]
    pieces: list[_Piece] = []
    start = num_bytes = 0
    for group, size in enumerate(sizes):
        if group > start and num_bytes + size > source.unit_bytes:
            pieces.append(_Piece(file, start, group, num_bytes))
            start, num_bytes = group, 0
        num_bytes += size
    return [*pieces, _Piece(file, start, None, num_bytes)]


def _group(pieces: list[_Piece], *, source: SourceConfig) -> Iterator[list[_Piece]]:
    """Small whole files together, in order; every other piece alone."""
    if source.kind == "annotations":
        yield pieces
        return
    group: list[_Piece] = []
    num_bytes = 0
    for piece in pieces:
        is_alone = source.kind == "code" or piece.start > 0 or piece.stop is not None
        cost = max(piece.size_bytes, LEAST_BYTES)
        if group and (is_alone or num_bytes + cost > source.unit_bytes):
            yield group
            group, num_bytes = [], 0
        group.append(piece)
        num_bytes += cost
        if is_alone:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _fingerprint(group: list[_Piece]) -> str:
    digest = hashlib.sha256()
    for piece in group:
        file = piece.file
        digest.update(f"{file.path}\0{file.size_bytes}\0{file.stamp}\0{piece.start}\0{piece.stop}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Place:
    """One file of a unit, or its range."""

    filesystem: pafs.FileSystem
    path: str
    start: int
    stop: int | None
    source: SourceConfig
    config: ReadConfig
    counts: Counter[str]


Reader = Callable[[Unit, SourceConfig, Location, ReadConfig, Counter[str]], Items]


def _each(read: Callable[[_Place], Items]) -> Reader:
    """A reader of units out of a reader of one file. A file that is gone is refused, the others are read."""

    def read_files(
        unit: Unit, source: SourceConfig, location: Location, config: ReadConfig, counts: Counter[str]
    ) -> Items:
        for path in unit.paths:
            if location.is_local and leads_out(location.root, path):  # it may have become a link since the plan
                yield Rejected(path, *LEADS_OUT)
                continue
            try:
                with explain_access(source, path):
                    yield from read(_Place(location.filesystem, path, unit.start, unit.stop, source, config, counts))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                yield Rejected(path, describe_os_error(error), "restore the file")

    return read_files


def _read_together(
    unit: Unit, source: SourceConfig, location: Location, config: ReadConfig, counts: Counter[str]
) -> Items:
    with explain_access(source):
        yield from read_annotations(location.filesystem, unit.paths, source=source)


KINDS: dict[SourceKind, Reader] = {
    "web": _each(
        lambda at: CommonCrawlProcessor(at.config.web, counts=at.counts).read(
            at.filesystem, at.path, source_id=at.source.name, start=at.start, stop=at.stop
        )
    ),
    "code": _each(lambda at: CodeDataProcessor(at.config.code).read(at.filesystem, at.path, source_id=at.source.name)),
    "text": _each(lambda at: read_text(at.filesystem, at.path, source=at.source, start=at.start, stop=at.stop)),
    "jsonl": _each(lambda at: read_jsonl(at.filesystem, at.path, source=at.source, start=at.start, stop=at.stop)),
    "parquet": _each(lambda at: read_parquet(at.filesystem, at.path, source=at.source, start=at.start, stop=at.stop)),
    "book": _each(lambda at: read_book(at.filesystem, at.path, source=at.source)),
    "annotations": _read_together,
}
