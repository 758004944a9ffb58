"""GapDetector: answered requests with their votes flow in, knowledge gaps flow out: groups of badly answered questions.

Pure: the same requests in any order give the same gaps. A gap is named by the content of its medoid, and keeps the name of a
known gap that it is near, so that its task is one task for as long as it is asked about.
Sources: average linkage, Sokal and Michener 1958; the threshold of confidence is a split-conformal quantile
(arXiv:2107.07511): of good answers that are exchangeable with the known ones at most `unsure_share` fall below it.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from autonomous.feedback import Votes
from autonomous.feedback_config import FeedbackConfig
from autonomous.requests import AnsweredRequest

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts -> float32 [len(texts), dimension], rows of unit length."""
Kind = Literal["contradicted", "down-voted", "unknown"]
Reason = Literal["contradicted", "down-voted", "refused", "unsure", "no passage"]

SEVERITY: Mapping[Reason, float] = {
    "contradicted": 1.0, "down-voted": 1.0, "refused": 0.5, "unsure": 0.5, "no passage": 0.5,
}  # fmt: skip
"""A person's word counts as two signs that nobody has looked at."""
SUGGESTIONS: Mapping[Kind, str] = {
    "contradicted": "compare the passages behind these answers with the corrections, and release or add what is right: {0}",
    "down-voted": "people call these answers bad: read them, and add a document or a correction: {0}",
    "unknown": "add documents about: {0}",
}
_REFUSAL = re.compile(
    r"\b(?:(?:do|does|did)(?:\s+not|n['’]t)\s+(?:know|contain|mention|provide|say|specify|have\s+(?:any\s+|enough\s+)?information)"
    r"|(?:can|could)(?:\s*not|n['’]t)\s+(?:answer|find|tell|say|provide|determine)"
    r"|no\s+(?:information|answer|mention)\b|(?:am|['’]m)\s+(?:not\s+sure|unable|sorry)|unable\s+to)\b",
    re.IGNORECASE,
)
_REFUSAL_CHARS = 200
"""A refusal stands at the beginning of an answer."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A request with what people say about its answer."""

    request: AnsweredRequest
    votes: Votes


@dataclass(frozen=True, slots=True)
class Gap:
    """Questions that are badly answered and ask for the same. `questions` are by request id; `score` ranks gaps."""

    id: str
    question: str
    """The medoid: the one that is nearest to all others."""
    questions: Mapping[str, str]
    kind: Kind
    score: float
    mean_confidence: float | None
    """Nats per token, over the requests whose engine tells it."""
    newest_at: float

    @property
    def size(self) -> int:
        """Number of requests."""
        return len(self.questions)


def is_refusal(answer: str) -> bool:
    """Whether an answer says that it does not know. An empty one does."""
    return not answer.strip() or _REFUSAL.search(answer[:_REFUSAL_CHARS]) is not None


def least_confidence(judged: Sequence[Judged], config: FeedbackConfig) -> float | None:
    """The confidence, nats per token, below which an answer is unsure; None while too few answers are known.

    Of answers that people call good if there are enough, else of all that nobody calls bad.
    """
    known = [(one, value) for one in judged if (value := one.request.confidence) is not None]
    praised = [value for one, value in known if one.votes.is_up]
    values = praised if len(praised) >= config.min_calibration else [v for one, v in known if not one.votes.is_down]
    rank = math.floor(config.unsure_share * (len(values) + 1))
    if len(values) < config.min_calibration or rank < 1:
        return None
    return sorted(values)[rank - 1]


def reasons_of(judged: Judged, *, least: float | None) -> tuple[Reason, ...]:
    """Why a request counts as badly answered; none if people call the answer good, or nothing speaks against it."""
    request, votes = judged.request, judged.votes
    if votes.is_up:
        return ()
    reasons: list[Reason] = []
    if votes.is_down:
        reasons.append("contradicted" if votes.has_correction and request.sources else "down-voted")
    if is_refusal(request.answer):
        reasons.append("refused")
    if least is not None and request.confidence is not None and request.confidence < least:
        reasons.append("unsure")
    if request.is_retrieved and request.cosine is None:
        reasons.append("no passage")
    return tuple(reasons)


