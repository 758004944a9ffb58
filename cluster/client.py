"""The HTTP API from Python: one method per endpoint, errors that carry the server's own sentence.

In flow plain arguments, out flow the JSON objects of the API (docs: `<url>/docs`); only an answer, which arrives in
pieces, has a type of its own. The command line, the guided run and the benchmarks use nothing else. Here: answers,
documents, learning runs, the emergency stop and the state. All else by its noun: `client.memory`, `client.versions`, ...
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from autonomous.phases import ENDED
from cluster.client_connection import Connection, Json, quoted
from cluster.client_errors import ApiError, ClientError
from cluster.client_feedback import FeedbackApi
from cluster.client_memory import MemoryApi
from cluster.client_schedules import SchedulesApi
from cluster.client_sources import SourcesApi
from cluster.client_tools import ToolsApi
from cluster.client_versions import VersionsApi

POLL_S = 0.3
"""How often a learning run is asked where it stands."""


@dataclass(frozen=True)
class Answer:
    """One answer. `seconds` is measured here; `timings` (retrieval_s, first_token_s, total_s) by the server."""

    text: str
    version: str
    sources: list[Json] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    id: str = ""
    """For feedback."""

    def to_json(self) -> Json:
        """The same as a JSON object."""
        return {
            "id": self.id, "answer": self.text, "version": self.version, "sources": self.sources, "timings": self.timings,
            "usage": self.usage, "seconds": round(self.seconds, 4),
        }  # fmt: skip


class Client:
    """One connection pool to one server. Close it, or use it in a `with`."""

    def __init__(self, base_url: str, *, timeout_s: float = 300.0) -> None:
        self._connection = Connection(base_url, timeout_s=timeout_s)
        self.base_url = self._connection.base_url
        self.memory = MemoryApi(self._connection)
        self.sources = SourcesApi(self._connection)
        self.tools = ToolsApi(self._connection)
        self.feedback = FeedbackApi(self._connection)
        self.schedules = SchedulesApi(self._connection)
        self.versions = VersionsApi(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    # --- answers ------------------------------------------------------------------------------------------------

    def ask(
        self,
        question: str | Sequence[Json],
        *,
        model: str = "v2",
        retrieval: bool = True,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        session: str | None = None,
    ) -> Answer:
        """One whole answer. `question` is a sentence or a list of chat messages."""
        body = _chat_body(
            question,
            model=model,
            retrieval=retrieval,
            max_tokens=max_tokens,
            temperature=temperature,
            session=session,
        )
        start = time.perf_counter()
        reply = self._connection.json("POST", "/v1/chat/completions", body)
        return _answer(reply["choices"][0]["message"]["content"], reply, time.perf_counter() - start)

    def stream(
        self,
        question: str | Sequence[Json],
        *,
        on_text: Callable[[str], None],
        model: str = "v2",
        retrieval: bool = True,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        session: str | None = None,
    ) -> Answer:
        """The same, with `on_text` called for each piece as it arrives."""
        body = _chat_body(
            question,
            model=model,
            retrieval=retrieval,
            max_tokens=max_tokens,
            temperature=temperature,
            session=session,
        )
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        start = time.perf_counter()
        pieces: list[str] = []
        facts: Json = {}
        with self._connection.events("/v1/chat/completions", body) as events:
            for event in events:
                if "error" in event:
                    raise ApiError(str(event["error"].get("message")), status=int(event["error"].get("status") or 500))
                facts |= {
                    name: event[name] for name in ("id", "version", "sources", "timings", "usage") if event.get(name)
                }
                for choice in event.get("choices", []):
                    if text := (choice.get("delta") or {}).get("content"):
                        pieces.append(text)
                        on_text(text)
        return _answer("".join(pieces), facts, time.perf_counter() - start)

    # --- knowledge ----------------------------------------------------------------------------------------------

    def add_documents(self, documents: Sequence[Json]) -> Json:
        """Store documents; returns after they are on disk. A repeated call changes nothing."""
        return self._connection.json("POST", "/v1/knowledge", {"documents": list(documents)})

    def list_documents(self, *, limit: int = 100, offset: int = 0, source: str | None = None) -> Json:
        """What is known, newest first."""
        params = {"limit": limit, "offset": offset, "source": source}
        return self._connection.json("GET", "/v1/knowledge", params=params)

    def delete_document(self, document_id: str) -> Json:
        """Erase a document everywhere; names the versions that had learned it."""
        return self._connection.json("DELETE", f"/v1/knowledge/{quoted(document_id)}")

    def search(self, query: str, *, k: int = 5) -> Json:
        """The passages that retrieval finds for `query`."""
        return self._connection.json("GET", "/v1/knowledge/search", params={"q": query, "k": k})

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, *, by: str | None = None) -> str:
        """Start learning the next batch in a person's name; returns the run's id."""
        return str(self._connection.json("POST", "/v1/learn", {} if by is None else {"by": by})["run_id"])

    def next_batch(self) -> Json:
        """What the next batch would learn, and the questions it would be judged by."""
        return self._connection.json("GET", "/v1/learn/next")

    def learning(self, run_id: str) -> Json:
        """Where a run stands."""
        return self._connection.json("GET", f"/v1/learn/{quoted(run_id)}")

    def follow(
        self, run_id: str, *, on_status: Callable[[Json], None], poll_s: float | None = None, timeout_s: float = 1800.0
    ) -> Json:
        """Report every change of a run until it is done or failed; returns the last status.

        Raises ClientError if the run has not ended after `timeout_s` seconds; the run itself goes on.
        """
        deadline = time.monotonic() + timeout_s
        seen: tuple[Any, ...] = ()
        while True:
            status = self.learning(run_id)
            now = (status["phase"], status.get("step"), status.get("loss"))
            if now != seen:
                seen = now
                on_status(status)
            if status["phase"] in ENDED:
                return status
            if time.monotonic() > deadline:
                raise ClientError(
                    f"learning run {run_id} has not ended after {timeout_s:.0f} s (phase {status['phase']}); "
                    "it goes on, look at it with: autonomous status"
                )
            time.sleep(POLL_S if poll_s is None else poll_s)

    # --- safety and state ---------------------------------------------------------------------------------------

    def stop(self, *, by: str, reason: str, category: str = "stop", scope: str = "learning") -> Json:
        """Stop all learning, or what another scope names."""
        body = {"by": by, "reason": reason, "category": category, "scope": scope}
        return self._connection.json("POST", "/v1/safety/stop", body)

    def reset(self, *, by: str, reason: str) -> Json:
        """Permit learning again; starts nothing. With `waiting`, the stop holds until a second person agrees."""
        return self._connection.json("POST", "/v1/safety/reset", {"by": by, "reason": reason})

    def safety(self) -> Json:
        """The state of the latch."""
        return self._connection.json("GET", "/v1/safety")

    def status(self) -> Json:
        """Everything the status page shows."""
        return self._connection.json("GET", "/v1/status")

    def audit(self, *, limit: int = 50) -> Json:
        """The newest audit rows, and whether the chain is whole."""
        return self._connection.json("GET", "/v1/audit", params={"limit": limit})

    def healthz(self) -> None:
        """Return if the server answers at all."""
        self._connection.json("GET", "/healthz")


def _chat_body(
    question: str | Sequence[Json],
    *,
    model: str,
    retrieval: bool,
    max_tokens: int | None,
    temperature: float,
    session: str | None,
) -> Json:
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    body: Json = {"model": model, "messages": messages, "retrieval": retrieval, "temperature": temperature}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if session is not None:
        body["session"] = session
    return body


def _answer(text: str, facts: Json, seconds: float) -> Answer:
    return Answer(
        text=text or "",
        version=str(facts.get("version") or ""),
        sources=list(facts.get("sources") or []),
        timings=dict(facts.get("timings") or {}),
        usage={name: n for name, n in (facts.get("usage") or {}).items() if isinstance(n, int)},
        seconds=seconds,
        id=str(facts.get("id") or ""),
    )
