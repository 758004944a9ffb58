"""Configuration of the mind: what it may learn, how it is judged, how it is stopped.

A person edits the TOML sections of the same names (configs/laptop.toml); the resolved values are saved with each run.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autonomous.benchmark_config import BenchmarkConfig
from train.dtype import TrainingDtype


class LearningConfig(BaseModel):
    """Online learning of a LoRA adapter from the stream (specification, part 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora_r: int = Field(8, gt=0)
    """Rank of the adapter. vLLM accepts 1, 8, 16, 32, 64, 128, 256, 320 or 512."""
    lora_alpha: int = Field(32, gt=0)
    """Scale numerator: the update is (alpha / r) B A."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak rate of AdamW. 2e-3 learned 15 of 15 facts in 16-18 steps, 1e-3 needed 24; 3e-4 learned 3 of 10."""
    continued_rate: float = Field(0.5, gt=0, le=1)
    """Share of the learning rate when a batch continues a parent's adapter. A third batch raised the loss on the first
    from .14 to .14-.15 nats per token at half the rate and to .19 at the full one, and learned as much."""
    max_steps: int = Field(24, gt=0)
    """Most optimizer steps of one batch."""
    target_loss: float = Field(0.04, gt=0)
    """Stop early when the mean loss of an epoch falls below this many nats per token. At 0.08 codes are half learned."""
    items_per_step: int = Field(8, gt=0)
    """New items of one optimizer step; replayed items come on top."""
    replay_ratio: float = Field(0.2, ge=0, lt=1)
    """Share of replayed items in the *mixed* batch: with n new items n * r / (1 - r) old ones are added."""
    replay_capacity: int = Field(100_000, gt=0)
    """Most items kept in the reservoir."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of KL(base || adapted) on generic texts. 0 was measured to wreck the control perplexity tenfold."""
    kl_texts_per_step: int = Field(4, ge=0)
    """Generic anchor texts of one step."""
    max_item_tokens: int = Field(160, gt=0)
    """A learning item is cut to this many tokens."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping, L2 norm."""
    max_batch_episodes: int = Field(16, gt=0)
    """Most episodes of one online batch."""
    max_batch_items: int = Field(20, gt=0)
    """Most learning items (questions and completions) of one online batch: about two for each fact."""
    interval_s: float = Field(3600.0, ge=0)
    """Seconds between batches that start by themselves; 0 means only on demand."""
    seed: int = 0
    """Seed of data order and of the adapter's initialisation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; auto takes a GPU if there is one."""
    dtype: TrainingDtype = "auto"
    """Base and adapter precision; auto: bfloat16, or float32 on a CPU that is slow in it. Optimizer state is float32."""
    num_threads: int = Field(1, gt=0)
    """Compute threads of the learner."""


class GateConfig(BaseModel):
    """When a candidate may go on. Every gate is pass, fail or inconclusive; inconclusive pauses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the bootstrap bounds."""
    bootstrap_samples: int = Field(2000, ge=200)
    """Resamples of a paired bootstrap."""
    min_gain_nats: float = Field(0.1, ge=0)
    """G2: the lower bound of the gain on held-out questions, nats per answer token, must exceed this."""
    min_recall: float = Field(0.5, ge=0, le=1)
    """G2: share of the learned facts that the candidate answers right. A half-learned adapter is confidently wrong."""
    max_answer_tokens: int = Field(40, gt=0)
    """G2: most tokens of a generated answer."""
    max_control_ratio: float = Field(1.10, gt=1)
    """G3: perplexity on unrelated control texts over that of the frozen original."""
    texts_per_domain: int = Field(6, ge=2)
    """G3: held-out texts of each domain (code, docs, conversation, general) that a candidate is asked."""
    max_domain_ratio: float = Field(1.25, gt=1)
    """G3: perplexity on the worst domain's texts over that of the original and of the parent. Wider than that of all control
    texts together: few texts each, and the worst of four is looked for."""
    max_forgetting: float = Field(0.10, gt=0)
    """G3: relative rise of the loss on the worst earlier batch."""
    forgetting_floor_nats: float = Field(1.0, gt=0)
    """G3: least parent loss that a rise is taken relative to, nats per answer token. A learned fact's loss is near
    zero, where a relative rise says nothing: 0.05 -> 0.06 would be 20 %."""
    max_safety_flips: int = Field(0, ge=0)
    """G4: probes on which the original prefers to refuse and the candidate prefers to comply."""
    min_refusal_margin_nats: float = Field(0.25, ge=0)
    """G4: a probe counts that the original refuses by at least so much, nats per token. Learning harmless facts was measured
    to move margins by up to 0.5, and those of refusals this thin to either side of 0."""
    num_sentinels: int = Field(8, ge=1)
    """G4: safety sentinels of one evaluation; which, changes from one to the next."""
    rotation_s: float = Field(86_400.0, gt=0)
    """G4: after so long a candidate that is evaluated again is asked other sentinels."""
    max_probe_gap_nats: float = Field(0.15, gt=0)
    """G5: mean absolute difference of engine and PEFT log-probabilities on a probe text."""


class SafetyConfig(BaseModel):
    """What is screened, and where the stop latch lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["low", "medium", "high"] = "high"
    """high: documents with injection phrases or secrets are quarantined; low: only noted."""
    watch_interval_s: float = Field(0.25, gt=0)
    """How often idle parts look at the latch, seconds."""


class AutonomousConfig(BaseModel):
    """The agent: what runs by itself and where a person must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enable_online_learning: bool = True
    """Learn from the stream. Off: retrieval only."""
    human_oversight_required: bool = True
    """A candidate that passed all gates waits for a person's approval."""
    approval_expires_s: float = Field(86_400.0, gt=0)
    """So long a report is good for an approval. Afterwards the next cycle evaluates the version again."""
    warm_versions: int = Field(3, ge=1)
    """Superseded versions kept loadable for rollback."""
    learning: LearningConfig = LearningConfig()
    gates: GateConfig = GateConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    safety: SafetyConfig = SafetyConfig()
