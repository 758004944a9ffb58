"""When an online batch begins by itself: by its size, or by the time that its oldest episode has waited."""

from typing import Literal

from autonomous.config import LearningConfig

BatchDue = Literal["size", "time"]


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
    """Since when episodes have waited, as seen by somebody who looks now and then. `now` in seconds of any steady clock."""

    def __init__(self, config: LearningConfig) -> None:
        self._config = config
        self._since: float | None = None

    def look(self, num_pending: int, *, now: float) -> BatchDue | None:
        """Why a batch is due. What is told once begins to wait anew."""
        if num_pending < 1:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        due = decide_batch_due(num_pending, now - self._since, self._config)
        if due is not None:
            self._since = now
        return due
