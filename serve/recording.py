"""What is remembered of a chat request for its feedback: noted before the answer, recorded behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from autonomous.requests import DEFAULT_TENANT, AnsweredRequest
from serve.feedback_parts import FeedbackParts
from serve.rag import Source


@dataclass(frozen=True, slots=True)
class RequestNote:
    """Who asked what."""

    question: str
    tenant: str
    user: str
    is_retrieved: bool
    """Whether the memory was asked."""


def note_request(
    feedback: FeedbackParts,
    question: str | None,
    *,
    tenant: str | None,
    user: str | None,
    is_stored: bool | None,
    is_retrieved: bool,
) -> RequestNote | None:
    """None for a request that is not to be kept: the log is off, the client says `"store": false`, nothing is asked."""
    if not feedback.is_logged or is_stored is False or not question or not question.strip():
        return None
    return RequestNote(question, tenant or DEFAULT_TENANT, user or "", is_retrieved)


def record_answer(
    feedback: FeedbackParts,
    note: RequestNote | None,
    *,
    response_id: str,
    text: str,
    version: str,
    at: float,
    sources: Sequence[Source],
    log_prob: float | None,
    num_output_tokens: int,
) -> None:
    """Hand an answer to the log; returns at once. `text` is what was sent, `at` seconds since the epoch."""
    if note is not None:
        feedback.record(
            AnsweredRequest(
                id=response_id,
                question=note.question,
                answer=text,
                version=version,
                at=at,
                log_prob=log_prob,
                num_output_tokens=num_output_tokens,
                is_retrieved=note.is_retrieved,
                cosine=max((source.cosine for source in sources), default=None),
                sources=tuple(source.episode_id for source in sources),
                tenant=note.tenant,
                user=note.user,
            )
        )
