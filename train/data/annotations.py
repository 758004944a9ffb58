"""What people wrote or judged, as raw documents.

In: the JSONL files of one source. One object per line, with
    what:  "instruction" (and "input") with "response", or "messages": [{"role": str, "content": str}, ...], or "text"
    how:   "labels" (a string, a list of strings, or an object), "rating" (a number); at least one, but for messages and
           instructions, which are worth keeping without a judgement
    who:   "annotator" (a string or number), which leaves as a pseudonym
    which: "item" (a string or number); without it, records with the same text are the same item
Other fields are ignored. Out: RawDocument whose text follows TEMPLATE, never with the judgement in it, and whose metadata
has kind = "annotation", item, annotator, labels, rating, and annotations (how many its item has). Where those disagree all
are kept, and each has conflict = how many different judgements there are. Two passes: an item's judgements are all known
before its first document goes out.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from train.data.document import RawDocument, Rejected, document_id
from train.data.readers import BadContent, describe_limit, file_time
from train.data.records import as_content, read_records
from train.data.source_config import SourceConfig

KIND = "annotation"
TEMPLATE = "### {role}\n{content}\n\n"
"""Once per turn; an instruction is the turn of User, its response that of Assistant. "text" stands alone."""

MAX_ITEMS = 2_000_000
"""Items whose judgements are compared, some 200 bytes each; later ones go out without a comparison."""

_FIX = "see the fields at the head of annotations.py"


class _Annotation(NamedTuple):
    item: str
    judgement: str
    content: bytes
    metadata: dict[str, str]


class _Tally:
    """Judgements of one item: digests only."""

    __slots__ = ("judgements", "num_records")

    def __init__(self) -> None:
        self.judgements: set[bytes] = set()
        self.num_records = 0


def read_annotations(
    filesystem: pafs.FileSystem, paths: Sequence[str], *, source: SourceConfig
) -> Iterator[RawDocument | Rejected]:
    """All files of a source together, because its conflicts cross files."""
    tallies: dict[bytes, _Tally] = {}
    for path in paths:
        for item in read_records(filesystem, path, source=source):
            if isinstance(item, Rejected):
                continue
            try:
                annotation = _parse(item.fields, source=source, is_utf8=item.is_utf8)
            except BadContent:
                continue
            key = _digest(annotation.item)
            if key in tallies or len(tallies) < MAX_ITEMS:
                tally = tallies.setdefault(key, _Tally())
                tally.num_records += 1
                if annotation.judgement:
                    tally.judgements.add(_digest(annotation.judgement))
    for path in paths:
        happened_at = file_time(filesystem, path)
        for item in read_records(filesystem, path, source=source):
            if isinstance(item, Rejected):
                yield item
                continue
            try:
                annotation = _parse(item.fields, source=source, is_utf8=item.is_utf8)
            except BadContent as error:
                yield Rejected(path, f"{item.line} {error}", error.fix, offset=item.offset, lost_bytes=item.size_bytes)
                continue
            metadata = {"path": path, "offset": str(item.offset), **annotation.metadata}
            tally = tallies.get(_digest(annotation.item), _Tally())
            metadata["annotations"] = str(max(tally.num_records, 1))
            if len(tally.judgements) > 1:
                metadata["conflict"] = str(len(tally.judgements))
            yield RawDocument(
                id=document_id(source.name, relative_path=f"{path}#{item.offset}"),
                source_id=source.name,
                title="",
                content=annotation.content,
                media_type="text/plain",
                happened_at=happened_at,
                metadata=metadata,
            )


def pseudonym(annotator: str, *, source_name: str) -> str:
    """The same person has the same one within a source. It hides a name from a reader of the data, not from someone who
    tries all names: keep the list of annotators elsewhere."""
    return hashlib.blake2b(annotator.encode("utf-8", "replace"), key=source_name.encode(), digest_size=8).hexdigest()


def _parse(fields: Mapping[str, Any], *, source: SourceConfig, is_utf8: bool) -> _Annotation:
    text, is_dialogue = _render(fields)
    content = as_content(text, is_utf8=is_utf8)
    if len(content) > source.max_document_bytes:
        reason, fix = describe_limit(len(content), source=source)
        raise BadContent(f"has a text that {reason}", fix=fix)
    labels, rating = _labels(fields.get("labels")), _rating(fields.get("rating"))
    if not is_dialogue and labels is None and rating is None:
        raise BadContent("has a text but neither labels nor a rating", fix=_FIX)
    item = _identity(fields, "item") or hashlib.sha256(content).hexdigest()[:32]
    metadata = {"kind": KIND, "item": item}
    if (annotator := _identity(fields, "annotator")) is not None:
        metadata["annotator"] = pseudonym(annotator, source_name=source.name)
    if labels is not None:
        metadata["labels"] = labels
    if rating is not None:
        metadata["rating"] = rating
    return _Annotation(item, labels if labels is not None else rating or "", content, metadata)


def _render(fields: Mapping[str, Any]) -> tuple[str, bool]:
    """(text by the template, whether it is a dialogue)."""
    if "messages" in fields:
        turns = [_turn(message) for message in _list(fields["messages"])]
    elif "instruction" in fields or "response" in fields:
        parts = [
            _string(fields, name) for name in ("instruction", "input") if name == "instruction" or fields.get(name)
        ]
        turns = [("User", "\n\n".join(parts)), ("Assistant", _string(fields, "response"))]
    elif "text" in fields:
        return _string(fields, "text"), False
    else:
        there = ", ".join(sorted(map(str, fields))[:20]) or "none"
        raise BadContent(
            f"has neither messages, nor instruction and response, nor text (its fields: {there})", fix=_FIX
        )
    return "".join(TEMPLATE.format(role=role, content=content.strip()) for role, content in turns).strip(), True


def _turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise BadContent("has a message that is no object with role and content", fix=_FIX)
    return _string(message, "role").capitalize(), _string(message, "content")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadContent("has messages that are no list, or an empty one", fix=_FIX)
    return value


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadContent(f"has no text in {name!r}", fix=_FIX)
    return value


def _labels(value: Any) -> str | None:
    """A canonical form, so that the order of labels makes no conflict."""
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return ", ".join(sorted(value))
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    raise BadContent(f"has labels of type {type(value).__name__}", fix="give a string, a list of strings, or an object")


def _rating(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadContent(f"has the rating {value!r}", fix="give a number")
    return f"{value:.12g}"


def _identity(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadContent(f"has {name} {value!r}", fix="give a string or a whole number")
    return str(value)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