def gap_id(question: str) -> str:
    """Hex, 16 characters, of a question without case, punctuation and spacing."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", question.casefold())).encode()).hexdigest()[:16]


class GapDetector:
    """See the module. `embed` maps questions to unit vectors."""

    def __init__(self, config: FeedbackConfig, *, embed: Embed) -> None:
        self._config = config
        self._embed = embed

    def detect(self, judged: Sequence[Judged], *, known: Mapping[str, str] | None = None) -> list[Gap]:
        """The gaps, worst first. `known` are the questions of known gaps by their ids."""
        config = self._config
        least = least_confidence(judged, config)
        bad = {one.request.id: (one, why) for one in judged if (why := reasons_of(one, least=least))}
        newest = sorted(bad.values(), key=lambda pair: (-pair[0].request.at, pair[0].request.id))
        chosen = sorted(newest[: config.max_clustered], key=lambda pair: (pair[0].request.question, pair[0].request.id))
        if len(chosen) < config.min_gap_size:
            return []
        vectors_ND = self._embed([one.request.question for one, _ in chosen])
        groups = [
            group
            for group in group_by_cosine(vectors_ND, cosine=config.gap_cosine)
            if len(group) >= config.min_gap_size
        ]
        names = dict(sorted((known or {}).items()))
        names_KD = self._embed(list(names.values())) if names and groups else None
        free = list(names)
        gaps = []
        for group in sorted(groups, key=lambda group: (-len(group), group)):
            medoid = _medoid(vectors_ND, group)
            name = None
            if names_KD is not None and free:
                cosines = names_KD @ vectors_ND[medoid]
                best = max(free, key=lambda key: (cosines[list(names).index(key)], key))
                if cosines[list(names).index(best)] >= config.gap_cosine:
                    name = best
                    free.remove(best)
            gaps.append(_gap([chosen[place] for place in group], chosen[medoid][0].request.question, name=name))
        return sorted(gaps, key=lambda gap: (-gap.score, gap.id))


def group_by_cosine(vectors_ND: Vectors, *, cosine: float) -> list[list[int]]:
    """Rows [N, D] of unit length in groups by average linkage, as long as two groups' mean cosine is at least `cosine`."""
    if len(vectors_ND) < 2:
        return [[row] for row in range(len(vectors_ND))]
    from scipy.cluster.hierarchy import fcluster, linkage  # half a second, only where gaps are looked for
    from scipy.spatial.distance import squareform

    distance_NN = np.maximum(1.0 - vectors_ND.astype(np.float64) @ vectors_ND.astype(np.float64).T, 0.0)
    np.fill_diagonal(distance_NN, 0.0)
    tree = linkage(squareform((distance_NN + distance_NN.T) / 2, checks=False), method="average")
    labels = fcluster(tree, t=1.0 - cosine, criterion="distance")
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(row)
    return sorted(groups.values())


def _medoid(vectors_ND: Vectors, group: Sequence[int]) -> int:
    members_GD = vectors_ND[list(group)]
    nearness_G = np.round((members_GD @ members_GD.T).sum(axis=1), 5)  # rounding: equal questions tie in any order
    return group[int(np.argmax(nearness_G))]


def _gap(members: Sequence[tuple[Judged, tuple[Reason, ...]]], question: str, *, name: str | None) -> Gap:
    kinds = Counter(_kind(why) for _, why in members)
    order: tuple[Kind, ...] = ("contradicted", "down-voted", "unknown")
    kind = max(order, key=lambda one: (kinds[one], -order.index(one)))
    values = [value for one, _ in members if (value := one.request.confidence) is not None]
    return Gap(
        id=name or gap_id(question),
        question=question,
        questions={one.request.id: one.request.question for one, _ in members},
        kind=kind,
        score=sum(max(SEVERITY[reason] for reason in why) for _, why in members),
        mean_confidence=sum(values) / len(values) if values else None,
        newest_at=max(one.request.at for one, _ in members),
    )


def _kind(reasons: Sequence[Reason]) -> Kind:
    return "contradicted" if "contradicted" in reasons else "down-voted" if "down-voted" in reasons else "unknown"
