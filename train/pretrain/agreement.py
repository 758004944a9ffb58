"""What ranks tell each other: a text of each, and what one of them met alone.

A rank that raises while the others enter a collective leaves them there until its time-out, and what it had to say is lost. So
what a rank does by itself (reading, writing) is done `together`: where it fails on one, all raise at once.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed import ProcessGroup

from train.pretrain.checkpoint_files import CheckpointError
from train.pretrain.loop import TrainingFailed

T = TypeVar("T")

REFUSALS = (ValueError, TrainingFailed, CheckpointError)
"""What a person has to mend: to try again would not help."""


def agree(text: str | None, *, group: ProcessGroup | None = None) -> list[str | None]:
    """A text of every rank of the group (None: all), on every one of them."""
    return cast(list[str | None], _gather(text, group=group))


def together(work: Callable[[], T]) -> T:
    """What `work`, which has no collectives, gives on this rank. Raises as raise_together."""
    result, error = None, None
    try:
        result = work()
    except Exception as caught:  # whatever it is, the others have to know
        error = caught
    raise_together(error)
    return cast(T, result)


def raise_together(error: Exception | None, *, group: ProcessGroup | None = None) -> None:
    """Every rank of the group (None: all) at once, each with what it met alone. Raises the own error; of another rank a
    TrainingFailed if it is one of REFUSALS, a RuntimeError otherwise. Nothing where none met any."""
    told = None if error is None else (isinstance(error, REFUSALS), str(error) or type(error).__name__)
    found = _gather(told, group=group)
    if error is not None:
        raise error
    for rank, one in enumerate(found):
        if one is not None:
            is_refusal, text = one
            raise (TrainingFailed if is_refusal else RuntimeError)(f"rank {rank}: {text}")


def _gather(value: Any, *, group: ProcessGroup | None = None) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found
