"""What flows between a source's reader, the stream and the store of cursors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory.store import no_guard
from memory.types import Guard
from train.data.document import RawDocument, Rejected

Cursor = Mapping[str, Any]
"""A reader's place, as JSON. Only the reader that wrote it knows what it means; empty: from the start."""


class SourceProblem(ValueError):
    """A source cannot be read now: names what is wrong and the fix. It is tried again, each time later."""


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """How much one batch holds at most, unless one document alone is larger."""

    num_documents: int = 32
    num_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of one file or record of a source."""

    document_id: str
    """Empty if it never made a document."""
    stamp: str
    """Changes when the content may have; empty: look again."""
    sha256: str
    """Of the content that was handed on; empty if none was."""


class Known(Protocol):
    """What earlier batches have marked."""

    def marks(self, source_id: str) -> dict[str, Mark]:
        """All of a source."""

    def marks_of(self, source_id: str, keys: Sequence[str]) -> dict[str, Mark]:
        """Those of these keys that there are."""


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """One batch. Until its cursor is kept, the same call gives the same documents again."""

    cursor: Cursor
    """The place behind the batch."""
    documents: Sequence[RawDocument] = ()
    refused: Sequence[Rejected] = ()
    removed: Sequence[str] = ()
    """Ids of documents that the source does not have any more."""
    marks: Mapping[str, Mark | None] = field(default_factory=dict)
    """What changes in what is known, by key; None: it is gone."""
    max_marks: int | None = None
    """Only the newest so many marks need be known."""
    is_exhausted: bool = True
    """There is nothing more to read now."""


class Reader(Protocol):
    """Reads one source. Its object may remember a listing or an answer; what must survive is in the cursor."""

    def read(self, cursor: Cursor, limit: ReadLimit, *, guard: Guard = no_guard) -> SourceBatch:
        """The batch behind a place. `guard` is asked between parts of the work. Raises SourceProblem, OSError."""
