"""The versions over the HTTP API from Python: what people ask and decide about them."""

from collections.abc import Sequence

from cluster.client_connection import Connection, Json, quoted

FORENSICS_TIMEOUT_S = 180.0
"""The server asks for two minutes."""


class VersionsApi:
    """`client.versions`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Json:
        """The three pointers and the versions, newest first."""
        return self._connection.json("GET", "/v1/versions")

    def get(self, version_id: str) -> Json:
        """One version with its gates and its lineage."""
        return self._connection.json("GET", f"/v1/versions/{quoted(version_id)}")

    def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None = None) -> Json:
        """Let a version that passed all gates go on to production. `report_sha256` is the report that was read."""
        body = {"by": by, "reason": reason, "report_sha256": report_sha256}
        return self._connection.json("POST", _path(version_id, "approve"), body)

    def reject(self, version_id: str, *, by: str, reason: str, report_sha256: str | None = None) -> Json:
        """Say no to a version that waits for approval."""
        body = {"by": by, "reason": reason, "report_sha256": report_sha256}
        return self._connection.json("POST", _path(version_id, "reject"), body)

    def release(
        self, version_id: str, *, by: str, reason: str, evidence: str | None, evidence_name: str | None = None
    ) -> Json:
        """Let a quarantined version be evaluated anew; {"waiting"} where a second person has to agree."""
        body = {"by": by, "reason": reason, "evidence": evidence, "evidence_name": evidence_name}
        return self._connection.json("POST", _path(version_id, "release"), body)

    def withdraw_release(self, version_id: str, *, by: str, reason: str) -> None:
        """Take back a release that waits for a second person."""
        self._connection.json("POST", _path(version_id, "release/withdraw"), {"by": by, "reason": reason})

    def explain(self, version_id: str) -> Json:
        """Why a version serves or does not."""
        return self._connection.json("GET", _path(version_id, "explain"))

    def forensics(self, version_id: str, *, prompts: Sequence[str] = (), max_prompts: int | None = None) -> Json:
        """A look at a version that was put away, beside the one that serves."""
        params: Json = {"prompt": list(prompts) or None, "max_prompts": max_prompts}
        path = _path(version_id, "forensics")
        return self._connection.json("GET", path, params=params, timeout_s=FORENSICS_TIMEOUT_S)

    def rollback(self, *, by: str, reason: str, keep_passages: bool = False) -> Json:
        """Put the predecessor back into production and quarantine the version that serves now.

        What it learned is not recalled until a person releases it, unless `keep_passages`.
        """
        body = {"by": by, "reason": reason, "keep_passages": keep_passages}
        return self._connection.json("POST", "/v1/versions/rollback", body)

    def unlock(self, *, by: str, reason: str) -> None:
        """Let versions be promoted again after rollbacks."""
        self._connection.json("POST", "/v1/versions/unlock", {"by": by, "reason": reason})

    def benchmark(self, version: str) -> Json:
        """Begin the thorough evaluation of a version: {"version"}."""
        return self._connection.json("POST", "/v1/benchmark", {"version": version})

    def report(self, version: str) -> Json:
        """Gates, evaluation, benchmark and triggers of a version; `is_running` while it is benchmarked."""
        return self._connection.json("GET", _path(version, "report"))


def _path(version_id: str, action: str) -> str:
    return f"/v1/versions/{quoted(version_id)}/{action}"
