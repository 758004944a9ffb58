"""The semantic actor: follows the episodes and keeps the facts that they state, without any language model."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.base import NAMESPACE, Shell
from autonomous.safety.latch import Latch, LearningStopped
from memory.facts import extract_facts
from memory.semantic import SemanticMemory
from memory.types import Fact

logger = logging.getLogger(__name__)

BATCH = 64
IDLE_S = 1.0
RETRY_S = 5.0


class SemanticShell(Shell):
    """Holds a cluster's one SemanticMemory. Its cursor commits with the facts: a crash loses and repeats nothing."""

    def __init__(self, settings_sha256: str, *, folder: Path, latch: Path) -> None:
        super().__init__("semantic", settings_sha256)
        self._memory = SemanticMemory.open(folder)
        self._latch = Latch.open(latch)
        self._error = ""
        self._following = threading.Lock()
        threading.Thread(target=self._follow_for_ever, name="follow", daemon=True).start()

    @ray.method(concurrency_group="read")
    def about(self, subject: str, limit: int = 20) -> list[Fact]:
        """Facts whose subject or object is this concept."""
        return self._memory.about(subject, limit=limit)

    @ray.method
    def forget_episodes(self, ids: list[str]) -> int:
        """Retract the facts that no other episode states; returns how many."""
        with self._following:
            while self._follow_once():  # read past them first, or the follower would state their facts again
                pass
            return self._memory.forget_episodes(ids, guard=self._latch.permit("memory write").check)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, Any]:
        """Sizes, and the last episode that was read. Raises if following fails, with the reason."""
        if self._error:
            raise RuntimeError(f"following the episodes fails and is retried every {RETRY_S:.0f} s: {self._error}")
        return {**self._memory.health(), "cursor": self._memory.cursor}

    def _follow_for_ever(self) -> None:
        while True:
            try:
                with self._following:
                    num_read = self._follow_once()
                self._error = ""
                if not num_read:
                    time.sleep(IDLE_S)
            except (LearningStopped, RayError, ValueError) as error:
                # Stopped by a person, or the episodic actor restarts: the cursor stands, so nothing is missed.
                logger.info("following waits: %s", error)
                self._error = ""
                time.sleep(IDLE_S)
            except Exception as error:  # the thread must live: the failure is shown by health() and retried
                logger.exception("following failed")
                self._error = f"{type(error).__name__}: {error}"
                time.sleep(RETRY_S)

    def _follow_once(self) -> int:
        guard = self._latch.permit("memory write").check
        episodic: Any = ray.get_actor("episodic", namespace=NAMESPACE)
        batch = ray.get(episodic.episodes_after.remote(self._memory.cursor, BATCH))
        if not batch:
            return 0
        facts = [
            fact
            for _, episode in batch
            for fact in extract_facts(episode.text, title=episode.title, episode_id=episode.id)
        ]
        self._memory.add(facts, last_seq=batch[-1][0], guard=guard)
        return len(batch)
