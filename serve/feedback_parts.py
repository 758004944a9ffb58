"""What the HTTP surface needs of feedback. `serve.ray_feedback` implements it over the feedback actor.

Dictionaries have the shapes of `serve.schemas_feedback`. Errors are those of `serve.parts`.
"""

from typing import Any, Protocol

from autonomous.feedback import Feedback, Receipt
from autonomous.requests import AnsweredRequest

Json = dict[str, Any]


class FeedbackParts(Protocol):
    """Feedback behind its routes. Changes raise LearningStopped after an emergency stop."""

    @property
    def is_logged(self) -> bool:
        """Whether answered requests are kept at all."""

    def record(self, request: AnsweredRequest) -> None:
        """Keep a request behind the answer. Neither waits nor raises; drops and counts what there is no room for."""

    async def submit(self, feedback: Feedback) -> Receipt:
        """Keep what someone says about an answer. Raises NotFoundError, OverloadedError, ValueError."""

    async def labelling_queue(self, *, limit: int) -> list[Json]:
        """Answers that people should look at next."""

    async def gaps(self) -> Json:
        """Learning tasks, and what the next learning run would get of them."""

    async def collect(self) -> Json:
        """Look for gaps now."""

    async def learn(self, *, by: str | None) -> str:
        """Start a learning run, and note which tasks it learns for; its id. Raises as Parts.learn."""

    async def forget_response(self, response_id: str) -> Json:
        """Erase a request with its feedback and the documents made of it. Raises NotFoundError."""

    async def forget_person(self, name: str) -> Json:
        """Erase what a person asked and said. Raises NotFoundError."""
