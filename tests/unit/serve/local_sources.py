"""`serve.source_parts.SourceParts` in one process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autonomous.safety.latch import Latch
from autonomous.sources.config import SourceConfig
from autonomous.sources.cursors import CursorStore, UnknownSource
from autonomous.sources.stream import StreamReader
from serve.errors import NotFoundError
from tests.streams import MAX_DOCUMENT_BYTES, PassageStore


class LocalSources:
    """`serve.source_parts.SourceParts` in one process; `settle` reads until nothing is due."""

    def __init__(self, folder: Path, *, latch: Latch) -> None:
        self.latch = latch
        self.store = PassageStore(folder / "passages", latch=latch)
        self.cursors = CursorStore(folder / "sources" / "cursors.sqlite")
        self.stream = StreamReader(
            self.cursors, latch=latch, ingest=self.store, home=folder, max_document_bytes=MAX_DOCUMENT_BYTES
        )

    def close(self) -> None:
        self.cursors.close()
        self.store.memory.close()

    def settle(self) -> None:
        while self.stream.step(time.monotonic()).did == "read":
            pass

    async def sources(self) -> dict[str, Any]:
        return self.stream.status(time.monotonic())

    async def add(self, config: SourceConfig, *, by: str, reason: str) -> None:
        self.stream.add(config)

    async def remove(self, source_id: str, *, by: str, reason: str) -> None:
        with self._known():
            self.stream.remove(source_id)

    async def read_now(self, source_id: str) -> None:
        with self._known():
            self.stream.read_now(source_id)

    async def refused(self, source_id: str, *, limit: int) -> list[dict[str, Any]]:
        with self._known():
            return [asdict(one) for one in self.stream.refused(source_id, limit=limit)]

    @contextmanager
    def _known(self) -> Iterator[None]:
        try:
            yield
        except UnknownSource as error:
            raise NotFoundError(str(error)) from error
