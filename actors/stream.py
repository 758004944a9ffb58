"""The stream actor: reads the sources by itself, for as long as it runs. Its documents go to the episodic actor."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import PendingCallsLimitExceeded, RayActorError, RayTaskError

from actors.base import Shell
from actors.calls import ActorMissing, actor
from autonomous.intake import encode_document
from autonomous.safety.latch import Latch
from autonomous.safety.processes import register
from autonomous.sources.config import SourceConfig, shown
from autonomous.sources.cursors import CursorStore
from autonomous.sources.reading import ReadingThread
from autonomous.sources.stream import IngestBusy, Outcome, StreamReader
from autonomous.versions.ledger import VersionLedger
from train.data.document import RawDocument


class StreamShell(Shell):
    """Holds a system's one StreamReader. Restarted by Ray, it goes on from the cursors."""

    def __init__(
        self,
        settings_sha256: str,
        *,
        home: Path,
        sources: tuple[SourceConfig, ...],
        max_document_bytes: int,
    ) -> None:
        super().__init__("stream", settings_sha256)
        register(home / "safety", role="stream", within="learning")
        cursors = CursorStore(home / "sources" / "cursors.sqlite")
        cursors.follow_file(sources)
        self._ledger = VersionLedger(home / "ledger.sqlite")
        self._stream = StreamReader(
            cursors,
            latch=Latch.open(home / "safety" / "latch"),
            ingest=_ingest,
            home=home,
            max_document_bytes=max_document_bytes,
        )
        self._reading = ReadingThread(self._stream)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """Every source with its counts and its last error, and what all of them wait for."""
        return self._reading.status()

    @ray.method(concurrency_group="control")
    def add(self, config: SourceConfig, by: str, reason: str) -> None:
        """Read a source from now on. It is audited."""
        self._stream.add(config)
        self._audit("add source", config.id, by=by, reason=reason, config=shown(config))
        self._reading.wake()

    @ray.method(concurrency_group="control")
    def remove(self, source_id: str, by: str, reason: str) -> None:
        """Read a source no longer. It is audited."""
        self._stream.remove(source_id)
        self._audit("remove source", source_id, by=by, reason=reason)

    @ray.method(concurrency_group="control")
    def read_now(self, source_id: str) -> None:
        """Look at a source without waiting for its interval."""
        self._stream.read_now(source_id)
        self._reading.wake()

    @ray.method(concurrency_group="control")
    def refused(self, source_id: str, limit: int) -> list[dict[str, Any]]:
        """What of a source is neither recalled nor learned, newest first."""
        return [asdict(one) for one in self._stream.refused(source_id, limit=limit)]

    def _audit(self, action: str, subject: str, **after: Any) -> None:
        self._ledger.append_audit(actor="human", action=action, subject=subject, after=after)


def _ingest(documents: Sequence[RawDocument], removed: Sequence[str]) -> list[Outcome]:
    """See autonomous.sources.stream.Ingest."""
    try:
        answer = ray.get(actor("episodic").follow.remote([encode_document(one) for one in documents], list(removed)))
    except (PendingCallsLimitExceeded, ActorMissing, RayActorError) as error:
        raise IngestBusy(f"the store of passages takes nothing now ({error})") from error
    except RayTaskError as error:
        if isinstance(error.cause, RayActorError):  # a shard behind it restarts
            raise IngestBusy(f"a part of the store of passages restarts ({error.cause})") from error
        raise error.cause if isinstance(error.cause, Exception) else error from error
    return [Outcome(row["status"], row["reason"]) for row in answer["documents"]]
