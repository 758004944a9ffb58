"""What machine failures cost a long training run: how often one comes, how often to save, how much time is left for training.

In: a number of GPUs and the bytes of state on each. Out: mean time between failures, the checkpoint interval that loses least,
and goodput, the share of time in which training goes forward. Failures are taken as independent, at a constant rate.

Saves run in the background (train/pretrain/checkpoint.py): a save costs the loop its stall alone, but none begins before the
one before it is written. Sources: interruptions and storage of Llama 3's training (arXiv:2407.21783, 3.3.1 and 3.3.4);
interval sqrt(2 x stall x MTBF) of Young (1974) and Daly (2006), to first order.
"""

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class FailureAssumptions(BaseModel):
    """What is taken for granted. The first two are of Llama 3 405B's training, the others are round figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_hours_per_failure: float = Field(16_384 * 54 * 24 / 419, gt=0)
    """419 unexpected interruptions in 54 days on 16,384 H100."""
    storage_bytes_per_s: float = Field(2e12 / 16_384, gt=0)
    """Of one GPU's share in the storage: 2 TB/s sustained for 16,384."""
    copy_bytes_per_s: float = Field(25e9, gt=0)
    """From a GPU to its host, page-locked: half of what PCIe 5.0 x16 names. It is the stall, if nothing hides it."""
    restart_s: float = Field(600.0, ge=0)
    """From a failure until steps run again: found out, processes started, checkpoint read."""


@dataclass(frozen=True, slots=True)
class FailureEstimate:
    """Of one cluster."""

    hours_between_failures: float
    stall_s: float
    """Of a save."""
    write_s: float
    """Of a save, in the background."""
    interval_s: float
    """Between two saves."""
    goodput: float
    """Share of time that is neither stalled, nor computed again, nor spent on restarts."""


def estimate_failures(
    gpus: int, *, state_bytes: float, assumptions: FailureAssumptions | None = None
) -> FailureEstimate:
    """`state_bytes`: what one GPU saves: master weights and optimizer state, without replicas."""
    taken = assumptions or FailureAssumptions()
    mtbf_s = taken.gpu_hours_per_failure * 3600 / gpus
    stall_s, write_s = state_bytes / taken.copy_bytes_per_s, state_bytes / taken.storage_bytes_per_s
    interval_s = max(math.sqrt(2 * stall_s * mtbf_s), write_s)
    # What a failure throws away: half an interval, and what was saved but not yet written.
    lost_s = interval_s / 2 + write_s + taken.restart_s
    goodput = max(0.0, 1 - stall_s / interval_s - lost_s / mtbf_s)
    return FailureEstimate(mtbf_s / 3600, stall_s, write_s, interval_s, goodput)
