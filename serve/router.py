"""Which version answers, and how a call to a replica that died is repeated. Pure: Ray's exceptions are arguments."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)

BASE = "base"
"""The frozen original, without any adapter."""
DEFAULT = "v2"
ALIASES: Mapping[str, str] = {"autonomous": "v2", "v1": "v1", "v2": "v2"}
"""Model names that follow a pointer of the version ledger."""
QUARANTINE = "v3"
"""The slot of what was put away. It answers nobody but those who examine it (governance_routes.py)."""
PUT_AWAY_STATES = frozenset({"REJECTED", "ROLLED_BACK", "QUARANTINED"})
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0

RetryOn = tuple[type[BaseException], ...]
Sleep = Callable[[float], Awaitable[None]]


class UnknownModelError(ValueError):
    """The requested model does not exist; the message lists the names that do."""


class QuarantinedModelError(ValueError):
    """The requested model was put away; the message says where it can be examined."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"model {name!r} is in quarantine and answers no requests. Use 'v2'; who runs the system examines it with "
            "GET /v1/versions/{id}/forensics (autonomous forensics)."
        )


def requested_name(model: str | None, header: str | None) -> str:
    """The name that counts: the header X-Model-Version, else the model of the body, else V2."""
    return (header or "").strip() or (model or "").strip() or DEFAULT


def is_alias(name: str) -> bool:
    """Whether `resolve_version` needs no list of versions for this name."""
    return name.lower() in (*ALIASES, BASE, QUARANTINE)


def resolve_version(
    model: str | None,
    *,
    header: str | None = None,
    pointers: Mapping[str, str | None],
    versions: Collection[str] = (),
) -> str:
    """The version id that answers, or "base".

    In: pointers {"v1", "v2", "v3"} of the ledger (v3 may be None) and the ids that exist beside them.
    Raises UnknownModelError, which lists the valid names, and QuarantinedModelError.
    """
    name = requested_name(model, header)
    if name.lower() == QUARANTINE or (name == pointers.get(QUARANTINE)):
        raise QuarantinedModelError(name)
    if name.lower() == BASE:
        return BASE
    if slot := ALIASES.get(name.lower()):
        if version := pointers.get(slot):
            return version
        raise UnknownModelError(
            f"model {name!r} has no version yet: nothing is in slot {slot}. Use {_valid_names(pointers, versions)}."
        )
    if name in versions or name in pointers.values():
        return name
    raise UnknownModelError(f"model {name!r} does not exist. Use {_valid_names(pointers, versions)}.")


def is_for_canary(key: str, *, version: str, percent: float) -> bool:
    """Whether a canary of this share answers whoever has this key: always the same, whom a larger share keeps."""
    digest = hashlib.sha256(f"{version}\x00{key}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64


def _valid_names(pointers: Mapping[str, str | None], versions: Collection[str]) -> str:
    slots = [alias for alias, slot in ALIASES.items() if pointers.get(slot)]
    ids = sorted({*versions, *(version for slot, version in pointers.items() if version and slot != QUARANTINE)})
    return "one of " + ", ".join([*slots, BASE, *ids])


def _delays() -> Iterator[float]:
    """Exponential backoff, seconds."""
    delay = FIRST_DELAY_S
    while True:
        yield delay
        delay = min(delay * 2, LONGEST_DELAY_S)


async def call_with_retry(
    call: Callable[[], Awaitable[T]],
    *,
    retry_on: RetryOn,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> T:
    """Repeat an *idempotent* call while its target is being replaced, until `deadline_s` (a reading of `clock`).

    Raises the last error of `retry_on` when the next try would start past the deadline, other errors at once.
    """
    for delay in _delays():
        try:
            return await call()
        except retry_on as problem:
            if clock() + delay >= deadline_s:
                raise
            _log.warning("call failed, repeated in %.1f s: %s", delay, type(problem).__name__)
        await sleep(delay)
    raise AssertionError("unreachable: the delays never end")


async def stream_with_retry(
    open_stream: Callable[[], AsyncIterator[T]],
    *,
    retry_on: RetryOn,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[T]:
    """Like `call_with_retry` for a stream, but only until its first piece: text that was sent cannot be taken back.

    Closing this iterator closes the stream that is open.
    """
    for delay in _delays():
        has_started = False
        try:
            async with aclosing(open_stream()) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    has_started = True
                    yield piece
            return
        except retry_on as problem:
            if has_started or clock() + delay >= deadline_s:
                raise
            _log.warning("stream failed before its first piece, repeated in %.1f s: %s", delay, type(problem).__name__)
        await sleep(delay)
