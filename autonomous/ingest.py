"""Ingest: one raw document flows in, clean and screened passages flow out, or a sentence that says why not.

Pure: nothing is written here. The store finds repeats by the passages' content-derived ids.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autonomous.safety.screen import SafetyScreen
from memory.facts import extract_facts
from memory.passages import split_passages
from memory.types import Episode, Trust, episode_id
from train.data.clean import CleanDocument, DataCleaner, NotText
from train.data.document import BINARY_FIX, RawDocument, describe_oversize

Status = Literal["stored", "quarantined", "rejected"]

LEAD_PASSAGES = 2
"""The opening of a document says what it is about."""
LEAD_SALIENCE = 1.0
FACT_SALIENCE = 2.0
"""Added to 1 for an opening, and for a passage that states a fact: only what can be asked can be judged. The learner takes
passages of higher salience first; a full store drops those of lower salience first."""
MAX_TITLE_CHARS = 200

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$|^(\S.{0,120})\n[=\-~^]{3,}\s*$", re.MULTILINE)


class IngestConfig(BaseModel):
    """Limits of one document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_document_bytes: int = Field(16 << 20, gt=0)
    """A larger document is rejected: it would hold the store's writer for minutes."""
    max_passage_chars: int = Field(700, ge=100)
    """Passages are cut at most this long, about 170 tokens."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of a document. `reason` is empty when it is simply stored; `counts` are the cleaner's."""

    document_id: str
    status: Status
    reason: str
    episodes: tuple[Episode, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


def prepare_document(raw: RawDocument, *, cleaner: DataCleaner, screen: SafetyScreen, config: IngestConfig) -> Prepared:
    """Clean, screen and cut one document.

    A document without an id gets one from its source and content, so that posting it twice changes nothing. What the
    screen quarantines is kept with trust 0: neither recalled nor learned.
    """
    # "replace": JSON may carry lone surrogates, which the cleaner repairs.
    content = raw.content.encode("utf-8", "replace") if isinstance(raw.content, str) else raw.content
    document_id = raw.id or hashlib.sha256(raw.source_id.encode() + b"\x00" + content).hexdigest()[:32]
    if len(content) > config.max_document_bytes:
        reason, fix = describe_oversize(len(content), max_bytes=config.max_document_bytes)
        return Prepared(document_id, "rejected", f"the document {reason}; {fix}")
    try:
        clean = cleaner.clean(raw)
    except NotText as error:
        return Prepared(document_id, "rejected", f"{error}; {BINARY_FIX}")
    verdict = screen.screen_document(clean.text)
    is_quarantined = verdict.decision == "quarantine"
    # What the screen calls a secret is not written anywhere, also where a document is quarantined or only noted.
    text = screen.screen_answer(clean.text).text if verdict.reasons else clean.text
    title = _title_of(clean)
    trust = Trust.QUARANTINED if is_quarantined else Trust.STANDARD
    episodes = tuple(
        _episode(clean, document_id=document_id, title=title, position=position, text=passage, trust=trust)
        for position, passage in enumerate(split_passages(text, max_chars=config.max_passage_chars))
    )
    return Prepared(
        document_id=document_id,
        status="quarantined" if is_quarantined else "stored",
        reason="; ".join(verdict.reasons),
        episodes=episodes,
        counts=clean.counts,
    )


def stale_passages(prepared: Sequence[Prepared], *, ids_of: Callable[[str], Sequence[str]]) -> list[str]:
    """Ids of passages that earlier versions of these documents said and these do not. `ids_of` gives a document's passages.

    A version that is rejected takes nobody's place.
    """
    said = {one.document_id: {episode.id for episode in one.episodes} for one in prepared if one.status != "rejected"}
    return [key for document_id, kept in said.items() for key in ids_of(document_id) if key not in kept]


def _episode(
    document: CleanDocument, *, document_id: str, title: str, position: int, text: str, trust: Trust
) -> Episode:
    key = episode_id(document_id, position, text)
    salience = 1.0 + (LEAD_SALIENCE if position < LEAD_PASSAGES else 0.0)
    if trust > Trust.QUARANTINED and extract_facts(text, title=title, episode_id=key):
        salience += FACT_SALIENCE
    return Episode(
        id=key,
        document_id=document_id,
        source_id=document.source_id,
        title=title,
        text=text,
        position=position,
        happened_at=document.happened_at,
        trust=trust,
        salience=salience,
        metadata=document.metadata,
    )


def _title_of(document: CleanDocument) -> str:
    """The given title, else the first heading, else the file's path, else the first line."""
    path = document.metadata.get("path", "")
    if document.title and document.title != path:
        return document.title[:MAX_TITLE_CHARS]
    if heading := _HEADING.search(document.text[:4000]):
        return (heading.group(1) or heading.group(2)).strip()[:MAX_TITLE_CHARS]
    return path[:MAX_TITLE_CHARS] or document.text.split("\n", 1)[0][:80].strip()
