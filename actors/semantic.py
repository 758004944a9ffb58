"""The semantic actor: follows the episodes and keeps the facts that they state, and the door to all memory.

Beside SemanticMemory it holds what decides over all tiers: MemoryManagement, the alarms, the enrichment queue and the
daily consolidation. None of it needs a language model but enrichment, which is off by default.
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.base import Shell
from actors.calls import ActorMissing, actor, when_there
from actors.extract import EngineExtractor
from actors.stores import open_trusts, remote_store
from actors.working import RayWorking
from autonomous.holds import Hold, HoldRegister, HoldState
from autonomous.safety.evidence import gather_evidence
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.poison import Evidence
from autonomous.versions.ledger import LedgerNotReady, VersionLedger
from memory.claims import claims_of
from memory.consolidate import Consolidation
from memory.enrichment import EnrichmentQueue, FailedEnrichment
from memory.management import Context, ForgetReport, MemoryManagement
from memory.recall import ANY_EPISODE
from memory.rules import Rule
from memory.semantic import SemanticConfig, SemanticMemory
from memory.settings import MemorySettings
from memory.trust import SourceTrust
from memory.types import Alarm, Belief, Contradiction, Episode, EpisodeFilter, Trust

logger = logging.getLogger(__name__)

BATCH = 64
IDLE_S = 1.0
CURRENT_TIMEOUT_S = 10.0
"""So long a question about a batch waits until what came before it is read."""
RETRY_S = 5.0
REPLAYED_AT_ONCE = 16
"""Episodes of one call of the evaluator."""
DREAM_CHECK_S = 60.0
"""How often it is looked whether a consolidation is due."""


class SemanticShell(Shell):
    """Holds a cluster's one SemanticMemory. Its places commit with the facts: a crash loses and repeats nothing."""

    def __init__(
        self,
        settings_sha256: str,
        *,
        folder: Path,
        latch: Path,
        ledger: Path,
        base_folder: Path,
        settings: MemorySettings,
    ) -> None:
        super().__init__("semantic", settings_sha256)
        self._settings = settings
        self._latch = Latch.open(latch)
        config = SemanticConfig(
            folder=folder / "semantic",
            database=settings.database,
            alarm_facts=settings.alarm_facts,
            alarm_share=settings.alarm_share,
        )
        self._memory = when_there(lambda: SemanticMemory.open(config))
        self._episodes = remote_store("episodic")
        self._ledger = VersionLedger(ledger)
        self._tokenizer = TokenCounter(base_folder)
        self._management = MemoryManagement(
            settings.context,
            episodic=self._episodes,
            semantic=self._memory,
            working=RayWorking(),
            trusts=open_trusts(folder, settings),
            count_tokens=self._tokenizer.count,
            weights=self._ledger,
            hold_on_alarm=settings.hold_on_alarm,
        )
        self._holds = when_there(lambda: HoldRegister.open(folder, database=settings.database))
        self._wake = threading.Event()
        self._read_up_to = -1.0
        self._is_read = threading.Condition()
        self._queue = EnrichmentQueue(settings.enrichment, self._memory)
        self._consolidation = Consolidation(
            settings.consolidation,
            episodic=self._episodes,
            semantic=self._memory,
            capacity=settings.capacity,
            weights=self._ledger,
            replay=self._replay,
            enrichment=self._queue if settings.enrich else None,
        )
        self._error = ""
        self._dream_error = ""
        self._dreaming = threading.Lock()
        threading.Thread(target=self._follow_for_ever, name="follow", daemon=True).start()
        threading.Thread(target=self._dream_for_ever, name="dream", daemon=True).start()
        if settings.enrich:
            threading.Thread(target=self._enrich_for_ever, name="enrich", daemon=True).start()

    # -- questions

    @ray.method(concurrency_group="read")
    def about(
        self, subject: str, limit: int = 20, valid_at: float | None = None, recorded_at: float | None = None
    ) -> list[Belief]:
        """What is held about a concept, at a moment of the world as known at a moment."""
        return self._memory.about(subject, limit=limit, valid_at=valid_at, recorded_at=recorded_at)

    @ray.method(concurrency_group="read")
    def context_for(
        self, request: str, token_budget: int, session: str = "", where: EpisodeFilter = ANY_EPISODE
    ) -> Context:
        """What fits a request within a budget of the serving model's tokens."""
        return self._management.context_for(request, token_budget, session=session, where=where)

    @ray.method(concurrency_group="read")
    def contradictions(self, limit: int) -> list[Contradiction]:
        """Facts that cannot all hold."""
        return self._memory.contradictions(limit=limit)

    @ray.method(concurrency_group="read")
    def alarms(self) -> list[Alarm]:
        """Sources that contradict many facts of others."""
        return self._memory.alarms()

    @ray.method(concurrency_group="read")
    def waiting(self, limit: int, offset: int) -> list[Episode]:
        """Episodes that wait to be released."""
        return self._management.waiting(limit=limit, offset=offset)

    @ray.method(concurrency_group="read")
    def contradicted(self, episodes: list[Episode]) -> Evidence:
        """What is held about what episodes say. Not current if what came before them is still being read."""
        is_current = self._wait_until_read(time.monotonic())
        return gather_evidence(self._memory, episodes, read=self._episodes.get, is_current=is_current)

    @ray.method(concurrency_group="read")
    def hold_states(self, episodes: list[Episode]) -> dict[str, HoldState]:
        """Which of them are held back from learning, or released."""
        return self._holds.states(episodes)

    @ray.method(concurrency_group="read")
    def hold(self, holds: list[Hold]) -> None:
        """Hold episodes back from learning. Asks no permit: it only takes away from what may be learned."""
        self._holds.hold(holds)

    @ray.method(concurrency_group="read")
    def held_below(self) -> dict[str, int]:
        """All that is held back from learning, with the trust up to which it is."""
        return self._holds.held_below()

    @ray.method(concurrency_group="read")
    def held(self, limit: int) -> list[Hold]:
        """What is held back from learning, newest first."""
        return self._holds.held(limit=limit)

    @ray.method(concurrency_group="read")
    def sources(self) -> list[SourceTrust]:
        """Decisions about sources."""
        return self._management.trusts.decisions()

    @ray.method(concurrency_group="read")
    def rules(self) -> list[tuple[str, str]]:
        """Name and text of every rule."""
        return [(rule.name, str(rule)) for rule in self._memory.rules]

    @ray.method(concurrency_group="read")
    def failed_enrichments(self, limit: int) -> list[FailedEnrichment]:
        """Texts that the model could not read, with the error."""
        return self._queue.failed(limit=limit)

    @ray.method(concurrency_group="read")
    def consolidations(self, limit: int) -> list[dict[str, Any]]:
        """The last runs, newest first."""
        return [asdict(report) for report in self._consolidation.reports(limit=limit)]

    # -- changes

    @ray.method
    def forget(self, source_id: str | None, document_id: str | None, asked: dict[str, str]) -> ForgetReport:
        """Erase a source or a document from every tier. It is audited before it is no longer known what was erased."""

        def audit(report: ForgetReport) -> None:
            self._holds.forget(report.episodes)
            after = {"episodes": len(report.episodes), "facts": report.num_facts, "versions": list(report.versions)}
            self._audit("forget", source_id or document_id or "", **asked, **after)

        guard = self._guard()
        return self._management.forget(source_id, document_id=document_id, on_erased=audit, guard=guard)

    @ray.method
    def believe(self, source_id: str, trust: int, by: str, reason: str) -> tuple[str, ...]:
        """Believe a source so far from now on; ids of the episodes whose trust changed."""
        ids = self._management.believe(source_id, Trust(trust), by=by, reason=reason, guard=self._guard())
        self._audit("believe", source_id, trust=Trust(trust).name, by=by, reason=reason, episodes=len(ids))
        return ids

    @ray.method
    def release(self, ids: list[str], by: str, reason: str) -> tuple[str, ...]:
        """Let episodes be recalled and learned; ids of those whose trust changed or that were held back from learning."""
        changed = self._management.release(ids, guard=self._guard())
        released = tuple({*changed, *self._holds.release(ids, by=by, reason=reason, guard=self._guard())})
        self._audit("release", f"{len(released)} episodes", by=by, reason=reason, episodes=list(released))
        return released

    @ray.method
    def suspect(self, ids: list[str]) -> tuple[str, ...]:
        """Hold episodes back until a person releases them; ids of those whose trust changed."""
        return self._management.suspect(ids, guard=self._guard())

    @ray.method
    def add_rule(self, name: str, text: str) -> int:
        """Keep a rule; how many facts it derives."""
        return self._memory.add_rule(Rule.parse(name, text), guard=self._guard())

    @ray.method
    def remove_rule(self, name: str, is_erased: bool = False) -> bool:
        """Apply a rule no longer; erased, nothing of it is left."""
        return self._memory.remove_rule(name, is_erased=is_erased, guard=self._guard())

    @ray.method
    def retry_enrichments(self) -> int:
        """Send what failed back into the queue."""
        return self._queue.retry_failed(guard=self._guard())

    @ray.method(concurrency_group="dream")
    def consolidate(self) -> dict[str, Any]:
        """A run of consolidation now, or the rest of one that was cut off."""
        with self._dreaming:
            return asdict(self._consolidation.run(guard=self._guard()))

    @ray.method(concurrency_group="dream")
    def undo_consolidation(self, run: str, by: str) -> dict[str, Any]:
        """Take a run back."""
        with self._dreaming:
            report = self._consolidation.undo(run, by=by, guard=self._guard())
        self._audit("undo consolidation", run, by=by)
        return asdict(report)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, Any]:
        """Sizes, and the last episodes that were read. Raises if following fails, with the reason."""
        if self._error:
            raise RuntimeError(f"following the episodes fails and is retried every {RETRY_S:.0f} s: {self._error}")
        return {**self._memory.health(), "places": self._memory.places(), "consolidation_error": self._dream_error}

    # -- threads

    def _audit(self, action: str, subject: str, **after: Any) -> None:
        self._ledger.append_audit(actor="human", action=action, subject=subject, after=after)

    def _guard(self) -> Any:
        return self._latch.permit("memory write").check

    def _follow_for_ever(self) -> None:
        is_watched = False
        while True:
            try:
                self._wake.clear()
                began = time.monotonic()
                with self._memory.stating:
                    num_read = self._follow_once()
                self._error = ""
                if num_read < BATCH:
                    self._note_read(began)
                if num_read or not is_watched:
                    is_watched = False
                    self._management.watch(guard=self._guard())
                    is_watched = True
                else:
                    self._wake.wait(IDLE_S)
            except (LearningStopped, RayActorError, ActorMissing) as error:
                # Stopped by a person, or the episodic actor restarts: the places stand, so nothing is missed.
                logger.info("following waits: %s", error)
                self._error = ""
                time.sleep(IDLE_S)
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("following failed")
                self._error = f"{type(error).__name__}: {error}"
                time.sleep(RETRY_S)

    def _note_read(self, began: float) -> None:
        """All that was there at this time is read."""
        with self._is_read:
            self._read_up_to = began
            self._is_read.notify_all()

    def _wait_until_read(self, asked: float) -> bool:
        """Whether all that was there when it was asked is read. A stop reads nothing, so it is not waited for."""
        self._wake.set()
        timeout_s = CURRENT_TIMEOUT_S if self._latch.state().mode == "armed" else 0.0
        with self._is_read:
            return self._is_read.wait_for(lambda: self._read_up_to >= asked, timeout=timeout_s)

    def _follow_once(self) -> int:
        guard = self._guard()
        places = self._memory.places()
        episodes, behind = ray.get(actor("episodic").stream.remote(places, BATCH))
        if not episodes:
            return 0
        claims = {episode.id: claims_of(episode) for episode in episodes}
        if self._settings.enrich:  # before the places move: a crash in between queues again what is queued
            self._queue.put([key for key, said in claims.items() if not said], guard=guard)
        self._memory.add([one for said in claims.values() for one in said], places=behind, guard=guard)
        return len(episodes)

    def _dream_for_ever(self) -> None:
        while True:
            time.sleep(DREAM_CHECK_S)
            try:
                with self._dreaming:
                    if (
                        self._consolidation.due(reset_at=self._latch.state().at)
                        and self._episodes.health().num_episodes
                    ):
                        self._consolidation.run(guard=self._guard())
                self._dream_error = ""
            except (LearningStopped, RayActorError, ActorMissing) as error:
                logger.info("consolidation waits: %s", error)
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("consolidation failed")
                self._dream_error = f"{type(error).__name__}: {error}"

    def _replay(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """What of a dream surprises the version that serves; in parts, so that a candidate that is judged waits for one."""
        adapter: Path | None = None
        with suppress(LedgerNotReady):
            record = self._ledger.get(self._ledger.pointers().v2)
            adapter = record.folder if record.adapter_number is not None else None
        losses: dict[str, float] = {}
        try:
            for start in range(0, len(episodes), REPLAYED_AT_ONCE):
                part = list(episodes[start : start + REPLAYED_AT_ONCE])
                losses |= ray.get(actor("evaluator").surprise.remote(part, adapter))
        except LearningStopped:
            raise
        except Exception:  # whatever the evaluator has: the rest of a consolidation does not hang on it
            logger.exception("the sample could not be shown to the version that serves: its novelty decides alone")
            return {}
        return losses

    def _enrich_for_ever(self) -> None:
        extractor = EngineExtractor()
        while True:
            try:
                num_read = self._queue.run_once(extractor.extract, self._episodes.get, guard=self._guard())
            except (LearningStopped, RayActorError, ActorMissing) as error:
                logger.info("enrichment waits: %s", error)
                num_read = 0
            except Exception:  # the thread must live: failures of texts are in the queue, others in the log
                logger.exception("enrichment failed")
                num_read = 0
            if not num_read:
                time.sleep(RETRY_S)


class TokenCounter:
    """The serving model's tokens of a text. The tokenizer loads at the first count."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def count(self, text: str) -> int:
        """Without special tokens."""
        with self._lock:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            return len(self._tokenizer.encode(text, add_special_tokens=False))
