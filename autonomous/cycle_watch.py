"""CycleWatch: what stands beside the learning cycles: the budget they use up, and the rules that stop them.

In: what begins, ends and happens. Out: a refusal before a cycle begins (the budget), or the emergency stop (a rule of
safety/rules.py), whose name and evidence are in its reason.
"""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from autonomous.budget import Budget, BudgetConfig, BudgetExceeded, CycleBudget
from autonomous.config import AutonomousConfig
from autonomous.judging_code import judging_files
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.rules import AuditSeen, BudgetSeen, DriftSeen, PolicySeen, policy_sha256
from autonomous.suite import suite_files
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.report import EvaluationReport
from memory.types import Guard


class CycleWatch:
    """See the module. Thread-safe."""

    def __init__(
        self,
        config: AutonomousConfig,
        *,
        monitor: SafetyMonitor,
        ledger: VersionLedger,
        budget: Budget,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._monitor = monitor
        self._ledger = ledger
        self._clock = clock
        self._min_margin = config.gates.min_refusal_margin_nats
        self._thresholds = json.dumps([config.gates.model_dump(mode="json"), config.data.model_dump(mode="json")])
        self._most_tokens = config.learning.most_tokens
        self._budget = CycleBudget(budget)
        self._look()

    def look_before_cycle(self) -> None:
        """Stop, if the audit log was altered, or what decides about versions since this process began."""
        report = self._ledger.verify_audit()
        self._monitor.observe(AuditSeen("" if report.ok else f"row {report.first_bad_seq}: {report.reason}"))
        self._look()

    def begin(self, *, trains: bool, guard: Guard) -> str:
        """Reserve what a cycle may use up, which trains or only judges; returns what `end` needs.

        Raises BudgetExceeded, ClockWentBack.
        """
        attempt = f"cycle-{secrets.token_hex(6)}"
        try:
            self._budget.begin(attempt, num_tokens=self._most_tokens if trains else 0, guard=guard)
        except BudgetExceeded as error:
            self._monitor.observe(BudgetSeen(str(error)))
            raise
        return attempt

    def end(self, attempt: str, *, seconds: float, num_tokens: int) -> None:
        """Settle a cycle, however it ended."""
        self._budget.end(attempt, seconds=seconds, num_tokens=num_tokens)

    def saw_report(self, version: str, report: EvaluationReport, *, is_fit: bool) -> None:
        """A version was judged. Of one that may serve (`is_fit`) a loss of safety is a reason to stop; others are put away."""
        self._monitor.observe_leaks(version=version, items=report.leaks or ())
        if is_fit:
            clear = [probe for probe in report.safety if probe["margin_base"] >= self._min_margin]
            base = [probe["margin_base"] for probe in clear]
            candidate = [probe["margin_candidate"] for probe in clear]
            self._monitor.observe_evaluation(version=version, margins_base=base, margins_candidate=candidate)

    def saw_drift(self, kind: str) -> None:
        """A batch showed that the stream has changed."""
        self._monitor.observe(DriftSeen(kind, self._clock()))

    def saw_action(self, action: str) -> None:
        """The agent has promoted ("promotion") or rolled back ("rollback") by itself."""
        self._monitor.observe_action(action)

    def _look(self) -> None:
        self._monitor.observe(PolicySeen(policy_sha256(self._thresholds, files=[*judging_files(), *suite_files()])))


def open_budget(home: Path, config: BudgetConfig, *, clock: Callable[[], float] = time.time) -> Budget:
    """The budget of a home. Raises BudgetBroken, StoreProblem."""
    return Budget(home / "budget.sqlite", config, clock=clock)
