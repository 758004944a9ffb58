"""What an evaluation measured: the numbers from which the gates decide (gates.py), bound to a version by hash.

In: scores of the candidate, its parent and the frozen original on the same items. Out: a value that is written once and
goes as JSON through actors, the ledger and HTTP. A field without data makes its gate inconclusive, never a pass.
Units: all `nll` in nats per answer token (questions) or per token (texts); margins in nats per token.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict, cast

from autonomous.versions.audit import plain, sha256_of


class EarlierQuestions(TypedDict):
    """Questions on what the line has learned, asked again: from one source, or of its newest batches. The lists are paired
    by question.
    """

    domain: str
    nll_parent: list[float]
    nll_candidate: list[float]


class SafetyProbe(TypedDict):
    """One harmful request. A margin is logp(refusal) - logp(compliance): positive prefers to refuse."""

    probe: str
    margin_base: float
    margin_candidate: float


class DomainScores(TypedDict):
    """Held-out texts of one domain, nats per token. The lists are paired by text."""

    domain: str
    nll_base: list[float]
    nll_parent: list[float]
    nll_candidate: list[float]


class ProbeScores(TypedDict):
    """Log-probability of each token of `text` but the first, by the trainer's model: what the engine must reproduce."""

    text: str
    candidate_logprobs: list[float]
    base_logprobs: list[float]


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation of one candidate. Lists named alike for candidate and parent are paired, item by item."""

    question_nll_candidate: list[float] = field(default_factory=list)
    """Held-out questions about the batch, nats per answer token."""
    question_nll_parent: list[float] = field(default_factory=list)
    recall_candidate: list[bool] = field(default_factory=list)
    """Whether the generated answer contains the fact."""
    recall_parent: list[bool] = field(default_factory=list)
    control_nll_base: list[float] = field(default_factory=list)
    """Unrelated texts that the learner never reads, nats per token; base is the frozen original."""
    control_nll_parent: list[float] = field(default_factory=list)
    control_nll_candidate: list[float] = field(default_factory=list)
    earlier: list[EarlierQuestions] = field(default_factory=list)
    """What must not be forgotten; empty when the parent is the frozen original."""
    domains: list[DomainScores] = field(default_factory=list)
    """Code, docs, conversation, general knowledge: held-out texts by domain."""
    safety: list[SafetyProbe] = field(default_factory=list)
    sentinel_safety: list[SafetyProbe] = field(default_factory=list)
    """A drawn part of the probes that only the evaluator can read."""
    privacy: list[SafetyProbe] = field(default_factory=list)
    """Requests for secrets and personal data; a margin above 0 would rather not tell."""
    told_secrets: list[str] | None = None
    """Kinds of secrets and of taught personal data in the generated answers; None: not looked for."""
    leaks: list[str] | None = None
    """Ids of evaluation items that are in what was taught; None: not looked for."""
    probe: ProbeScores = field(default_factory=lambda: ProbeScores(text="", candidate_logprobs=[], base_logprobs=[]))
    training: dict[str, Any] = field(default_factory=dict)
    """losses, grad_norms, kls (one per optimizer step), num_steps, replay_share; more keys are kept as they are."""
    seconds: float = 0.0
    """How long the evaluation took."""
    suites_sha256: str = ""
    """Hash of all suite and sentinel files, so that a later reader knows which texts were asked."""
    code_sha256: str = ""
    """Hash of the code that asked, scored and decides."""
    rotation: str = ""
    """Of the drawn sentinels: with the home's secret it says which."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: numbers that JSON has no word for become the strings "nan", "inf" and "-inf"."""
        return cast("dict[str, Any]", plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvaluationReport":
        """The report that `to_dict` gave. Raises ValueError naming fields that this program does not know."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"evaluation report has unknown fields {unknown}: it was written by a newer program; upgrade"
            )
        return cls(**{name: _numbers(value, name) for name, value in values.items()})

    def sha256(self) -> str:
        """Hash of the canonical JSON: what the ledger binds to the version."""
        return sha256_of(self.to_dict())


_NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_TEXT_KEYS = frozenset({"code_sha256", "domain", "leaks", "probe", "rotation", "suites_sha256", "text", "told_secrets"})


def _numbers(value: Any, key: str = "") -> Any:
    """Undo what `to_dict` did to numbers; a text that happens to read "nan" stays a text."""
    if isinstance(value, dict):
        return {name: _numbers(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, key) for item in value]
    if isinstance(value, str) and key not in _TEXT_KEYS:
        return _NON_FINITE.get(value, value)
    return value
