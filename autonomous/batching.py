"""When an online batch begins by itself: by its size, or by the time that its oldest episode has waited."""

import time
from collections.abc import Callable
from typing import Literal

from autonomous.config import LearningConfig
from autonomous.retraining import RetrainingScheduler
from autonomous.safety.latch import Latch

BatchDue = Literal["size", "time"]
LOOK_S = 15.0
"""How often it is counted how many passages wait to be learned."""


def decide_batch_due(num_pending: int, oldest_pending_s: float, config: LearningConfig) -> BatchDue | None:
    """Why a batch is due now, None if it is not. Nothing begins by itself where `interval_s` is 0.

    `num_pending`: episodes that wait to be learned; `oldest_pending_s`: seconds since the oldest of them arrived. A clock that
    was set back makes it negative, which is not late.
    """
    if config.interval_s == 0 or num_pending < 1:
        return None
    if 0 < config.min_batch_episodes <= num_pending:
        return "size"
    return "time" if oldest_pending_s >= config.max_wait_s else None


class BatchWait:
    """Since when episodes have waited, as seen by somebody who looks now and then. A reset of the stop begins everything anew:
    what waited before it is no reason to begin by itself.
    """

    def __init__(self, config: LearningConfig) -> None:
        self._config = config
        self._since: float | None = None
        self._known = 0
        """So many of those that wait are no reason any more."""
        self._epoch: int | None = None

    def look(self, num_pending: int, *, now: float, epoch: int) -> BatchDue | None:
        """Why a batch is due; told once for the same episodes. `now` in seconds of a steady clock; `epoch` of the latch."""
        if self._epoch not in (None, epoch):
            self._since, self._known = None, num_pending
        self._epoch = epoch
        self._known = min(self._known, num_pending)
        num_new = num_pending - self._known
        if num_new < 1:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        due = decide_batch_due(num_new, now - self._since, self._config)
        if due is not None:
            self._since, self._known = None, num_pending
        return due


class BatchWatch:
    """Looks now and then how many passages wait, and asks the scheduler for a cycle when a batch of them is due.

    `num_pending` counts them, None while whoever counts does not answer. Called by one thread.
    """

    def __init__(
        self,
        config: LearningConfig,
        *,
        num_pending: Callable[[], int | None],
        scheduler: RetrainingScheduler,
        latch: Latch,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait = BatchWait(config)
        self._num_pending = num_pending
        self._scheduler = scheduler
        self._latch = latch
        self._monotonic = monotonic
        self._looked_at = monotonic()

    def look(self) -> None:
        """Count, if the last time is `LOOK_S` ago and no stop stands. Raises LearningStopped."""
        now, state = self._monotonic(), self._latch.state()
        if now - self._looked_at < LOOK_S or state.forbids("learner"):
            return
        self._looked_at = now
        num_pending = self._num_pending()
        if num_pending is None:
            return
        if due := self._wait.look(num_pending, now=now, epoch=state.epoch_of("learner")):
            self._scheduler.ask("learn", by="agent:batch", reason=f"{num_pending} passages wait: due by {due}")
