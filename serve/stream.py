"""Streams of answer pieces: joined to about 300 ms, screened so that no secret is split, collected into whole answers.

In: the engine's `GenerateChunk`s. Out: fewer, screened ones: an event per token costs throughput, since each passes between
processes and goes out by itself.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from serve.engine import GenerateChunk

COALESCE_S = 0.3
"""A stream sends at most one piece in this many seconds."""
HOLDBACK_CHARS = 64
"""The end of a running answer that is held back: a secret that is still being written is not sent in halves."""
_MAX_HELD_CHARS = 8192
_SECRET_CHARACTER = re.compile(r"[A-Za-z0-9_\-+/=.~%@:]")

Clock = Callable[[], float]
Mask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A finished generation. `first_token_s` counts from the engine's receipt of the request, seconds."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_output_tokens: int
    first_token_s: float
    log_prob: float | None = None
    """See GenerateChunk."""


async def coalesce(
    chunks: AsyncIterator[GenerateChunk],
    *,
    interval_s: float = COALESCE_S,
    deadline_s: float | None = None,
    clock: Clock = time.monotonic,
) -> AsyncIterator[GenerateChunk]:
    """Join pieces so that at most one goes out per `interval_s`; the first and the last one go at once.

    Text never waits longer than `interval_s`, also when the engine pauses. `deadline_s` is a reading of `clock`.
    Raises TimeoutError past the deadline, and what `chunks` raises. Closing this iterator closes `chunks`.
    """
    held = ""
    sent_at: float | None = None
    pending: asyncio.Task[GenerateChunk] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(anext(chunks))
            waits = [] if deadline_s is None else [deadline_s - clock()]
            if held and sent_at is not None:
                waits.append(sent_at + interval_s - clock())
            await asyncio.wait({pending}, timeout=max(0.0, min(waits)) if waits else None)
            chunk = None
            if pending.done():
                task, pending = pending, None
                try:
                    chunk = task.result()
                except StopAsyncIteration:
                    break
                held += chunk.text
            elif deadline_s is not None and clock() >= deadline_s:
                raise TimeoutError("the answer took longer than http.request_timeout_s")
            is_last = chunk is not None and chunk.finish_reason is not None
            is_due = bool(held) and (sent_at is None or clock() >= sent_at + interval_s)
            if is_last or is_due:
                piece = replace(chunk, text=held) if chunk is not None else GenerateChunk(text=held)
                held, sent_at = "", clock()
                yield piece
        if held:
            yield GenerateChunk(text=held)
    finally:
        await _close(chunks, pending)


async def _close(chunks: AsyncIterator[GenerateChunk], pending: "asyncio.Task[GenerateChunk] | None") -> None:
    """Stop the source: cancelling the step that is awaited unwinds it, closing it aborts the request."""
    if pending is not None and not pending.done():
        pending.cancel()
        await asyncio.wait({pending})
    if pending is not None and not pending.cancelled():
        pending.exception()
    if (aclose := getattr(chunks, "aclose", None)) is not None:
        await aclose()


async def collect(chunks: AsyncIterator[GenerateChunk], *, clock: Clock = time.monotonic) -> WholeAnswer:
    """Read a stream to its end. Raises what the stream raises, RuntimeError if it ends without a finish reason."""
    start, first_token_s, texts = clock(), None, []
    async for chunk in chunks:
        if first_token_s is None and chunk.text:
            first_token_s = clock() - start
        texts.append(chunk.text)
        if chunk.finish_reason is not None:
            return WholeAnswer(
                text="".join(texts),
                finish_reason=chunk.finish_reason,
                num_prompt_tokens=chunk.num_prompt_tokens,
                num_output_tokens=chunk.num_output_tokens,
                first_token_s=clock() - start if first_token_s is None else first_token_s,
                log_prob=chunk.log_prob,
            )
    raise RuntimeError("The engine ended a stream without a finish reason.")


class StreamScreen:
    """Masks a text that arrives in pieces as if it had come whole.

    `push` gives what may go out now: never the last `HOLDBACK_CHARS` characters, and never a cut where masking the
    two sides apart would differ from masking them together. `finish` gives the rest.
    """

    def __init__(self, mask: Mask, *, holdback: int = HOLDBACK_CHARS) -> None:
        self._mask = mask
        self._holdback = holdback
        self._held = ""

    def push(self, text: str) -> str:
        """Add a piece; returns the masked text that is safe to send, often empty."""
        self._held += text
        if len(self._held) <= self._holdback:
            return ""
        masked = self._mask(self._held)
        limit = len(self._held) - self._holdback
        for cut in range(limit, 0, -1):
            # Only where a word ends: a long token may be recognised as a secret by its last characters.
            if _SECRET_CHARACTER.match(self._held[cut - 1]) and _SECRET_CHARACTER.match(self._held[cut]):
                continue
            head = self._mask(self._held[:cut])
            if head + self._mask(self._held[cut:]) == masked:
                self._held = self._held[cut:]
                return head
        if len(self._held) > _MAX_HELD_CHARS:
            self._held = ""
            return masked
        return ""

    def finish(self) -> str:
        """The masked rest."""
        rest, self._held = self._mask(self._held), ""
        return rest


async def screen_chunks(chunks: AsyncIterator[GenerateChunk], *, mask: Mask) -> AsyncIterator[GenerateChunk]:
    """Pass a stream through a `StreamScreen`; pieces with nothing to send are dropped, the last one is kept."""
    screen = StreamScreen(mask)
    async with aclosing(chunks) as source:  # type: ignore[type-var]
        async for chunk in source:
            text = screen.push(chunk.text)
            if chunk.finish_reason is not None:
                yield replace(chunk, text=text + screen.finish())
                return
            if text:
                yield replace(chunk, text=text)
