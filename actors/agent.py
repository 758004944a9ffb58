"""The agent actor: the mind over the other actors, and the front door to versions."""

import logging
import threading
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.base import Shell, code_sha256
from actors.calls import ActorMissing, actor
from actors.ports import RayEngine, RayEvaluator, RayLearner, RayMemory
from autonomous.config import AutonomousConfig
from autonomous.loop import AlreadyLearning, LearningLoop, NothingToLearn
from autonomous.ports import AgentParts
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.bundle import base_bundle
from autonomous.versions.ledger import VersionLedger
from train.adapt.reference import AdapterRef

logger = logging.getLogger(__name__)

PART_TIMEOUT_S = 2.0
HELD_SHOWN = 100
"""Newest passages that the data gate holds, in GET /v1/learn/next."""


class AgentShell(Shell):
    """Holds the LearningLoop and its schedule. Restarted by Ray, it goes on from the ledger."""

    def __init__(self, settings_sha256: str, *, config: AutonomousConfig, home: Path, base_folder: Path) -> None:
        super().__init__("agent", settings_sha256)
        self._config = config
        self._latch = Latch.open(home / "safety" / "latch")
        self._agent = LearningLoop(
            config,
            parts=AgentParts(memory=RayMemory(), learner=RayLearner(), evaluator=RayEvaluator(), engine=RayEngine()),
            ledger=VersionLedger(home / "ledger.sqlite", warm_versions=config.warm_versions),
            latch=self._latch,
            versions_folder=home / "versions",
            base=base_bundle(base_folder, code_sha256=code_sha256()),
        )
        if config.enable_online_learning and config.learning.interval_s > 0:
            threading.Thread(target=self._learn_on_schedule, name="schedule", daemon=True).start()

    @ray.method(concurrency_group="route")
    def pointers(self) -> dict[str, str | None]:
        """Which version is V1, V2, V3."""
        return asdict(self._agent.ledger.pointers())

    @ray.method(concurrency_group="route")
    def version_adapter(self, version_id: str) -> AdapterRef | None:
        """The adapter of a version; None for the frozen original."""
        return self._agent.adapter_of(version_id)

    @ray.method(concurrency_group="read")
    def versions(self) -> dict[str, Any]:
        """Pointers and all versions, newest first."""
        ledger = self._agent.ledger
        return {
            "pointers": asdict(ledger.pointers()),
            "frozen": ledger.frozen(),
            "versions": [record.to_dict() for record in ledger.list(100)],
        }

    @ray.method(concurrency_group="read")
    def version(self, version_id: str) -> dict[str, Any]:
        """One version with its lineage and report."""
        ledger = self._agent.ledger
        record = ledger.get(version_id)
        return {
            **record.to_dict(),
            "lineage": [ancestor.name for ancestor in ledger.lineage(version_id)],
            "manifest": record.manifest,
            "report": record.report,
        }

    @ray.method(concurrency_group="read")
    def audit(self, limit: int) -> dict[str, Any]:
        """The newest audit rows, and whether the whole chain holds."""
        ledger = self._agent.ledger
        return {"rows": [asdict(row) for row in ledger.audit(limit)], **asdict(ledger.verify_audit())}

    @ray.method(concurrency_group="learn")
    def learn(self) -> str:
        """Begin a learning cycle; returns the run id at once."""
        return self._agent.start_cycle()

    @ray.method(concurrency_group="learn")
    def learn_next(self) -> dict[str, Any]:
        """What the next cycle would learn, and the questions it would be judged by."""
        batch = self._agent.curriculum.next_batch()
        return {
            "num_pending": len(batch.episodes),
            "episodes": [
                {"id": episode.id, "document_id": episode.document_id, "title": episode.title}
                for episode in batch.episodes
            ],
            "questions": [asdict(question) for question in batch.lessons.questions],
            "held": [hold.to_dict() for hold in self._agent.curriculum.held(HELD_SHOWN)],
            "undecided": dict(batch.undecided),
        }

    @ray.method(concurrency_group="read")
    def learn_status(self, run_id: str | None = None) -> dict[str, Any] | None:
        """A run's status; the last run's without an id."""
        status = self._agent.status_of(run_id)
        return None if status is None else asdict(status)

    @ray.method(concurrency_group="learn")
    def approve(self, version_id: str, by: str, reason: str) -> None:
        """A person lets a waiting version serve."""
        self._agent.approve(version_id, by=by, reason=reason)

    @ray.method(concurrency_group="control")
    def rollback(self, reason: str, by: str) -> dict[str, Any]:
        """The predecessor serves again."""
        start = time.monotonic()
        bad, restored = self._agent.rollback(by=by, reason=reason)
        return {"from": bad, "to": restored, "seconds": round(time.monotonic() - start, 4)}

    @ray.method(concurrency_group="control")
    def unlock(self, reason: str, by: str) -> None:
        """A person lets versions be promoted again after rollbacks."""
        self._agent.ledger.unlock_promotions(by=by, reason=reason)

    @ray.method(concurrency_group="learn")
    def forget_document(self, document_id: str) -> dict[str, Any]:
        """Erase a document from every store; names the versions that learned from it."""
        return self._forget(None, document_id, {})

    @ray.method(concurrency_group="learn")
    def forget_source(self, source_id: str, by: str, reason: str) -> dict[str, Any]:
        """Erase all that a source has said from every store; names the versions that learned from it."""
        return self._forget(source_id, None, {"by": by, "reason": reason})

    def _forget(self, source_id: str | None, document_id: str | None, asked: dict[str, str]) -> dict[str, Any]:
        report = ray.get(actor("semantic").forget.remote(source_id, document_id, asked))
        # Asked last, so that a version that was fixed meanwhile is among them.
        versions = self._agent.ledger.versions_that_learned(report.episodes)
        return {"deleted_episodes": len(report.episodes), "versions": versions}

    @ray.method(concurrency_group="read")
    def status(self) -> dict[str, Any]:
        """Sizes and states of all parts; a part that does not answer shows its error instead."""
        last = self._agent.status_of()
        timings = last.timings if last else {}
        memory = _part("episodic", "health")
        return {
            "version": _program_version(),
            "uptime_s": round(time.time() - self._identity.started_at, 1),
            "pointers": asdict(self._agent.ledger.pointers()),
            "memory": memory,
            "pending_episodes": max(0, memory.get("num_learnable", 0) - self._agent.curriculum.num_decided_episodes()),
            "facts": _part("semantic", "health"),
            "working": _part("working", "health"),
            "safety": _part("safety", "status"),
            "learning": asdict(last) if last else None,
            "delays": {"learning_s": timings.get("total_s"), "swap_s": timings.get("swap_s")},
        }

    @ray.method(concurrency_group="control")
    def ready(self) -> dict[str, Any]:
        """Version that serves. Raises if there is none."""
        return {"v2": self._agent.ledger.pointers().v2}

    def _learn_on_schedule(self) -> None:
        """One batch per interval. A reset of the emergency stop starts nothing: the interval begins anew."""
        last, epoch = time.monotonic(), self._latch.state().epoch
        while True:
            time.sleep(self._config.safety.watch_interval_s)
            if (now_epoch := self._latch.state().epoch) != epoch:
                last, epoch = time.monotonic(), now_epoch
            if time.monotonic() - last < self._config.learning.interval_s:
                continue
            last = time.monotonic()
            try:
                logger.info("scheduled learning run %s", self._agent.start_cycle())
            except (NothingToLearn, AlreadyLearning, LearningStopped, RayError) as error:
                logger.info("no scheduled learning: %s", error)
            except Exception:  # the thread must live: the next interval tries again
                logger.exception("scheduled learning could not start")


def _program_version() -> str:
    """The installed release; a job's bare working directory has none, so the code's hash names it."""
    try:
        return version("autonomous-learning")
    except PackageNotFoundError:
        return f"code {code_sha256()[:12]}"


def _part(name: str, method: str) -> dict[str, Any]:
    try:
        answer = ray.get(getattr(actor(name), method).remote(), timeout=PART_TIMEOUT_S)
    except (RayError, ActorMissing, ray.exceptions.GetTimeoutError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return dict(answer) if isinstance(answer, dict) else asdict(answer)
