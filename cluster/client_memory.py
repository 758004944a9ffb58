"""The HTTP API's memory from Python: facts, trust, what waits, consolidation."""

from collections.abc import Sequence

from cluster.client_connection import Connection, Json, quoted

CONSOLIDATION_TIMEOUT_S = 1800.0


class MemoryApi:
    """`client.memory`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def context(self, request: str, *, token_budget: int, session: str | None = None) -> Json:
        """What fits a request within a token budget."""
        body: Json = {"request": request, "token_budget": token_budget}
        if session is not None:
            body["session"] = session
        return self._connection.json("POST", "/v1/memory/context", body)

    def facts(self, about: str, *, valid_at: float | None = None, recorded_at: float | None = None) -> Json:
        """What is held about a concept."""
        params = {"about": about, "valid_at": valid_at, "recorded_at": recorded_at}
        return self._connection.json("GET", "/v1/facts", params=params)

    def waiting(self, *, limit: int = 100) -> Json:
        """Episodes that wait to be released."""
        return self._connection.json("GET", "/v1/memory/waiting", params={"limit": limit})

    def release(self, ids: Sequence[str], *, by: str, reason: str) -> Json:
        """Let episodes be recalled and learned."""
        return self._connection.json("POST", "/v1/memory/release", {"ids": list(ids), "by": by, "reason": reason})

    def sources(self) -> Json:
        """Decisions about sources."""
        return self._connection.json("GET", "/v1/memory/sources")

    def trust(self, source: str, trust: str, *, by: str, reason: str) -> Json:
        """Believe a source so far from now on."""
        body = {"trust": trust, "by": by, "reason": reason}
        return self._connection.json("PUT", f"/v1/memory/sources/{quoted(source)}", body)

    def alarms(self) -> Json:
        """Sources that contradict many facts of others."""
        return self._connection.json("GET", "/v1/memory/alarms")

    def forget_source(self, source: str, *, by: str, reason: str) -> Json:
        """Erase all that a source has said; names the versions that had learned it."""
        return self._connection.json("POST", "/v1/memory/forget", {"source": source, "by": by, "reason": reason})

    def consolidate(self) -> Json:
        """Consolidate now; the report. It shows a sample to the model, and waits for a candidate that is judged."""
        return self._connection.json("POST", "/v1/memory/consolidations", timeout_s=CONSOLIDATION_TIMEOUT_S)

    def consolidations(self, *, limit: int = 20) -> Json:
        """The last runs of consolidation."""
        return self._connection.json("GET", "/v1/memory/consolidations", params={"limit": limit})

    def undo_consolidation(self, run: str, *, by: str, reason: str) -> Json:
        """Take a run of consolidation back."""
        path = f"/v1/memory/consolidations/{quoted(run)}/undo"
        return self._connection.json("POST", path, {"by": by, "reason": reason})
