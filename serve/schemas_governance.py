"""Requests and responses of what people decide about versions: approval, rejection, release, explanation, forensics."""

from typing import Any

from pydantic import Field

from serve.schemas import Response, Signed

MAX_EVIDENCE_CHARS = 200_000
SHA256 = r"^[0-9a-f]{64}$"


class SignedReport(Signed):
    """Who decides, why, and on which report."""

    report_sha256: str | None = Field(None, pattern=SHA256)
    """The report that was read: `report_sha256` of GET /v1/versions/{id}. Needed for an approval where two people decide."""


class ReleaseRequest(Signed):
    """POST /v1/versions/{id}/release."""

    evidence: str | None = Field(None, min_length=1, max_length=MAX_EVIDENCE_CHARS)
    """What has been found out since it was put away. The first person has to give it, a second one may add to it."""
    evidence_name: str | None = Field(None, max_length=200)
    """The name of the file that it was in."""

    def to_evidence(self) -> dict[str, Any] | None:
        """What the ledger keeps under its hash."""
        if self.evidence is None:
            return None
        return {"text": self.evidence, **({"name": self.evidence_name} if self.evidence_name else {})}


class Waiting(Response):
    """202: what one person asked for; it waits for a second one."""

    by: str
    reason: str
    at: float
    until: float
    """Seconds since the epoch; afterwards it has to be asked for anew."""
    waits_for: str


class Waits(Response):
    """202: nothing has changed yet."""

    waiting: Waiting


class ExplanationInfo(Response):
    """GET /v1/versions/{id}/explain."""

    version: str
    state: str
    why: str
    """In a sentence: why it serves or does not."""
    text: str
    """All of it, for people."""


class ForensicsInfo(Response):
    """GET /v1/versions/{id}/forensics."""

    case: dict[str, Any]
    answers: list[dict[str, Any]]
    """Each prompt with the answers of this version and of the one that serves."""
    suspects: list[dict[str, Any]]
    """What it was trained on, the likeliest cause first."""
    text: str
    """All of it, for people."""
