"""What runs by itself, over the HTTP API from Python."""

from cluster.client_connection import Connection, Json, quoted


class SchedulesApi:
    """`client.schedules`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Json:
        """What runs by itself."""
        return self._connection.json("GET", "/v1/schedules")

    def runs(self, name: str, *, limit: int = 20) -> list[Json]:
        """A job's runs, newest first."""
        reply = self._connection.json("GET", f"/v1/schedules/{quoted(name)}/runs", params={"limit": limit})
        return list(reply["runs"])

    def run(self, name: str, *, by: str, reason: str, key: str | None = None) -> Json:
        """Ask for a run of a job now; the run. The same `key` asks once."""
        body = {"by": by, "reason": reason, "key": key}
        return self._connection.json("POST", f"/v1/schedules/{quoted(name)}/run", body)
