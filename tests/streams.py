"""What the tests of sources share: a store of passages that a stream is read into, and readers driven batch by batch."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from autonomous.ingest import IngestConfig, prepare_document, stale_passages
from autonomous.safety.latch import Latch
from autonomous.safety.screen import SafetyScreen
from autonomous.sources.batch import Cursor, Reader, ReadLimit, SourceBatch
from autonomous.sources.config import SourceConfig
from autonomous.sources.cursors import CursorStore
from autonomous.sources.stream import Outcome, StreamReader
from tests.episodes import open_memory
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument

MAX_DOCUMENT_BYTES = 64 << 10
CLEANER, SCREEN = DataCleaner(CleanConfig()), SafetyScreen("high")
ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)


def source(**fields: Any) -> SourceConfig:
    """A configuration as TOML gives it."""
    return ADAPTER.validate_python({"id": "src", "interval_s": 10.0, **fields})


def jsonl(folder: Path, name: str, *texts: str) -> dict[str, Any]:
    """A source of lines, and its fields."""
    with (folder / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return {"id": name, "kind": "jsonl", "path": str(folder / f"{name}.jsonl")}


def numbered(word: str, count: int) -> list[str]:
    """Sentences that differ."""
    return [f"The {word} number {n} is kept in shelf {n * 7}." for n in range(count)]


class PassageStore:
    """A real episodic memory behind `ingest`, as the episodic actor has it. `failures` are raised first, one per call."""

    def __init__(self, folder: Path, *, latch: Latch) -> None:
        self.memory = open_memory(folder)
        self.failures: list[Exception] = []
        self.crash_after = False
        self.num_calls = 0
        self.most_bytes = self.most_documents = 0
        self._latch = latch

    def __call__(self, documents: Sequence[RawDocument], removed: Sequence[str]) -> list[Outcome]:
        self.num_calls += 1
        self.most_documents = max(self.most_documents, len(documents))
        self.most_bytes = max(self.most_bytes, sum(len(one.content) for one in documents))
        if self.failures:
            raise self.failures.pop(0)
        guard = self._latch.permit("memory write").check
        config = IngestConfig(max_document_bytes=MAX_DOCUMENT_BYTES)
        prepared = [prepare_document(one, cleaner=CLEANER, screen=SCREEN, config=config) for one in documents]
        result = self.memory.append([episode for one in prepared for episode in one.episodes], guard=guard)
        stale = stale_passages(prepared, ids_of=self.memory.ids_of)
        stale += [key for document_id in removed for key in self.memory.ids_of(document_id)]
        self.memory.retire(stale, guard=guard)
        if self.crash_after:
            self.crash_after = False
            raise Crash
        repeated = set(result.repeated)
        return [
            Outcome(
                "repeated" if one.episodes and all(e.id in repeated for e in one.episodes) else one.status, one.reason
            )
            for one in prepared
        ]

    def texts(self) -> list[str]:
        """What can be recalled, sorted."""
        return sorted(episode.text for _, episode in self.memory.freshest(limit=100_000, offset=0))


class Crash(BaseException):
    """The process ends here: nobody catches it."""


class Stream:
    """A StreamReader with real cursors, latch and store in a folder; `restart` is what a crash leaves of it."""

    def __init__(self, folder: Path, *, limit: ReadLimit | None = None, **options: Any) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.limit = limit
        self.options = options
        self.home.mkdir(parents=True, exist_ok=True)
        self.latch = Latch.create(self.home / "latch")
        self.store = PassageStore(folder / "store", latch=self.latch)
        self.now = 1000.0
        self._open()

    def _open(self) -> None:
        self.cursors = CursorStore(self.home / "cursors.sqlite", clock=lambda: self.now)
        self.reader = StreamReader(
            self.cursors, latch=self.latch, ingest=self.store, home=self.home, max_document_bytes=MAX_DOCUMENT_BYTES,
            limit=self.limit, **self.options,
        )  # fmt: skip

    def restart(self) -> None:
        self.cursors.close()
        self._open()

    def close(self) -> None:
        self.cursors.close()
        self.store.memory.close()

    def add(self, **fields: Any) -> None:
        self.reader.add(source(**fields))

    def drain(self, *, seconds: float = 0.0) -> list[str]:
        """Steps until nothing is due; what they did."""
        self.now += seconds
        did = []
        while (step := self.reader.step(self.now)).wait_s == 0:
            did.append(step.did)
            assert len(did) < 10_000, "it never rests"
        return [*did, step.did]

    def row(self, source_id: str = "src") -> dict[str, Any]:
        (row,) = [one for one in self.reader.status(self.now)["sources"] if one["id"] == source_id]
        return row

    def refused(self, source_id: str = "src") -> dict[str, str]:
        return {one.key: one.reason for one in self.reader.refused(source_id, limit=1000)}


def read_all(
    reader: Reader, cursors: CursorStore, *, cursor: Cursor, limit: ReadLimit, source_id: str = "src"
) -> tuple[Cursor, list[SourceBatch]]:
    """Every batch up to the end, each acknowledged."""
    batches = []
    while True:
        batch = reader.read(cursor, limit)
        batches.append(batch)
        cursors.commit(source_id, batch, refused=[], num_repeated=0, num_bytes=0)
        cursor = batch.cursor
        if batch.is_exhausted:
            return cursor, batches
        assert len(batches) < 10_000, "it never ends"


def documents_of(batches: Sequence[SourceBatch]) -> list[RawDocument]:
    return [one for batch in batches for one in batch.documents]


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A real server on a free port; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
