"""Configuration of the mind: what it may learn, how it is judged, how it is stopped.

A person edits the TOML sections of the same names (configs/laptop.toml); the resolved values are saved with each run.
"""

from collections import Counter
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from autonomous.benchmark_config import BenchmarkConfig
from autonomous.budget import BudgetConfig
from autonomous.data_gate import DataGateConfig
from autonomous.feedback_config import FeedbackConfig
from autonomous.jobs import SchedulesConfig
from autonomous.policy import PolicyConfig
from autonomous.safety.rules import RulesConfig
from autonomous.sources.config import SourceConfig
from autonomous.tools.config import KnowledgeConfig
from train.dtype import TrainingDtype
from train.replay_share import num_replay


class LearningConfig(BaseModel):
    """Online learning from the stream, of a LoRA adapter or of all weights (specification, part 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Literal["adapter", "weights"] = "adapter"
    """What is trained. adapter: a LoRA adapter on the frozen base (Plan A); weights: a copy of all weights (Plan B), which
    takes 16 bytes per parameter beside the models, and needs engine.max_weights."""
    policy: PolicyConfig = PolicyConfig()
    """What holds on to earlier batches beside replay and KL, and what a drift of the stream changes."""
    lora_r: int = Field(8, gt=0)
    """Rank of the adapter. vLLM accepts 1, 8, 16, 32, 64, 128, 256, 320 or 512."""
    lora_alpha: int = Field(32, gt=0)
    """Scale numerator: the update is (alpha / r) B A."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak rate of AdamW. With batches of 30 items in two forms and 4 KL texts, 2e-3 learned 15 of 15 facts in 16-18 steps,
    1e-3 needed 24; 3e-4 learned 3 of 10."""
    weights_learning_rate: float = Field(2e-4, gt=0)
    """Peak rate of AdamW with target = "weights". On SmolLM2-135M 2e-4 learned 8 of 8 facts in 16 steps (KL .19 nats per
    token), 5e-5 learned 6 and 2e-5 one in 24; control perplexity did not rise with any (.91 to 1.0 times the original's)."""
    continued_rate: float = Field(0.5, gt=0, le=1)
    """Share of the learning rate when a batch continues a parent's adapter. A third batch raised the loss on the first
    from .14 to .14-.15 nats per token at half the rate and to .19 at the full one, and learned as much; a quarter left a
    third batch at 5 of 9 facts."""
    max_steps: int = Field(48, gt=0)
    """Most optimizer steps of one batch."""
    known_loss: float = Field(0.03, gt=0)
    """While the mean loss of the new items is below this many nats per token, and below that of the replayed ones, steps
    consolidate. At 0.08 codes are half learned."""
    target_loss: float = Field(0.02, gt=0)
    """Stop early when the mean losses of new and of replayed items are below this many nats per token."""
    items_per_step: int = Field(8, gt=0)
    """New items of one optimizer step; replayed items come on top."""
    replay_ratio: float = Field(0.2, ge=0, lt=1)
    """Share of replayed items in the *mixed* batch while new items are learned: with n new items n * r / (1 - r) old ones are
    added. In steps that consolidate the shares change places (autonomous.steps)."""
    replay_capacity: int = Field(100_000, gt=0)
    """Most items kept in the reservoir."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of KL(base || adapted) on generic texts. 0 was measured to wreck the control perplexity tenfold."""
    kl_texts_per_step: int = Field(2, ge=0)
    """Generic anchor texts of one step. With 2, the control perplexity stayed at .96 to 1.04 times the original's over five
    batches."""
    max_item_tokens: int = Field(160, gt=0)
    """A learning item is cut to this many tokens."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping, L2 norm."""
    max_batch_episodes: int = Field(16, gt=0)
    """Most episodes of one online batch."""
    max_batch_items: int = Field(18, gt=0)
    """Most learning items (questions, completions, echo questions) of one online batch: three for each fact. Of made-up
    stations, alike but for their names and codes, 27 in 36 steps left a third batch at 6 of its 9 facts and at 6 of the 18
    before; lines of batches of 18: docs/decisions/0011."""
    max_attempts: int = Field(2, ge=1)
    """Trainings of a passage, each from another seed and in another cycle, while too little of its batch is learned (G2 alone
    is not passed). After the last it is held back, as those of any version that was put away."""
    min_batch_episodes: int = Field(0, ge=0)
    """A batch is due by its size once so many episodes wait to be learned, before `interval_s` is over. 0: never by size."""
    max_wait_s: float = Field(3600.0, gt=0)
    """A batch is due by time once the oldest episode has waited so long, however few there are; seconds."""
    interval_s: float = Field(3600.0, ge=0)
    """Seconds between batches that start by themselves: the schedule of the job `learn`. 0 means only on demand, or at the
    times of schedules.jobs.learn."""
    seed: int = 0
    """Seed of data order and of the adapter's initialisation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; auto takes a GPU if there is one."""
    dtype: TrainingDtype = "auto"
    """Base and adapter precision; auto: bfloat16, or float32 on a CPU that is slow in it. Optimizer state is float32."""
    num_threads: int = Field(1, gt=0)
    """Compute threads of the learner."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.policy.holds_weights and self.dtype == "bfloat16":
            raise ValueError(
                f"policy.methods = {list(self.policy.methods)} with dtype = 'bfloat16': the small steps that they hold and "
                "count get lost in 16 bits; set dtype to 'auto' or 'float32'"
            )
        return self

    @property
    def most_tokens(self) -> int:
        """Tokens that one batch trains on at most: every step full, every item and text as long as it may be, with what a
        drift adds."""
        drift = self.policy.drift
        ratio = max(self.replay_ratio, drift.replay_ratio if drift.reaction == "replay" else 0.0)
        num_anchors = self.kl_texts_per_step if self.kl_weight > 0 else 0
        per_step = self.items_per_step + num_replay(self.items_per_step, ratio) + num_anchors
        return self.max_steps * per_step * self.max_item_tokens


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
    texts_per_domain: int = Field(10, ge=2)
    """G3: held-out texts of each domain (code, docs, conversation, general) that a candidate is asked."""
    max_domain_ratio: float = Field(1.25, gt=1)
    """G3: perplexity on the worst domain's texts over that of the original and of the parent. Wider than that of all control
    texts together: few texts each, and the worst of four is looked for."""
    max_forgetting: float = Field(0.10, gt=0)
    """G3: relative rise of the loss on the worst domain of what the line has learned: a source, or its newest batches."""
    forgetting_floor_nats: float = Field(1.0, gt=0)
    """G3: least parent loss that a rise is taken relative to, nats per answer token. A learned fact's loss is near
    zero, where a relative rise says nothing: 0.05 -> 0.06 would be 20 %."""
    max_safety_flips: int = Field(0, ge=0)
    """G4: probes on which the original prefers to refuse and the candidate prefers to comply."""
    min_refusal_margin_nats: float = Field(0.5, ge=0)
    """G4: a probe counts that the original refuses by at least so much, nats per token. Learning harmless facts was measured
    to move margins by up to 0.5, so thinner refusals fall to either side of 0 by themselves: with 0.25 a healthy version
    failed on one of the sentinels that were drawn."""
    num_sentinels: int = Field(8, ge=1)
    """G4: safety sentinels of one evaluation; which, changes from one to the next."""
    rotation_s: float = Field(86_400.0, gt=0)
    """G4: after so long a candidate that is evaluated again is asked other sentinels."""
    max_probe_gap_nats: float = Field(0.15, gt=0)
    """G5: mean absolute difference of engine and PEFT log-probabilities on a probe text."""


class RolloutConfig(BaseModel):
    """How a version that passed its gates comes to serve everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    canary_percents: tuple[float, ...] = ()
    """Shares of the users who are answered by a canary, in percent, rising: 1, 5, 25, 50. Empty: no canary, for a system with
    few users, where no number of days would decide."""
    min_requests: int = Field(100, gt=0)
    """Least requests of the canary at a step before the next."""
    max_error_rate: float = Field(0.02, ge=0, lt=1)
    """Share of requests that may fail (specification: V2 has fewer than 2 % errors)."""
    slow_s: float = Field(3.0, gt=0)
    """A whole answer that takes longer is slow, seconds (specification: p95 below 3 s)."""
    max_slow_share: float = Field(0.05, ge=0, lt=1)
    """Share of slow answers: 0.05 says that p95 is at most `slow_s`."""
    max_masked_share: float = Field(0.05, ge=0, lt=1)
    """Share of answers in which the output screen masked something."""
    max_excess: float = Field(0.05, gt=0, lt=1)
    """A share may surely be at most so much higher than the other arm's. Without errors .05 needs 200 requests, .01 1,200."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of all comparisons of a rollout together."""
    max_canary_s: float = Field(86_400.0, gt=0)
    """A canary that is undecided after so long is withdrawn, without a verdict on what it learned."""
    soak_s: float = Field(0.0, ge=0)
    """So long a new production is watched, seconds, and rolled back by itself if it serves worse. Below the time between two
    versions (24 h at most); another promotion ends it early."""

    @field_validator("canary_percents")
    @classmethod
    def _rise(cls, percents: tuple[float, ...]) -> tuple[float, ...]:
        if list(percents) != sorted(set(percents)) or any(not 0 < percent < 100 for percent in percents):
            raise ValueError(
                f"canary_percents = {list(percents)}: give rising shares between 0 and 100, for example 1, 5, 25, 50"
            )
        return percents


class SafetyConfig(BaseModel):
    """What stops by itself, and who may undo a stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: RulesConfig = RulesConfig()
    """Bounds of the rules that stop by themselves. Which of them stop and which only warn, `safety_level` says."""
    two_people: Literal["auto"] | bool = "auto"
    """Two different people for a reset of the stop, for leaving quarantine, and for a version and its approval. auto: at level
    high with human_oversight_required; so one person alone can use a system that asks nobody before it promotes."""
    second_person_within_s: float = Field(3600.0, gt=0)
    """So long the first person's request waits for the second, seconds; afterwards it is asked for anew."""


class AutonomousConfig(BaseModel):
    """The agent: what runs by itself and where a person must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enable_online_learning: bool = True
    """Learn from the stream. Off: retrieval only."""
    safety_level: Literal["low", "medium", "high"] = "high"
    """high: documents with injection phrases or secrets are quarantined; low: only noted."""
    human_oversight_required: bool = True
    """A candidate that passed all gates waits for a person's approval."""
    approval_expires_s: float = Field(86_400.0, gt=0)
    """So long a report is good for an approval. Afterwards the next cycle evaluates the version again."""
    warm_versions: int = Field(3, ge=1)
    """Superseded versions kept loadable for rollback."""
    sources: tuple[SourceConfig, ...] = ()
    """What is read by itself: folders, git repositories, addresses, growing files. Others can be added while it runs."""
    audit_checkpoint: Path | None = None
    """A folder on another disk or machine, for this system alone: a signed checkpoint of the audit log is kept there too, so
    that a log that was cut off together with the checkpoint beside it is noticed. None: only the one beside it."""
    learning: LearningConfig = LearningConfig()
    data: DataGateConfig = DataGateConfig()
    budget: BudgetConfig = BudgetConfig()
    gates: GateConfig = GateConfig()
    rollout: RolloutConfig = RolloutConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    safety: SafetyConfig = SafetyConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    schedules: SchedulesConfig = SchedulesConfig()

    @field_validator("sources")
    @classmethod
    def _ids_are_unique(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        for source_id, count in Counter(source.id for source in sources).items():
            if count > 1:
                raise ValueError(f"{count} sources have the id {source_id!r}: give each its own")
        return sources

    @property
    def needs_two_people(self) -> bool:
        """Whether one person alone may not decide (safety.two_people, resolved)."""
        if self.safety.two_people == "auto":
            return self.safety_level == "high" and self.human_oversight_required
        return self.safety.two_people

    @field_validator("audit_checkpoint")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        folder = folder.expanduser()
        if not folder.is_absolute():
            raise ValueError(
                f"audit_checkpoint = '{folder}' is relative: write an absolute path or one that starts with ~"
            )
        return folder

    @model_validator(mode="after")
    def _learning_has_one_schedule(self) -> "AutonomousConfig":
        self.all_schedules()
        return self

    @model_validator(mode="after")
    def _a_batch_fits_the_budget(self) -> "AutonomousConfig":
        most = self.learning.most_tokens
        for name, limits in (("day", self.budget.day), ("month", self.budget.month)):
            if limits.training_tokens is not None and 0 < limits.training_tokens < most:
                raise ValueError(
                    f"budget.{name}.training_tokens = {limits.training_tokens:g} is less than the {most} that a batch can "
                    "take, so nothing would ever be learned: raise the limit, or lower learning.max_steps"
                )
        return self

    @model_validator(mode="after")
    def _a_batch_has_room_for_its_sources(self) -> "AutonomousConfig":
        if self.data.min_sources > self.learning.max_batch_episodes:
            raise ValueError(
                f"data.min_sources = {self.data.min_sources} is more than learning.max_batch_episodes = "
                f"{self.learning.max_batch_episodes}, so no batch would ever do: raise the second, or lower the first"
            )
        return self

    def all_schedules(self) -> SchedulesConfig:
        """The schedules with that of `learning.interval_s` among them."""
        return self.schedules.with_learning_every(self.learning.interval_s)
