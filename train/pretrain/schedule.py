"""The learning rate of each step: a pure function of the step, so a resumed run has no state to restore.

In: the step (0 is the first update), the peak rate, the run's number of steps. Out: the rate of that update.

All kinds rise linearly from zero to the peak in `warmup_steps`. Then `constant` stays; `cosine` falls along half a cosine to
`min_lr_ratio` of the peak; `wsd` (warm-up, stable, decay) stays and falls in its last `decay_steps` (arXiv:2405.18392).

Equal to transformers' get_cosine_with_min_lr_schedule_with_warmup and get_wsd_schedule one step later: update n has their
rate n + 1, so that the first update is not one of rate zero and the last one has the lowest rate. And the warm-up of `wsd`
begins at zero, as that of the other kinds; theirs begins at the lowest rate.
"""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_DECAY_SHARE = 0.2


class ScheduleConfig(BaseModel):
    """How the learning rate goes over a run. The peak is the optimizer's `lr`, the length is the run's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """`wsd` leaves the length open until the decay begins; `cosine` is made for one length."""
    warmup_steps: int = Field(100, ge=0)
    """Optimizer steps from zero to the peak."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The rate at the end, as a share of the peak (cosine, wsd)."""
    decay_steps: int | None = Field(None, gt=0)
    """wsd: optimizer steps of the fall at the end. None: a fifth of the run (arXiv:2405.18392, section 4)."""
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"
    """wsd: how it falls; 1 - sqrt(progress) was found to end lower than a line (arXiv:2405.18392, section 4)."""

    @model_validator(mode="after")
    def _decay_is_of_wsd(self) -> Self:
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(
                f"schedule.decay_steps = {self.decay_steps} has no effect with schedule.kind = '{self.kind}': remove it, or "
                "set schedule.kind = 'wsd'"
            )
        return self


def check_schedule(config: ScheduleConfig, *, total_steps: int) -> None:
    """Raises ValueError if warm-up and decay do not fit into `total_steps`."""
    decay = _decay_steps(config, total_steps) if config.kind == "wsd" else 0
    if config.warmup_steps + decay > total_steps:
        raise ValueError(
            f"schedule.warmup_steps = {config.warmup_steps} and {decay} steps of decay do not fit into a run of {total_steps} "
            "steps: lower schedule.warmup_steps or schedule.decay_steps, or train longer"
        )


def learning_rate(step: int, *, peak_lr: float, total_steps: int, config: ScheduleConfig) -> float:
    """The rate of update `step`, counted from 0; from `total_steps` on it stays the last one.

    Raises ValueError if warm-up and decay do not fit into `total_steps`.
    """
    check_schedule(config, total_steps=total_steps)
    step += 1
    if step <= config.warmup_steps:
        return peak_lr * step / config.warmup_steps
    if config.kind == "constant":
        return peak_lr
    start = config.warmup_steps if config.kind == "cosine" else total_steps - _decay_steps(config, total_steps)
    if step <= start:
        return peak_lr
    progress = 1.0 if step >= total_steps else (step - start) / (total_steps - start)
    if config.kind == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - (math.sqrt(progress) if config.decay_shape == "1-sqrt" else progress)
    return peak_lr * (share * (1 - config.min_lr_ratio) + config.min_lr_ratio)


def _decay_steps(config: ScheduleConfig, total_steps: int) -> int:
    return config.decay_steps or max(1, round(DEFAULT_DECAY_SHARE * total_steps))
