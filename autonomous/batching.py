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
    if num_pending >= config.min_batch_episodes:
        return "size"
    return "time" if oldest_pending_s >= config.max_wait_s else None
