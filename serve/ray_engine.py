"""The engine's replicas behind one Serve handle. An answer of which nothing was sent is repeated on another replica."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from autonomous.safety.latch import Latch
from memory.store import no_guard
from memory.types import Guard
from serve.engine import EngineDeadError, GenerateChunk, GenerateRequest
from serve.errors import NotReadyError
from serve.parts import Json
from serve.ray_calls import unwrap
from serve.router import RetryOn, call_with_retry, stream_with_retry
from serve.stream import WholeAnswer

SUMMED_STATS = ("num_requests", "num_output_tokens", "num_running", "memory_bytes")
RETRY_ENGINE: RetryOn = (RayActorError, EngineDeadError, ReplicaUnavailableError)


class EngineReplicas:
    """Answers of the engine, until the request's deadline and as the latch permits."""

    def __init__(self, handle: DeploymentHandle[Any], *, timeout_s: float, latch: Latch | None) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._timeout_s = timeout_s
        self._latch = latch

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """See Parts. Repeated on another replica until the first piece."""
        check = self._permit_answer()
        pieces = stream_with_retry(
            lambda: self._stream_once(request, check),
            retry_on=RETRY_ENGINE,
            deadline_s=time.monotonic() + self._timeout_s,
        )
        try:
            async for chunk in pieces:
                yield chunk
        except RayActorError as problem:
            raise NotReadyError("The engine replica died while it answered. Send the request again.") from problem
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _stream_once(self, request: GenerateRequest, check: Guard) -> AsyncIterator[GenerateChunk]:
        check()
        response = cast("DeploymentResponseGenerator[GenerateChunk]", self._streaming.generate.remote(request))
        try:
            async for chunk in response:
                check()
                yield chunk
        except Exception as problem:
            raise unwrap(problem) from problem
        finally:
            response.cancel()  # type: ignore[no-untyped-call]  # aborts the request in the engine if it still runs

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        """See Parts. Repeated on another replica."""
        check = self._permit_answer()
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return await call_with_retry(
                lambda: self._complete_once(request, check), retry_on=RETRY_ENGINE, deadline_s=deadline_s
            )
        except RayActorError as problem:
            raise NotReadyError("No engine replica answers. Try again in a few seconds.") from problem

    def _permit_answer(self) -> Guard:
        """Asked here too, at every attempt, because after a kill no replica is there to refuse; and a request from before a
        stop is not answered after the reset. Raises LearningStopped.
        """
        return no_guard if self._latch is None else self._latch.permit("answer", within="all").check

    async def _complete_once(self, request: GenerateRequest, check: Guard) -> WholeAnswer:
        check()
        response = self._handle.complete.remote(request)
        try:
            answer: WholeAnswer = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except Exception as problem:
            raise unwrap(problem) from problem
        check()
        return answer

    async def stats(self, *, timeout_s: float) -> Json:
        """Counters over all replicas; a broadcast also reaches replicas whose queue is full."""
        replicas = await self._handle.broadcast("stats").results_async(timeout_s=timeout_s)
        totals = {name: sum(stats[name] for stats in replicas) for name in SUMMED_STATS}
        return {"num_replicas": len(replicas), **totals, "replicas": replicas}
