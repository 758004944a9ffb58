"""LocalMemory: all stores of one process, assembled: documents in; passages, facts and contexts out. The agent's MemoryPort.

The same stores that the actors hold, in the same folders' layout, with one process as their owner.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autonomous.holds import HoldRegister
from autonomous.ingest import IngestConfig
from autonomous.intake import Intake, encode_document
from autonomous.learning_memory import LearningMemory
from autonomous.safety.latch import Latch
from autonomous.safety.screen import Level
from autonomous.sources.stream import Outcome
from memory.claims import claims_of
from memory.consolidate import Consolidation, ConsolidationReport
from memory.embed import Embedder, MiniLmEmbedder
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.indexer import Indexer
from memory.management import Context, MemoryManagement
from memory.semantic import SemanticConfig, SemanticMemory
from memory.settings import MemorySettings
from memory.trust import SourceTrusts
from memory.types import Episode, Guard
from memory.working import WorkingMemory
from train.data.document import RawDocument

FOLLOWED_AT_ONCE = 256


class LocalMemory(LearningMemory):
    """See the module. `count_tokens` are the serving model's; `weights` is the version ledger. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        *,
        latch: Latch,
        settings: MemorySettings,
        ingest: IngestConfig,
        level: Level,
        count_tokens: Callable[[str], int],
        weights: Any,
        surprise: Callable[[Sequence[Episode]], Mapping[str, float]],
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        embedder = embedder or MiniLmEmbedder(num_threads=1)
        self._latch = latch
        self.episodic = EpisodicMemory.open(
            EpisodicConfig(folder=folder / "episodic", capacity=settings.capacity, index=settings.index),
            embedder=embedder,
            clock=clock,
        )
        self.semantic = SemanticMemory.open(
            SemanticConfig(
                folder=folder / "semantic", alarm_facts=settings.alarm_facts, alarm_share=settings.alarm_share
            ),
            clock=clock,
        )
        holds = HoldRegister.open(folder, clock=clock)
        super().__init__(episodes=self.episodic, facts=self.semantic, holds=holds)
        self._trusts = SourceTrusts.open(folder, default=settings.source_trust, clock=clock)
        self.management = MemoryManagement(
            settings.context,
            episodic=self.episodic,
            semantic=self.semantic,
            working=WorkingMemory(settings.working),
            trusts=self._trusts,
            count_tokens=count_tokens,
            weights=weights,
            hold_on_alarm=settings.hold_on_alarm,
        )
        self._consolidation = Consolidation(
            settings.consolidation,
            episodic=self.episodic,
            semantic=self.semantic,
            capacity=settings.capacity,
            weights=weights,
            replay=lambda episodes: dict(surprise(episodes)),
        )
        self._intake = Intake(ingest, store=self.episodic, trusts=self._trusts, level=level)
        self._indexer = Indexer(self.episodic, embedder=embedder)
        self._taking, self._dreaming = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """End the thread and close the stores."""
        self._indexer.close()
        self.episodic.save_index()
        self.episodic.close()
        self.semantic.close()
        self._trusts.close()
        self._holds.close()

    def ingest(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Store documents durably; see Intake. Their facts are known when this returns. Raises LearningStopped."""
        with self._taking:
            answer = self._intake.ingest(documents, guard=self._guard())
        self._indexer.wake()
        self.follow()
        return answer

    def ingest_source(self, documents: Sequence[RawDocument], removed: Sequence[str]) -> list[Outcome]:
        """See autonomous.sources.stream.Ingest."""
        with self._taking:
            answer = self._intake.follow([encode_document(one) for one in documents], removed, guard=self._guard())
        self._indexer.wake()
        self.follow()
        return [Outcome(row["status"], row["reason"]) for row in answer["documents"]]

    def follow(self) -> None:
        """Take the claims of new passages into the semantic memory, and look for alarms. Idempotent."""
        with self.semantic.stating:
            while True:
                place = self.semantic.places().get(0, 0)
                episodes = self.episodic.episodes_after(place, limit=FOLLOWED_AT_ONCE)
                if not episodes:
                    break
                claims = [claim for _, episode in episodes for claim in claims_of(episode)]
                self.semantic.add(claims, places={0: episodes[-1][0]}, guard=self._guard())
        self.management.watch(guard=self._guard())

    def context(self, question: str, *, token_budget: int) -> Context:
        """What is remembered that fits a question."""
        return self.management.context_for(question, token_budget)

    def consolidate_if_due(self) -> bool:
        """The daily run of consolidation, if its time has come. Raises LearningStopped."""
        with self._dreaming:
            if not self._consolidation.due(reset_at=self._latch.state().at) or not self.episodic.health().num_episodes:
                return False
            self._consolidation.run(guard=self._guard())
        return True

    def last_consolidation(self) -> ConsolidationReport | None:
        """The newest run."""
        return next(iter(self._consolidation.reports(limit=1)), None)

    def consolidate(self) -> ConsolidationReport:
        """A run of consolidation now, or the rest of one that was cut off. Raises LearningStopped."""
        with self._dreaming:
            return self._consolidation.run(guard=self._guard())

    def release(self, ids: Sequence[str], *, by: str, reason: str) -> tuple[str, ...]:
        """A person lets episodes be recalled and learned that waited or were held: those that this changed."""
        changed = self.management.release(ids, guard=self._guard())
        return tuple({*changed, *self._holds.release(ids, by=by, reason=reason, guard=self._guard())})

    def suspect(self, ids: Sequence[str]) -> Sequence[str]:
        """See MemoryPort."""
        return self.management.suspect(ids, guard=self._guard())

    def _guard(self) -> Guard:
        return self._latch.permit("memory write").check
