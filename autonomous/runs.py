"""What a learning run reports, step by step and at its end. Without torch, so that every process can read it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step. `num_steps` is the most there will be; loss and kl in nats per token, seconds of this step."""

    step: int
    num_steps: int
    loss: float
    kl: float
    grad_norm: float
    seconds: float


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
    adapter_sha256: str
    num_trainable: int
    stopped_early: bool
