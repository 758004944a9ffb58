"""RollbackDrill: whether a rollback would work now, proven without one: a copy of the ledger, the real files, the real engine.

In: the ledger's file (read only) and the engine. Out: a DrillReport and the audit row `drill.rollback`. Nobody's traffic is
touched: the copy lies in a temporary folder and goes with it, and the engine loads what it has to keep warm anyway.
A verdict is pass, fail or inconclusive; without a predecessor, or an engine that answers, nothing is proven.
"""

import logging
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from autonomous.config import GateConfig
from autonomous.ports import EnginePort
from autonomous.retraining import Job, Outcome
from autonomous.safety.latch import LearningStopped
from autonomous.schedule_rows import OutcomeName
from autonomous.versions.bundle import BundleProblem, load_bundle
from autonomous.versions.gates import Verdict, gate_probe_parity
from autonomous.versions.ledger import LedgerNotReady, NothingToRollBack, VersionLedger, VersionRecord
from autonomous.versions.reference import reference_of
from autonomous.versions.report import EvaluationReport
from autonomous.versions.states import State
from memory.store import no_guard
from memory.types import Guard
from train.adapt.reference import AdapterRef

logger = logging.getLogger(__name__)

ACTION = "drill.rollback"
BY = "agent"
_OUTCOMES: dict[Verdict, OutcomeName] = {
    Verdict.PASS: "done",
    Verdict.FAIL: "failed",
    Verdict.INCONCLUSIVE: "inconclusive",
}


@dataclass(frozen=True, slots=True)
class DrillCheck:
    """One thing that a rollback needs. `seconds` is how long it took."""

    name: str
    verdict: Verdict
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What was proven about a rollback of `serving` to `predecessor`."""

    verdict: Verdict
    reason: str
    serving: str
    predecessor: str | None
    checks: tuple[DrillCheck, ...]
    seconds: float
    audit_seq: int = 0
    """Of its row in the audit log."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class RollbackDrill:
    """See the module. `path` is the ledger's database file; temporary files go to the system's folder for them."""

    def __init__(
        self,
        ledger: VersionLedger,
        *,
        path: Path,
        engine: EnginePort,
        gates: GateConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._path = path
        self._engine = engine
        self._gates = gates
        self._monotonic = monotonic

    def run(self, *, guard: Guard = no_guard) -> DrillReport:
        """Drill and audit. `guard` is asked before the engine loads and before the row is written; what it raises goes on.

        Raises LedgerNotReady, memory.store.StoreProblem.
        """
        start = self._monotonic()
        with tempfile.TemporaryDirectory(prefix="rollback-drill-") as folder:
            copy = Path(folder) / "ledger.sqlite"
            copy_database(self._path, copy)
            with closing(VersionLedger(copy)) as ledger:
                serving, predecessor, checks = self._drill(ledger, guard)
        verdict, reason = decide_drill(checks)
        report = DrillReport(verdict, reason, serving, predecessor, tuple(checks), self._monotonic() - start)
        guard()
        seq = self._ledger.append_audit(
            actor=BY,
            action=ACTION,
            subject=serving,
            after={"verdict": verdict.value, "reason": reason, "predecessor": predecessor},
            evidence=report.to_dict(),
        )
        log = logger.error if verdict is Verdict.FAIL else logger.info
        log("rollback drill: %s: %s", verdict.value, reason)
        return DrillReport(verdict, reason, serving, predecessor, report.checks, report.seconds, seq)

    def run_job(self, job: Job) -> Outcome:
        """The drill as a scheduled job."""
        report = self.run(guard=job.check)
        return Outcome(_OUTCOMES[report.verdict], report.reason, (f"audit row {report.audit_seq}",))

    def _drill(self, ledger: VersionLedger, guard: Guard) -> tuple[str, str | None, list[DrillCheck]]:
        serving = ledger.get(ledger.pointers().v2)
        if serving.is_genesis:
            told = f"{serving.name} serves, the frozen original: there is no version to roll back from"
            return serving.name, None, [DrillCheck("predecessor", Verdict.INCONCLUSIVE, told, 0.0)]
        rolled_back, name = self._timed("ledger", lambda: _roll_back(ledger, serving))
        if name is None:
            return serving.name, None, [rolled_back]
        predecessor = ledger.get(name)
        bundle, _ = self._timed("bundle", lambda: _verify_bundle(predecessor))
        checks = [rolled_back, bundle]
        reference = reference_of(predecessor)
        if bundle.verdict is Verdict.PASS and reference is not None:
            guard()
            checks.append(self._timed("engine", lambda: self._load(predecessor, reference))[0])
        return serving.name, name, checks

    def _timed(self, name: str, check: Callable[[], "_Found"]) -> tuple[DrillCheck, str | None]:
        start = self._monotonic()
        verdict, reason, found = check()
        return DrillCheck(name, verdict, reason, round(self._monotonic() - start, 4)), found

    def _load(self, record: VersionRecord, reference: AdapterRef) -> "_Found":
        """Load its adapter or weights on every replica, and compare with what was measured before it served."""
        if record.report is None:
            return Verdict.INCONCLUSIVE, f"{record.name} has no report to compare with", None
        report = EvaluationReport.from_dict(record.report)
        try:
            replicas = self._engine.prepare(reference, report.probe["text"])
        except LearningStopped:
            raise
        except ValueError as error:  # the engine refuses this adapter
            return Verdict.FAIL, f"the engine does not load {record.name}: {error}", None
        except Exception as error:  # an engine that is away says nothing about the adapter
            logger.warning("the drill could not ask the engine: %s", error)
            return Verdict.INCONCLUSIVE, f"the engine could not be asked: {type(error).__name__}: {error}", None
        result = gate_probe_parity(report, replicas, self._gates)
        return result.verdict, f"{len(replicas)} replicas: {result.reason}", None


_Found = tuple[Verdict, str, str | None]
"""A verdict, why, and a version's name."""


def decide_drill(checks: list[DrillCheck]) -> tuple[Verdict, str]:
    """The worst of the checks, and why; pure."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if found := [f"{check.name}: {check.reason}" for check in checks if check.verdict is verdict]:
            return verdict, "; ".join(found)
    return Verdict.PASS, "; ".join(f"{check.name}: {check.reason}" for check in checks)


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a SQLite file that is in use, by the backup API; the source is opened read-only."""
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)


def _roll_back(ledger: VersionLedger, serving: VersionRecord) -> _Found:
    try:
        bad, restored = ledger.rollback(by=BY, reason="drill on a copy", expected=serving.name)
    except (NothingToRollBack, LedgerNotReady) as error:
        return Verdict.FAIL, f"the ledger finds nobody to serve: {error}", None
    state, serves = ledger.get(bad).state, ledger.pointers().v2
    if serves != restored or state is not State.QUARANTINED:
        return Verdict.FAIL, f"after it {serves} would serve and {bad} be {state}, expected {restored}", None
    return Verdict.PASS, f"{restored} would serve in place of {bad}", restored


def _verify_bundle(record: VersionRecord) -> _Found:
    try:
        load_bundle(record.folder, version_id=record.name)
    except (BundleProblem, OSError, ValueError) as error:
        return Verdict.FAIL, str(error), None
    if record.is_genesis:
        return (
            Verdict.PASS,
            f"{record.name} is the frozen original, which every replica holds and no adapter changes",
            None,
        )
    return Verdict.PASS, f"every file of {record.name} has the hash of its manifest", None
