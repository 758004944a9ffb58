"""Which version serves: promotion, rollback, quarantine, and when nothing may be promoted.

In: versions of the ledger whose gates are bound. Out: exactly one PRODUCTION at each instant; each change is one
transaction (ledger.py tells the invariants).
"""

from collections.abc import Collection, Iterable
from typing import Any

from autonomous.people import is_machine
from autonomous.versions.approval import Approval, PromotionRefused, approve_step, check_approval
from autonomous.versions.budget import UNLOCK, find_freeze
from autonomous.versions.gates import REQUIRED_GATES, Decision, decide_promotion
from autonomous.versions.queries import LedgerNotReady, Names
from autonomous.versions.schema import (
    VersionRecord,
    find_record,
    held_back,
    learned_by_line,
    select_in_states,
    select_line,
)
from autonomous.versions.states import (
    QUARANTINE_PATHS,
    SERVED_STATES,
    IllegalTransition,
    StaleTransition,
    State,
    decide_transition,
)
from autonomous.versions.transaction import Transaction, check_text
from autonomous.versions.writer import LedgerWriter
from memory.store import no_guard
from memory.types import Guard


class PromotionsFrozen(PromotionRefused):
    """Nothing is promoted: too many rollbacks, or an audit log that was altered. A person has to find out why."""


class NothingToRollBack(ValueError):
    """No earlier version is left to serve."""


