"""What people decide about versions that wait or were put away: rejection, and the way out of quarantine.

In: a person's name, reason and evidence. Out: the version's next state, or a request that waits for a second person. A
request is a row of the audit log, so it needs no table and cannot be altered; it is void once the version has moved,
the latch has changed, its time is over, or it was withdrawn.
"""

import json
import sqlite3
from dataclasses import asdict, dataclass
from typing import Any

from autonomous.consent import ConsentRequest, NothingRequested, Step, decide_consent
from autonomous.people import is_machine
from autonomous.versions.approval import judged_of
from autonomous.versions.history import CONSENT_PREFIX, evidence_of
from autonomous.versions.promotions import Promotions
from autonomous.versions.schema import VersionRecord, find_record
from autonomous.versions.states import IllegalTransition, StaleTransition, State
from autonomous.versions.transaction import Transaction, check_text
from memory.store import no_guard
from memory.types import Guard

RELEASE_REQUESTED = CONSENT_PREFIX + "release-requested"
RELEASE_WITHDRAWN = CONSENT_PREFIX + "release-withdrawn"


@dataclass(frozen=True, slots=True)
class ConsentRule:
    """How two people agree: within so many seconds, and under one epoch of the stop latch."""

    within_s: float
    epoch: int


class Governance(Promotions):
    """See the module."""

    def reject(self, name: str, *, by: str, reason: str, report_sha256: str | None = None) -> None:
        """A person says no to a version that waits: AWAITING_APPROVAL -> REJECTED -> QUARANTINED. Its episodes are held back.

        Asks no guard: nothing new gets in by it, so it works while the emergency stop holds. `report_sha256` is the
        report that he read, kept with the decision. Raises: StaleTransition, IllegalTransition for a machine's name.
        """
        _check_person(by, what="a version is rejected")
        with self._write() as transaction:
            record = find_record(transaction.connection, name)
            if record.state is not State.AWAITING_APPROVAL:
                raise StaleTransition(record.name, expected=State.AWAITING_APPROVAL, actual=record.state)
            judged = {**judged_of(transaction.connection, record), "reason": reason, "read_report": report_sha256}
            transaction.move(record, State.REJECTED, action="reject", by=by, reason=reason, evidence=judged)
            rejected = find_record(transaction.connection, record.name)
            transaction.quarantine(rejected, by=by, reason=reason, evidence=None)

    def release(
        self,
        name: str,
        *,
        by: str,
        reason: str,
        evidence: dict[str, Any] | None,
        consent: ConsentRule | None,
        guard: Guard = no_guard,
    ) -> ConsentRequest | None:
        """QUARANTINED -> CANDIDATE: its held back episodes are released and its report is void, because it is to be
        evaluated anew.

        With `consent` the first call records a request and returns it, and a second, different person's call executes;
        he may add evidence of his own. Returns None when it is done. Raises: StaleTransition, IllegalTransition for a
        machine's name or without evidence, SecondPersonNeeded.
        """
        _check_person(by, what="a version leaves quarantine")
        check_text("reason", reason)
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, name)
            if record.state is not State.QUARANTINED:
                raise StaleTransition(record.name, expected=State.QUARANTINED, actual=record.state)
            if consent is None:
                found: dict[str, Any] = {"found": evidence} if evidence else {}
            else:
                bound_to = _bound_to(transaction.connection, record, consent.epoch)
                request, requested = find_request(transaction.connection, record)
                if decide_consent(request, by=by, bound_to=bound_to, now=transaction.now) is Step.ASK:
                    return _ask(transaction, record, by, reason, evidence, bound_to=bound_to, within_s=consent.within_s)
                assert request is not None, "a call executes only with a request"
                found = {"found": requested, "requested_by": request.by, "requested_reason": request.reason}
                found |= {"found_too": evidence} if evidence else {}
            transaction.move(record, State.CANDIDATE, action="release", by=by, reason=reason, evidence=found)
            return None

    def withdraw_release(self, name: str, *, by: str, reason: str) -> None:
        """Take the request for a version's release back: any person may. Raises NothingRequested, IllegalTransition."""
        _check_person(by, what="a request is withdrawn")
        check_text("reason", reason)
        with self._write() as transaction:
            record = find_record(transaction.connection, name)
            request, _ = find_request(transaction.connection, record)
            if request is None:
                raise NothingRequested(f"no release of version {record.name} waits: there is nothing to withdraw")
            transaction.audit(
                RELEASE_WITHDRAWN, by=by, subject=record.name, before=asdict(request), after={"reason": reason}
            )

    def release_request(self, name: str, *, epoch: int) -> ConsentRequest | None:
        """The request for a version's release that waits for a second person, under this epoch of the latch."""
        with self._database.read() as connection:
            record = find_record(connection, name)
            request, _ = find_request(connection, record)
            bound_to = _bound_to(connection, record, epoch)
        is_open = request is not None and request.is_open(bound_to=bound_to, now=float(self._clock()))
        return request if is_open and record.state is State.QUARANTINED else None


def find_request(connection: sqlite3.Connection, record: VersionRecord) -> tuple[ConsentRequest | None, Any]:
    """The last request for a version's release that nobody withdrew, whether or not it is still open, and its evidence."""
    query = "SELECT action, after, evidence_sha256 FROM audit WHERE subject = ? AND action IN (?, ?) ORDER BY seq DESC LIMIT 1"
    row = connection.execute(query, (record.name, RELEASE_REQUESTED, RELEASE_WITHDRAWN)).fetchone()
    if row is None or row[0] == RELEASE_WITHDRAWN:
        return None, None
    return ConsentRequest(**json.loads(row[1])), evidence_of(connection, row[2])


def _ask(
    transaction: Transaction,
    record: VersionRecord,
    by: str,
    reason: str,
    evidence: dict[str, Any] | None,
    *,
    bound_to: str,
    within_s: float,
) -> ConsentRequest:
    # The same rules as for the step itself, so that a second person is not asked for what cannot be done.
    transaction.check(record, expected=State.QUARANTINED, to=State.CANDIDATE, by=by, evidence=evidence)
    request = ConsentRequest(by, reason, transaction.now, transaction.now + within_s, bound_to)
    transaction.audit(RELEASE_REQUESTED, by=by, subject=record.name, after=asdict(request), evidence=evidence)
    return request


def _bound_to(connection: sqlite3.Connection, record: VersionRecord, epoch: int) -> str:
    """What a request hangs on: this stay in quarantine, and this epoch of the latch."""
    (seq,) = connection.execute("SELECT changed_seq FROM versions WHERE id = ?", (record.row_id,)).fetchone()
    return f"quarantined by row {seq}, epoch {epoch}"


def _check_person(by: str, *, what: str) -> None:
    check_text("by", by)
    if is_machine(by):
        raise IllegalTransition(f"{what} only by a person, not by {by!r}: give a person's name as by")
