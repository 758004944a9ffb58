"""FeedbackDesk: the front of feedback. What people and the HTTP surface ask of it, as JSON, over the pipeline's parts."""

import threading
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

import numpy as np

from autonomous.feedback import Feedback, FeedbackStore, Receipt, UnknownResponse
from autonomous.feedback_config import FeedbackConfig
from autonomous.gaps import SUGGESTIONS, Embed
from autonomous.label_queue import LabelQueue
from autonomous.labelling import select_for_labelling
from autonomous.pipeline import FollowUp, TrainingPipelineIntegration
from autonomous.requests import AnsweredRequest, RequestLog
from autonomous.tasks import LearningTask, TaskState
from memory.types import Guard

MAX_SHOWN = 20
"""Questions of a task that are shown."""
LABELLED_FROM = 1000
"""Newest requests among which the labelling queue chooses."""


class FeedbackDesk:
    """See the module. Thread-safe; `guard` gives a permit of the stop latch for each change."""

    def __init__(
        self,
        config: FeedbackConfig,
        *,
        log: RequestLog,
        feedback: FeedbackStore,
        to_label: LabelQueue,
        pipeline: TrainingPipelineIntegration,
        embed: Embed,
        guard: Callable[[], Guard],
    ) -> None:
        self._config = config
        self._log = log
        self._feedback = feedback
        self._to_label = to_label
        self._pipeline = pipeline
        self._embed = embed
        self._guard = guard
        self._collecting = threading.Lock()

    def record(self, requests: list[AnsweredRequest]) -> int:
        """Keep answered requests; how many are new."""
        return self._log.append(requests, guard=self._guard())

    def submit(self, feedback: Feedback) -> Receipt:
        """See FeedbackStore."""
        return self._feedback.submit(feedback, guard=self._guard())

    def labelling_queue(self, limit: int) -> list[dict[str, Any]]:
        """Answers that people should look at next: first those that a retraining chose, then those that would be chosen now.

        The same log, the same queue.
        """
        waiting = self._to_label.waiting()
        kept = [request for key in waiting if (request := self._log.get(key)) is not None][:limit]
        shown = [*kept, *self._choose(limit - len(kept), waiting=waiting)]
        return [
            {
                "response_id": one.id,
                "question": one.question,
                "answer": one.answer,
                "version": one.version,
                "confidence": one.confidence,
                "cosine": one.cosine,
                "chosen_at": waiting.get(one.id),
            }
            for one in shown
        ]

    def choose_to_label(self, most: int) -> list[str]:
        """Put the most uncertain answers into the labelling queue, until `most` wait there; all that wait. So a second call
        changes nothing.
        """
        waiting = self._to_label.waiting()
        chosen = self._choose(most - len(waiting), waiting=waiting)
        self._to_label.put([one.id for one in chosen], guard=self._guard())
        return list(self._to_label.waiting())

    def _choose(self, budget: int, *, waiting: Collection[str]) -> list[AnsweredRequest]:
        """By uncertainty sampling, far from what waits or was voted on."""
        judged = self._pipeline.judged(LABELLED_FROM) if budget > 0 else []
        if not judged:
            return []
        chosen = select_for_labelling(
            judged,
            self._embed([one.request.question for one in judged]),
            budget=budget,
            explored_share=self._config.explored_share,
            rng=np.random.default_rng(self._config.seed),
            waiting=waiting,
        )
        return [one.request for one in chosen]

    def gaps(self) -> dict[str, Any]:
        """Tasks, worst first, and what the next learning run would get."""
        preview = self._pipeline.prepare()
        next_run = {
            "num_episodes": preview.num_episodes,
            "by_source": preview.by_source,
            "by_origin": preview.by_origin,
            "num_for_tasks": len({key for ids in preview.tasks.values() for key in ids}),
        }
        return {
            "tasks": [_row(task) for task in self._pipeline.tasks.list()],
            "next_run": next_run,
            "health": self.health(),
        }

    def collect(self) -> dict[str, int]:
        """Look for gaps now. A second call waits for the first."""
        with self._collecting:
            return asdict(self._pipeline.collect(guard=self._guard()))

    def follow_up(self, version: str) -> FollowUp:
        """Ask again what a version that serves should know now."""
        with self._collecting:
            return self._pipeline.follow_up(version, guard=self._guard())

    def train(self, *, by: str) -> str:
        """Start a learning run that somebody asked for; its id."""
        with self._collecting:
            return self._pipeline.train(by=by, guard=self._guard())

    def forget_response(self, response_id: str) -> dict[str, int]:
        """Erase a request with its feedback and the documents made of it. Raises UnknownResponse.

        A call that was cut off is finished by the next one, or by the next look for gaps.
        """
        with self._collecting:  # or a look for gaps that is under way would bring back what it has read
            num_votes = sum(_count(one) for one in self._feedback.votes([response_id]).values())
            is_gone = self._log.forget(response_id, guard=self._guard())
            num_documents = self._pipeline.erase_unwanted(guard=self._guard())
        if not is_gone and not num_documents:
            raise UnknownResponse(f"response_id = {response_id!r} is not in the log: nothing was erased")
        return {"num_requests": int(is_gone), "num_votes": num_votes, "num_documents": num_documents}

    def forget_person(self, name: str) -> dict[str, int]:
        """Erase what a person asked and said, likewise. Raises UnknownResponse."""
        with self._collecting:
            num_votes = self._feedback.forget_voter(name, guard=self._guard())
            num_requests = self._log.forget_user(name, guard=self._guard())
            num_documents = self._pipeline.erase_unwanted(guard=self._guard())
        if not num_votes and not num_requests and not num_documents:
            raise UnknownResponse(f"name = {name!r} has asked nothing and said nothing that is kept")
        return {"num_requests": num_requests, "num_votes": num_votes, "num_documents": num_documents}

    def health(self) -> dict[str, Any]:
        """Sizes."""
        tasks = self._pipeline.tasks.list()
        counts = {state.value: sum(task.state is state for task in tasks) for state in TaskState}
        return {**self._log.health(), **self._feedback.health(), "tasks": counts}


def _count(votes: Any) -> int:
    return int(votes.num_up + votes.num_down)


def _row(task: LearningTask) -> dict[str, Any]:
    questions = list(dict.fromkeys(text for _, text in task.questions))
    return {
        **asdict(task),
        "state": task.state.value,
        "questions": questions[:MAX_SHOWN],
        "size": len(task.questions),
        "suggestion": "" if task.state is TaskState.CLOSED else SUGGESTIONS[task.kind].format(task.question),
    }