class Promotions(LedgerWriter):
    """See the module."""

    def promote(
        self,
        version_id: str,
        *,
        by: str,
        reason: str,
        approval: Approval | None = None,
        evidence: dict[str, Any] | None = None,
        guard: Guard = no_guard,
    ) -> Names:
        """SHADOW or CANARY -> PRODUCTION; the old one becomes SUPERSEDED. Returns versions that are ARCHIVED by it.

        A person's approval takes a version there from AWAITING_APPROVAL in the same transaction: one that was approved
        and cut off does not serve later without a person.

        The frozen original is never archived: it costs no adapter and is what every rollback may end at.
        Raises: StaleTransition; PromotionRefused without all gates passed, for an ancestor that never served or was
        taken out of service, for a line that learned an episode that is held back, and what `approve_step` raises;
        PromotionsFrozen.
        """
        self.check_promotions()
        with self._write(guard) as transaction:
            connection = transaction.connection
            record = _admit(transaction, version_id, approval=approval)
            old = _production(transaction)
            transaction.move(old, State.SUPERSEDED, action="supersede", by=by, reason=f"{record.name} serves: {reason}")
            transaction.move(record, State.PRODUCTION, action="promote", by=by, reason=reason, evidence=evidence)
            warm = [found for found in select_in_states(connection, [State.SUPERSEDED]) if not found.is_genesis]
            archived = warm[self._warm_versions :]
            for cold in archived:
                transaction.move(cold, State.ARCHIVED, action="archive", by=by, reason="beyond warm_versions")
            return [cold.name for cold in archived]

    def set_canary(
        self,
        version_id: str,
        *,
        percent: float,
        by: str,
        reason: str,
        approval: Approval | None = None,
        evidence: dict[str, Any] | None = None,
        guard: Guard = no_guard,
    ) -> None:
        """SHADOW or CANARY -> CANARY: from now on the version answers this share of the users of V2.

        With a person's approval from AWAITING_APPROVAL. It needs what a promotion needs, and raises the same;
        ValueError for a share outside (0, 100).
        """
        if not 0 < percent < 100:
            raise ValueError(f"percent is {percent}: a canary answers a share between 0 and 100")
        self.check_promotions()
        with self._write(guard) as transaction:
            record = _admit(transaction, version_id, approval=approval)
            transaction.move(
                record,
                State.CANARY,
                action="canary",
                by=by,
                reason=reason,
                evidence=evidence,
                details={"percent": percent},
            )

    def withdraw(
        self, version_id: str, *, by: str, reason: str, is_breach: bool, evidence: dict[str, Any] | None = None
    ) -> None:
        """SHADOW or CANARY -> ROLLED_BACK -> QUARANTINED. A breach counts as a rollback (budget.py); a timeout does not,
        and frees what the version learned.

        It asks no guard: it takes a version out of traffic, also while the emergency stop holds. Raises StaleTransition.
        """
        with self._write() as transaction:
            record = find_record(transaction.connection, version_id)
            if record.state not in (State.SHADOW, State.CANARY):
                raise StaleTransition(record.name, expected="SHADOW or CANARY", actual=record.state)
            action = "rollback" if is_breach else "quarantine"
            transaction.quarantine(
                record, by=by, reason=reason, evidence=evidence, action=action, hold_back=None if is_breach else ()
            )

    def check_approval(self, version_id: str, approval: Approval) -> None:
        """Whether a person may approve what waits; `promote` asks again. Raises what `approve_step` raises."""
        with self._database.read() as connection:
            record = find_record(connection, version_id)
            decide_transition(
                record.state, expected=State.AWAITING_APPROVAL, to=State.SHADOW, name=record.name, by=approval.by
            )
            check_approval(connection, record, approval)

    def frozen(self) -> str:
        """Why nothing is promoted (too many rollbacks, an audit log that was altered); "" if promotions go on."""
        report = self.verify_audit()
        if not report.ok:
            return (
                f"promotions are frozen: the audit log is broken at row {report.first_bad_seq} ({report.reason}). Restore "
                "ledger.sqlite from a copy whose log is whole: autonomous audit verify"
            )
        with self._database.read() as connection:
            return str(find_freeze(connection) or "")

    def check_promotions(self) -> None:
        """Raises PromotionsFrozen where `frozen` says why."""
        if why := self.frozen():
            raise PromotionsFrozen(why)

    def unlock_promotions(self, *, by: str, reason: str) -> None:
        """A person has found out why versions were rolled back: the rollbacks so far are settled.

        Raises IllegalTransition for a machine's name, ValueError without a reason, or if nothing is frozen by rollbacks.
        """
        if is_machine(by):
            raise IllegalTransition(
                f"promotions are unlocked only by a person, not by {by!r}: give a person's name as by"
            )
        check_text("reason", reason)
        with self._write() as transaction:
            freeze = find_freeze(transaction.connection)
            if freeze is None:
                raise ValueError("promotions are not frozen by rollbacks: there is nothing to unlock")
            before = {"since": freeze.since, "rolled_back": list(freeze.rolled_back)}
            transaction.audit(UNLOCK, by=by, subject="promotions", before=before, after={"reason": reason})

    def quarantine(
        self,
        name: str,
        *,
        by: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        hold_back: Collection[str] | None = None,
        guard: Guard = no_guard,
    ) -> None:
        """To V3 by way of REJECTED or ROLLED_BACK; its episodes are held back, but for those that production learned.

        With `hold_back` only those of its episodes, so none for a version that leaves through no fault of its data.
        Raises: IllegalTransition where no way leads there: PRODUCTION leaves by `rollback`, a run ends FAILED.
        """
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, name)
            if record.state not in QUARANTINE_PATHS:
                raise IllegalTransition(
                    f"version {record.name} is {record.state}: quarantine leads from {one_of(QUARANTINE_PATHS)}. "
                    "PRODUCTION leaves by rollback, a run without a bundle ends FAILED"
                )
            transaction.quarantine(record, by=by, reason=reason, evidence=evidence, hold_back=hold_back)

    def rollback(
        self, *, by: str, reason: str, expected: str | None = None, is_suspect: bool = False
    ) -> tuple[str, str]:
        """The newest fit predecessor serves again, and production goes to quarantine; returns (bad, restored).

        `is_suspect` says that what the version learned is to be recalled no longer either (queries.unsettled_suspects).
        `expected` is the version that the caller saw serving: two people who press the button at once roll back once.
        It asks no guard: it takes a suspect version out of traffic and lets nothing new in, so it must work while the
        emergency stop holds. Raises: NothingToRollBack, StaleTransition.
        """
        with self._write() as transaction:
            connection = transaction.connection
            bad = _production(transaction)
            if expected is not None and expected != bad.name:
                actual = find_record(connection, expected)
                raise StaleTransition(expected, expected=State.PRODUCTION, actual=actual.state)
            restored = None if bad.is_genesis else self._predecessor(transaction, bad)
            if restored is None:
                raise NothingToRollBack(
                    f"version {bad.name} serves and no earlier version is left: stop learning instead"
                )
            details = {"is_suspect": True} if is_suspect else None
            transaction.move(
                bad, State.ROLLED_BACK, action="rollback", by=by, reason=reason, serving=restored, details=details
            )
            transaction.move(restored, State.PRODUCTION, action="restore", by=by, reason=f"{bad.name} left: {reason}")
            transaction.quarantine(find_record(connection, bad.name), by=by, reason=reason, evidence=None)
            return bad.name, restored.name

    @staticmethod
    def _predecessor(transaction: Transaction, bad: VersionRecord) -> VersionRecord | None:
        """The version that served last and neither builds on a bad version nor learned what is held back."""
        connection = transaction.connection
        suspect = held_back(connection)
        for found in select_in_states(connection, [State.SUPERSEDED]):
            line = select_line(connection, found)
            is_sound = all(ancestor.state in SERVED_STATES and ancestor.name != bad.name for ancestor in line)
            if is_sound and not learned_by_line(connection, found) & suspect:
                return found
        return None


