"""The pipeline's memory over the stores and the ledger, in this process or elsewhere (actors/stores.py's remote stores)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from autonomous.holds import HoldState
from autonomous.versions.ledger import VersionLedger
from memory.protocols import Episodes
from memory.trust import SourceTrust
from memory.types import Episode, Guard, RecallHit, Trust

BY = "feedback pipeline"

Ingest = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
"""Documents as POST /v1/knowledge takes them -> a row with `status` for each, after they are durable."""

HoldStates = Callable[[Sequence[Episode]], Mapping[str, HoldState]]
"""HoldRegister.states, or a call of it."""


class Believe(Protocol):
    """MemoryManagement.believe, or a call of it."""

    def __call__(self, source_id: str, trust: Trust, *, by: str, reason: str) -> Any: ...


class StoredMemory:
    """Implements autonomous.pipeline.PipelineMemory. `guard` gives a permit of the stop latch for each write."""

    def __init__(
        self,
        *,
        episodes: Episodes,
        ledger: VersionLedger,
        ingest: Ingest,
        decisions: Callable[[], Sequence[SourceTrust]],
        hold_states: HoldStates,
        believe: Believe,
        forget_document: Callable[[str], Any],
        guard: Callable[[], Guard],
    ) -> None:
        self._episodes = episodes
        self._ledger = ledger
        self._ingest = ingest
        self._decisions = decisions
        self._hold_states = hold_states
        self._believe = believe
        self._forget_document = forget_document
        self._guard = guard

    def search(self, question: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        """See PipelineMemory."""
        return self._episodes.recall(question, k=k, min_cosine=min_cosine)

    def ingest(self, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See PipelineMemory."""
        return [dict(row) for row in self._ingest(documents)]

    def of_document(self, document_id: str) -> list[Episode]:
        """See PipelineMemory."""
        return self._episodes.get(self._episodes.ids_of(document_id))

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """See PipelineMemory."""
        return self._episodes.get(ids)

    def learned(self, ids: Sequence[str]) -> set[str]:
        """See PipelineMemory."""
        return self._ledger.learned_episodes(self._ledger.pointers().v2) & set(ids)

    def held_back(self, ids: Sequence[str]) -> set[str]:
        """See PipelineMemory."""
        return self._ledger.held_back() & set(ids)

    def hold_states(self, episodes: Sequence[Episode]) -> Mapping[str, HoldState]:
        """See PipelineMemory."""
        return self._hold_states(episodes)

    def raise_salience(self, run: str, saliences: Mapping[str, float]) -> None:
        """See PipelineMemory. A consolidation forgets that it was done, and then it may be done again."""
        self._episodes.revise(run, "raise", saliences=saliences, guard=self._guard())

    def hold_back(self, source_id: str, *, reason: str) -> None:
        """See PipelineMemory."""
        if all(decision.source_id != source_id for decision in self._decisions()):
            self._believe(source_id, Trust.UNTRUSTED, by=BY, reason=reason)

    def forget_document(self, document_id: str) -> None:
        """See PipelineMemory."""
        self._forget_document(document_id)
