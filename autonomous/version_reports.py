"""Reports of the ledger's versions: benchmarks are run, pages written, triggers told.

In: version ids. Out: what is known of a version as JSON and as a page; a benchmark's file beside it (autonomous.report_store).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autonomous.benchmark import Benchmark
from autonomous.benchmark_job import AlreadyBenchmarking
from autonomous.benchmark_report import BenchmarkReport
from autonomous.config import AutonomousConfig
from autonomous.curriculum import Curriculum
from autonomous.lessons import Question
from autonomous.ports import MemoryPort
from autonomous.report_store import load_benchmark, load_history, save_benchmark, write_version_report
from autonomous.triggers import Trigger, decide_triggers
from autonomous.versions.ledger import VersionLedger, VersionRecord
from autonomous.versions.report import EvaluationReport
from memory.types import Guard

logger = logging.getLogger(__name__)


class VersionReports:
    """Thread-safe; one benchmark runs at a time."""

    def __init__(
        self,
        config: AutonomousConfig,
        *,
        ledger: VersionLedger,
        memory: MemoryPort,
        benchmark: Benchmark,
        folder: Path,
        on_trigger: Callable[[Trigger], None] = lambda _: None,
    ) -> None:
        """`on_trigger` is told what a benchmark found to be learned again."""
        self._config = config
        self._on_trigger = on_trigger
        self._ledger = ledger
        self._curriculum = Curriculum(config.learning, memory=memory, ledger=ledger)
        self._benchmark = benchmark
        self._folder = folder
        self._busy = threading.Lock()
        self._running: str | None = None
        self._errors: dict[str, str] = {}
        """Of the last run of a version that failed; bounded by the versions that were asked for since the start."""

    def has_benchmark(self, version_id: str) -> bool:
        """Whether a version was benchmarked. Raises UnknownVersion."""
        return load_benchmark(self._folder, self._ledger.get(version_id).name) is not None

    def start(self, version_id: str, *, guard: Guard) -> str:
        """`run` in a thread of its own; returns the version's id at once. Raises as `run` before it begins."""
        record = self._begin(version_id)
        threading.Thread(target=self._watch, args=(record, guard), name=f"benchmark {record.name}", daemon=True).start()
        return record.name

    def run(self, version_id: str, *, guard: Guard) -> BenchmarkReport:
        """Ask everything of a version, tell what is to be learned again, keep the report and write its page.

        Raises UnknownVersion, AlreadyBenchmarking, ValueError for the frozen original and for a run without a bundle, what
        the guard raises, AdapterError.
        """
        return self._measure(self._begin(version_id), guard)

    def summary(self, version_id: str) -> dict[str, Any]:
        """What is known of a version. Raises UnknownVersion."""
        record, benchmark, triggers = self._known(version_id)
        return {
            "version": record.name,
            "state": record.state.value,
            "parent": record.parent,
            "gates": [gate.to_dict() for gate in record.gates],
            "report": record.report,
            "benchmark": benchmark and benchmark.to_dict(),
            "triggers": [asdict(trigger) for trigger in triggers],
            "is_running": self._running == record.name,
            "error": self._errors.get(record.name),
        }

    def page(self, version_id: str) -> str:
        """The page, which is also written to disk. Raises UnknownVersion, OSError."""
        record, benchmark, triggers = self._known(version_id)
        report = None if record.report is None else EvaluationReport.from_dict(record.report)
        return write_version_report(self._folder, record, report, benchmark, triggers=triggers).read_text("utf-8")

    def triggers(self) -> list[Trigger]:
        """What the newest benchmark shows against those before it."""
        return self._decide(load_history(self._folder))

    def _begin(self, version_id: str) -> VersionRecord:
        record = self._ledger.get(version_id)
        if record.adapter_number is None:
            raise ValueError(
                f"version {record.name} has no adapter: the frozen original is what others are compared with, and a run has "
                "no weights yet; name a version of GET /v1/versions that has learned"
            )
        if not self._busy.acquire(blocking=False):
            raise AlreadyBenchmarking(f"version {self._running} is being benchmarked; try again when it is done")
        self._running = record.name
        self._errors.pop(record.name, None)
        return record

    def _watch(self, record: VersionRecord, guard: Guard) -> None:
        try:
            self._measure(record, guard)
        except Exception:  # a run's failure is its result
            logger.exception("benchmark of %s failed", record.name)

    def _measure(self, record: VersionRecord, guard: Guard) -> BenchmarkReport:
        try:
            v2 = self._ledger.get(self._ledger.pointers().v2)
            is_other = v2.adapter_number is not None and v2.name != record.name
            report = self._benchmark.run(
                record.folder,
                version=record.name,
                current=v2.folder if is_other else None,
                current_version=v2.name,
                questions=self._questions_of(record.name),
                guard=guard,
            )
            guard()
            for trigger in self._decide([*load_history(self._folder), report]):  # before it counts as benchmarked
                self._on_trigger(trigger)
            save_benchmark(self._folder, report, guard=guard)
            self.page(record.name)
            return report
        except Exception as error:
            self._errors[record.name] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._running = None
            self._busy.release()

    def _decide(self, history: Sequence[BenchmarkReport]) -> list[Trigger]:
        return decide_triggers(history, self._config.benchmark.triggers)

    def _known(self, version_id: str) -> tuple[VersionRecord, BenchmarkReport | None, list[Trigger]]:
        record = self._ledger.get(version_id)
        benchmark = load_benchmark(self._folder, record.name)
        found = [trigger for trigger in self.triggers() if trigger.version == record.name]
        return record, benchmark, found

    def _questions_of(self, version_id: str) -> list[Question]:
        """On what the version's line has learned, its own first; each question once."""
        line = [one.name for one in self._ledger.lineage(version_id) if one.adapter_number is not None]
        asked = (question for name in reversed(line) for question in self._curriculum.questions_of(name))
        return list({one.paraphrase: one for one in asked}.values())[: self._config.benchmark.max_questions]
