"""The learning rate of each step: a pure function of the step, so a resumed run has no state to restore.

In: the step (0 is the first update), the peak rate, the run's number of steps. Out: the rate of that update.

All kinds rise linearly from zero to the peak in `warmup_steps`. Then `constant` stays; `cosine` falls along half a cosine to
`min_lr_ratio` of the peak; `wsd` (warm-up, stable, decay) stays and falls in its last `decay_steps` (arXiv:2405.18392).
`infinite` falls along half a cosine to `constant_lr_ratio` in `cooldown_steps`, stays, and falls exponentially in its last
`decay_steps`: a later run goes on from before that fall, without rising again (arXiv:2403.08763, section 7.4).

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

    kind: Literal["cosine", "wsd", "infinite", "constant"] = "cosine"
    """`wsd` and `infinite` leave the length open until the decay begins; `cosine` is made for one length."""
    warmup_steps: int = Field(100, ge=0)
    """Optimizer steps from zero to the peak."""
    cooldown_steps: int = Field(0, ge=0)
    """infinite: optimizer steps from the peak to the constant rate."""
    constant_lr_ratio: float = Field(0.5, gt=0, le=1)
    """infinite: the rate that stays, as a share of the peak."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The rate at the end, as a share of the peak (cosine, wsd, infinite)."""
    decay_steps: int | None = Field(None, gt=0)
    """wsd, infinite: optimizer steps of the fall at the end. None: a fifth of the run (arXiv:2405.18392, section 4)."""
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"
    """wsd: how it falls; 1 - sqrt(progress) was found to end lower than a line (arXiv:2405.18392, section 4)."""

    @model_validator(mode="after")
    def _fields_are_of_the_kind(self) -> Self:
        for name, kinds in (
            ("decay_steps", ("wsd", "infinite")), ("cooldown_steps", ("infinite",)), ("constant_lr_ratio", ("infinite",)),
        ):  # fmt: skip
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.kind not in kinds:
                raise ValueError(
                    f"schedule.{name} = {value} has no effect with schedule.kind = '{self.kind}': remove it, or set "
                    f"schedule.kind = {' or '.join(map(repr, kinds))}"
                )
        if self.kind == "infinite" and not 0 < self.min_lr_ratio <= self.constant_lr_ratio:
            raise ValueError(
                f"schedule.min_lr_ratio = {self.min_lr_ratio} with schedule.kind = 'infinite': the rate falls exponentially "
                f"from schedule.constant_lr_ratio = {self.constant_lr_ratio}; choose a value above 0 and not above that"
            )
        return self


def check_schedule(config: ScheduleConfig, *, total_steps: int) -> None:
    """Raises ValueError if warm-up, cooldown and decay do not fit into `total_steps`."""
    decay = _decay_steps(config, total_steps)
    if config.warmup_steps + config.cooldown_steps + decay > total_steps:
        raise ValueError(
            f"schedule.warmup_steps = {config.warmup_steps}, schedule.cooldown_steps = {config.cooldown_steps} and {decay} "
            f"steps of decay do not fit into a run of {total_steps} steps: lower them, or train longer"
        )


def learning_rate(step: int, *, peak_lr: float, total_steps: int, config: ScheduleConfig) -> float:
    """The rate of update `step`, counted from 0; from `total_steps` on it stays the last one.

    Raises ValueError if warm-up, cooldown and decay do not fit into `total_steps`.
    """
    check_schedule(config, total_steps=total_steps)
    step += 1
    if step <= config.warmup_steps:
        return peak_lr * step / config.warmup_steps
    ratio = config.min_lr_ratio
    match config.kind:
        case "constant":
            share = 1.0
        case "cosine":
            share = _half_cosine(_progress(step, config.warmup_steps, total_steps), end=ratio)
        case "wsd":
            progress = _progress(step, total_steps - _decay_steps(config, total_steps), total_steps)
            left = 1 - (math.sqrt(progress) if config.decay_shape == "1-sqrt" else progress)
            share = left * (1 - ratio) + ratio
        case "infinite":
            constant = config.constant_lr_ratio
            cooled = _progress(step, config.warmup_steps, config.warmup_steps + config.cooldown_steps)
            progress = _progress(step, total_steps - _decay_steps(config, total_steps), total_steps)
            share = _half_cosine(cooled, end=constant) if cooled < 1 else constant * (ratio / constant) ** progress
    return peak_lr * share


def _progress(step: int, begin: int, end: int) -> float:
    """Between 0 up to `begin` and 1 from `end` on."""
    return 1.0 if step >= end else max(0, step - begin) / (end - begin)


def _half_cosine(progress: float, *, end: float) -> float:
    """From 1 to `end`."""
    return 0.5 * (1 + math.cos(math.pi * progress)) * (1 - end) + end


def _decay_steps(config: ScheduleConfig, total_steps: int) -> int:
    if config.kind not in ("wsd", "infinite"):
        return 0
    return config.decay_steps or max(1, round(DEFAULT_DECAY_SHARE * total_steps))
