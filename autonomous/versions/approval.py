"""A person's approval: who may give it, and what exactly he agreed to.

In: the version that waits, and who approves which report. Out: its step to SHADOW with an audit row that holds the
hashes of bundle, report and gates, or an error that says why not. Where two people decide, the one who asked for the
run is not the one who approves it. Source: separation of duty, NIST SP 800-53 AC-5.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from autonomous.versions.audit import sha256_of
from autonomous.versions.history import gates_sha256_of, own_proposal, proposer_of
from autonomous.versions.schema import VersionRecord, select_line
from autonomous.versions.states import State
from autonomous.versions.transaction import Transaction


class PromotionRefused(ValueError):
    """The version is not fit for traffic: a gate is missing or not passed, or its line learned what is held back."""


class ReportChanged(PromotionRefused):
    """The report that the approver read is not the one that is bound to the version."""


class OwnProposal(PromotionRefused):
    """The approver himself asked for this version, or for one it stands on, and nobody else has agreed yet."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person says. `report_sha256` names the report that he read; needed where two people decide."""

    by: str
    reason: str
    report_sha256: str | None = None
    two_people: bool = False


def check_approval(connection: sqlite3.Connection, record: VersionRecord, approval: Approval) -> None:
    """Raises ReportChanged, OwnProposal, and ValueError where the report has to be named and is not."""
    if approval.report_sha256 is None and approval.two_people:
        raise ValueError(
            f"report_sha256 is missing: two people decide here, so name the report that you read. That of version "
            f"{record.name} is {record.report_sha256}: GET /v1/versions/{record.name} shows it"
        )
    if approval.report_sha256 not in (None, record.report_sha256):
        raise ReportChanged(
            f"version {record.name}: you read report {approval.report_sha256}, but {record.report_sha256} is bound to it "
            "now. Read that one, then approve it under its hash"
        )
    if not approval.two_people:
        return
    if own := own_proposal(connection, select_line(connection, record), person=approval.by):
        what = "it" if own == record.name else f"{own}, which it stands on,"
        raise OwnProposal(
            f"version {record.name} cannot be approved by {approval.by}: {approval.by} asked for {what} to be learned, and "
            "nobody else has agreed to that. Another person has to approve it"
        )


def approve_step(transaction: Transaction, record: VersionRecord, approval: Approval) -> None:
    """AWAITING_APPROVAL -> SHADOW. Raises what `check_approval` and `decide_transition` raise: a machine never approves."""
    transaction.check(record, expected=State.AWAITING_APPROVAL, to=State.SHADOW, by=approval.by)
    check_approval(transaction.connection, record, approval)
    judged = judged_of(transaction.connection, record)
    evidence = {**judged, "reason": approval.reason, "read_report": approval.report_sha256 is not None}
    transaction.move(record, State.SHADOW, action="approve", by=approval.by, reason=approval.reason, evidence=evidence)


def judged_of(connection: sqlite3.Connection, record: VersionRecord) -> dict[str, Any]:
    """What a decision about a version is bound to: its bundle, report and gates by hash, and who proposed it."""
    return {
        "version": record.name,
        "manifest_sha256": None if record.manifest is None else sha256_of(record.manifest),
        "report_sha256": record.report_sha256,
        "gates_sha256": gates_sha256_of(connection, record),
        "proposed_by": proposer_of(connection, record),
    }
