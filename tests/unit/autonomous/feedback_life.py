"""Feedback in one process for its tests: the real stores, the real ledger, an embedder of words, a clock that stands still."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autonomous.feedback import Feedback, FeedbackStore, Votes
from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_tables import open_feedback
from autonomous.gaps import Judged
from autonomous.holds import HoldRegister
from autonomous.ingest import IngestConfig, prepare_document
from autonomous.pipeline import Reply, TrainingPipelineIntegration
from autonomous.pipeline_memory import StoredMemory
from autonomous.requests import AnsweredRequest, RequestLog
from autonomous.safety.screen import SafetyScreen
from autonomous.tasks import LearningTasks
from autonomous.versions.ledger import VersionLedger
from memory.episode_backends import EpisodicConfig
from memory.episodic import EpisodicMemory
from memory.store import no_guard
from memory.trust import SourceTrusts
from memory.types import Episode, Trust
from tests.clock import Clock
from tests.unit.autonomous.ledger_life import make_genesis, make_production
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument

NOW = 1_000_000.0
SCREEN = SafetyScreen("high")


class WordEmbedder:
    """Texts that share words are near: each word longer than three letters has its own axis of 512."""

    dimension = 512
    name = "words"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), self.dimension), 1e-4, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in "".join(c if c.isalnum() else " " for c in text.lower()).split():
                if len(word) > 3:
                    rows[row, int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % self.dimension] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def response_id(text: str) -> str:
    """An id that holds no word of the question."""
    return f"chatcmpl-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"


def asked(question: str, key: str = "", **fields: Any) -> AnsweredRequest:
    """A request with an answer that says something."""
    given = {"answer": "It is forty two.", "version": "ver-1", "at": NOW, **fields}
    return AnsweredRequest(id=key or response_id(question), question=question, **given)


def judged(
    question: str, key: str = "", *, down: int = 0, up: int = 0, corrected: bool = False, **fields: Any
) -> Judged:
    return Judged(asked(question, key, **fields), Votes(up, down, corrected))


class FeedbackLife:
    """Everything of feedback, on files of one folder. `replies` gives what the model answers."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.config = FeedbackConfig(**{"gap_cosine": 0.45, "answer_cosine": 0.3, **settings})
        self.clock = Clock(NOW)
        self.embedder = WordEmbedder()
        self.replies: Callable[[str], str] = lambda question: "I do not know."
        self.started: list[str] = []
        self.forgotten: list[str] = []
        self.upcoming: list[Episode] = []
        self.episodes = EpisodicMemory.open(EpisodicConfig(folder=folder / "episodic"), embedder=self.embedder)
        self.trusts = SourceTrusts.open(folder, default=Trust.STANDARD, clock=self.clock)
        self.holds = HoldRegister.open(folder, clock=self.clock)
        self.ledger = VersionLedger(folder / "ledger.sqlite")
        self.base = make_genesis(self.ledger, folder)
        self.cleaner = DataCleaner(CleanConfig())
        self.open()

    def open(self) -> None:
        self.database = open_feedback(self.folder / "feedback.sqlite")
        mask = lambda text: SCREEN.screen_answer(text).text  # noqa: E731
        self.log = RequestLog(self.config, self.database, mask=mask, clock=self.clock)
        self.feedback = FeedbackStore(self.config, self.database, screen=SCREEN, clock=self.clock)
        self.tasks = LearningTasks(self.config, self.database, clock=self.clock)
        self.memory = StoredMemory(
            episodes=self.episodes, ledger=self.ledger, ingest=self.ingest, decisions=self.trusts.decisions,
            hold_states=self.holds.states, believe=self.trusts.decide, forget_document=self.forget_document,
            guard=lambda: no_guard,
        )  # fmt: skip
        self.pipeline = TrainingPipelineIntegration(
            self.config, log=self.log, feedback=self.feedback, tasks=self.tasks, memory=self.memory,
            embed=self.embedder.embed, upcoming=lambda: self.upcoming, start_cycle=self.start_cycle,
            answer=lambda question: Reply(self.replies(question), "ver-2"),
        )  # fmt: skip

    def reopen(self) -> None:
        """As after a crash: what is on disk is what there is."""
        self.database.close()
        self.open()

    def close(self) -> None:
        self.database.close()
        self.episodes.close()
        self.trusts.close()
        self.holds.close()
        self.ledger.close()

    def ingest(self, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        prepared = [
            prepare_document(
                RawDocument(
                    id=one["id"], source_id=one.get("source", "api"), title=one.get("title", ""), content=one["text"],
                    media_type=None, happened_at=one.get("happened_at", NOW), metadata=dict(one.get("metadata", {})),
                ),
                cleaner=self.cleaner, screen=SCREEN, config=IngestConfig(),
            )
            for one in documents
        ]  # fmt: skip
        self.trusts.append(self.episodes, [episode for one in prepared for episode in one.episodes])
        while self.episodes.index_pending(max_episodes=64):
            pass
        return [{"id": one.document_id, "status": one.status} for one in prepared]

    def add(self, key: str, text: str, **fields: Any) -> None:
        self.ingest([{"id": key, "text": text, "title": key, **fields}])

    def forget_document(self, document_id: str) -> None:
        self.forgotten.append(document_id)
        self.episodes.delete_document(document_id)

    def start_cycle(self, by: str) -> str:
        self.started.append(f"run-{len(self.started) + 1}")
        return self.started[-1]

    def learn(self, *episodes: str) -> str:
        """A version that has learned these episodes serves."""
        return make_production(self.ledger, self.ledger.pointers().v2, mark=" ".join(episodes), episodes=episodes)

    def ask(self, *questions: str, **fields: Any) -> list[str]:
        """Log requests; their ids."""
        requests = [
            asked(question, response_id(f"{question} {self.clock.now}"), at=self.clock.now, **fields)
            for question in questions
        ]
        self.log.append(requests)
        return [one.id for one in requests]

    def vote(self, response_id: str, rating: Any = "down", **fields: Any) -> Any:
        return self.feedback.submit(Feedback(response_id, rating, **fields))

    def texts_on_disk(self) -> bytes:
        """All bytes of the feedback database and its log."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("feedback.sqlite*")))


@contextmanager
def feedback_life(folder: Path, **settings: Any) -> Iterator[FeedbackLife]:
    life = FeedbackLife(folder, **settings)
    try:
        yield life
    finally:
        life.close()
