"""How requests ended, on their way to the agent: gathered for a second, sent in one call, dropped if nobody takes them."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from autonomous.versions.rollout import Outcome

SEND_PERIOD_S = 1.0
MAX_HELD = 10_000
"""Beyond it the oldest are dropped: a rollout that sees fewer requests waits longer."""
_log = logging.getLogger(__name__)


class OutcomeSender:
    """Lives in one event loop. `send` takes a list of outcomes to the agent."""

    def __init__(self, send: Callable[[list[Outcome]], Awaitable[object]]) -> None:
        self._send = send
        self._held: deque[Outcome] = deque(maxlen=MAX_HELD)
        self._sending: asyncio.Task[None] | None = None

    def observe(self, outcome: Outcome) -> None:
        """Hold one; it goes out within a second or so."""
        self._held.append(outcome)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_soon())

    async def _send_soon(self) -> None:
        while self._held:
            await asyncio.sleep(SEND_PERIOD_S)
            outcomes = list(self._held)
            self._held.clear()
            try:
                await self._send(outcomes)
            except Exception as problem:
                _log.info("%d outcomes were not delivered: %s", len(outcomes), type(problem).__name__)
