"""`serve.parts.FeedbackParts` in one process, over the real desk, log, stores and ledger; what people ask is in LocalParts."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from autonomous.feedback import Feedback, FeedbackFull, FeedbackStore, Receipt, UnknownResponse
from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_desk import FeedbackDesk
from autonomous.feedback_tables import open_feedback
from autonomous.label_queue import LabelQueue
from autonomous.people import BY_API
from autonomous.pipeline import Reply, TrainingPipelineIntegration
from autonomous.pipeline_memory import StoredMemory
from autonomous.requests import AnsweredRequest, RequestLog
from autonomous.safety.screen import SafetyScreen
from autonomous.tasks import LearningTasks
from autonomous.versions.ledger import VersionLedger
from memory.claims import claims_of
from memory.passages import split_passages
from memory.types import Episode, Guard, episode_id
from serve.errors import NotFoundError, OverloadedError
from serve.request_queue import RequestQueue
from tests.unit.autonomous.ledger_life import make_genesis, quick_folder

if TYPE_CHECKING:
    from tests.unit.serve.local_parts import LocalParts


class LocalFeedback:
    """See the module. `is_logged` may be set."""

    def __init__(self, *, parts: "LocalParts") -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(quick_folder())
        self.is_logged = True
        self._parts = parts
        self.config = FeedbackConfig(reviewers=("rita",), gap_cosine=0.45, answer_cosine=0.3)
        self._ledger = VersionLedger(folder / "ledger.sqlite")
        make_genesis(self._ledger, folder)
        self.database = open_feedback(folder / "feedback.sqlite")
        screen = SafetyScreen("high")
        self.log = RequestLog(
            self.config, self.database, mask=lambda text: screen.screen_answer(text).text, clock=time.time
        )
        self.store = FeedbackStore(self.config, self.database, screen=screen, clock=time.time)
        trusts = parts.memory.management.trusts
        pipeline = TrainingPipelineIntegration(
            self.config,
            log=self.log,
            feedback=self.store,
            tasks=LearningTasks(self.config, self.database, clock=time.time),
            memory=StoredMemory(
                episodes=parts.episodic, ledger=self._ledger, ingest=self._ingest, decisions=trusts.decisions,
                hold_states=lambda episodes: {}, believe=trusts.decide,
                forget_document=parts.episodic.delete_document, guard=self._guard,
            ),
            embed=parts.embedder.embed,
            upcoming=lambda: [episode for _, episode in parts.episodic.freshest(limit=16, offset=0)],
            start_cycle=lambda by: "run-000000000001",
            answer=lambda question: Reply(question, "ver-base"),
        )  # fmt: skip
        self.desk = FeedbackDesk(
            self.config,
            log=self.log,
            feedback=self.store,
            to_label=LabelQueue(self.database, clock=time.time),
            pipeline=pipeline,
            embed=parts.embedder.embed,
            guard=self._guard,
        )
        self.queue = RequestQueue(self._store, capacity=self.config.queue_capacity)

    def close(self) -> None:
        self.database.close()
        self._ledger.close()
        self._stack.close()

    def record(self, request: AnsweredRequest) -> None:
        self.queue.put(request)

    async def submit(self, feedback: Feedback) -> Receipt:
        await self.queue.flush()
        try:
            return self.desk.submit(feedback)
        except UnknownResponse as error:
            raise NotFoundError(str(error)) from error
        except FeedbackFull as error:
            raise OverloadedError(str(error)) from error

    async def labelling_queue(self, *, limit: int) -> list[dict[str, Any]]:
        await self.queue.flush()
        return self.desk.labelling_queue(limit)

    async def gaps(self) -> dict[str, Any]:
        return self.desk.gaps()

    async def collect(self) -> dict[str, Any]:
        await self.queue.flush()
        return dict(self.desk.collect())

    async def learn(self, *, by: str | None) -> str:
        return self.desk.train(by=by or BY_API)

    async def forget_response(self, response_id: str) -> dict[str, Any]:
        try:
            return dict(self.desk.forget_response(response_id))
        except UnknownResponse as error:
            raise NotFoundError(str(error)) from error

    async def forget_person(self, name: str) -> dict[str, Any]:
        try:
            return dict(self.desk.forget_person(name))
        except UnknownResponse as error:
            raise NotFoundError(str(error)) from error

    async def _store(self, requests: Sequence[AnsweredRequest]) -> None:
        self.desk.record(list(requests))

    def _guard(self) -> Guard:
        return self._parts.latch.permit("memory write").check

    def _ingest(self, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        episodes = [
            Episode(
                id=episode_id(one["id"], position, text), document_id=one["id"], source_id=one["source"],
                title=one["title"], text=text, position=position, happened_at=one["happened_at"],
                metadata=one["metadata"],
            )
            for one in documents
            for position, text in enumerate(split_passages(one["text"]))
        ]  # fmt: skip
        self._parts.memory.management.trusts.append(self._parts.episodic, episodes, guard=self._guard())
        self._parts.episodic.index_pending()
        self._parts.memory.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
        return [{"id": one["id"], "status": "stored"} for one in documents]
