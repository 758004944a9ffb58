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
    """How far a source is believed. Below STANDARD an episode is kept, but neither recalled nor learned until released."""

    QUARANTINED = 0
    """The safety screen or an alarm found something."""
    UNTRUSTED = 1
    """Nobody has vouched for the source yet."""
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
    return hashlib.sha256(f"{document_id}\x00{position}\x00{text}".encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class EpisodeFilter:
    """Which episodes may be found; each field narrows, and one that is left out does not."""

    source_ids: tuple[str, ...] | None = None
    document_ids: tuple[str, ...] | None = None
    tenant: str | None = None
    happened_from: float | None = None
    """Seconds since the epoch, inclusive."""
    happened_before: float | None = None
    """Seconds since the epoch, exclusive."""
    min_trust: Trust = Trust.STANDARD
    max_trust: Trust = Trust.TRUSTED
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Every key with exactly this value."""

    def passes(self, episode: Episode) -> bool:
        """Whether an episode may be found."""
        return (
            (self.source_ids is None or episode.source_id in self.source_ids)
            and (self.document_ids is None or episode.document_id in self.document_ids)
            and (self.tenant is None or episode.tenant == self.tenant)
            and (self.happened_from is None or episode.happened_at >= self.happened_from)
            and (self.happened_before is None or episode.happened_at < self.happened_before)
            and self.min_trust <= episode.trust <= self.max_trust
            and all(episode.metadata.get(key) == value for key, value in self.metadata.items())
        )


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The acknowledgement of a write: given only after the rows are on disk."""

    added: tuple[str, ...]
    """Ids that are new."""
    repeated: tuple[str, ...]
    """Ids that were there already; nothing was changed for them but their count."""
    last_seq: int
    """Commit order of the newest episode in the store."""
    merged: tuple[str, ...] = ()
    """Those of `added` that say in the same words what an episode of the same tenant and trust says already: they are kept
    as its repeats, and only it is recalled and learned."""


@dataclass(frozen=True, slots=True)
class RecallHit:
    """One recalled passage. `score` is the fused rank score (higher is better); `cosine` is in [-1, 1]."""

    episode: Episode
    score: float
    cosine: float
    times_seen: int = 1
    """How often it, or a near-duplicate of it, was written."""


@dataclass(frozen=True, slots=True)
class EpisodeTraits:
    """What consolidation chooses by."""

    id: str
    salience: float
    recorded_at: float
    times_seen: int


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
class Claim:
    """An episode says a fact, or denies it ("is no longer")."""

    fact: Fact
    source_id: str
    trust: Trust
    said_at: float
    """From when on it holds, seconds since the epoch."""
    is_denial: bool = False
    confidence: float = 1.0
    """1 for a sentence pattern, less for what a language model read."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A fact as it is held at one moment, with why."""

    fact: Fact
    """Its sentence and episode are those of the claim that decides."""
    trust: Trust
    confidence: float
    valid_from: float
    valid_to: float | None
    """None: until further notice."""
    recorded_at: float
    """When the deciding claim came in, seconds since the epoch."""
    rule: str | None = None
    """The rule that derived it; None for what was read."""
    premises: tuple[str, ...] = ()
    """Ids of the facts it was derived from."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Facts that cannot all hold: one subject and relation with several objects. The first is the one that is believed."""

    beliefs: tuple[Belief, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A source contradicts what others say."""

    source_id: str
    num_contradicting: int
    num_facts: int
    """Facts of the source that have one object at a time."""
    raised_at: float
    examples: tuple[str, ...]
    """Sentences of the source."""
    is_held: bool
    """Whether all that it had said by then was held back for it."""


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
