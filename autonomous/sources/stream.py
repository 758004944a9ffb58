"""StreamReader: a bounded batch of the next source into the store of passages, then the cursor behind it; and so on.

In flow sources, out flow documents to `ingest`, which acknowledges them. The order makes it safe: read, ingest, commit the
cursor. Whatever ends a step in between (a crash, a stop, a store that is full) leaves the cursor, and the batch is read
again; the store knows documents by their ids. One batch is held at a time. Every step asks the stop latch: while learning
is stopped nothing is read, and what was being read is not written.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autonomous.permits import Permits
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.sources.batch import Reader, ReadLimit, SourceBatch, SourceProblem
from autonomous.sources.config import SourceConfig, refuse_trusted_fields, shown
from autonomous.sources.cursors import CursorStore, RefusedDocument, UnknownSource, key_of
from autonomous.sources.readers import build_reader, check_place
from autonomous.sources.schedule import Turn, after_batch, after_failure, backoff_s, choose_next, wait_s
from memory.store import StoreFull, StoreProblem
from memory.types import Guard
from train.data.document import RawDocument

logger = logging.getLogger(__name__)

STOPPED_WAIT_S = 0.5
"""How often it is looked whether a stop was reset."""
MAX_HOLD_S = 60.0
"""A store that takes nothing is asked at least so often."""

Did = Literal["read", "nothing", "failed", "held", "stopped"]
Ingest = Callable[[Sequence[RawDocument], Sequence[str]], "Sequence[Outcome]"]
"""Store documents, and retire what the second names: durable when it returns, the outcomes in the order of the documents.

Raises: IngestBusy, StoreFull, StoreProblem if it takes nothing now; LearningStopped; ValueError for a document that it can
never take, where a batch has one.
"""


class IngestBusy(RuntimeError):
    """The store of passages takes nothing now: it restarts, or too much waits for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a document: stored, repeated, quarantined or rejected; `reason` for the latter two."""

    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did, and how long to wait for the next one, seconds."""

    did: Did
    wait_s: float
    source_id: str = ""
    num_documents: int = 0


@dataclass(frozen=True, slots=True)
class _Open:
    config: SourceConfig
    reader: Reader


