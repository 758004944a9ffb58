"""FeedbackParts over the feedback actor."""

from typing import Any

from autonomous.feedback import Feedback, Receipt
from autonomous.feedback_config import FeedbackConfig
from autonomous.people import BY_API
from autonomous.requests import AnsweredRequest
from serve.feedback_parts import Json
from serve.ray_calls import ActorCalls
from serve.request_queue import RequestQueue


class RayFeedbackParts:
    """Implements `serve.feedback_parts.FeedbackParts`."""

    def __init__(self, calls: ActorCalls, *, config: FeedbackConfig) -> None:
        self.is_logged = config.is_logged
        self._calls = calls
        self._queue = RequestQueue(
            lambda requests: calls.call("feedback", "record", list(requests)), capacity=config.queue_capacity
        )

    def record(self, request: AnsweredRequest) -> None:
        """See FeedbackParts."""
        self._queue.put(request)

    async def submit(self, feedback: Feedback) -> Receipt:
        """See FeedbackParts. The answer it is about may still wait to be written."""
        await self._queue.flush()
        receipt: Receipt = await self._calls.call("feedback", "submit", feedback)
        return receipt

    async def labelling_queue(self, *, limit: int) -> list[Json]:
        """See FeedbackParts."""
        return list(await self._calls.call("feedback", "labelling_queue", limit))

    async def gaps(self) -> Json:
        """See FeedbackParts."""
        found: dict[str, Any] = dict(await self._calls.call("feedback", "gaps"))
        return {**found, "health": {**found["health"], "num_dropped": self._queue.num_dropped}}

    async def collect(self) -> Json:
        """See FeedbackParts."""
        await self._queue.flush()
        return dict(await self._calls.act("feedback", "collect"))

    async def learn(self, *, by: str | None) -> str:
        """See FeedbackParts."""
        return str(await self._calls.act("feedback", "train", by or BY_API))

    async def forget_response(self, response_id: str) -> Json:
        """See FeedbackParts."""
        await self._queue.flush()
        return dict(await self._calls.act("feedback", "forget_response", response_id))

    async def forget_person(self, name: str) -> Json:
        """See FeedbackParts."""
        await self._queue.flush()
        return dict(await self._calls.act("feedback", "forget_person", name))
