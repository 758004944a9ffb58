"""The feedback actor: answered requests, votes, gaps and learning tasks, and the way from them to a learning run."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve as ray_serve
from ray.exceptions import RayError

from actors.base import Shell
from actors.calls import ActorMissing, actor, retried
from actors.ports import ENGINE_DEPLOYMENT, SERVE_APPLICATION
from actors.stores import remote_store
from autonomous.feedback import Feedback, FeedbackStore, Receipt
from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_desk import FeedbackDesk
from autonomous.feedback_tables import open_feedback
from autonomous.gaps import Vectors
from autonomous.label_queue import LabelQueue
from autonomous.pipeline import Reply, TrainingPipelineIntegration
from autonomous.pipeline_memory import StoredMemory
from autonomous.requests import AnsweredRequest, RequestLog
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.screen import Level, SafetyScreen
from autonomous.tasks import LearningTasks
from autonomous.versions.ledger import LedgerNotReady, VersionLedger
from memory.store import StoreAway
from memory.types import Episode, Guard, Trust

logger = logging.getLogger(__name__)

RESTART_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 120.0
ANSWER_TOKENS = 64
EMBEDDED_AT_ONCE = 256
RETRY_S = 60.0
LOOK_S = 5.0
"""How often it is looked whether a new version serves, or a look for gaps is due."""


class FeedbackShell(Shell):
    """Holds a cluster's one FeedbackDesk. Everything is on disk before it is acknowledged."""

    def __init__(
        self, settings_sha256: str, *, folder: Path, latch: Path, ledger: Path, config: FeedbackConfig, level: Level
    ) -> None:
        super().__init__("feedback", settings_sha256)
        self._config = config
        self._latch = Latch.open(latch)
        self._ledger = VersionLedger(ledger)
        database = open_feedback(folder / "feedback.sqlite")
        screen = SafetyScreen(level)
        log = RequestLog(config, database, mask=lambda text: screen.screen_answer(text).text, clock=time.time)
        feedback = FeedbackStore(config, database, screen=screen, clock=time.time)
        pipeline = TrainingPipelineIntegration(
            config,
            log=log,
            feedback=feedback,
            tasks=LearningTasks(config, database, clock=time.time),
            memory=StoredMemory(
                episodes=remote_store("episodic"),
                ledger=self._ledger,
                ingest=lambda documents: _ask("episodic", "ingest", list(documents))["documents"],
                decisions=lambda: _ask("semantic", "sources"),
                hold_states=lambda episodes: _ask("semantic", "hold_states", list(episodes)),
                believe=_believe,
                forget_document=lambda document_id: _ask("agent", "forget_document", document_id),
                guard=self._guard,
            ),
            embed=_embed,
            upcoming=_upcoming,
            start_cycle=lambda by: str(ray.get(actor("agent").learn.remote(by))),
            answer=self._answer,
        )
        self._desk = FeedbackDesk(
            config,
            log=log,
            feedback=feedback,
            to_label=LabelQueue(database, clock=time.time),
            pipeline=pipeline,
            embed=_embed,
            guard=self._guard,
        )
        self._error = ""
        threading.Thread(target=self._look_for_ever, name="gaps", daemon=True).start()

    @ray.method
    def record(self, requests: list[AnsweredRequest]) -> int:
        """Keep answered requests; how many are new."""
        return self._desk.record(requests)

    @ray.method
    def submit(self, feedback: Feedback) -> Receipt:
        """Keep what someone says about an answer."""
        return self._desk.submit(feedback)

    @ray.method(concurrency_group="read")
    def labelling_queue(self, limit: int) -> list[dict[str, Any]]:
        """Answers that people should look at next."""
        return self._desk.labelling_queue(limit)

    @ray.method(concurrency_group="work")
    def choose_to_label(self, most: int) -> list[str]:
        """Fill the labelling queue up for a retraining; all that wait there."""
        return self._desk.choose_to_label(most)

    @ray.method(concurrency_group="read")
    def gaps(self) -> dict[str, Any]:
        """Learning tasks, and what the next learning run would get of them."""
        return self._desk.gaps()

    @ray.method(concurrency_group="work")
    def collect(self) -> dict[str, int]:
        """Look for gaps now."""
        return self._desk.collect()

    @ray.method(concurrency_group="work")
    def train(self, by: str) -> str:
        """Start a learning run; its id."""
        return self._desk.train(by=by)

    @ray.method(concurrency_group="work")
    def forget_response(self, response_id: str) -> dict[str, int]:
        """Erase a request with all that was made of it."""
        return self._desk.forget_response(response_id)

    @ray.method(concurrency_group="work")
    def forget_person(self, name: str) -> dict[str, int]:
        """Erase what a person asked and said."""
        return self._desk.forget_person(name)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, Any]:
        """Sizes. Raises if looking for gaps fails, with the reason."""
        if self._error:
            raise RuntimeError(f"looking for gaps fails and is tried again: {self._error}")
        return self._desk.health()

    def _guard(self) -> Guard:
        return self._latch.permit("memory write").check

    def _answer(self, question: str) -> Reply:
        """What the serving version says, from its weights."""
        version = self._ledger.pointers().v2
        adapter = _ask("agent", "version_adapter", version)
        handle: Any = ray_serve.get_deployment_handle(ENGINE_DEPLOYMENT, SERVE_APPLICATION)
        messages = [{"role": "user", "content": question}]
        text: str = handle.ask.remote(messages, ANSWER_TOKENS, adapter).result(timeout_s=ANSWER_TIMEOUT_S)
        return Reply(text, version)

    def _look_for_ever(self) -> None:
        """A look per interval, and a follow-up whenever another version serves. A version that was followed up is so again
        after a restart: then nothing is left to ask.
        """
        last, followed = time.monotonic(), ""
        while True:
            time.sleep(LOOK_S)
            try:
                version = self._ledger.pointers().v2
                if version != followed:
                    done = self._desk.follow_up(version)
                    followed = version
                    if done.num_tasks:
                        logger.info("follow-up version=%s tasks=%d closed=%d", version, done.num_tasks, done.num_closed)
                interval_s = self._config.collect_interval_s
                if interval_s and time.monotonic() - last >= interval_s:
                    last = time.monotonic()
                    logger.info("gaps %s", self._desk.collect())
                self._error = ""
            except (LearningStopped, LedgerNotReady, RayError, ActorMissing, StoreAway, TimeoutError) as error:
                logger.info("looking for gaps waits: %s", error)
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("looking for gaps failed")
                self._error = f"{type(error).__name__}: {error}"
                time.sleep(RETRY_S)


def _ask(name: str, method: str, *arguments: Any) -> Any:
    """An idempotent call of another actor, repeated while it restarts."""
    return retried(lambda: ray.get(getattr(actor(name), method).remote(*arguments)), timeout_s=RESTART_TIMEOUT_S)


def _believe(source_id: str, trust: Trust, *, by: str, reason: str) -> None:
    _ask("semantic", "believe", source_id, int(trust), by, reason)


def _embed(texts: Sequence[str]) -> Vectors:
    """In parts, so that a question that is being answered waits for one."""
    parts = [
        np.asarray(_ask("episodic", "embed", list(texts[start : start + EMBEDDED_AT_ONCE])), dtype=np.float32)
        for start in range(0, len(texts), EMBEDDED_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)


def _upcoming() -> list[Episode]:
    """What the next learning run would take."""
    ids = [episode["id"] for episode in _ask("agent", "learn_next")["episodes"]]
    return remote_store("episodic").get(ids)
