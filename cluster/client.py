"""The HTTP API from Python: one method per endpoint of serve/app.py, errors that carry the server's own sentence.

In flow plain arguments, out flow the JSON objects of the API (docs: `<url>/docs`); only an answer, which arrives in
pieces, has a type of its own. The command line, the guided run and the benchmarks use nothing else.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

import httpx

from cluster.client_errors import ApiError, ClientError, error_of, reached

Json = dict[str, Any]

UNREACHABLE_TIMEOUT_S = 5.0
"""A loopback connection is made in milliseconds; a longer wait means that nobody listens."""


POLL_S = 0.3
"""How often a learning run is asked where it stands."""
CONSOLIDATION_TIMEOUT_S = 1800.0
COLLECT_TIMEOUT_S = 600.0
FORENSICS_TIMEOUT_S = 1800.0
"""Two answers for each of up to 24 prompts."""


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

    def __init__(
        self, base_url: str, *, timeout_s: float = 300.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        timeout = httpx.Timeout(timeout_s, connect=UNREACHABLE_TIMEOUT_S)
        self.base_url = base_url.rstrip("/")
        # A proxy of the environment must not see a loopback address.
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout, transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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
        reply = self._json("POST", "/v1/chat/completions", body)
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
        with reached(self.base_url), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code >= 400:
                response.read()
                raise error_of(response)
            for event in _events(response.iter_lines()):
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
        return self._json("POST", "/v1/knowledge", {"documents": list(documents)})

    def list_documents(self, *, limit: int = 100, offset: int = 0, source: str | None = None) -> Json:
        """What is known, newest first."""
        return self._json("GET", "/v1/knowledge", params={"limit": limit, "offset": offset, "source": source})

    def delete_document(self, document_id: str) -> Json:
        """Erase a document everywhere; names the versions that had learned it."""
        return self._json("DELETE", f"/v1/knowledge/{quote(document_id, safe='')}")

    def search(self, query: str, *, k: int = 5) -> Json:
        """The passages that retrieval finds for `query`."""
        return self._json("GET", "/v1/knowledge/search", params={"q": query, "k": k})

    # --- memory -------------------------------------------------------------------------------------------------

    def memory_context(self, request: str, *, token_budget: int, session: str | None = None) -> Json:
        """What fits a request within a token budget."""
        body = {"request": request, "token_budget": token_budget}
        return self._json("POST", "/v1/memory/context", body if session is None else {**body, "session": session})

    def facts(self, about: str, *, valid_at: float | None = None, recorded_at: float | None = None) -> Json:
        """What is held about a concept."""
        params = {"about": about, "valid_at": valid_at, "recorded_at": recorded_at}
        return self._json("GET", "/v1/facts", params=params)

    def waiting(self, *, limit: int = 100) -> Json:
        """Episodes that wait to be released."""
        return self._json("GET", "/v1/memory/waiting", params={"limit": limit})

    def release(self, ids: Sequence[str], *, by: str, reason: str) -> Json:
        """Let episodes be recalled and learned."""
        return self._json("POST", "/v1/memory/release", {"ids": list(ids), "by": by, "reason": reason})

    def sources(self) -> Json:
        """Decisions about sources."""
        return self._json("GET", "/v1/memory/sources")

    def trust(self, source: str, trust: str, *, by: str, reason: str) -> Json:
        """Believe a source so far from now on."""
        body = {"trust": trust, "by": by, "reason": reason}
        return self._json("PUT", f"/v1/memory/sources/{quote(source, safe='')}", body)

    def alarms(self) -> Json:
        """Sources that contradict many facts of others."""
        return self._json("GET", "/v1/memory/alarms")

    def forget_source(self, source: str, *, by: str, reason: str) -> Json:
        """Erase all that a source has said; names the versions that had learned it."""
        return self._json("POST", "/v1/memory/forget", {"source": source, "by": by, "reason": reason})

    def consolidate(self) -> Json:
        """Consolidate now; the report. It shows a sample to the model, and waits for a candidate that is judged."""
        return self._json("POST", "/v1/memory/consolidations", timeout_s=CONSOLIDATION_TIMEOUT_S)

    def consolidations(self, *, limit: int = 20) -> Json:
        """The last runs of consolidation."""
        return self._json("GET", "/v1/memory/consolidations", params={"limit": limit})

    def undo_consolidation(self, run: str, *, by: str, reason: str) -> Json:
        """Take a run of consolidation back."""
        path = f"/v1/memory/consolidations/{quote(run, safe='')}/undo"
        return self._json("POST", path, {"by": by, "reason": reason})

    # --- tools --------------------------------------------------------------------------------------------------

    def tools(self) -> Json:
        """The tools with the schemas of their arguments."""
        return self._json("GET", "/v1/tools")

    def call_tool(self, name: str, arguments: Json) -> Json:
        """Call a tool."""
        return self._json("POST", f"/v1/tools/{quote(name, safe='')}", {"arguments": arguments})

    def knowledge_answer(self, question: str) -> Json:
        """Answer a question with tools."""
        return self._json("POST", "/v1/knowledge/answer", {"question": question})

    # --- sources ------------------------------------------------------------------------------------------------

    def read_sources(self) -> Json:
        """The sources that are read by themselves, and how far."""
        return self._json("GET", "/v1/sources")

    def add_source(self, source: Json, *, by: str, reason: str) -> Json:
        """Read a source from now on."""
        return self._json("POST", "/v1/sources", {"source": source, "by": by, "reason": reason})

    def remove_source(self, source_id: str, *, by: str, reason: str) -> None:
        """Read a source no longer."""
        self._json("DELETE", f"/v1/sources/{quote(source_id, safe='')}", params={"by": by, "reason": reason})

    def read_source_now(self, source_id: str) -> Json:
        """Look at a source without waiting for its interval."""
        return self._json("POST", f"/v1/sources/{quote(source_id, safe='')}/read")

    def refused_of(self, source_id: str, *, limit: int = 100) -> Json:
        """What of a source is neither recalled nor learned."""
        return self._json("GET", f"/v1/sources/{quote(source_id, safe='')}/refused", params={"limit": limit})

    # --- feedback -----------------------------------------------------------------------------------------------

    def give_feedback(
        self, response_id: str, rating: str, *, correction: str = "", reason: str = "", by: str = ""
    ) -> Json:
        """Say whether an answer was good ("up" or "down"), and what would have been right."""
        body = {"response_id": response_id, "rating": rating, "correction": correction, "reason": reason, "by": by}
        return self._json("POST", "/v1/feedback", body)

    def labelling_queue(self, *, limit: int = 20) -> Json:
        """Answers that people should look at next."""
        return self._json("GET", "/v1/feedback/queue", params={"limit": limit})

    def forget_response(self, response_id: str) -> Json:
        """Erase a request with its feedback and the documents made of it."""
        return self._json("DELETE", f"/v1/feedback/{quote(response_id, safe='')}")

    def forget_person(self, name: str) -> Json:
        """Erase what a person asked and said about answers."""
        return self._json("POST", "/v1/feedback/forget", {"name": name})

    def gaps(self) -> Json:
        """What was asked and badly answered, and what becomes of it."""
        return self._json("GET", "/v1/gaps")

    def collect_gaps(self) -> Json:
        """Look for gaps now."""
        return self._json("POST", "/v1/gaps/collect", timeout_s=COLLECT_TIMEOUT_S)

    def learn_gaps(self, *, by: str) -> str:
        """Start learning the next batch, which begins with what gaps ask for; returns the run's id."""
        return str(self._json("POST", "/v1/gaps/learn", {"by": by})["run_id"])

    # --- learning and versions ----------------------------------------------------------------------------------

    def learn(self, *, by: str | None = None) -> str:
        """Start learning the next batch in a person's name; returns the run's id."""
        return str(self._json("POST", "/v1/learn", {} if by is None else {"by": by})["run_id"])

    def start_benchmark(self, version: str) -> Json:
        """Begin the thorough evaluation of a version: {"version"}."""
        return self._json("POST", "/v1/benchmark", {"version": version})

    def version_report(self, version: str) -> Json:
        """Gates, evaluation, benchmark and triggers of a version; `is_running` while it is benchmarked."""
        return self._json("GET", f"/v1/versions/{quote(version, safe='')}/report")

    def next_batch(self) -> Json:
        """What the next batch would learn, and the questions it would be judged by."""
        return self._json("GET", "/v1/learn/next")

    def learning(self, run_id: str) -> Json:
        """Where a run stands."""
        return self._json("GET", f"/v1/learn/{quote(run_id, safe='')}")

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
            if status["phase"] in ("done", "failed"):
                return status
            if time.monotonic() > deadline:
                raise ClientError(
                    f"learning run {run_id} has not ended after {timeout_s:.0f} s (phase {status['phase']}); "
                    "it goes on, look at it with: autonomous status"
                )
            time.sleep(POLL_S if poll_s is None else poll_s)

    def schedules(self) -> Json:
        """What runs by itself."""
        return self._json("GET", "/v1/schedules")

    def schedule_runs(self, name: str, *, limit: int = 20) -> list[Json]:
        """A job's runs, newest first."""
        reply = self._json("GET", f"/v1/schedules/{quote(name, safe='')}/runs", params={"limit": limit})
        return list(reply["runs"])

    def run_schedule(self, name: str, *, by: str, reason: str, key: str | None = None) -> Json:
        """Ask for a run of a job now; the run. The same `key` asks once."""
        body = {"by": by, "reason": reason, "key": key}
        return self._json("POST", f"/v1/schedules/{quote(name, safe='')}/run", body)

    def versions(self) -> Json:
        """The three pointers and the versions, newest first."""
        return self._json("GET", "/v1/versions")

    def version(self, version_id: str) -> Json:
        """One version with its gates and its lineage."""
        return self._json("GET", f"/v1/versions/{quote(version_id, safe='')}")

    def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None = None) -> Json:
        """Let a version that passed all gates go on to production. `report_sha256` is the report that was read."""
        body = {"by": by, "reason": reason, "report_sha256": report_sha256}
        return self._json("POST", self._version_path(version_id, "approve"), body)

    def reject(self, version_id: str, *, by: str, reason: str, report_sha256: str | None = None) -> Json:
        """Say no to a version that waits for approval."""
        body = {"by": by, "reason": reason, "report_sha256": report_sha256}
        return self._json("POST", self._version_path(version_id, "reject"), body)

    def release_version(
        self, version_id: str, *, by: str, reason: str, evidence: str | None, evidence_name: str | None = None
    ) -> Json:
        """Let a quarantined version be evaluated anew; {"waiting"} where a second person has to agree."""
        body = {"by": by, "reason": reason, "evidence": evidence, "evidence_name": evidence_name}
        return self._json("POST", self._version_path(version_id, "release"), body)

    def withdraw_release(self, version_id: str, *, by: str, reason: str) -> None:
        """Take back a release that waits for a second person."""
        self._json("POST", self._version_path(version_id, "release/withdraw"), {"by": by, "reason": reason})

    def explain(self, version_id: str) -> Json:
        """Why a version serves or does not."""
        return self._json("GET", self._version_path(version_id, "explain"))

    def forensics(self, version_id: str, *, prompts: Sequence[str] = (), max_prompts: int | None = None) -> Json:
        """A look at a version that was put away, beside the one that serves."""
        params: Json = {"prompt": list(prompts) or None, "max_prompts": max_prompts}
        path = self._version_path(version_id, "forensics")
        return self._json("GET", path, params=params, timeout_s=FORENSICS_TIMEOUT_S)

    def _version_path(self, version_id: str, action: str) -> str:
        return f"/v1/versions/{quote(version_id, safe='')}/{action}"

    def rollback(self, *, by: str, reason: str, keep_passages: bool = False) -> Json:
        """Put the predecessor back into production and quarantine the version that serves now.

        What it learned is not recalled until a person releases it, unless `keep_passages`.
        """
        body = {"by": by, "reason": reason, "keep_passages": keep_passages}
        return self._json("POST", "/v1/versions/rollback", body)

    def unlock(self, *, by: str, reason: str) -> None:
        """Let versions be promoted again after rollbacks."""
        self._json("POST", "/v1/versions/unlock", {"by": by, "reason": reason})

    # --- safety and state ---------------------------------------------------------------------------------------

    def stop(self, *, by: str, reason: str, category: str = "stop", scope: str = "learning") -> Json:
        """Stop all learning, or what another scope names."""
        body = {"by": by, "reason": reason, "category": category, "scope": scope}
        return self._json("POST", "/v1/safety/stop", body)

    def reset(self, *, by: str, reason: str) -> Json:
        """Permit learning again; starts nothing. With `waiting`, the stop holds until a second person agrees."""
        return self._json("POST", "/v1/safety/reset", {"by": by, "reason": reason})

    def safety(self) -> Json:
        """The state of the latch."""
        return self._json("GET", "/v1/safety")

    def status(self) -> Json:
        """Everything the status page shows."""
        return self._json("GET", "/v1/status")

    def audit(self, *, limit: int = 50) -> Json:
        """The newest audit rows, and whether the chain is whole."""
        return self._json("GET", "/v1/audit", params={"limit": limit})

    def healthz(self) -> None:
        """Return if the server answers at all."""
        self._json("GET", "/healthz")

    def _json(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        params: Json | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        given = {name: value for name, value in (params or {}).items() if value is not None}
        with reached(self.base_url):
            response = self._http.request(method, path, json=body, params=given, timeout=timeout)
        if response.status_code >= 400:
            raise error_of(response)
        try:
            reply = response.json()
        except ValueError:
            reply = {}
        return reply if isinstance(reply, dict) else {"data": reply}


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


def _events(lines: Iterable[str]) -> Iterator[Json]:
    """The JSON objects of a stream of server-sent events."""
    for line in lines:
        if line.startswith("data:"):
            data = line[len("data:") :].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