class StreamReader:
    """See the module. `step` belongs to one thread; every other method may be called from any."""

    def __init__(
        self,
        cursors: CursorStore,
        *,
        latch: Latch,
        ingest: Ingest,
        home: Path,
        max_document_bytes: int,
        limit: ReadLimit | None = None,
        open_reader: Callable[[SourceConfig], Reader] | None = None,
        ending: threading.Event | None = None,
    ) -> None:
        """`ending` is set when the process ends: what is being read then is not written."""
        self._cursors = cursors
        self._permits = Permits(latch, ending=ending)
        self._ingest = ingest
        self._home = home
        self._limit = limit or ReadLimit()
        self._open_reader = open_reader or (
            lambda config: build_reader(config, known=cursors, max_document_bytes=max_document_bytes, home=home)
        )
        self._lock = threading.Lock()
        self._sources = {key: stored.config for key, stored in cursors.sources().items()}
        self._turns = {key: Turn() for key in self._sources}
        self._open: dict[str, _Open] = {}
        self._alone: dict[str, int] = {}  # where the store could not take a batch: so many go one by one
        self._num_turns = 0
        self._held_until = 0.0
        self._num_holds = 0
        self._waits_for = ""

    # -- the loop

    def step(self, now: float) -> Step:
        """Read one batch of the next source that is due. `now` in seconds of a clock that only goes forward."""
        try:
            guard = self._permits.guard("reading sources", within="learning")
        except LearningStopped as error:
            return self._stopped(error)
        if now < self._held_until:
            return Step("held", self._held_until - now)
        if not self._num_holds:
            self._waits_for = ""
        with self._lock:
            self._open = {key: opened for key, opened in self._open.items() if key in self._sources}
            source_id = choose_next(self._turns, now=now)
            if source_id is None:
                return Step("nothing", wait_s(self._turns, now=now))
            config = self._sources[source_id]
        try:
            return self._read(config, guard, now)
        except LearningStopped as error:
            return self._stopped(error)

    def _read(self, config: SourceConfig, guard: Guard, now: float) -> Step:
        limit = ReadLimit(1, 1) if self._alone.get(config.id) else self._limit
        try:
            cursor = self._cursors.progress(config.id).cursor
            batch = self._reader_of(config).read(cursor, limit, guard=guard)
        except UnknownSource:
            return Step("nothing", 0.0)  # removed a moment ago
        except LearningStopped:
            raise
        except Exception as error:  # one bad source, whatever it is, does not stop the others
            return self._failed(config, error, guard, now)
        return self._store(config, batch, guard, now)

    def _store(self, config: SourceConfig, batch: SourceBatch, guard: Guard, now: float) -> Step:
        try:
            self._cursors.intend(config.id, batch, guard=guard)
            outcomes = self._ingest(batch.documents, batch.removed) if batch.documents or batch.removed else ()
        except LearningStopped:
            raise
        except (IngestBusy, StoreFull, StoreProblem) as error:
            return self._hold(error, now)
        except ValueError as error:
            if not batch.documents:
                return self._failed(config, error, guard, now)
            if len(batch.documents) > 1:  # which of them it is shows when they go one by one
                self._alone[config.id] = len(batch.documents)
                return Step("failed", 0.0, config.id)
            outcomes = [Outcome("rejected", f"the store cannot take it: {error}")]
        except Exception as error:
            return self._failed(config, error, guard, now)
        self._num_holds, self._waits_for = 0, ""
        return self._commit(config, batch, outcomes, guard, now)

    def _commit(
        self, config: SourceConfig, batch: SourceBatch, outcomes: Sequence[Outcome], guard: Guard, now: float
    ) -> Step:
        try:
            is_kept = self._cursors.commit(
                config.id,
                batch,
                refused=_refused(batch, outcomes),
                num_repeated=sum(outcome.status == "repeated" for outcome in outcomes),
                num_bytes=sum(len(document.content) for document in batch.documents),
                guard=guard,
            )
        except StoreFull as error:
            return self._hold(error, now)
        if is_kept:
            self._alone[config.id] = max(0, self._alone.get(config.id, 0) - 1)
            done = batch.is_exhausted
            turn = after_batch(served=self._next_turn(), now=now, is_exhausted=done, interval_s=config.interval_s)
            self._take_turn(config, turn)
        return Step("read", 0.0, config.id, len(batch.documents))

    def _failed(self, config: SourceConfig, error: Exception, guard: Guard, now: float) -> Step:
        text = str(error) if isinstance(error, SourceProblem) else f"{type(error).__name__}: {error}"
        if not isinstance(error, SourceProblem | OSError):
            logger.exception("source failed id=%s", config.id)
        else:
            logger.warning("source failed id=%s error=%s", config.id, text)
        self._open.pop(config.id, None)
        before = self._turns.get(config.id, Turn())
        self._take_turn(config, after_failure(before, served=self._next_turn(), now=now, interval_s=config.interval_s))
        try:
            self._cursors.note_error(config.id, text, guard=guard)
        except StoreFull as full:
            return self._hold(full, now)
        return Step("failed", 0.0, config.id)

    def _hold(self, error: Exception, now: float) -> Step:
        """The store takes nothing: no source is read until it is asked again. Nothing of the batch is kept here."""
        delay_s = backoff_s(self._num_holds, most_s=MAX_HOLD_S)
        self._num_holds += 1
        self._held_until = now + delay_s
        self._waits_for = str(error)
        logger.warning("reading waits seconds=%.0f error=%s", delay_s, error)
        return Step("held", delay_s)

    def _stopped(self, error: LearningStopped) -> Step:
        self._waits_for = str(error)
        return Step("stopped", STOPPED_WAIT_S)

    def _reader_of(self, config: SourceConfig) -> Reader:
        found = self._open.get(config.id)
        if found is None or found.config != config:
            found = self._open[config.id] = _Open(config, self._open_reader(config))
        return found.reader

    def _next_turn(self) -> int:
        self._num_turns += 1
        return self._num_turns

    def _take_turn(self, config: SourceConfig, turn: Turn) -> None:
        """Unless the source was changed or removed meanwhile."""
        with self._lock:
            if self._sources.get(config.id) == config:
                self._turns[config.id] = turn

    # -- what people ask of it

    def add(self, config: SourceConfig) -> None:
        """Read a source from now on, in place of one of the same id. Raises ValueError for one that must not or cannot be
        read, LearningStopped.
        """
        refuse_trusted_fields(config)
        check_place(config, home=self._home)
        self._cursors.add(config, guard=self._permits.guard("adding a source", within="learning"))
        with self._lock:
            self._sources[config.id] = config
            self._turns[config.id] = Turn()

    def remove(self, source_id: str) -> None:
        """Read a source no longer; what it said stays stored. Raises UnknownSource. A stop does not forbid it."""
        if not self._cursors.remove(source_id):
            raise UnknownSource(f"there is no source {source_id!r}; autonomous sources list shows them")
        with self._lock:
            self._sources.pop(source_id, None)
            self._turns.pop(source_id, None)

    def read_now(self, source_id: str) -> None:
        """Look at a source with the next step, whenever it is due. Raises UnknownSource."""
        with self._lock:
            if source_id not in self._sources:
                raise UnknownSource(f"there is no source {source_id!r}; autonomous sources list shows them")
            self._turns[source_id] = replace(self._turns[source_id], due_at=0.0)

    def refused(self, source_id: str, *, limit: int) -> list[RefusedDocument]:
        """What of a source is neither recalled nor learned, newest first. Raises UnknownSource."""
        return self._cursors.refused(source_id, limit=limit)

    def status(self, now: float) -> dict[str, Any]:
        """Every source with its counts, and what all of them wait for."""
        with self._lock:
            turns = dict(self._turns)
        return {
            "sources": [
                self._status_of(key, stored.config, stored.origin, turns.get(key, Turn()), now)
                for key, stored in self._cursors.sources().items()
            ],
            "waits_for": self._waits_for,
        }

    def _status_of(self, key: str, config: SourceConfig, origin: str, turn: Turn, now: float) -> dict[str, Any]:
        try:
            progress = asdict(self._cursors.progress(key))
        except UnknownSource:  # removed between two looks
            progress = {}
        progress.pop("cursor", None)
        return {
            "id": key,
            "kind": config.kind,
            "config": shown(config),
            "origin": origin,
            **progress,
            "num_failures": turn.num_failures,
            "next_read_s": round(max(0.0, turn.due_at - now), 1),
        }


def _refused(batch: SourceBatch, outcomes: Sequence[Outcome]) -> list[RefusedDocument]:
    found = [RefusedDocument(key_of(one), "unreadable", one.reason, one.fix) for one in batch.refused]
    for document, outcome in zip(batch.documents, outcomes, strict=True):
        if outcome.status in ("rejected", "quarantined"):
            is_waiting = outcome.status == "quarantined"
            fix = "autonomous memory waiting, then release it" if is_waiting else "see the reason"
            found.append(RefusedDocument(key_of(document), outcome.status, outcome.reason, fix))
    return found
