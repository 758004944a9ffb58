"""What flows in and out of the stores: episodes in, hits and acknowledgements out.

An *episode* is one passage of one document, small enough to be retrieved and learned whole. Its id is derived from its
content, so a write that is retried changes nothing.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

Guard = Callable[[], None]
"""Called right before a commit; raises to refuse it (the emergency stop). Nothing is written if it raises."""


class Trust(IntEnum):
    """How far a source is believed. Quarantined episodes are kept but neither recalled nor learned."""

    QUARANTINED = 0
    UNTRUSTED = 1
    STANDARD = 2
    TRUSTED = 3


@dataclass(frozen=True, slots=True)
class Episode:
    """One passage. `text` is clean UTF-8; `happened_at` is in seconds since the epoch; `position` counts passages."""

    id: str
    document_id: str
    source_id: str
    title: str
    text: str
    position: int
    happened_at: float
    trust: Trust = Trust.STANDARD
    salience: float = 1.0
    tenant: str = "default"
    metadata: Mapping[str, str] = field(default_factory=dict)


def episode_id(document_id: str, position: int, text: str) -> str:
    """Content-derived id: hex, 32 characters (128 bits of SHA-256)."""
    return hashlib.sha256(f"{document_id}\x00{position}\x00{text}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The acknowledgement of a write: given only after the rows are on disk."""

    added: tuple[str, ...]
    """Ids that are new."""
    repeated: tuple[str, ...]
    """Ids that were there already; nothing was changed for them but their count."""
    last_seq: int
    """Commit order of the newest episode in the store."""


@dataclass(frozen=True, slots=True)
class RecallHit:
    """One recalled passage. `score` is the fused rank score (higher is better); `cosine` is in [-1, 1]."""

    episode: Episode
    score: float
    cosine: float


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """One document as the store lists it."""

    document_id: str
    source_id: str
    title: str
    num_episodes: int
    recorded_at: float
    trust: Trust


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement found in an episode: (subject, relation, object), with the sentence that says it.

    `relation` is the verb as written in the text, for instance "is" or "requires".
    """

    id: str
    subject: str
    relation: str
    object: str
    sentence: str
    episode_id: str


@dataclass(frozen=True, slots=True)
class MemoryHealth:
    """Sizes of a store. `indexed_seq < last_seq` means that embedding lags behind the acknowledged writes."""

    num_episodes: int
    num_documents: int
    num_learnable: int
    """Episodes of standard trust or better."""
    last_seq: int
    indexed_seq: int
    size_bytes: int
