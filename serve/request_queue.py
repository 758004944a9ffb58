"""RequestQueue: answered requests wait here to be written, behind the answers. A full queue drops, it never waits.

For one event loop. What was put and not sent when the process ends is lost: the log is for learning, not for the record.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from autonomous.requests import AnsweredRequest

_log = logging.getLogger(__name__)

BATCH = 64
Send = Callable[[Sequence[AnsweredRequest]], Awaitable[Any]]
"""Stores requests; may raise whatever the store raises."""


class RequestQueue:
    """See the module."""

    def __init__(self, send: Send, *, capacity: int) -> None:
        self.num_dropped = 0
        """Requests that found no room, or that the store did not take."""
        self._send = send
        self._capacity = capacity
        self._waiting: deque[AnsweredRequest] = deque()
        self._num_sent = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, request: AnsweredRequest) -> None:
        """Let a request be written soon. Neither waits nor raises."""
        if len(self._waiting) + self._num_sent >= self._capacity:
            self.num_dropped += 1
            return
        self._waiting.append(request)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def flush(self) -> None:
        """Return when what was put before is written or dropped."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._num_sent = len(batch)
            try:
                await self._send(batch)
            except Exception as problem:
                self.num_dropped += len(batch)
                _log.warning("%d answered requests were not kept: %s: %s", len(batch), type(problem).__name__, problem)
            finally:
                self._num_sent = 0
