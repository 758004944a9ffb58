"""From a prepared request to an answer: whole, or as server-sent events.

Streams are coalesced, screened so that no secret is split, and closed whatever ends them: a client that leaves aborts
its request in the engine. The last data event before [DONE] carries usage, version, sources and timings.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from autonomous.versions.rollout import Outcome
from serve.config import HttpConfig
from serve.engine import GenerateChunk, GenerateRequest
from serve.errors import describe_error
from serve.parts import Json, Parts
from serve.rag import RAGSystem, Source
from serve.recording import RequestNote, record_answer
from serve.schemas_openai import SourceInfo, StreamOptions, Timings, Usage
from serve.stream import Mask, WholeAnswer, coalesce, screen_chunks

FIRST_SERVER_ERROR = 500
"""HTTP statuses from here on are no fault of the client."""


@dataclass(frozen=True)
class ServingContext:
    """What the routes work with. `mask` removes secrets from an answer; clocks are arguments for the tests."""

    parts: Parts
    rag: RAGSystem
    http: HttpConfig
    max_model_len: int
    coalesce_s: float
    mask: Mask
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the engine. `started_at` is on the context's clock."""

    request: GenerateRequest
    model: str
    version: str
    sources: list[Source]
    started_at: float
    retrieval_s: float = 0.0
    is_judged: bool = False
    """Whether V2 was asked for: how it ends then counts for a canary or a new production."""
    note: RequestNote | None = None
    """What is kept of it for feedback."""


@dataclass(frozen=True, slots=True)
class StreamKind:
    """How pieces look in a stream."""

    prefix: str
    object: str
    is_chat: bool

    def choice(self, text: str) -> Json:
        """The part of a choice that carries a piece."""
        if self.is_chat:
            return {"delta": {"content": text} if text else {}}
        return {"text": text}


CHAT_STREAM = StreamKind(prefix="chatcmpl", object="chat.completion.chunk", is_chat=True)
TEXT_STREAM = StreamKind(prefix="cmpl", object="text_completion", is_chat=False)


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed however the response ends."""

    def __init__(self, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _aclose(self._events)


async def complete_answer(context: ServingContext, prepared: Prepared) -> WholeAnswer:
    """A whole answer, masked; `first_token_s` is counted from the request's arrival."""
    asked_at = context.clock()
    timeout_s = prepared.started_at + context.http.request_timeout_s - asked_at
    with _observed(context, prepared) as note_masked:
        try:
            answer = await asyncio.wait_for(context.parts.complete(prepared.request), timeout=max(0.001, timeout_s))
        except TimeoutError as problem:
            raise TimeoutError(
                f"no answer within {context.http.request_timeout_s:g} s (http.request_timeout_s); ask for fewer max_tokens"
            ) from problem
        text = note_masked(answer.text)
    first_token_s = asked_at - prepared.started_at + answer.first_token_s
    return replace(answer, text=text, first_token_s=first_token_s)


@contextmanager
def _observed(context: ServingContext, prepared: Prepared) -> Iterator[Mask]:
    """Tells how a request ended; yields the mask, which notes whether it found something. A client that left tells nothing."""
    was_masked = False

    def mask(text: str) -> str:
        nonlocal was_masked
        masked = context.mask(text)
        was_masked = was_masked or masked != text
        return masked

    def observe(*, is_error: bool) -> None:
        if prepared.is_judged:
            seconds = context.clock() - prepared.started_at
            context.parts.observe(Outcome(prepared.version, seconds, is_error=is_error, is_masked=was_masked))

    try:
        yield mask
    except Exception as problem:
        if describe_error(problem).status >= FIRST_SERVER_ERROR:
            observe(is_error=True)
        raise
    else:
        observe(is_error=False)


def envelope_of(context: ServingContext, prepared: Prepared, prefix: str) -> Json:
    """What every answer and every event of a stream begins with."""
    return {
        "id": f"{prefix}-{prepared.request.request_id}",
        "created": int(context.now()),
        "model": prepared.model,
        "version": prepared.version,
    }