def _admit(transaction: Transaction, version_id: str, *, approval: Approval | None) -> VersionRecord:
    """The version, if it may meet users: approved where it waited for that, all gates passed, its line sound."""
    connection = transaction.connection
    if freeze := find_freeze(connection):
        raise PromotionsFrozen(str(freeze))
    record = find_record(connection, version_id)
    if others := [one.name for one in select_in_states(connection, [State.CANARY]) if one.name != record.name]:
        raise PromotionRefused(
            f"version {record.name} has to wait: {others[0]} meets users now; its outcome decides what serves next"
        )
    if approval is not None:
        approve_step(transaction, record, approval)
        record = find_record(connection, version_id)
    if record.state not in (State.SHADOW, State.CANARY):
        raise StaleTransition(record.name, expected="SHADOW or CANARY", actual=record.state)
    check_gates(record)
    for ancestor in select_line(connection, record)[:-1]:
        if ancestor.state not in SERVED_STATES:
            raise PromotionRefused(
                f"version {record.name} builds on {ancestor.name}, which is {ancestor.state}: "
                "train its batch again on top of the version that serves"
            )
    if suspect := learned_by_line(connection, record) & held_back(connection):
        raise PromotionRefused(
            f"version {record.name} learned {len(suspect)} episodes that are held back since, for instance "
            f"{min(suspect)}: train again without them"
        )
    return record


def _production(transaction: Transaction) -> VersionRecord:
    found = select_in_states(transaction.connection, [State.PRODUCTION])
    if not found:
        raise LedgerNotReady("the ledger has no production version: call genesis first")
    return found[0]


def check_gates(record: VersionRecord) -> None:
    """Raises PromotionRefused unless every required gate is bound and passed."""
    decision = decide_promotion(record.gates)
    if decision is not Decision.GO:
        passed = {gate.name for gate in record.gates if gate.verdict == "pass"}
        missing = [name for name in REQUIRED_GATES if name not in passed]
        others = [gate.name for gate in record.gates if gate.name not in passed]
        named = ", ".join(dict.fromkeys([*missing, *others]))
        raise PromotionRefused(
            f"version {record.name}: the bound gates say {decision}, not passed: {named}. "
            "Evaluate it, bind the report with all gates, and try again"
        )


def one_of(states: Iterable[State]) -> str:
    """Names of states, for a sentence."""
    return " or ".join(sorted(states))
