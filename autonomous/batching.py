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
