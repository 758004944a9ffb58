"""The safety monitor: the latch with an audit trail, and the rules that stop learning without a person.

In: requests to stop, pause and reset; what training measures. Out: the latch's state as a dictionary. The latch is
written first, then the audit row: a ledger that cannot be written does not prevent a stop, it is reported with it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from autonomous.safety.latch import Latch, LatchState, Permit, Scope
from autonomous.safety.processes import Killed, kill_registered
from autonomous.safety.rules import (
    ActionSeen,
    BatchSeen,
    EvaluationSeen,
    History,
    Observation,
    RulesConfig,
    StepSeen,
    decide_rules,
    remember,
)
from autonomous.safety.screen import Level
from autonomous.versions.states import is_machine

logger = logging.getLogger(__name__)

BY_RULE = "system:safety-monitor"


class SafetyMonitor:
    """Stops and resets. `audit` is VersionLedger.append_audit. What it has observed lives as long as its process."""

    def __init__(
        self,
        latch: Latch,
        *,
        audit: Callable[..., Any],
        rules: RulesConfig | None = None,
        level: Level = "high",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._latch = latch
        self._audit = audit
        self._rules = rules or RulesConfig()
        self._level: Level = level
        self._clock = clock
        self._history = History()
        self._warned: set[str] = set()
        self._observing = threading.Lock()

    def status(self) -> dict[str, Any]:
        """The latch as it stands."""
        return asdict(self._latch.state())

    def permit(self, action: str, *, within: Scope = "learning") -> Permit:
        """The right to a side effect. Raises LearningStopped."""
        return self._latch.permit(action, within=within)

    def stop(self, *, reason: str, by: str, scope: Scope = "learning") -> dict[str, Any]:
        """All learning, memory writes and promotions end. `seconds`: until the latch was on disk."""
        return self._pull(partial(self._latch.stop, scope=scope), "stop", reason=reason, by=by)

    def pause(self, *, reason: str, by: str, scope: Scope = "learning") -> dict[str, Any]:
        """As stop, meant to be short."""
        return self._pull(partial(self._latch.pause, scope=scope), "pause", reason=reason, by=by)

    def kill(self, *, reason: str, by: str, scope: Scope = "learning") -> dict[str, Any]:
        """As stop, and the processes of the scope that holds are killed and looked for: `processes`, `is_complete`.

        Audited when it is known what became of them. They are killed also if the latch cannot be written.
        """
        start = time.monotonic()
        killed: list[Killed] = []

        def change(*, reason: str, by: str) -> LatchState:
            held = scope
            try:
                state = self._latch.kill(reason=reason, by=by, scope=scope)
                held = state.scope
            finally:
                killed.extend(kill_registered(self._latch.path.parent, held))
            return state

        def found() -> dict[str, Any]:
            return {"processes": [asdict(one) for one in killed], "is_complete": all(one.is_gone for one in killed)}

        answer = self._pull(change, "kill", reason=reason, by=by, evidence=found)
        return {**answer, **found(), "seconds": round(time.monotonic() - start, 4)}

    def reset(self, *, reason: str, by: str) -> dict[str, Any]:
        """Permit learning again; starts nothing. Raises ValueError without a reason and a person's name, LatchChanged.

        Audited before it takes effect: if that fails, the error is raised and the stop holds.
        """
        if is_machine(by):
            raise ValueError(f"by is {by!r}: a stop is reset only by a person, under his name")
        self._audit(actor=by, action="safety.reset-requested", subject="latch", evidence={"reason": reason})
        return self._pull(self._latch.reset, "reset", reason=reason, by=by)

    def observe_training(self, *, step: int, loss: float, grad_norm: float, kl: float) -> dict[str, Any] | None:
        """Judge one optimizer step; see `observe`."""
        return self.observe(StepSeen(step, loss, grad_norm, kl))

    def observe_evaluation(
        self, *, version: str, margins_base: Sequence[float], margins_candidate: Sequence[float]
    ) -> dict[str, Any] | None:
        """Judge the safety probes of an evaluation; see `observe`."""
        return self.observe(EvaluationSeen(version, tuple(margins_base), tuple(margins_candidate)))

    def observe_batch(self, leaks: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
        """Judge the (episode, suite) pairs of a batch that is about to be trained; see `observe`."""
        return self.observe(BatchSeen(tuple(leaks)))

    def observe_action(self, action: str) -> dict[str, Any] | None:
        """Judge that the agent acts now: "promotion", "rollback", "tool"; see `observe`."""
        return self.observe(ActionSeen(action, float(self._clock())))

    def observe(self, seen: Observation) -> dict[str, Any] | None:
        """Judge by the automatic rules: stops and returns the state if one applies that stops at this level.

        One that only warns is audited, once in a run of its kind.
        """
        with self._observing:
            if isinstance(seen, StepSeen) and seen.step <= 1:
                self._warned.clear()
            hit = decide_rules(seen, self._history, self._rules, level=self._level)
            self._history = remember(self._history, seen)
            is_new = hit is not None and hit.rule not in self._warned
            if hit is not None:
                self._warned.add(hit.rule)
        if hit is None:
            return None
        if hit.is_stop:
            return self.stop(reason=str(hit), by=BY_RULE)
        if is_new:
            logger.warning("%s", hit)
            try:
                self._audit(actor=BY_RULE, action="safety.warning", subject=hit.rule, evidence={"reason": hit.evidence})
            except Exception:  # what only warns must not end what it warns about
                logger.exception("the warning could not be audited")
        return None

    def _pull(
        self,
        change: Callable[..., LatchState],
        action: str,
        *,
        reason: str,
        by: str,
        evidence: Callable[[], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        start = time.monotonic()
        before = self._latch.state()
        problem = ""
        try:
            after = change(reason=reason, by=by)
        except OSError as error:
            if action == "reset":
                raise
            after, problem = self._latch.state(), f"the latch file could not be written: {error}"
        answer: dict[str, Any] = {**asdict(after), "seconds": round(time.monotonic() - start, 4)}
        if problem:
            answer["latch_error"] = problem
        try:
            self._audit(
                actor=by,
                action=f"safety.{action}",
                subject="latch",
                before=asdict(before),
                after=asdict(after),
                evidence=evidence() if evidence is not None else None,
            )
        except Exception as error:  # the stop stands whatever the ledger says
            answer["audit_error"] = f"{type(error).__name__}: {error}"
        return answer
