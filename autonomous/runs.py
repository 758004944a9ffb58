"""What a learning run reports: its steps, its end, where its cycle stands. Without torch: every process reads it."""

from dataclasses import dataclass, field
from typing import Any

from autonomous.versions.gates import GateResult


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step. `num_steps` is the most there will be; loss and kl in nats per token, seconds and tokens of
    this step."""

    step: int
    num_steps: int
    loss: float
    kl: float
    grad_norm: float
    seconds: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class LearningRun:
    """What a batch took. `losses` (of the new items) and `kls` are those before each step, nats per token."""

    num_steps: int
    losses: tuple[float, ...]
    kls: tuple[float, ...]
    grad_norms: tuple[float, ...]
    seconds: float
    cpu_seconds: float
    num_tokens: int
    replay_share: float
    num_trainable: int
    stopped_early: bool
    penalties: tuple[float, ...] = ()
    """What the methods of the policy added to each step's loss."""
    drift: str | None = None
    """Kind of the drift that showed in the batch (train.continual.drift)."""
    adapter_sha256: str | None = None
    """Of the adapter, or"""
    weights_sha256: str | None = None
    """of the full weights: one of the two."""


@dataclass(frozen=True)
class CycleStatus:
    """Where a learning run stands. Times in seconds."""

    run_id: str
    phase: str
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    version: str | None = None
    state: str | None = None
    gates: tuple[GateResult, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


NUM_TOKENS = "num_tokens"
"""What of the summary the budget counts; alone on the board while a training is not in its end."""


def training_summary(run: LearningRun) -> dict[str, Any]:
    """What of a training run goes into its evaluation report (G1)."""
    return {
        "num_steps": run.num_steps,
        "losses": list(run.losses),
        "kls": list(run.kls),
        "grad_norms": list(run.grad_norms),
        "replay_share": run.replay_share,
        "seconds": run.seconds,
        NUM_TOKENS: run.num_tokens,
        "num_trainable": run.num_trainable,
        "penalties": list(run.penalties),
        "drift": run.drift,
    }
