"""Whether what a training step gave may change the weights: decisions about spikes, NaN and overflows, before the update.

In: loss and gradient norm of a step, the same on all ranks, and what was seen before. Out: proceed, skip the batch, go back to
the last checkpoint and skip what was read since, or stop for a person; and the next state. Nothing here has a side effect.

A loss is a spike if it is beyond the median of the last accepted ones by some robust standard deviations, which are 1.4826
median absolute deviations (Rousseeuw and Croux 1993), and by a least rise. Skipping a batch that gave a spike: PaLM
(arXiv:2204.02311, section 5.1), which also goes back, some steps before the spike.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ROBUST = 1.4826
"""Median absolute deviations of a normal distribution in one standard deviation."""


class AnomalyConfig(BaseModel):
    """What counts as an anomaly, and how much of it a run bears."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_sigmas: float | None = Field(8.0, gt=0)
    """Robust standard deviations above the median at which a loss is a spike. None: it never is."""
    min_rise: float = Field(0.3, ge=0)
    """Nats above the median that a spike has at least: a window of equal losses has no deviation."""
    norm_factor: float | None = Field(20.0, gt=1)
    """Times the median gradient norm at which a norm is a spike. None: it never is."""
    window: int = Field(128, ge=8)
    """Accepted steps that are compared with."""
    warmup_steps: int = Field(64, ge=8)
    """Accepted steps before anything finite counts as a spike."""
    max_skips: int = Field(3, ge=0)
    """Steps in a row that are skipped; at the next one the run goes back to its last checkpoint."""
    max_rewinds: int = Field(3, ge=0)
    """Times that a run goes back in `rewind_window` steps; at the next one it stops."""
    rewind_window: int = Field(1000, gt=0)
    """Optimizer steps."""
    max_overflows: int = Field(20, ge=0)
    """fp16: steps in a row without a finite gradient that only lower the loss scale; the next ones are skips."""


class AnomalyState(BaseModel):
    """What was seen; part of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    losses: tuple[float, ...] = ()
    """Of the last accepted steps."""
    norms: tuple[float, ...] = ()
    """Their gradient norms."""
    num_skips: int = 0
    """In a row, up to now."""
    num_overflows: int = 0
    """In a row, up to now."""
    rewinds: tuple[int, ...] = ()
    """Steps at which the run went back."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """What a step gave. The numbers may be NaN or infinite."""

    step: int
    """Counted from 1."""
    loss: float
    """Nats per token, balance terms included."""
    grad_norm: float
    """Before clipping."""
    is_overflow_expected: bool = False
    """Gradients are scaled (fp16), and the scale finds its size by overflows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a step."""

    kind: Literal["proceed", "skip", "rewind", "stop"]
    reason: str = ""
    """A sentence for the run's log."""


def decide(state: AnomalyState, event: StepEvent, config: AnomalyConfig) -> tuple[Decision, AnomalyState]:
    """The decision, and the state after it."""
    is_overflow = event.is_overflow_expected and math.isfinite(event.loss) and not math.isfinite(event.grad_norm)
    if is_overflow and state.num_overflows < config.max_overflows:
        told = f"gradients overflowed at step {event.step}; the loss scale goes down"
        return Decision("skip", told), state.model_copy(update={"num_overflows": state.num_overflows + 1})
    reason = _anomaly(state, event, config)
    if reason is None:
        seen = {
            "losses": (*state.losses, event.loss)[-config.window :],
            "norms": (*state.norms, event.grad_norm)[-config.window :],
        }
        return Decision("proceed"), state.model_copy(update=seen | {"num_skips": 0, "num_overflows": 0})
    if state.num_skips < config.max_skips:
        return Decision("skip", reason), state.model_copy(update={"num_skips": state.num_skips + 1})
    rewinds = tuple(step for step in state.rewinds if step > event.step - config.rewind_window)
    if len(rewinds) < config.max_rewinds:
        told = f"{reason}, after {state.num_skips} skipped steps"
        update = {"rewinds": (*rewinds, event.step), "num_skips": 0, "num_overflows": 0}
        return Decision("rewind", told), state.model_copy(update=update)
    told = (
        f"{reason}, and the run went back {len(rewinds)} times in {config.rewind_window} steps: lower optimizer.lr, look at "
        "the data behind these steps, or raise anomaly.max_rewinds, and resume"
    )
    return Decision("stop", told), state


def _anomaly(state: AnomalyState, event: StepEvent, config: AnomalyConfig) -> str | None:
    """What is wrong with a step; None if nothing is."""
    for name, value in (("loss", event.loss), ("gradient norm", event.grad_norm)):
        if not math.isfinite(value):
            return f"the {name} of step {event.step} is {value}"
    if len(state.losses) < min(config.warmup_steps, config.window):
        return None
    if config.loss_sigmas is not None:
        median, deviation = _robust(state.losses)
        limit = median + max(config.loss_sigmas * deviation, config.min_rise)
        if event.loss > limit:
            return f"the loss of step {event.step} is {event.loss:.4f}, beyond {limit:.4f} (median {median:.4f})"
    if config.norm_factor is not None:
        median = statistics.median(state.norms)
        if event.grad_norm > config.norm_factor * median:
            return f"the gradient norm of step {event.step} is {event.grad_norm:.3g}, and the median {median:.3g}"
    return None


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the standard deviation by median absolute deviation."""
    median = statistics.median(values)
    return median, ROBUST * statistics.median(abs(value - median) for value in values)
