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

from actors.base import Shell
from actors.calls import ActorMissing, actor
from actors.ports import RayEngine, RayEvaluator, RayLearner, RayMemory
from actors.schedules import build_runners
from autonomous.batching import BatchWatch
from autonomous.code import code_sha256
from autonomous.config import AutonomousConfig
from autonomous.cycle_watch import CycleWatch, open_budget
from autonomous.home_lock import own_home
from autonomous.loop import LearningLoop
from autonomous.oversight import Oversight
from autonomous.people import BY_API
from autonomous.ports import AgentParts
from autonomous.retraining import RetrainingScheduler
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.bundle import base_bundle
from autonomous.versions.drill import RollbackDrill
from autonomous.versions.explain import Explanation
from autonomous.versions.forensics import Case
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.rollout import Outcome
from autonomous.versions.schema import Pointers
from train.adapt.reference import AdapterRef

logger = logging.getLogger(__name__)

PART_TIMEOUT_S = 2.0
UNANSWERED = (RayError, ActorMissing)
"""What a call of a part raises while the part is away, slow or broken."""
TICK_S = 1.0
"""How often the rollout and the effects of the ledger are looked after."""
TAKEOVER_S = 60.0
"""How long the process of the actor that this one takes the place of may take to end."""
HELD_SHOWN = 100
"""Newest passages that the data gate holds, in GET /v1/learn/next."""


