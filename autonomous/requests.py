"""RequestLog: answered requests flow in, written behind the answer; what was asked and how sure the model was flows out.

Bounded by number and by age. Personal data and secrets are masked before anything is written. Confidence is the mean
log-probability of the answer's tokens, minus one times which is a one-sample estimate of the entropy per token.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_tables import UNASKED, forget_requests, pseudonym_of
from autonomous.people import person_of
from memory.store import Database, no_guard
from memory.types import Guard

DAY_S = 86_400.0
DEFAULT_TENANT = "default"
_FIELDS = "id, question, answer, version, at, log_prob, num_output_tokens, is_retrieved, cosine, sources, tenant, user"
_PENDING = "EXISTS (SELECT 1 FROM vote WHERE vote.response_id = request.id AND vote.state = 'wanted')"
"""A correction that was acknowledged and is no document yet keeps its request."""


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One answer. `id` is the one that the client got; `at` is in seconds since the epoch; `sources` are episode ids."""

    id: str
    question: str
    answer: str
    version: str
    at: float
    log_prob: float | None = None
    """Of the whole answer, nats; None if the engine does not tell."""
    num_output_tokens: int = 0
    is_retrieved: bool = False
    """Whether the memory was asked."""
    cosine: float | None = None
    """Of the best passage in the prompt; None if no passage was near enough."""
    sources: tuple[str, ...] = ()
    tenant: str = DEFAULT_TENANT
    user: str = ""
    """Who asked, as the client calls them; in what the log returns, a pseudonym."""

    @property
    def confidence(self) -> float | None:
        """Mean log-probability of the answer's tokens, nats; None if the engine does not tell."""
        if self.log_prob is None or self.num_output_tokens == 0:
            return None
        return self.log_prob / self.num_output_tokens


class RequestLog:
    """See the module. Thread-safe. `mask` replaces personal data and secrets."""

    def __init__(
        self, config: FeedbackConfig, database: Database, *, mask: Callable[[str], str], clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._database = database
        self._mask = mask
        self._clock = clock

    def append(self, requests: Sequence[AnsweredRequest], *, guard: Guard = no_guard) -> int:
        """Keep requests but for those of tenants that opted out; how many are new. Idempotent by id."""
        wanted = [one for one in requests if one.tenant not in self._config.opted_out_tenants]
        if not self._config.is_logged or not wanted:
            return 0
        rows = [(one, self._clean(one.question), self._clean(one.answer)) for one in wanted]
        with self._database.write(guard=guard) as connection:
            num_new = sum(self._insert(connection, *row) for row in rows)
            self._prune(connection)
        return num_new

    def prune(self, *, guard: Guard = no_guard) -> int:
        """Erase what is too old; how many went."""
        with self._database.write(guard=guard) as connection:
            return self._prune(connection)

    def get(self, request_id: str) -> AnsweredRequest | None:
        """One request."""
        with self._database.read() as connection:
            row = connection.execute(f"SELECT {_FIELDS} FROM request WHERE id = :id", {"id": request_id}).fetchone()
        return None if row is None else _request(row)

    def recent(self, limit: int) -> list[AnsweredRequest]:
        """The newest, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_FIELDS} FROM request WHERE at >= :oldest ORDER BY at DESC, id LIMIT :limit",
                {"limit": limit, "oldest": self._oldest()},
            ).fetchall()
        return [_request(row) for row in rows]

    def forget(self, request_id: str, *, guard: Guard = no_guard) -> bool:
        """Erase a request, its feedback and what tasks quote of it; whether it was there."""
        with self._database.write(guard=guard) as connection:
            num_gone = forget_requests(connection, [request_id])
        self._database.checkpoint()
        return num_gone > 0

    def forget_user(self, user: str, *, guard: Guard = no_guard) -> int:
        """Erase all requests of a person likewise; how many."""
        if not person_of(user):
            raise ValueError("user is empty: name whose requests are to be erased")
        with self._database.write(guard=guard) as connection:
            name = {"user": pseudonym_of(connection, user)}
            ids = [row[0] for row in connection.execute("SELECT id FROM request WHERE user = :user", name)]
            num_gone = forget_requests(connection, ids)
        self._database.checkpoint()
        return num_gone

    def health(self) -> dict[str, int]:
        """Number of requests, bytes on disk."""
        with self._database.read() as connection:
            (num_requests,) = connection.execute("SELECT count(*) FROM request").fetchone()
        return {"num_requests": num_requests, "size_bytes": self._database.size_bytes()}

    def _clean(self, text: str) -> str:
        """Masked first: a cut through a secret would hide it from the mask."""
        return self._mask(text.encode("utf-8", "replace").decode())[: self._config.max_text_chars]

    def _oldest(self) -> float:
        return self._clock() - self._config.retention_days * DAY_S

    def _insert(self, connection: sqlite3.Connection, request: AnsweredRequest, question: str, answer: str) -> int:
        row = {
            "id": request.id,
            "question": question,
            "answer": answer,
            "version": request.version,
            "at": request.at,
            "log_prob": request.log_prob,
            "num_output_tokens": request.num_output_tokens,
            "is_retrieved": request.is_retrieved,
            "cosine": request.cosine,
            "sources": json.dumps(request.sources),
            "tenant": request.tenant,
            "user": pseudonym_of(connection, request.user),
        }
        places = ", ".join(f":{name}" for name in row)
        return connection.execute(f"INSERT OR IGNORE INTO request({_FIELDS}) VALUES({places})", row).rowcount

    def _prune(self, connection: sqlite3.Connection) -> int:
        (num_rows,) = connection.execute("SELECT count(*) FROM request").fetchone()
        ids = [
            row[0]
            for row in connection.execute(
                f"SELECT id FROM request WHERE NOT {_PENDING} AND (at < :oldest OR id IN"
                f" (SELECT id FROM request WHERE NOT {_PENDING} ORDER BY at, id LIMIT :surplus))",
                {"oldest": self._oldest(), "surplus": max(0, num_rows - self._config.capacity)},
            )
        ]
        if ids:  # documents made of corrections stay: they are erased as documents
            connection.executemany("DELETE FROM request WHERE id = :id", [{"id": key} for key in ids])
            connection.executemany("DELETE FROM task_question WHERE response_id = :id", [{"id": key} for key in ids])
            connection.execute(f"DELETE FROM learning_task WHERE {UNASKED}")
        return len(ids)


def _request(row: tuple[object, ...]) -> AnsweredRequest:
    values = dict(zip(_FIELDS.split(", "), row, strict=True))
    values["sources"] = tuple(json.loads(str(values["sources"])))
    values["is_retrieved"] = bool(values["is_retrieved"])
    return AnsweredRequest(**values)  # type: ignore[arg-type]
