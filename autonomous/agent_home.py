"""What a started agent of one process holds, over the files of its home."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from autonomous.batching import BatchWatch
from autonomous.benchmark import Benchmark
from autonomous.benchmark_job import benchmark_job
from autonomous.code import code_sha256
from autonomous.config import AutonomousConfig
from autonomous.consolidation_job import consolidation_job
from autonomous.cycle_watch import CycleWatch, open_budget
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.ingest import IngestConfig
from autonomous.knowledge import KnowledgeIntegration, build_tools, count_calls
from autonomous.learn_until_done import LearnUntilDone
from autonomous.local_engine import LocalEngine
from autonomous.local_evaluator import LocalEvaluator
from autonomous.local_learner import LocalLearner
from autonomous.local_memory import LocalMemory
from autonomous.loop import LearningLoop
from autonomous.permits import Permits
from autonomous.ports import AgentParts
from autonomous.retraining import Job, RetrainingScheduler
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.screen import SafetyScreen
from autonomous.sentinel import load_secret
from autonomous.sources.cursors import CursorStore
from autonomous.sources.reading import ReadingThread
from autonomous.sources.stream import StreamReader
from autonomous.triggers import Trigger
from autonomous.version_reports import VersionReports
from autonomous.versions.bundle import base_bundle
from autonomous.versions.drill import RollbackDrill
from autonomous.versions.ledger import VersionLedger
from memory.embed import Embedder
from memory.settings import MemorySettings
from memory.types import Episode


class AgentHome:
    """Memory, loop, ledger, latch, tools, schedules, sources of one home. `ending` is set when no step may begin any more."""

    def __init__(
        self,
        home: Path,
        config: AutonomousConfig,
        *,
        base_folder: Path,
        memory: MemorySettings,
        ingest: IngestConfig,
        embedder: Embedder | None,
        clock: Callable[[], float],
        ending: threading.Event,
    ) -> None:
        """Raises ValueError for what only a system that serves users can do, and for a home that began with another model."""
        _refuse_what_serves(config)
        for name in ("memory", "versions", "safety"):
            (home / name).mkdir(exist_ok=True)
        latch_path, ledger_path = home / "safety" / "latch", home / "ledger.sqlite"
        if not latch_path.exists() and not ledger_path.exists():
            Latch.create(latch_path)
        self.latch = Latch.open(latch_path)
        self.ledger = VersionLedger(
            ledger_path, clock=clock, warm_versions=config.warm_versions, checkpoint_folder=config.audit_checkpoint
        )
        self.monitor = SafetyMonitor(
            self.latch,
            audit=self.ledger.append_audit,
            rules=config.safety.rules,
            level=config.safety_level,
            two_people=config.needs_two_people,
            second_person_within_s=config.safety.second_person_within_s,
        )
        self.screen = SafetyScreen(config.safety_level)
        self.engine = LocalEngine(base_folder, config=config.learning)
        self._permits = Permits(self.latch, ending=ending)
        secret = load_secret(home / "safety" / "evaluation-secret")
        system = SelfEvaluationSystem(config.gates, base_folder=base_folder, secret=secret)
        self._evaluator = LocalEvaluator(system, permits=self._permits)
        self.memory = LocalMemory(
            home / "memory",
            latch=self.latch,
            settings=memory,
            ingest=ingest,
            level=config.safety_level,
            count_tokens=self.engine.count_tokens,
            weights=self.ledger,
            surprise=self._surprise,
            embedder=embedder,
            clock=clock,
        )
        self._budget = open_budget(home, config.budget, clock=clock)
        self.knowledge = KnowledgeIntegration(
            config.knowledge,
            tools=build_tools(config.knowledge, retrieve=self.memory.episodic.recall, safety_folder=home / "safety"),
            latch=self.latch,
            audit=self.ledger.append_audit,
            level=config.safety_level,
            on_call=count_calls(self.monitor, self._budget),
        )
        self.loop = LearningLoop(
            config,
            parts=AgentParts(
                memory=self.memory,
                learner=LocalLearner(
                    config.learning, base_folder=base_folder, permits=self._permits, monitor=self.monitor
                ),
                evaluator=self._evaluator,
                engine=self.engine,
            ),
            ledger=self.ledger,
            latch=self.latch,
            watch=CycleWatch(config, monitor=self.monitor, ledger=self.ledger, budget=self._budget, clock=clock),
            versions_folder=home / "versions",
            base=base_bundle(base_folder, code_sha256=code_sha256()),
            clock=clock,
        )
        self._reports = VersionReports(
            config,
            ledger=self.ledger,
            memory=self.memory,
            benchmark=Benchmark(config.benchmark, system=system),
            folder=home / "reports",
            on_trigger=self._learn_again,
        )
        learn = LearnUntilDone(self.loop)
        drill = RollbackDrill(self.ledger, path=ledger_path, engine=self.engine, gates=config.gates)
        self.scheduler = RetrainingScheduler(
            config.all_schedules(),
            path=home / "schedules.sqlite",
            latch=self.latch,
            runners={
                "learn": learn,
                "retrain": learn,
                "drill": drill.run_job,
                "evaluate": benchmark_job(
                    self.ledger, has_benchmark=self._reports.has_benchmark, benchmark=self._benchmark
                ),
                "consolidate": consolidation_job(lambda: asdict(self.memory.consolidate())),
            },
            clock=clock,
        )
        self.batches = BatchWatch(
            config.learning,
            num_pending=self.loop.curriculum.num_pending,
            scheduler=self.scheduler,
            latch=self.latch,
        )
        self._cursors = CursorStore(home / "sources" / "cursors.sqlite")
        self._cursors.follow_file(config.sources)
        stream = StreamReader(
            self._cursors,
            latch=self.latch,
            ingest=self.memory.ingest_source,
            home=home,
            max_document_bytes=ingest.max_document_bytes,
            ending=ending,
        )
        self.reading = ReadingThread(stream)  # the last: from here on it writes

    def close(self) -> None:
        """Close the files. A running cycle is ended by its next step, if `ending` is set."""
        self.reading.close()
        self._cursors.close()
        self.scheduler.close()
        self.loop.close()
        self.memory.close()
        self._budget.close()
        self.ledger.close()

    def _benchmark(self, job: Job, version: str) -> str:
        permitted = self._permits.guard("evaluation")

        def guard() -> None:
            job.check()
            permitted()

        self._evaluator.prepare()
        self._reports.run(version, guard=guard)
        return f"version {version} has its benchmark"

    def _learn_again(self, trigger: Trigger) -> None:
        self.scheduler.trigger(
            "retrain", by="agent:benchmark", reason=trigger.reason, evidence=asdict(trigger), key=trigger.key
        )

    def _surprise(self, episodes: Sequence[Episode]) -> Mapping[str, float]:
        adapter = self.loop.adapter_of(self.ledger.pointers().v2)
        return self._evaluator.surprise(episodes, adapter=None if adapter is None else Path(adapter.folder))


def _refuse_what_serves(config: AutonomousConfig) -> None:
    """Raises ValueError for settings that would do nothing here."""
    if config.rollout.canary_percents or config.rollout.soak_s:
        raise ValueError(
            "rollout.canary_percents and rollout.soak_s compare how versions serve users, whom an agent of one process "
            "does not have: leave them out, or use `autonomous up`"
        )
    if given := config.feedback.model_dump(mode="json", exclude_defaults=True):
        field, value = next(iter(given.items()))
        raise ValueError(
            f"feedback.{field} = {value!r} is about requests of users, which an agent of one process does not log: leave it "
            "out, or use `autonomous up`"
        )
