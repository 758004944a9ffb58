"""Rollout: takes a version that passed its gates to the users, watches how their requests end, and takes it back.

In: versions in SHADOW, outcomes of requests. Out: moves in the ledger, each with the counts of both arms as evidence. The
decisions are in versions/rollout.py. The counts live in memory: after a restart a step begins to count anew.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from autonomous.candidates import BY
from autonomous.config import RolloutConfig
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.approval import Approval
from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.ledger import NothingToRollBack, PromotionRefused, PromotionsFrozen, VersionLedger
from autonomous.versions.rollout import (
    ArmCounts,
    CanaryDecision,
    Move,
    Outcome,
    decide_canary,
    decide_soak,
)
from autonomous.versions.schema import VersionRecord
from autonomous.versions.states import BAD_STATES, StaleTransition, State
from memory.types import Guard

logger = logging.getLogger(__name__)

BY_SOAK = f"{BY}:soak"
SOAK_ACTION = "soak.ended"


class Rollout:
    """One at a time. Thread-safe; `tick` is called every second or so, `observe` whenever there are outcomes."""

    def __init__(
        self,
        config: RolloutConfig,
        *,
        ledger: VersionLedger,
        latch: Latch,
        on_action: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_action` is told "promotion" and "rollback" when they happened without a person."""
        self._config = config
        self._ledger = ledger
        self._latch = latch
        self._on_action = on_action
        self._clock = clock
        self._lock = threading.Lock()
        self._ticking = threading.Lock()
        self._counts: dict[str, ArmCounts] = {}
        """Of V1 and V2 since the present canary or production began, and of V2's predecessor until then."""
        self._at_step = 0
        self._production = ledger.pointers().v2
        self._predecessor = ArmCounts()
        self._soaked = self._is_soaked(ledger.get(self._production))
        self._canary: tuple[str, float] | None = None
        self._last: CanaryDecision | None = None

    # -- the way to the users

    def begin(self, version_id: str, *, reason: str, approval: Approval | None = None, guard: Guard) -> State:
        """From SHADOW, or by an approval from AWAITING_APPROVAL, to a canary of the first share, or to production.

        Raises PromotionRefused if it was compared with another version than serves, and what the ledger raises.
        """
        self.check_parent(version_id)
        if percents := self._config.canary_percents:
            self._ledger.set_canary(
                version_id, percent=percents[0], by=BY, reason=reason, approval=approval, guard=guard
            )
            return State.CANARY
        self._ledger.promote(version_id, by=BY, reason=reason, approval=approval, guard=guard)
        logger.info("version %s serves as V2", version_id)
        if approval is None:
            self._on_action("promotion")
        return State.PRODUCTION

    def check_parent(self, version_id: str) -> None:
        """A version was compared with its parent: it may replace no other. Raises PromotionRefused."""
        record, v2 = self._ledger.get(version_id), self._ledger.pointers().v2
        if record.parent != v2:
            raise PromotionRefused(
                f"version {record.name} was compared with {record.parent}, but {v2} serves now; "
                "POST /v1/learn closes it and learns its passages on top of what serves"
            )

    # -- how it goes

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Count requests that have ended."""
        pointers = self._ledger.pointers()
        with self._lock:
            self._follow(pointers.v1, pointers.v2, pointers.canary_percent)
            for name in {pointers.v1, pointers.v2}:
                rows = [outcome for outcome in outcomes if outcome.version == name]
                self._counts[name] = self._counts.get(name, ArmCounts()).plus(rows, slow_s=self._config.slow_s)
                if self._canary is not None and name == self._canary[0]:
                    self._at_step += len(rows)

    def status(self) -> dict[str, Any]:
        """For GET /v1/status: the counts of V1 and V2, and what the canary waits for."""
        with self._lock:
            canary, last = self._canary, self._last
            found: dict[str, Any] = {"requests": {name: asdict(counts) for name, counts in self._counts.items()}}
        if canary is not None:
            found["canary"] = {
                "version": canary[0],
                "percent": canary[1],
                "waits_for": last.gate.reason if last else None,
            }
        return found

    def tick(self) -> None:
        """Take the next move of the canary and of the soak, if one is due. What a stop or a freeze forbids waits."""
        with self._ticking:
            pointers = self._ledger.pointers()
            with self._lock:
                self._follow(pointers.v1, pointers.v2, pointers.canary_percent)
            self._try(lambda: self._watch_production(self._ledger.get(pointers.v2)))
            if pointers.canary_percent:
                self._try(lambda: self._move_canary(self._ledger.get(pointers.v1)))

    @staticmethod
    def _try(move: Callable[[], None]) -> None:
        try:
            move()
        except (LearningStopped, PromotionsFrozen) as error:
            logger.info("the rollout waits: %s", error)
        except (StaleTransition, PromotionRefused, NothingToRollBack) as error:
            logger.warning("the rollout goes on from the ledger: %s", error)

    def _follow(self, v1: str, v2: str, percent: float) -> None:
        """Begin to count anew where the ledger has moved on. Under the lock."""
        if v2 != self._production:
            self._predecessor = self._counts.get(self._production, ArmCounts())
            has_left = self._ledger.get(self._production).state in BAD_STATES
            self._production, self._soaked = v2, has_left  # what a rollback restored has served before
            self._counts = {v2: ArmCounts()}
        canary = (v1, percent) if percent else None
        if canary != self._canary:
            is_another = canary is not None and (self._canary is None or canary[0] != self._canary[0])
            if is_another:  # both arms from now on
                self._counts = {v2: ArmCounts()}
            elif canary is None:
                self._counts = {v2: self._counts.get(v2, ArmCounts())}
            self._canary, self._at_step, self._last = canary, 0, None

    def _move_canary(self, record: VersionRecord) -> None:
        if record.parent != self._ledger.pointers().v2:
            reason = f"its parent {record.parent} no longer serves"
            self._ledger.quarantine(record.name, by=BY, reason=reason, hold_back=())
            return
        with self._lock:
            canary, control = (self._counts.get(name, ArmCounts()) for name in (record.name, self._production))
            at_step = self._at_step
        decision = decide_canary(
            canary,
            control,
            percent=record.percent or 0.0,
            at_step=at_step,
            elapsed_s=self._clock() - record.changed_at,
            config=self._config,
        )
        with self._lock:
            self._last = decision
        evidence = {"canary": asdict(canary), "control": asdict(control), "gate": decision.gate.to_dict()}
        if decision.move is Move.WITHDRAW:
            self._ledger.withdraw(
                record.name,
                by=BY,
                reason=f"{decision.gate.name} {decision.gate.verdict}: {decision.gate.reason}",
                is_breach=decision.gate.verdict is Verdict.FAIL,
                evidence=evidence,
            )
            logger.warning("canary %s is withdrawn: %s", record.name, decision.gate.reason)
            if decision.gate.verdict is Verdict.FAIL:
                self._on_action("rollback")
        elif decision.move is not Move.STAY:
            guard = self._latch.permit("promotion").check
            told = f"{canary.num_requests} requests against {control.num_requests}"
            if decision.move is Move.STEP:
                self._ledger.set_canary(
                    record.name, percent=decision.percent, by=BY, reason=told, evidence=evidence, guard=guard
                )
            else:
                self._ledger.promote(
                    record.name, by=BY, reason=f"{decision.gate.name}: {told}", evidence=evidence, guard=guard
                )
                self._on_action("promotion")

    def _watch_production(self, record: VersionRecord) -> None:
        with self._lock:
            counts, predecessor = self._counts.get(record.name, ArmCounts()), self._predecessor
            if self._soaked or record.is_genesis or self._config.soak_s == 0 or record.name != self._production:
                return
        elapsed_s = self._clock() - record.changed_at
        gate = decide_soak(counts, predecessor, elapsed_s=elapsed_s, config=self._config)
        if gate is None:
            return
        if gate.verdict is Verdict.FAIL:
            self._ledger.rollback(by=BY_SOAK, reason=f"{gate.name} fail: {gate.reason}", expected=record.name)
            logger.warning("version %s is rolled back by its soak: %s", record.name, gate.reason)
            self._on_action("rollback")
            return
        self._end_soak(record, gate, counts, predecessor)

    def _end_soak(self, record: VersionRecord, gate: GateResult, counts: ArmCounts, predecessor: ArmCounts) -> None:
        evidence = {"production": asdict(counts), "predecessor": asdict(predecessor), "gate": gate.to_dict()}
        self._ledger.append_audit(actor=BY_SOAK, action=SOAK_ACTION, subject=record.name, evidence=evidence)
        with self._lock:
            self._soaked = True

    def _is_soaked(self, record: VersionRecord) -> bool:
        """Of a version that served before this process began: its soak was ended by the process before, or ends now."""
        return self._clock() - record.changed_at >= self._config.soak_s
