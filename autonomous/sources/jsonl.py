"""A file of JSON Lines that others append to.

The cursor is a byte offset with hashes of the file's first bytes and of those before the offset. A file that was renamed away
(rotation: log.jsonl.1, log.jsonl-20260131) is read to its end under its new name, then those that were renamed after it, then
the one in its place from the start; one that was cut off or written anew is read from the start, and what is known to have
been missed is told. Only lines with an end are read: the rest is still being written.
"""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs

from autonomous.sources.batch import Cursor, ReadLimit, SourceBatch, SourceProblem
from autonomous.sources.config import HttpSource, JsonlSource
from memory.store import no_guard
from memory.types import Guard
from train.data.document import RawDocument, Rejected, describe_binary, document_id
from train.data.readers import BadContent
from train.data.records import Record, make_document, read_records
from train.data.source_config import SourceConfig as RecordRules

HEAD_BYTES = 4096
TAIL_BYTES = 256
"""By the bytes at these two places a file is known again."""
SCAN_BYTES = 1 << 16
ROTATED = re.compile(r"[.-][0-9][0-9TZ_.:-]*")
"""What rotation puts behind the name."""
BINARY_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Place:
    """Where reading goes on: in which file, from which byte, and whether it still grows."""

    path: Path
    offset: int
    is_rotated: bool = False
    notice: Rejected | None = None


class JsonlReader:
    """See the module."""

    def __init__(self, config: JsonlSource, *, max_document_bytes: int) -> None:
        self._config = config
        self._rules = record_rules(config, max_document_bytes=max_document_bytes)

    def read(self, cursor: Cursor, limit: ReadLimit, *, guard: Guard = no_guard) -> SourceBatch:
        """See Reader."""
        guard()
        place = self._find(cursor)
        if place is None:
            return SourceBatch(cursor)
        with place.path.open("rb") as file:
            status = os.fstat(file.fileno())
            size_bytes = status.st_size
            if place.offset == 0 and (problem := describe_binary(file.read(BINARY_PROBE_BYTES))):
                raise SourceProblem(
                    f"path = '{place.path}' of source {self._config.id!r} {problem}: give a JSON Lines file"
                )
            end = size_bytes if place.is_rotated else _end_of_lines(file, size_bytes, start=place.offset)
        documents, refused, offset = self._documents(place, end, limit, guard)
        refused = [place.notice, *refused] if place.notice else refused
        if offset < end:
            return SourceBatch(self._cursor(place.path, offset), documents, refused, is_exhausted=False)
        if place.is_rotated:
            if place.path.stat().st_size > size_bytes:  # a writer still had it open
                return SourceBatch(self._cursor(place.path, offset), documents, refused, is_exhausted=False)
            behind = {"behind": status.st_mtime_ns}
            return SourceBatch(behind, documents, refused, is_exhausted=self._find(behind) is None)
        return SourceBatch(self._cursor(place.path, offset), documents, refused)

    def _documents(
        self, place: _Place, end: int, limit: ReadLimit, guard: Guard
    ) -> tuple[list[RawDocument], list[Rejected], int]:
        documents: list[RawDocument] = []
        refused: list[Rejected] = []
        offset, num_bytes = place.offset, 0
        happened_at = place.path.stat().st_mtime
        folder = pafs.SubTreeFileSystem(str(place.path.parent), pafs.LocalFileSystem())
        for item in read_records(folder, place.path.name, source=self._rules, start=place.offset, stop=end):
            guard()
            if isinstance(item, Rejected):
                refused.append(item)
                offset = (offset if item.offset is None else item.offset) + item.lost_bytes
            else:
                offset = item.offset + item.size_bytes
                made = record_document(item, path=self._config.path.name, rules=self._rules, happened_at=happened_at)
                (documents if isinstance(made, RawDocument) else refused).append(made)  # type: ignore[arg-type]
                num_bytes += item.size_bytes
            if len(documents) + len(refused) >= limit.num_documents or num_bytes >= limit.num_bytes:
                return documents, refused, offset
        return documents, refused, end

    def _find(self, cursor: Cursor) -> _Place | None:
        """None: there is no file (yet), and nothing is left of one that was there."""
        path = self._config.path
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise SourceProblem(
                f"path = '{path}' of source {self._config.id!r} is no file in a folder that is there: correct the path"
            )
        if "offset" not in cursor:
            rotated = [one for one in _siblings(path) if _changed_at(one) > cursor["behind"]] if cursor else []
            if rotated:
                return _Place(rotated[0], 0, is_rotated=True)
            return _Place(path, 0) if path.is_file() else None
        if path.is_file() and _is_known(path, cursor):
            return _Place(path, cursor["offset"])
        for sibling in _siblings(path):
            if _is_known(sibling, cursor) and (cursor["offset"] or sibling.stat().st_ino == cursor["inode"]):
                return _Place(sibling, cursor["offset"], is_rotated=True)
        if not path.is_file():
            return None
        notice = None
        if cursor["size"] > cursor["offset"]:
            missed = f"{cursor['size'] - cursor['offset']:,} bytes behind byte {cursor['offset']:,}"
            reason = f"was cut off or replaced before {missed} were read"
            notice = Rejected(path.name, reason, "rotate by renaming, and keep the old file beside the new one")
        return _Place(path, 0, notice=notice)

    def _cursor(self, path: Path, offset: int) -> Cursor:
        status = path.stat()
        head, tail = _hashes(path, offset)
        return {"offset": offset, "inode": status.st_ino, "size": status.st_size, "head": head, "tail": tail}


