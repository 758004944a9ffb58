"""An address as a source: a JSON list page by page, JSON Lines, or one page of text.

One answer is held as it came and read batch by batch. The cursor is the page, the item in it, and what tells whether a first
page without a next one is new (ETag, Last-Modified, else its hash): behind one that stays the same, others may grow. A page
that is fetched again after a restart is read from its first item: what was handed on before is known by its hash and left out.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from autonomous.sources.batch import Cursor, Known, Mark, ReadLimit, SourceBatch, SourceProblem
from autonomous.sources.config import HttpSource, shown_url
from autonomous.sources.http_address import is_public, permit_all
from autonomous.sources.http_fetch import Answer, FetchBounds, Fetcher, joined
from autonomous.sources.jsonl import record_document, record_rules
from memory.store import no_guard
from memory.types import Guard
from train.data.document import RawDocument, Rejected, describe_content, describe_oversize, document_id
from train.data.lines import Damaged, read_lines
from train.data.records import LINE_FACTOR, Record, find, parse_line

MAX_PAGES = 10_000
"""Pages of one pass: an answer that always names a next one would never end."""
MAX_MARKS = 100_000
"""Records whose hashes are kept; one that is older is handed on again, which changes nothing."""
_LISTS = ("items", "results", "data")
_JSON_FIX = "give an address that answers with a list of objects, or name the list's field in items_field"


@dataclass(frozen=True, slots=True)
class _Held:
    """An answer and the address that was asked for it."""

    asked: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Found:
    """An item of an answer; `behind` is the index that reading goes on from."""

    item: RawDocument | Rejected
    behind: int
    size_bytes: int


class HttpReader:
    """See the module."""

    def __init__(
        self,
        config: HttpSource,
        *,
        known: Known,
        max_document_bytes: int,
        fetcher: Fetcher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._known = known
        self._max_bytes = max_document_bytes
        self._rules = record_rules(config, max_document_bytes=max_document_bytes)
        self._fetcher = fetcher or Fetcher(
            FetchBounds(config.max_response_bytes, config.timeout_s),
            origin=config.url,
            token_env=config.token_env,
            permits=permit_all if config.allow_private else is_public,
        )
        self._clock = clock
        self._held: _Held | None = None

    def read(self, cursor: Cursor, limit: ReadLimit, *, guard: Guard = no_guard) -> SourceBatch:
        """See Reader."""
        guard()
        url = str(cursor.get("url") or self._first_url(cursor))
        index = int(cursor.get("index", 0))
        if index == 0 or self._held is None or self._held.asked != url:
            index = 0
            validators = cursor.get("validators", {})
            same = validators if validators.get("url") == url else {}
            answer = self._fetcher.fetch(
                url, etag=same.get("etag", ""), last_modified=same.get("last_modified", ""), guard=guard
            )
            if answer.is_unchanged or (same and same["sha256"] == _sha256(answer.body)):
                self._held = None
                return SourceBatch(cursor)
            self._held = _Held(url, answer)
        answer = self._held.answer
        parsed, items = self._items(answer, index)
        found, index, is_end = self._take(items, index, limit, guard)
        documents = [one for one in found if isinstance(one, RawDocument)]
        refused = [one for one in found if isinstance(one, Rejected)]
        before = self._known.marks_of(self._config.id, [one.id for one in documents])
        marks: dict[str, Mark | None] = {one.id: Mark(one.id, "", _hash_of(one)) for one in documents}
        documents = [one for one in documents if before.get(one.id) != marks[one.id]]
        cursor = {**cursor, "url": url, "index": index}
        if is_end:
            self._held = None
            cursor = self._behind_page(cursor, answer, parsed, is_empty=index == 0)
        is_exhausted = is_end and "url" not in cursor
        return SourceBatch(cursor, documents, refused, marks=marks, max_marks=MAX_MARKS, is_exhausted=is_exhausted)

    # -- pages

    def _first_url(self, cursor: Cursor) -> str:
        token = str(cursor.get("token", ""))
        return _with_parameter(self._config.url, self._config.cursor_parameter, token) if token else self._config.url

    def _behind_page(self, cursor: Cursor, answer: Answer, parsed: Any, *, is_empty: bool) -> Cursor:
        """The cursor on the next page, or, without "url", behind the last one."""
        page = int(cursor.get("page", 0))
        token = str(cursor.get("token", ""))
        new_token, next_url = self._next(answer, parsed, token)
        validators = {} if page or next_url else {
            "url": cursor["url"], "etag": answer.etag, "last_modified": answer.last_modified, "sha256": _sha256(answer.body),
        }  # fmt: skip
        behind = {"validators": validators, "token": new_token}
        if not next_url or next_url == cursor["url"] or is_empty or page + 1 >= MAX_PAGES:
            return behind
        return {**behind, "url": next_url, "index": 0, "page": page + 1}

    def _next(self, answer: Answer, parsed: Any, token: str) -> tuple[str, str]:
        """The cursor to keep, and the address of the next page."""
        value = find(parsed, self._config.next_field) if isinstance(parsed, dict) and self._config.next_field else None
        if self._config.cursor_parameter:
            new = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
            if not new or new == token:
                return token, ""
            return new, _with_parameter(self._config.url, self._config.cursor_parameter, new)
        link = answer.next_link or (value if isinstance(value, str) else "")
        return "", joined(answer.url, link) if link else ""

    # -- items

    def _items(self, answer: Answer, start: int) -> tuple[Any, Iterator[_Found]]:
        """The parsed JSON if it is such, and what follows from an index on."""
        match self._format(answer):
            case "json":
                parsed = self._parsed(answer)
                return parsed, self._json_items(self._list_in(parsed, answer), start, answer)
            case "jsonl":
                return None, self._lines(answer, start)
            case _:
                page = self._page(answer)
                return None, iter([_Found(page, 1, len(answer.body))] if start == 0 else [])

    def _format(self, answer: Answer) -> str:
        if self._config.format != "auto":
            return self._config.format
        kind, path = answer.content_type, urlsplit(answer.url).path.lower()
        if any(mark in kind for mark in ("ndjson", "jsonl", "jsonlines")) or path.endswith((".jsonl", ".ndjson")):
            return "jsonl"
        return "json" if kind.endswith("json") or (not kind and path.endswith(".json")) else "page"

    def _parsed(self, answer: Answer) -> Any:
        try:
            text = answer.body.decode(answer.charset) if answer.charset else answer.body
            return json.loads(text)
        except (ValueError, LookupError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            raise SourceProblem(f"{shown_url(answer.url)} answers with no JSON ({reason}): {_JSON_FIX}") from None

    def _list_in(self, parsed: Any, answer: Answer) -> list[Any]:
        names = (self._config.items_field,) if self._config.items_field else _LISTS
        candidates = [parsed] if isinstance(parsed, list) else []
        candidates += [find(parsed, name) for name in names] if isinstance(parsed, dict) else []
        for candidate in candidates:
            if isinstance(candidate, list):
                return candidate
        there = ", ".join(sorted(parsed)[:20]) if isinstance(parsed, dict) else type(parsed).__name__
        raise SourceProblem(f"{shown_url(answer.url)} answers without a list ({there}): {_JSON_FIX}")

    def _json_items(self, values: list[Any], start: int, answer: Answer) -> Iterator[_Found]:
        path = shown_url(answer.url)
        for number in range(start, len(values)):
            value = values[number]
            if isinstance(value, Mapping):
                record = Record(number, 0, f"item {number + 1}", value, is_utf8=True)
                made = record_document(record, path=path, rules=self._rules, happened_at=self._clock())
            else:
                made = Rejected(
                    path, f"item {number + 1} is a JSON {type(value).__name__}, not an object", _JSON_FIX, number
                )
            yield _Found(made, number + 1, len(made.content) if isinstance(made, RawDocument) else 0)

    def _lines(self, answer: Answer, start: int) -> Iterator[_Found]:
        path = shown_url(answer.url)
        file: Any = io.BytesIO(answer.body)  # it has what is used of a BufferedReader
        for line in read_lines(file, start=start, max_bytes=LINE_FACTOR * self._rules.max_document_bytes):
            assert not isinstance(line, Damaged), "nothing is decompressed"
            record = parse_line(line, path=path, name=f"line at byte {line.offset:,}", source=self._rules)
            if record is None:
                continue
            made: RawDocument | Rejected = (
                record
                if isinstance(record, Rejected)
                else record_document(record, path=path, rules=self._rules, happened_at=self._clock())
            )
            yield _Found(made, line.offset + line.size_bytes, line.size_bytes)

    def _page(self, answer: Answer) -> RawDocument | Rejected:
        path = shown_url(answer.url)
        if len(answer.body) > self._max_bytes:
            return Rejected(path, *describe_oversize(len(answer.body), max_bytes=self._max_bytes))
        if problem := describe_content(answer.body):
            reason, fix = problem
            return Rejected(path, f"{reason} (its content type is {answer.content_type or 'not told'})", fix)
        content: bytes | str = answer.body
        if answer.charset:
            try:
                content = answer.body.decode(answer.charset)
            except (UnicodeDecodeError, LookupError):
                content = answer.body  # the header is wrong: the cleaner finds out
        return RawDocument(
            id=document_id(self._config.id, relative_path=self._config.url),
            source_id=self._config.id,
            title="",
            content=content,
            media_type=answer.content_type or None,
            happened_at=_moment(answer.last_modified) or self._clock(),
            metadata={"path": path},
        )

    @staticmethod
    def _take(
        items: Iterator[_Found], index: int, limit: ReadLimit, guard: Guard
    ) -> tuple[list[RawDocument | Rejected], int, bool]:
        """As many as a batch holds, the index behind them, and whether that is the end of the answer."""
        taken: list[RawDocument | Rejected] = []
        num_bytes = 0
        for found in items:
            guard()
            taken.append(found.item)
            index, num_bytes = found.behind, num_bytes + found.size_bytes
            if len(taken) >= limit.num_documents or num_bytes >= limit.num_bytes:
                return taken, index, False
        return taken, index, True


def _with_parameter(url: str, name: str, value: str) -> str:
    parts = urlsplit(url)
    query = [(key, kept) for key, kept in parse_qsl(parts.query, keep_blank_values=True) if key != name]
    return urlunsplit(parts._replace(query=urlencode([*query, (name, value)])))


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _hash_of(document: RawDocument) -> str:
    content = document.content
    return _sha256(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
