"""The sources that are read by themselves, over the HTTP API from Python."""

from cluster.client_connection import Connection, Json, quoted


class SourcesApi:
    """`client.sources`. Decisions about whom to believe: `client.memory`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Json:
        """The sources that are read by themselves, and how far."""
        return self._connection.json("GET", "/v1/sources")

    def add(self, source: Json, *, by: str, reason: str) -> Json:
        """Read a source from now on."""
        return self._connection.json("POST", "/v1/sources", {"source": source, "by": by, "reason": reason})

    def remove(self, source_id: str, *, by: str, reason: str) -> None:
        """Read a source no longer."""
        self._connection.json("DELETE", f"/v1/sources/{quoted(source_id)}", params={"by": by, "reason": reason})

    def read_now(self, source_id: str) -> Json:
        """Look at a source without waiting for its interval."""
        return self._connection.json("POST", f"/v1/sources/{quoted(source_id)}/read")

    def refused(self, source_id: str, *, limit: int = 100) -> Json:
        """What of a source is neither recalled nor learned."""
        return self._connection.json("GET", f"/v1/sources/{quoted(source_id)}/refused", params={"limit": limit})
