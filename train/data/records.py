"""JSON records as raw documents, and how fields of a record become a document (Parquet rows use the same rules).

In: JSONL, plain or compressed, and a range of its bytes. Out: RawDocument, or Rejected that names file, byte offset, line and
field. One line is held at a time. Bytes that are not UTF-8 are no error here: the text goes on as bytes, for DataCleaner.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from train.data.document import RawDocument, Rejected, document_id
from train.data.lines import Damaged, Line, open_bytes, read_lines
from train.data.readers import DAMAGED_FIX, BadContent, describe_limit, file_time
from train.data.source_config import SourceConfig

LINE_FACTOR = 4
"""A line may have this many times max_document_bytes: "\\u00e9" writes two bytes as six, and other fields stand beside."""
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_MARK = b"\xef\xbb\xbf"
_JSON_FIX = "write one JSON object per line, in UTF-8"


class Record(NamedTuple):
    """One JSON object and where its line begins. If not `is_utf8`, surrogates in its strings stand for the odd bytes."""

    offset: int
    size_bytes: int
    line: str
    fields: Mapping[str, Any]
    is_utf8: bool


def read_jsonl(
    filesystem: pafs.FileSystem, path: str, *, source: SourceConfig, start: int = 0, stop: int | None = None
) -> Iterator[RawDocument | Rejected]:
    """Documents of the lines that begin in bytes [start, stop)."""
    happened_at = file_time(filesystem, path)
    for item in read_records(filesystem, path, source=source, start=start, stop=stop):
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            yield make_document(
                item.fields,
                path=path,
                offset=item.offset,
                source=source,
                happened_at=happened_at,
                is_utf8=item.is_utf8,
            )
        except BadContent as error:
            yield Rejected(path, f"{item.line} {error}", error.fix, offset=item.offset, lost_bytes=item.size_bytes)


def read_records(
    filesystem: pafs.FileSystem, path: str, *, source: SourceConfig, start: int = 0, stop: int | None = None
) -> Iterator[Record | Rejected]:
    """The JSON objects of a file, blank lines left out."""
    offset = start
    with open_bytes(filesystem, path) as file:
        lines = read_lines(file, start=start, stop=stop, max_bytes=LINE_FACTOR * source.max_document_bytes)
        for number, line in enumerate(lines, start=1):
            if isinstance(line, Damaged):
                yield Rejected(path, str(line), DAMAGED_FIX, offset=offset, lost_bytes=line.lost_bytes)
                return
            offset = line.offset + line.size_bytes
            name = f"line {number}" if start == 0 else f"line {number} after byte {start:,}"
            item = parse_line(line, path=path, name=name, source=source)
            if item is not None:
                yield item


def parse_line(line: Line, *, path: str, name: str, source: SourceConfig) -> Record | Rejected | None:
    """The JSON object of a line, which the reasons call `name`; None for a blank line."""
    reason, fix = "", _JSON_FIX
    if line.data is None:
        limit = LINE_FACTOR * source.max_document_bytes
        reason = f"has {line.size_bytes:,} bytes, above {LINE_FACTOR} x max_document_bytes = {limit:,}"
        fix = f"cut it, or raise max_document_bytes of source {source.name!r}"
        return Rejected(path, f"{name} {reason}", fix, offset=line.offset, lost_bytes=line.size_bytes)
    data = line.data.removeprefix(_MARK) if line.offset == 0 else line.data
    if not data.strip():
        return None
    text = data.decode("utf-8", "surrogateescape")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: hostile nesting
        reason = f"is no JSON ({error})" if isinstance(error, ValueError) else "is nested too deeply"
    else:
        if isinstance(fields, dict):
            is_utf8 = text.isascii() or not _ESCAPED_BYTE.search(text)
            return Record(line.offset, line.size_bytes, name, fields, is_utf8)
        reason = f"is a JSON {type(fields).__name__}, not an object"
    return Rejected(path, f"{name} {reason}", fix, offset=line.offset, lost_bytes=line.size_bytes)


def make_document(
    fields: Mapping[str, Any], *, path: str, offset: int, source: SourceConfig, happened_at: float, is_utf8: bool = True
) -> RawDocument:
    """Raises BadContent. `offset` is where the record begins: a byte of JSONL, a row of Parquet."""
    content = as_content(require(fields, source.text_field), is_utf8=is_utf8)
    if len(content) > source.max_document_bytes:
        reason, fix = describe_limit(len(content), source=source)
        raise BadContent(f"has a text that {reason}", fix=fix)
    if not content.strip():
        raise BadContent(f"has an empty {source.text_field!r}", fix="nothing to do, or write its text")
    metadata = {"path": path, "offset": str(offset)}
    key = f"{path}#{offset}"
    if source.id_field is not None:
        metadata["record_id"] = _as_text(require(fields, source.id_field))
        key = f"id:{metadata['record_id']}"
    if source.licence_field is not None and (licence := find(fields, source.licence_field)):
        metadata["licence"] = _as_text(licence)
    for name in source.metadata_fields:
        if (value := find(fields, name)) is not None:
            metadata[name] = _as_text(value)
    if source.time_field is not None:
        happened_at = _as_seconds(require(fields, source.time_field), name=source.time_field)
    return RawDocument(
        id=document_id(source.name, relative_path=key),
        source_id=source.name,
        title=_as_text(find(fields, source.title_field) or "") if source.title_field else "",
        content=content,
        media_type=source.media_type or "text/plain",
        happened_at=happened_at,
        metadata=metadata,
    )


def find(fields: Mapping[str, Any], name: str) -> Any:
    """The value under a dotted name, None if it is not there. A key that has the dots itself comes first."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def require(fields: Mapping[str, Any], name: str) -> Any:
    """Like `find`; raises BadContent that lists the fields there are."""
    value = find(fields, name)
    if value is None:
        there = ", ".join(sorted(map(str, fields))[:20]) or "none"
        raise BadContent(f"has no field {name!r} (its fields: {there})", fix="correct the field's name in the source")
    return value


def as_content(value: Any, *, is_utf8: bool = True) -> bytes:
    """The text as UTF-8, or as the bytes that its line has if that is not `is_utf8`. Raises BadContent for no text."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        found = type(value).__name__
        raise BadContent(f"has a text of type {found}, expected a string", fix="name the field that holds the text")
    try:
        return value.encode("utf-8", "strict" if is_utf8 else "surrogateescape")
    except UnicodeEncodeError:  # "\ud800" of JSON is half a character
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
    elif isinstance(value, str | int | float | datetime):
        text = str(value)
    else:
        text = json.dumps(value, default=str, sort_keys=True)
    return text.encode("utf-8", "replace").decode()  # half a character of JSON cannot be written


def _as_seconds(value: Any, *, name: str) -> float:
    moment = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            moment = None
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(moment, int | float) and not isinstance(moment, bool) and math.isfinite(moment):
        return float(moment)
    raise BadContent(f"has the time {value!r} in {name!r}", fix="write seconds since the epoch or ISO 8601")