class AgentShell(Shell):
    """Holds the LearningLoop and the RetrainingScheduler. Restarted by Ray, both go on from their files."""

    def __init__(self, settings_sha256: str, *, config: AutonomousConfig, home: Path, base_folder: Path) -> None:
        super().__init__("agent", settings_sha256)
        self._owner = own_home(home, wait_s=TAKEOVER_S)  # held until this process ends
        self._config = config
        latch = self._latch = Latch.open(home / "safety" / "latch")
        memory, engine = RayMemory(), RayEngine()
        ledger = VersionLedger(
            home / "ledger.sqlite", warm_versions=config.warm_versions, checkpoint_folder=config.audit_checkpoint
        )
        self._budget = open_budget(home, config.budget)
        self._agent = LearningLoop(
            config,
            parts=AgentParts(memory=memory, learner=RayLearner(), evaluator=RayEvaluator(), engine=engine),
            ledger=ledger,
            latch=latch,
            watch=CycleWatch(
                config,
                monitor=SafetyMonitor(
                    latch, audit=ledger.append_audit, rules=config.safety.rules, level=config.safety_level
                ),
                ledger=ledger,
                budget=self._budget,
            ),
            versions_folder=home / "versions",
            base=base_bundle(base_folder, code_sha256=code_sha256()),
        )
        self._oversight = Oversight(
            config, ledger=ledger, latch=latch, memory=memory, curriculum=self._agent.curriculum
        )
        drill = RollbackDrill(ledger, path=home / "ledger.sqlite", engine=engine, gates=config.gates)
        self._scheduler = RetrainingScheduler(
            config.all_schedules(),
            path=home / "schedules.sqlite",
            latch=latch,
            runners=build_runners(self._agent, drill),
        )
        self._batches = BatchWatch(
            config.learning, num_pending=self._num_pending, scheduler=self._scheduler, latch=latch
        )
        threading.Thread(target=self._tick_for_ever, name="tick", daemon=True).start()
        threading.Thread(
            target=self._scheduler.run_until, args=(threading.Event(),), name="schedule", daemon=True
        ).start()

    @ray.method(concurrency_group="route")
    def pointers(self) -> Pointers:
        """Which version is V1, V2, V3, and whom V1 answers."""
        return self._agent.ledger.pointers()

    @ray.method(concurrency_group="route")
    def version_adapter(self, version_id: str) -> AdapterRef | None:
        """The adapter of a version; None for the frozen original."""
        return self._agent.adapter_of(version_id)

    @ray.method(concurrency_group="route")
    def observe(self, outcomes: list[Outcome]) -> None:
        """How requests ended: what a canary and a new production are judged by."""
        self._agent.rollout.observe(outcomes)

    @ray.method(concurrency_group="read")
    def versions(self) -> dict[str, Any]:
        """Pointers and all versions, newest first."""
        ledger = self._agent.ledger
        return {
            **_slots(ledger.pointers()),
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
            "proposed_by": ledger.proposer(version_id),
            "waiting": self._oversight.waiting_release(version_id),
        }

    @ray.method(concurrency_group="read")
    def audit(self, limit: int) -> dict[str, Any]:
        """The newest audit rows, and whether the whole chain holds."""
        ledger = self._agent.ledger
        return {"rows": [asdict(row) for row in ledger.audit(limit)], **asdict(ledger.verify_audit())}

    @ray.method(concurrency_group="learn")
    def learn(self, by: str | None = None) -> str:
        """Begin a learning cycle that somebody asked for; returns the run id at once."""
        return self._agent.start_cycle(by=by or BY_API)

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
    def approve(self, version_id: str, by: str, reason: str, report_sha256: str | None) -> None:
        """A person lets a waiting version serve."""
        self._agent.approve(version_id, by=by, reason=reason, report_sha256=report_sha256)

    @ray.method(concurrency_group="control")
    def reject(self, version_id: str, by: str, reason: str, report_sha256: str | None) -> None:
        """A person says no to a waiting version."""
        self._oversight.reject(version_id, by=by, reason=reason, report_sha256=report_sha256)

    @ray.method(concurrency_group="control")
    def release(self, version_id: str, by: str, reason: str, evidence: dict[str, Any] | None) -> dict[str, Any] | None:
        """A person lets a quarantined version be evaluated anew; the request, where it waits for a second person."""
        return self._oversight.release(version_id, by=by, reason=reason, evidence=evidence)

    @ray.method(concurrency_group="control")
    def withdraw_release(self, version_id: str, by: str, reason: str) -> None:
        """A person takes the request for a release back."""
        self._oversight.withdraw_release(version_id, by=by, reason=reason)

    @ray.method(concurrency_group="read")
    def explain(self, version_id: str) -> Explanation:
        """All about one version."""
        return self._oversight.explain(version_id)

    @ray.method(concurrency_group="read")
    def forensic_case(self, version_id: str, asked: list[str], max_prompts: int) -> Case:
        """What is known of a version that was put away, and what is to be asked."""
        return self._oversight.forensic_case(version_id, asked=asked, max_prompts=max_prompts)

    @ray.method(concurrency_group="control")
    def rollback(self, reason: str, by: str, keep_passages: bool = False) -> dict[str, Any]:
        """The predecessor serves again."""
        start = time.monotonic()
        bad, restored = self._agent.rollback(by=by, reason=reason, keep_passages=keep_passages)
        return {"from": bad, "to": restored, "seconds": round(time.monotonic() - start, 4)}

    @ray.method(concurrency_group="control")
    def unlock(self, reason: str, by: str) -> None:
        """A person lets versions be promoted again after rollbacks."""
        self._agent.ledger.unlock_promotions(by=by, reason=reason)

    @ray.method(concurrency_group="read")
    def schedules(self) -> dict[str, Any]:
        """What runs by itself, when next, how it ended last, and what a person should look at."""
        return {"schedules": self._scheduler.book.schedules(), "findings": self._scheduler.findings()}

    @ray.method(concurrency_group="read")
    def schedule_runs(self, name: str, limit: int = 20) -> list[dict[str, Any]]:
        """A job's runs, newest first."""
        return [run.to_dict() for run in self._scheduler.book.runs(name, limit=limit)]

    @ray.method(concurrency_group="control")
    def run_schedule(self, name: str, by: str, reason: str, key: str | None = None) -> dict[str, Any]:
        """A person wants a run of a job now."""
        run = self._scheduler.ask(name, by=by, reason=reason, key=key)
        self._agent.ledger.append_audit(
            actor=by, action="schedule.ask", subject=name, after={"reason": reason, "run": run.id}
        )
        return run.to_dict()

    @ray.method(concurrency_group="control")
    def trigger_schedule(
        self, name: str, by: str, reason: str, evidence: dict[str, Any] | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Something was found that asks for a run; what comes close together is one run."""
        return self._scheduler.trigger(name, by=by, reason=reason, evidence=evidence, key=key).to_dict()

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
        return {
            "version": _program_version(),
            "uptime_s": round(time.time() - self._identity.started_at, 1),
            **_slots(self._agent.ledger.pointers()),
            "memory": _part("episodic", "health"),
            "pending_episodes": self._num_pending(),
            "facts": _part("semantic", "health"),
            "working": _part("working", "health"),
            "safety": _part("safety", "status"),
            "sources": _part("stream", "status"),
            "learning": asdict(last) if last else None,
            "rollout": self._agent.rollout.status(),
            "findings": self._scheduler.findings(),
            "budget": [asdict(one) for one in self._budget.usage()],
            "delays": {"learning_s": timings.get("total_s"), "swap_s": timings.get("swap_s")},
        }

    @ray.method(concurrency_group="control")
    def ready(self) -> dict[str, Any]:
        """Version that serves. Raises if there is none."""
        return {"v2": self._agent.ledger.pointers().v2}

    def _tick_for_ever(self) -> None:
        while True:
            time.sleep(TICK_S)
            try:
                self._agent.tick()
                self._batches.look()
            except LearningStopped as error:
                logger.info("what would follow waits: %s", error)
            except Exception:  # the thread must live: the next tick tries again
                logger.exception("what follows from the ledger could not be done")

    def _num_pending(self) -> int | None:
        """Passages that wait to be learned; None while a part that counts them does not answer."""
        try:
            return self._agent.curriculum.num_pending()
        except UNANSWERED:
            return None


def _program_version() -> str:
    """The installed release; a job's bare working directory has none, so the code's hash names it."""
    try:
        return version("autonomous-learning")
    except PackageNotFoundError:
        return f"code {code_sha256()[:12]}"


def _slots(pointers: Pointers) -> dict[str, Any]:
    slots = {"v1": pointers.v1, "v2": pointers.v2, "v3": pointers.v3}
    return {"pointers": slots, "canary_percent": pointers.canary_percent}


def _part(name: str, method: str) -> dict[str, Any]:
    try:
        answer = ray.get(getattr(actor(name), method).remote(), timeout=PART_TIMEOUT_S)
    except UNANSWERED as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return dict(answer) if isinstance(answer, dict) else asdict(answer)
