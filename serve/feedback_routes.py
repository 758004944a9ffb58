"""The routes of feedback: votes and corrections, the labelling queue, gaps, erasure."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query

from autonomous.feedback import Feedback
from serve.feedback_parts import FeedbackParts
from serve.schemas import LearnRequest, LearnStarted
from serve.schemas_feedback import (
    CollectReport,
    FeedbackIn,
    FeedbackReceipt,
    ForgetPersonRequest,
    Forgotten,
    Gaps,
    LabellingQueue,
)

Limit = Annotated[int, Query(ge=1, le=200, description="Most answers.")]


def build_feedback_router(feedback: FeedbackParts) -> APIRouter:
    """All routes below /v1/feedback and /v1/gaps."""
    router = APIRouter(prefix="/v1", tags=["Feedback"])

    @router.post("/feedback", response_model=FeedbackReceipt)
    async def submit(body: FeedbackIn) -> Any:
        """Say whether an answer was good, and what would have been right. The same again changes nothing."""
        return asdict(
            await feedback.submit(Feedback(body.response_id, body.rating, body.correction, body.reason, body.by))
        )

    @router.get("/feedback/queue", response_model=LabellingQueue)
    async def queue(limit: Limit = 20) -> Any:
        """Answers that people should look at next: those that a retraining chose, then unsure ones, far apart.

        POST /v1/feedback answers them.
        """
        return {"answers": await feedback.labelling_queue(limit=limit)}

    @router.post("/feedback/forget", response_model=Forgotten)
    async def forget_person(body: ForgetPersonRequest) -> Any:
        """Erase all that a person asked and said about answers, with the documents made of it."""
        return await feedback.forget_person(body.name)

    @router.delete("/feedback/{response_id}", response_model=Forgotten)
    async def forget(response_id: Annotated[str, Path(min_length=1, max_length=200)]) -> Any:
        """Erase a request with its answer, its feedback, and the documents made of it."""
        return await feedback.forget_response(response_id)

    @router.get("/gaps", response_model=Gaps)
    async def gaps() -> Any:
        """What was asked and badly answered, and what becomes of it."""
        return await feedback.gaps()

    @router.post("/gaps/collect", response_model=CollectReport)
    async def collect() -> Any:
        """Look for gaps now: corrections become documents, gaps become tasks, tasks find their passages."""
        return await feedback.collect()

    @router.post("/gaps/learn", status_code=202, response_model=LearnStarted)
    async def learn(body: Annotated[LearnRequest | None, Body()] = None) -> Any:
        """As POST /v1/learn, and the tasks whose passages the batch holds name the run."""
        return {"run_id": await feedback.learn(by=None if body is None else body.by)}

    return router
