"""The continual-learning policy of online learning: which methods hold on to earlier batches, and what a drift changes.

Replay is always there (LearningConfig.replay_ratio), so is the KL to the original (kl_weight). The methods here come on top;
they are those of train.continual, one task per version, and combine. Defaults are the specification's.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MethodName = Literal["ewc", "si", "lwf"]
DriftKind = Literal["language", "domain", "task", "temporal"]
"""As train.continual.drift tells them."""


class DriftPolicy(BaseModel):
    """When the stream is no longer what it was, and what happens then. An observation is an episode: the mean embedding of
    its tokens in the original, and the loss of the parent on what it teaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(16, ge=8)
    """Episodes that are compared with the reference at a time: a batch's, or a drift would be told days late."""
    reference: int = Field(32, ge=8)
    """Episodes of the reference: the first ones since the last drift."""
    significance: float = Field(1e-3, gt=0, lt=0.5)
    """Probability of a false alarm, of each test of each window."""
    error_ceiling: float = Field(10.0, gt=0)
    """Nats per token of the parent's loss that count at most."""
    reaction: Literal["report", "replay", "rate"] = "replay"
    """report: say so in the run's report; replay: that, and replay more in this batch; rate: that, and learn more slowly."""
    replay_ratio: float = Field(0.4, ge=0, lt=1)
    """Share of replayed items in the mixed batch in which a drift shows. A language shift was found to need 25 % where weak
    shifts need 5 % (arXiv:2403.08763); ours is a fifth without drift."""
    rate_share: float = Field(0.5, gt=0, le=1)
    """Share of the learning rate in the batch in which a drift shows."""


class PolicyConfig(BaseModel):
    """Methods beside replay and KL, and their strength. Each is that of train.continual, where its formula stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[MethodName, ...] = ()
    """ewc, si: weights that mattered for earlier batches are held; lwf: the parent's answers are. They combine."""
    ewc_strength: float = Field(5000.0, gt=0)
    """lambda."""
    ewc_fisher: Literal["sampled", "empirical"] = "sampled"
    """Targets of the Fisher information: drawn from the model, or those of the items. The exact one takes a backward pass for
    each word of the vocabulary."""
    ewc_is_online: bool = False
    """All earlier information holds the last weights; else each batch's holds those that it ended with."""
    ewc_gamma: float = Field(1.0, ge=0, le=1)
    """Online: what is left of the earlier batches' information at each new one."""
    si_strength: float = Field(1.0, gt=0)
    """c."""
    si_damping: float = Field(1e-3, gt=0)
    """xi: bounds the importance of weights that hardly moved."""
    lwf_temperature: float = Field(2.0, gt=0)
    """T."""
    lwf_alpha: float = Field(0.5, gt=0, lt=1)
    """Share of the parent's answers in the loss. The first batch has no earlier ones."""
    drift: DriftPolicy = DriftPolicy()
    """What a drift of the stream changes."""

    @property
    def holds_weights(self) -> bool:
        """Whether small movements of weights are counted and held, which needs them in float32."""
        return bool({"ewc", "si"} & set(self.methods))

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(
                f"policy.methods = {list(self.methods)} names one twice: name each once, and set its strength"
            )
        if not self.ewc_is_online and self.ewc_gamma < 1:
            raise ValueError(
                f"policy.ewc_gamma = {self.ewc_gamma} fades the information of online EWC, and ewc_is_online is false: set "
                "that to true, or ewc_gamma to 1"
            )
        return self


class Reaction(BaseModel):
    """What is different in a batch."""

    model_config = ConfigDict(frozen=True)

    replay_ratio: float
    """Share of replayed items in the mixed batch."""
    rate_share: float
    """Factor on the learning rate."""


def decide_reaction(drift: DriftKind | None, policy: DriftPolicy, *, replay_ratio: float) -> Reaction:
    """How a batch is learned in which this drift showed; `replay_ratio`: the share without one, which is never lowered."""
    if drift is None or policy.reaction == "report":
        return Reaction(replay_ratio=replay_ratio, rate_share=1.0)
    if policy.reaction == "replay":
        return Reaction(replay_ratio=max(replay_ratio, policy.replay_ratio), rate_share=1.0)
    return Reaction(replay_ratio=replay_ratio, rate_share=policy.rate_share)
