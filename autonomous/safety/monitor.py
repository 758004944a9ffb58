"""The safety monitor: the latch with an audit trail, and the rules that stop learning without a person.

In: requests to stop, pause and reset; what training measures. Out: the latch's state as a dictionary. The latch is
written first, then the audit row: a ledger that cannot be written does not prevent a stop, it is reported with it. Where two
people have to agree to a reset, the first one's request waits in a file (reset_request.py); each stop voids it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from autonomous.consent import ConsentRequest, NothingRequested, Step, decide_consent
from autonomous.people import is_machine
from autonomous.safety.latch import Latch, LatchChanged, Permit
from autonomous.safety.latch_file import MAX_TEXT
from autonomous.safety.latch_state import LatchState, Scope
from autonomous.safety.processes import Killed, Records, kill_registered, registered
from autonomous.safety.reset_request import ResetRequests
from autonomous.safety.rules import (
    ActionSeen,
    EvaluationSeen,
    History,
    LeakSeen,
    Observation,
    RulesConfig,
    StepSeen,
    decide_rules,
    remember,
)
from autonomous.safety.screen import Level

logger = logging.getLogger(__name__)

BY_RULE = "system:safety-monitor"


class SafetyMonitor:
    """Stops, resets, and what stops by itself.

    `audit` is VersionLedger.append_audit; `two_people`: a reset needs a second person within `second_person_within_s`; `clock`
    in seconds since the epoch. What it has observed lives as long as its process.
    """

    def __init__(
        self,
        latch: Latch,
        *,
        audit: Callable[..., Any],
        two_people: bool = False,
        second_person_within_s: float = 3600.0,
        rules: RulesConfig | None = None,
        level: Level = "high",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._latch = latch
        self._audit = audit
        self._two_people = two_people
        self._within_s = second_person_within_s
        self._clock = clock
        self._requests = ResetRequests(latch.path.parent)
        self._rules = rules or RulesConfig()
        self._level: Level = level
        self._history = History()
        self._warned: set[str] = set()
        self._observing = threading.Lock()

    def status(self) -> dict[str, Any]:
        """The latch as it stands; `waiting` is the request for a reset that waits for a second person, if there is one."""
        state = self._latch.state()
        request = self._requests.read()
        is_open = request is not None and state.mode != "armed" and self._is_open(request, state)
        return {**asdict(state), "waiting": request.to_dict() if request is not None and is_open else None}

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
            held, folder = scope, self._latch.path.parent
            known: Records = {}
            with suppress(OSError):
                known = registered(folder)
            try:
                state = self._latch.kill(reason=reason, by=by, scope=scope)
                held = state.scope
            finally:
                killed.extend(kill_registered(folder, held, known=known))
            return state

        def found() -> dict[str, Any]:
            return {"processes": [asdict(one) for one in killed], "is_complete": all(one.is_gone for one in killed)}

        answer = self._pull(change, "kill", reason=reason, by=by, evidence=found)
        return {**answer, **found(), "seconds": round(time.monotonic() - start, 4)}

    def reset(self, *, reason: str, by: str) -> dict[str, Any]:
        """Permit learning again; starts nothing. Where two people have to agree, the first call is kept as a request
        (the answer has it as `waiting`, and the stop holds), and a second person's call executes it.

        Audited before it takes effect: if that fails, the error is raised and the stop holds. A request is kept without it.
        Raises ValueError without a reason and a person's name, SecondPersonNeeded, LatchChanged.
        """
        if is_machine(by):
            raise ValueError(f"by is {by!r}: a stop is reset only by a person, under his name")
        if not reason.strip():
            raise ValueError("reason is empty: a reset needs a reason and the name of who is responsible")
        if not self._two_people or (state := self._latch.state()).mode == "armed":
            self._audit(actor=by, action="safety.reset-requested", subject="latch", evidence={"reason": reason})
            # Of an armed latch nothing is reset, so a stop that is pulled by now is not for one person to undo.
            change = partial(self._latch.reset, epoch=state.epoch) if self._two_people else self._latch.reset
            return self._pull(change, "reset", reason=reason, by=by)
        by, reason = by[:MAX_TEXT], reason[:MAX_TEXT]
        with self._requests.exclusive():
            state, request, now = self._latch.state(), self._requests.read(), float(self._clock())
            if decide_consent(request, by=by, bound_to=_bound_to(state), now=now) is Step.ASK:
                return self._ask_second_person(state, reason=reason, by=by, now=now)
            assert request is not None, "a call executes only with a request"
            agreed = {
                "reason": reason,
                "requested_by": request.by,
                "requested_reason": request.reason,
                "at": request.at,
            }
            self._audit(actor=by, action="safety.reset-requested", subject="latch", evidence=agreed)
            if not self._requests.take():  # by a stop, or withdrawn, since it was read
                raise LatchChanged("the request for a reset was voided meanwhile. Look at the stop, then ask anew")
            change = partial(self._latch.reset, epoch=state.epoch)
            return self._pull(change, "reset", reason=reason, by=by, evidence=lambda: agreed)

    def withdraw_reset(self, *, reason: str, by: str) -> dict[str, Any]:
        """Take the open request for a reset back: any person may. Raises NothingRequested, ValueError for a machine's name."""
        if is_machine(by):
            raise ValueError(f"by is {by!r}: a request is withdrawn only by a person, under his name")
        with self._requests.exclusive():
            request = self._requests.read()
            if not self._requests.take():
                raise NothingRequested("no reset waits for a second person: there is nothing to withdraw")
        before = None if request is None else request.to_dict()
        problem = self._audit_after("reset-withdrawn", by=by, before=before, after={"reason": reason})
        return {**self.status(), **problem}

    def _is_open(self, request: ConsentRequest, state: LatchState) -> bool:
        return request.is_open(bound_to=_bound_to(state), now=float(self._clock()))

    def _ask_second_person(self, state: LatchState, *, reason: str, by: str, now: float) -> dict[str, Any]:
        request = ConsentRequest(by, reason, now, now + self._within_s, _bound_to(state))
        self._requests.write(request)
        problem = self._audit_after("reset-waits", by=by, after=request.to_dict())
        return {**asdict(state), "waiting": request.to_dict(), **problem}

    def _audit_after(self, action: str, *, by: str, **bodies: Any) -> dict[str, str]:
        """What is done already is audited as far as possible; the problem, if there was one."""
        try:
            self._audit(actor=by, action=f"safety.{action}", subject="latch", **bodies)
        except Exception as error:  # the file says it, whatever the ledger says
            return {"audit_error": f"{type(error).__name__}: {error}"}
        return {}

    def observe_training(self, *, step: int, loss: float, grad_norm: float, kl: float) -> dict[str, Any] | None:
        """Judge one optimizer step; see `observe`."""
        return self.observe(StepSeen(step, loss, grad_norm, kl))

    def observe_evaluation(
        self, *, version: str, margins_base: Sequence[float], margins_candidate: Sequence[float]
    ) -> dict[str, Any] | None:
        """Judge the safety probes of an evaluation; see `observe`."""
        return self.observe(EvaluationSeen(version, tuple(margins_base), tuple(margins_candidate)))

    def observe_leaks(self, *, version: str, items: Sequence[str]) -> dict[str, Any] | None:
        """Judge the evaluation items that stand in what a version was taught; see `observe`."""
        return self.observe(LeakSeen(version, tuple(items)))

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
        finally:
            if action != "reset":
                self._void_request()
        answer: dict[str, Any] = {**asdict(after), "seconds": round(time.monotonic() - start, 4)}
        if problem:
            answer["latch_error"] = problem
        bodies = {"before": asdict(before), "after": asdict(after)}
        return answer | self._audit_after(
            action, by=by, evidence=evidence() if evidence is not None else None, **bodies
        )

    def _void_request(self) -> None:
        """A stop, also one that changes nothing because another holds, voids what was agreed to before it."""
        try:
            self._requests.take()
        except OSError as error:
            logger.error("the request for a reset is still there: %s", error)


def _bound_to(state: LatchState) -> str:
    """What a request for a reset hangs on: this stop, as it stands."""
    return f"epoch {state.epoch}, {state.mode}, scope {state.scope}"
