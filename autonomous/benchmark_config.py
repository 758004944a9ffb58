"""Settings of the benchmark: how much is asked, how often, and what its results trigger."""

from pydantic import BaseModel, ConfigDict, Field

from autonomous.triggers import TriggerConfig


class BenchmarkConfig(BaseModel):
    """The thorough evaluation of a version: all suites, in the background."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_questions: int = Field(48, ge=0)
    """Questions on what the version's line has learned, newest first."""
    max_answer_tokens: int = Field(64, gt=0)
    """Of an instruction's answer. The longest that a check needs is fifty words."""
    num_sentinel_texts: int = Field(8, ge=2)
    """Sentinel texts of one run; which, changes from one to the next."""
    num_sentinel_probes: int = Field(12, ge=2)
    """Safety sentinels of one run."""
    latency_repeats: int = Field(5, ge=1)
    """Answers timed of the version and of the original, in turns."""
    latency_tokens: int = Field(32, ge=2)
    """Tokens of a timed answer."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, over all metrics together (Holm)."""
    bootstrap_samples: int = Field(2000, ge=200)
    """Resamples of a paired bootstrap."""
    triggers: TriggerConfig = TriggerConfig()