def facts_of(context: ServingContext, prepared: Prepared, answers: Sequence[WholeAnswer]) -> Json:
    """Usage, sources and timings of finished answers."""
    num_prompt = sum(answer.num_prompt_tokens for answer in answers)
    num_output = sum(answer.num_output_tokens for answer in answers)
    usage = Usage(prompt_tokens=num_prompt, completion_tokens=num_output, total_tokens=num_prompt + num_output)
    timings = Timings(
        retrieval_s=round(prepared.retrieval_s, 4),
        first_token_s=round(min(answer.first_token_s for answer in answers), 4),
        total_s=round(context.clock() - prepared.started_at, 4),
    )
    sources = [SourceInfo.model_validate(source).model_dump() for source in prepared.sources]
    return {"usage": usage.model_dump(), "sources": sources, "timings": timings.model_dump()}


def record(
    context: ServingContext, prepared: Prepared, response_id: str, text: str, answer: WholeAnswer | GenerateChunk
) -> None:
    """Keep a request for feedback, behind its answer. `text` is what was sent."""
    record_answer(
        context.parts.feedback,
        prepared.note,
        response_id=response_id,
        text=text,
        version=prepared.version,
        at=context.now(),
        sources=prepared.sources,
        log_prob=answer.log_prob,
        num_output_tokens=answer.num_output_tokens,
    )


async def open_stream(
    context: ServingContext,
    prepared: Prepared,
    *,
    kind: StreamKind,
    options: StreamOptions | None,
    headers: dict[str, str],
) -> EventStream:
    """Waits for the first piece, so that what fails before it has a proper HTTP status."""
    pieces = _observed_pieces(context, prepared)
    try:
        first = await anext(pieces)
    except BaseException:
        await _aclose(pieces)
        raise
    first_token_s = context.clock() - prepared.started_at
    screened = _chain(first, pieces)
    has_usage_event = options is not None and options.include_usage
    return EventStream(_events(context, prepared, screened, kind, first_token_s, has_usage_event), headers)


async def _observed_pieces(context: ServingContext, prepared: Prepared) -> AsyncIterator[GenerateChunk]:
    """Joined and masked pieces."""
    with _observed(context, prepared) as mask:
        pieces = coalesce(
            context.parts.generate(prepared.request),
            interval_s=context.coalesce_s,
            deadline_s=prepared.started_at + context.http.request_timeout_s,
            clock=context.clock,
        )
        async with aclosing(screen_chunks(pieces, mask=mask)) as screened:  # type: ignore[type-var]
            async for piece in screened:
                yield piece


async def _chain(first: GenerateChunk, rest: AsyncIterator[GenerateChunk]) -> AsyncIterator[GenerateChunk]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await _aclose(rest)


async def _events(  # noqa: PLR0917 - private, called once
    context: ServingContext,
    prepared: Prepared,
    chunks: AsyncIterator[GenerateChunk],
    kind: StreamKind,
    first_token_s: float,
    has_usage_event: bool,
) -> AsyncIterator[str]:
    """Chunks -> `data:` lines. A failure after the first piece is an event: the status line is already out."""
    envelope = {**envelope_of(context, prepared, kind.prefix), "object": kind.object}

    def event(choice: Json | None, finish_reason: str | None = None, **facts: Any) -> str:
        choices = [] if choice is None else [{"index": 0, **choice, "finish_reason": finish_reason}]
        return f"data: {json.dumps({**envelope, 'choices': choices, **facts})}\n\n"

    texts: list[str] = []
    last: GenerateChunk | None = None
    try:
        if kind.is_chat:
            yield event({"delta": {"role": "assistant", "content": ""}})
        async for chunk in chunks:
            if chunk.text:
                texts.append(chunk.text)
                yield event(kind.choice(chunk.text))
            if chunk.finish_reason is None:
                continue
            last = chunk
            answer = WholeAnswer(
                text="",
                finish_reason=chunk.finish_reason,
                num_prompt_tokens=chunk.num_prompt_tokens,
                num_output_tokens=chunk.num_output_tokens,
                first_token_s=first_token_s,
            )
            facts = facts_of(context, prepared, [answer])
            if has_usage_event:
                yield event(kind.choice(""), chunk.finish_reason)
                yield event(None, **facts)
            else:
                yield event(kind.choice(""), chunk.finish_reason, **facts)
    except Exception as problem:
        yield f"data: {json.dumps(describe_error(problem).to_event())}\n\n"
    finally:
        await _aclose(chunks)
    if last is not None:
        record(context, prepared, str(envelope["id"]), "".join(texts), last)
    yield "data: [DONE]\n\n"


async def _aclose(stream: object) -> None:
    if (aclose := getattr(stream, "aclose", None)) is not None:
        await aclose()