def record_rules(config: JsonlSource | HttpSource, *, max_document_bytes: int) -> RecordRules:
    """How fields of a record become a document: the rules of the token pipeline."""
    return RecordRules(
        name=config.id,
        kind="jsonl",
        location="-",
        max_document_bytes=max(max_document_bytes, 1 << 10),
        text_field=config.text_field,
        id_field=config.id_field,
        title_field=config.title_field,
        time_field=config.time_field,
    )


def record_document(record: Record, *, path: str, rules: RecordRules, happened_at: float) -> RawDocument | Rejected:
    """A record's document. Without an id of its own it has that of its text, so it is the same in whichever file it lies."""
    try:
        made = make_document(
            record.fields,
            path=path,
            offset=record.offset,
            source=rules,
            happened_at=happened_at,
            is_utf8=record.is_utf8,
        )
    except BadContent as error:
        return Rejected(path, f"{record.line} {error}", error.fix, record.offset, record.size_bytes)
    if rules.id_field is not None:
        return made
    content = made.content.encode() if isinstance(made.content, str) else made.content
    key = f"text:{hashlib.sha256(content).hexdigest()}"
    return replace(made, id=document_id(rules.name, relative_path=key))


def _siblings(path: Path) -> list[Path]:
    """Files that rotation renamed, the one that was changed first before others."""
    with os.scandir(path.parent) as entries:
        named = [entry for entry in entries if entry.name.startswith(path.name)]
    rotated = [entry for entry in named if ROTATED.fullmatch(entry.name.removeprefix(path.name))]
    files = [Path(entry.path) for entry in rotated if entry.is_file(follow_symlinks=False)]
    return sorted(files, key=lambda file: (_changed_at(file), file.name))


def _changed_at(path: Path) -> int:
    """Nanoseconds since the epoch; 0 for what is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _is_known(path: Path, cursor: Cursor) -> bool:
    """Whether a file is the one that was read, by its bytes: inode numbers are used again, and copies have others."""
    try:
        if path.stat().st_size < cursor["offset"]:
            return False
        return _hashes(path, cursor["offset"]) == (cursor["head"], cursor["tail"])
    except FileNotFoundError:
        return False


def _hashes(path: Path, offset: int) -> tuple[str, str]:
    with path.open("rb") as file:
        head = file.read(min(HEAD_BYTES, offset))
        file.seek(max(0, offset - TAIL_BYTES))
        tail = file.read(min(TAIL_BYTES, offset))
    return hashlib.sha256(head).hexdigest(), hashlib.sha256(tail).hexdigest()


def _end_of_lines(file: BinaryIO, size_bytes: int, *, start: int) -> int:
    """The place behind the last line end; `start` if there is none behind it."""
    stop = size_bytes
    while stop > start:
        begin = max(start, stop - SCAN_BYTES)
        file.seek(begin)
        found = file.read(stop - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        stop = begin
    return start
