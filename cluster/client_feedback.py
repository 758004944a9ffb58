"""Feedback and what is badly answered, over the HTTP API from Python."""

from cluster.client_connection import Connection, Json, quoted

COLLECT_TIMEOUT_S = 600.0


class FeedbackApi:
    """`client.feedback`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def give(self, response_id: str, rating: str, *, correction: str = "", reason: str = "", by: str = "") -> Json:
        """Say whether an answer was good ("up" or "down"), and what would have been right."""
        body = {"response_id": response_id, "rating": rating, "correction": correction, "reason": reason, "by": by}
        return self._connection.json("POST", "/v1/feedback", body)

    def labelling_queue(self, *, limit: int = 20) -> Json:
        """Answers that people should look at next."""
        return self._connection.json("GET", "/v1/feedback/queue", params={"limit": limit})

    def forget_response(self, response_id: str) -> Json:
        """Erase a request with its feedback and the documents made of it."""
        return self._connection.json("DELETE", f"/v1/feedback/{quoted(response_id)}")

    def forget_person(self, name: str) -> Json:
        """Erase what a person asked and said about answers."""
        return self._connection.json("POST", "/v1/feedback/forget", {"name": name})

    def gaps(self) -> Json:
        """What was asked and badly answered, and what becomes of it."""
        return self._connection.json("GET", "/v1/gaps")

    def collect_gaps(self) -> Json:
        """Look for gaps now."""
        return self._connection.json("POST", "/v1/gaps/collect", timeout_s=COLLECT_TIMEOUT_S)

    def learn_gaps(self, *, by: str) -> str:
        """Start learning the next batch, which begins with what gaps ask for; returns the run's id."""
        return str(self._connection.json("POST", "/v1/gaps/learn", {"by": by})["run_id"])
