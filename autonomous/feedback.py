"""FeedbackStore: votes and corrections on answers flow in; votes per answer and corrections that become documents flow out.

A correction is what a user wrote, so it is data that nobody vouches for: it is screened and masked like a document and waits
with trust UNTRUSTED, unless a configured reviewer gave it. What was acknowledged is on disk. A person's second word on an
answer takes the place of the first.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_tables import pseudonym_of
from autonomous.people import person_of
from autonomous.safety.screen import SafetyScreen
from memory.store import Database, no_guard
from memory.types import Guard

Rating = Literal["up", "down"]
SOURCE = "feedback"
"""Source of documents made of corrections."""
REVIEWED_SOURCE = "feedback-reviewed"
"""The same, of configured reviewers."""
ANONYMOUS = "anonymous"


class UnknownResponse(LookupError):
    """No answer of this id is in the log."""


class FeedbackFull(RuntimeError):
    """More than is taken before what waits was worked off."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What someone says about an answer. `by` is who says it, as they call themselves."""

    response_id: str
    rating: Rating
    correction: str = ""
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement. `correction` tells what becomes of it; `reasons` are the screen's."""

    response_id: str
    status: Literal["stored", "repeated", "changed"]
    correction: Literal["none", "accepted", "waits", "quarantined"]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction that is to become a document."""

    document_id: str
    response_id: str
    question: str
    text: str
    is_reviewed: bool
    at: float

    @property
    def source_id(self) -> str:
        """The source of the document; its trust is that of the source."""
        return REVIEWED_SOURCE if self.is_reviewed else SOURCE


@dataclass(frozen=True, slots=True)
class Votes:
    """All votes on one answer."""

    num_up: int = 0
    num_down: int = 0
    has_correction: bool = False

    @property
    def is_down(self) -> bool:
        """Whether people say that it is bad."""
        return self.num_down > 0 and self.num_down >= self.num_up

    @property
    def is_up(self) -> bool:
        """Whether people say that it is good."""
        return self.num_up > self.num_down


class FeedbackStore:
    """See the module. Thread-safe."""

    def __init__(
        self, config: FeedbackConfig, database: Database, *, screen: SafetyScreen, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._database = database
        self._screen = screen
        self._clock = clock

    def submit(self, feedback: Feedback, *, guard: Guard = no_guard) -> Receipt:
        """Keep what someone says about an answer. The same again changes nothing.

        Raises UnknownResponse, FeedbackFull (too many voters, or too many corrections wait), ValueError.
        """
        if feedback.correction and feedback.rating == "up":
            raise ValueError("correction is given with rating = 'up'; rate an answer that is to be corrected 'down'")
        correction, reasons = self._screened(feedback.correction)
        person = person_of(feedback.by)
        is_reviewed = bool(person) and person in {person_of(name) for name in self._config.reviewers}
        with self._database.write(guard=guard) as connection:
            voter = pseudonym_of(connection, feedback.by) or ANONYMOUS
            known = {"id": feedback.response_id, "voter": voter}
            before = self._check_room(connection, known, has_correction=bool(correction))
            digest = hashlib.sha256(f"{feedback.response_id}\x00{voter}\x00{correction}".encode()).hexdigest()[:24]
            state = "none" if not correction else "quarantined" if reasons else "wanted"
            row = {
                "response_id": feedback.response_id,
                "voter": voter,
                "rating": feedback.rating,
                "reason": self._masked(feedback.reason),
                "correction": correction,
                "screen": "; ".join(reasons),
                "is_reviewed": is_reviewed,
                "document_id": f"{SOURCE}-{digest}" if state == "wanted" else "",
            }
            if before is not None and tuple(before[name] for name in row) == tuple(row.values()):
                status: Literal["stored", "repeated", "changed"] = "repeated"
            else:
                status = "stored" if before is None else "changed"
                if before is not None and before["document_id"] == row["document_id"]:
                    state = before["state"]  # it may be a document already
                elif before is not None and before["document_id"]:
                    _unwant(connection, before["document_id"])
                connection.execute("DELETE FROM unwanted_document WHERE document_id = :document_id", row)
                connection.execute(
                    "INSERT OR REPLACE INTO vote(response_id, voter, rating, reason, correction, screen, is_reviewed,"
                    " document_id, state, at) VALUES(:response_id, :voter, :rating, :reason, :correction, :screen,"
                    " :is_reviewed, :document_id, :state, :at)",
                    {**row, "state": state, "at": self._clock()},
                )
        told: Literal["none", "accepted", "waits", "quarantined"] = "none"
        if correction:
            told = "quarantined" if reasons else "accepted" if is_reviewed else "waits"
        return Receipt(feedback.response_id, status, told, reasons)

    def votes(self, response_ids: Sequence[str]) -> dict[str, Votes]:
        """The votes on each answer that has any."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT response_id, sum(rating = 'up'), sum(rating = 'down'), max(correction != '') FROM vote"
                f" WHERE response_id {self._database.one_of('ids')} GROUP BY response_id",
                {"ids": self._database.many(list(response_ids))},
            ).fetchall()
        return {row[0]: Votes(row[1], row[2], bool(row[3])) for row in rows}

    def wanted(self, *, limit: int = 100) -> list[Correction]:
        """Corrections that are no documents yet, oldest first."""
        return self._corrections("vote.state = 'wanted'", {}, limit)

    def corrections_of(self, response_ids: Sequence[str]) -> list[Correction]:
        """Accepted corrections of these answers, documents already or not."""
        condition = f"vote.state IN ('wanted', 'document') AND vote.response_id {self._database.one_of('ids')}"
        return self._corrections(condition, {"ids": self._database.many(list(response_ids))}, len(response_ids) * 16)

    def note_document(self, document_id: str, *, is_kept: bool, guard: Guard = no_guard) -> None:
        """A correction was offered to the memory, which kept it or refused it. Idempotent."""
        state = "document" if is_kept else "quarantined"
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE vote SET state = :state WHERE document_id = :id AND state = 'wanted'",
                {"state": state, "id": document_id},
            )

    def forget_voter(self, by: str, *, guard: Guard = no_guard) -> int:
        """Erase all that a person said about answers; how many rows went. Their documents are unwanted then."""
        if not person_of(by):
            raise ValueError("by is empty: name whose feedback is to be erased")
        with self._database.write(guard=guard) as connection:
            name = {"voter": pseudonym_of(connection, by)}
            for (document_id,) in connection.execute(
                "SELECT document_id FROM vote WHERE voter = :voter AND document_id != ''", name
            ).fetchall():
                _unwant(connection, document_id)
            num_gone: int = connection.execute("DELETE FROM vote WHERE voter = :voter", name).rowcount
        self._database.checkpoint()
        return num_gone

    def unwanted(self) -> list[str]:
        """Documents that were made of feedback that is erased or replaced: they are to be erased from the memory."""
        with self._database.read() as connection:
            return [row[0] for row in connection.execute("SELECT document_id FROM unwanted_document ORDER BY 1")]

    def note_erased(self, document_id: str, *, guard: Guard = no_guard) -> None:
        """The memory holds it no more. Idempotent."""
        with self._database.write(guard=guard) as connection:
            connection.execute("DELETE FROM unwanted_document WHERE document_id = :id", {"id": document_id})

    def health(self) -> dict[str, int]:
        """Number of votes, and of corrections that wait."""
        with self._database.read() as connection:
            num_votes, num_wanted = connection.execute(
                "SELECT count(*), coalesce(sum(state = 'wanted'), 0) FROM vote"
            ).fetchone()
        return {"num_votes": num_votes, "num_corrections_waiting": num_wanted}

    def _screened(self, text: str) -> tuple[str, tuple[str, ...]]:
        verdict = self._screen.screen_document(text) if text else None
        is_bad = verdict is not None and verdict.decision == "quarantine"
        return self._masked(text), verdict.reasons if verdict is not None and is_bad else ()

    def _masked(self, text: str) -> str:
        plain = text.encode("utf-8", "replace").decode().strip()
        return self._screen.screen_answer(plain).text[: self._config.max_text_chars]

    def _check_room(
        self, connection: sqlite3.Connection, known: dict[str, str], *, has_correction: bool
    ) -> dict[str, Any] | None:
        """What the voter said before. Raises UnknownResponse, FeedbackFull."""
        if connection.execute("SELECT 1 FROM request WHERE id = :id", known).fetchone() is None:
            raise UnknownResponse(
                f"response_id = {known['id']!r} is not in the log: it is misspelt, too old (agent.feedback.retention_days), "
                "was not to be stored, or the log is off (agent.feedback.is_logged)"
            )
        cursor = connection.execute("SELECT * FROM vote WHERE response_id = :id AND voter = :voter", known)
        found = cursor.fetchone()
        before = None if found is None else dict(zip([one[0] for one in cursor.description], found, strict=True))
        (num_votes,) = connection.execute("SELECT count(*) FROM vote WHERE response_id = :id", known).fetchone()
        if before is None and num_votes >= self._config.max_votes:
            raise FeedbackFull(
                f"{num_votes} people have voted on this answer (agent.feedback.max_votes): no more count"
            )
        (num_wanted,) = connection.execute("SELECT count(*) FROM vote WHERE state = 'wanted'").fetchone()
        adds_one = has_correction and (before is None or before["state"] != "wanted")
        if adds_one and num_wanted >= self._config.max_pending_corrections:
            raise FeedbackFull(
                f"{num_wanted} corrections wait (agent.feedback.max_pending_corrections): send it again after the next "
                "POST /v1/gaps/collect"
            )
        return before

    def _corrections(self, condition: str, parameters: dict[str, str], limit: int) -> list[Correction]:
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT vote.document_id, vote.response_id, request.question, vote.correction, vote.is_reviewed, vote.at"
                f" FROM vote JOIN request ON request.id = vote.response_id WHERE {condition}"
                f" ORDER BY vote.at, vote.document_id LIMIT {limit:d}",
                parameters,
            ).fetchall()
        return [
            Correction(document_id, response_id, question, text, bool(is_reviewed), at)
            for document_id, response_id, question, text, is_reviewed, at in rows
        ]


def _unwant(connection: sqlite3.Connection, document_id: str) -> None:
    connection.execute("INSERT OR IGNORE INTO unwanted_document(document_id) VALUES(:id)", {"id": document_id})
