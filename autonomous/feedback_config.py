"""The section [agent.feedback]: what is kept of answers, what counts as a gap, and what is done about it."""

from pydantic import BaseModel, ConfigDict, Field


class FeedbackConfig(BaseModel):
    """From answered requests and feedback to learning tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_logged: bool = True
    """Keep answered requests, personal data masked. Off: none is kept, so there is no feedback and no gap either."""
    retention_days: float = Field(30.0, gt=0)
    """Requests are erased after so many days, with their feedback."""
    capacity: int = Field(10_000, gt=0)
    """Most requests kept; beyond it the oldest go."""
    queue_capacity: int = Field(1000, gt=0)
    """Most requests that wait in the HTTP process to be written; what comes while it is full is dropped and counted."""
    max_text_chars: int = Field(4000, ge=100)
    """Questions, answers, corrections and reasons are cut here."""
    opted_out_tenants: tuple[str, ...] = ()
    """Nothing is kept of requests with these names in the header OpenAI-Organization; `"store": false` opts one out."""
    reviewers: tuple[str, ...] = ()
    """Whose corrections are believed like other documents; those of others wait until a person releases them."""
    max_votes: int = Field(16, ge=1)
    """Most people who may vote on one answer."""
    max_pending_corrections: int = Field(1000, gt=0)
    """Corrections that wait to become documents; more are refused with 429 until some have."""

    unsure_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of good answers that may be called unsure by mistake: the threshold of confidence is set by it."""
    min_calibration: int = Field(50, ge=10)
    """Answers that the threshold needs; with fewer, confidence says nothing."""
    gap_cosine: float = Field(0.5, gt=0, lt=1)
    """Mean cosine of questions at which two groups are one gap. With all-MiniLM-L6-v2, four wordings of one question had .51
    to .95 among themselves, unrelated questions at most .37; every cut from .35 to .55 gave the right groups.
    """
    min_gap_size: int = Field(3, ge=2)
    """Badly answered requests that make a gap."""
    max_clustered: int = Field(2000, ge=10)
    """Newest badly answered requests that are grouped; memory grows with the square (16 MB for 2000)."""

    max_tasks: int = Field(1000, gt=0)
    """Most learning tasks kept; beyond it those go that were closed first, then those of the lowest score."""
    answer_cosine: float = Field(0.5, gt=0, lt=1)
    """A passage this near to a gap's question is taken for data on it. Above rag.min_cosine: it is to answer, not to help."""
    passages_per_task: int = Field(4, gt=0)
    """Most stored passages that a task asks the learner to take first."""
    task_salience: float = Field(5.0, gt=0)
    """Salience of those passages. Nothing else has more than 4, so the next batch begins with them."""
    questions_asked: int = Field(5, gt=0)
    """Questions of a gap that are asked again after its data was learned."""
    min_answered: float = Field(0.5, gt=0, le=1)
    """Share of them that must be answered for the task to be closed."""
    collect_interval_s: float = Field(3600.0, ge=0)
    """Seconds between two looks for gaps that start by themselves; 0: only on demand."""

    explored_share: float = Field(0.1, ge=0, le=1)
    """Share of the labelling queue that is drawn from all requests, so that confident mistakes are seen too."""
    seed: int = 0
    """Of that draw."""
