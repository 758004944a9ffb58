"""A folder, git repository or file into the running system, over POST /v1/knowledge.

In flows a path; out flows a `FeedReport`: what was stored, and each file that was not, with the reason and the fix. A
repeated feed changes nothing: document ids are the source's own.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.client import Client
from cluster.client_connection import Json
from cluster.client_errors import TryLater
from train.data.clean import CleanConfig, DataCleaner, NotText
from train.data.document import (
    BINARY_FIX,
    MEDIA_TYPES,
    EmptySource,
    RawDocument,
    Rejected,
    describe_binary,
    describe_oversize,
    document_id,
    read_source,
)

MAX_BATCH_DOCUMENTS = 32
MAX_BATCH_CHARS = 1 << 20
"""A request holds so much text at most, unless one document alone is larger."""
MAX_WAIT_S = 120.0
"""A server that asks to try later is asked for so long."""
MAX_TITLE_CHARS = 500
MAX_ID_CHARS = 512
MAX_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Refused:
    """A document that is neither recalled nor learned. `status`: unreadable (not sent), rejected or quarantined."""

    path: str
    status: str
    reason: str
    fix: str


@dataclass
class FeedReport:
    """What became of a source. Sizes in characters of text that was sent; `seconds` until the last acknowledgement."""

    source: str
    num_documents: int = 0
    num_stored: int = 0
    num_repeated: int = 0
    num_episodes: int = 0
    num_chars: int = 0
    last_seq: int = 0
    seconds: float = 0.0
    refused: list[Refused] = field(default_factory=list)
    acknowledged_at: dict[str, float] = field(default_factory=dict)
    """Document id -> time.time() at which the server had it on disk; only of documents that are new."""

    def to_json(self) -> Json:
        """For --json and the report of the guided run."""
        return {
            "source": self.source, "num_documents": self.num_documents, "num_stored": self.num_stored,
            "num_repeated": self.num_repeated, "num_refused": len(self.refused), "num_episodes": self.num_episodes,
            "num_chars": self.num_chars, "last_seq": self.last_seq, "seconds": round(self.seconds, 3),
            "refused": [vars(refused) for refused in self.refused],
        }  # fmt: skip


OnProgress = Callable[[FeedReport, int | None], None]
"""Called after each request with the report so far and the number of files, once that is known."""


def feed_source(client: Client, path: Path, *, max_file_bytes: int, on_progress: OnProgress) -> FeedReport:
    """Read everything under `path` and store it. Returns after the last document is durable.

    Raises ValueError for a path without a readable document, and the client's errors; what was acknowledged stays.
    """
    num_files = _count(path, max_file_bytes=max_file_bytes)
    report = FeedReport(source=str(path))
    start = time.monotonic()
    for batch in _batches(path, report, max_file_bytes=max_file_bytes):
        reply = _send(client, batch)
        for document, result in zip(batch, reply["documents"], strict=True):
            _record(report, document, result)
        report.last_seq = max(report.last_seq, int(reply.get("last_seq") or 0))
        report.seconds = time.monotonic() - start
        on_progress(report, num_files)
    on_progress(report, num_files)
    return report


def wait_until_indexed(
    client: Client, *, last_seq: int, on_progress: Callable[[int, int], None], timeout_s: float = 1800.0
) -> float:
    """Wait until everything up to `last_seq` can be found by meaning; returns the seconds it took.

    `on_progress(indexed, last_seq)`. Raises TimeoutError; indexing goes on.
    """
    start = time.monotonic()
    while True:
        memory = client.status().get("memory") or {}
        indexed = int(memory.get("indexed_seq") or 0)
        on_progress(min(indexed, last_seq), last_seq)
        if indexed >= last_seq:
            return time.monotonic() - start
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(
                f"only {indexed} of {last_seq} passages are indexed after {timeout_s:.0f} s: autonomous logs"
            )
        time.sleep(0.3)


def read_path(path: Path, *, max_file_bytes: int) -> Iterator[RawDocument | Rejected]:
    """The documents of a folder, a git repository or one file, which has the id that it has in its folder."""
    if not path.is_file():
        yield from read_source(path, max_file_bytes=max_file_bytes)
        return
    size_bytes = path.stat().st_size
    if size_bytes > max_file_bytes:
        yield Rejected(path.name, *describe_oversize(size_bytes, max_bytes=max_file_bytes))
        return
    content = path.read_bytes()
    if binary := "is empty" if not content.strip() else describe_binary(content):
        yield Rejected(path.name, binary, BINARY_FIX)
        return
    source_id = f"folder:{path.resolve().parent.name or 'root'}"
    yield RawDocument(
        id=document_id(source_id, relative_path=path.name), source_id=source_id, title=path.name, content=content,
        media_type=MEDIA_TYPES.get(path.suffix.lower()), happened_at=path.stat().st_mtime, metadata={"path": path.name},
    )  # fmt: skip


def _count(path: Path, *, max_file_bytes: int) -> int:
    """Files of the source. Raises EmptySource with the reasons if none of them can be read."""
    rejected: list[Rejected] = []
    num_files = 0
    try:
        for found in read_path(path, max_file_bytes=max_file_bytes):
            num_files += 1
            if isinstance(found, Rejected):
                rejected.append(found)
    except EmptySource as error:
        reasons = "; ".join(f"{one.path} {one.reason}: {one.fix}" for one in rejected[:MAX_SHOWN_REASONS])
        raise EmptySource(f"{error}{f' ({reasons})' if reasons else ''}") from error
    if path.is_file() and rejected:
        raise EmptySource(f"{path} {rejected[0].reason}: {rejected[0].fix}")
    return num_files


def _batches(path: Path, report: FeedReport, *, max_file_bytes: int) -> Iterator[list[Json]]:
    batch: list[Json] = []
    num_chars = 0
    for found in read_path(path, max_file_bytes=max_file_bytes):
        report.num_documents += 1
        if isinstance(found, Rejected):
            report.refused.append(
                Refused(path=str(found.path), status="unreadable", reason=found.reason, fix=found.fix)
            )
            continue
        try:
            document = _as_request(found)
        except NotText as error:
            report.refused.append(Refused(path=found.title, status="unreadable", reason=str(error), fix=BINARY_FIX))
            continue
        if batch and (len(batch) == MAX_BATCH_DOCUMENTS or num_chars + len(document["text"]) > MAX_BATCH_CHARS):
            yield batch
            batch, num_chars = [], 0
        batch.append(document)
        num_chars += len(document["text"])
        report.num_chars += len(document["text"])
    if batch:
        yield batch


def _as_request(document: RawDocument) -> Json:
    """The document as the API takes it: JSON carries text only, so other bytes than UTF-8 are decoded by our cleaner.

    Raises NotText if nothing readable is left. The server cleans and screens all text again.
    """
    content, media_type = document.content, document.media_type
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            clean = DataCleaner(CleanConfig(mask_pii=False)).clean(document)
            content, media_type = clean.text, "text/plain"
    request: dict[str, Any] = {
        "text": content,
        "id": document.id[:MAX_ID_CHARS],
        "source": document.source_id,
        "metadata": dict(document.metadata),
        "happened_at": document.happened_at,
    }
    if document.title:
        request["title"] = document.title[:MAX_TITLE_CHARS]
    if media_type:
        request["media_type"] = media_type
    return request


def _send(client: Client, batch: list[Json]) -> Json:
    """Store a batch. Repeated while the server asks to try later: storing is idempotent."""
    deadline = time.monotonic() + MAX_WAIT_S
    while True:
        try:
            return client.add_documents(batch)
        except TryLater as later:
            if time.monotonic() + later.retry_after_s > deadline:
                raise
            time.sleep(later.retry_after_s)


def _record(report: FeedReport, document: Json, result: Json) -> None:
    status = str(result["status"])
    report.num_episodes += int(result.get("num_episodes") or 0) if status == "stored" else 0
    if status == "stored":
        report.num_stored += 1
        report.acknowledged_at[str(result["id"])] = time.time()
    elif status == "repeated":
        report.num_repeated += 1
    else:
        reason = str(result.get("reason") or "no reason given")
        name = document["metadata"].get("path") or document.get("title") or document["id"]
        fix = "remove what the reason names and add it again" if status == "quarantined" else "see the reason"
        report.refused.append(Refused(path=str(name), status=status, reason=reason, fix=fix))
