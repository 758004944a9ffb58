"""Self-evaluation: a candidate adapter, its parent and the frozen original answer the same questions; numbers come out.

Measured are held-out questions on what was learned, questions of earlier batches, unrelated control texts, safety probes,
and the log-probabilities of one text that the serving engine must reproduce. The gates (autonomous.versions.gates) decide
from the report; nothing is decided here.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autonomous.config import GateConfig
from autonomous.lessons import Question, answer_hits, build_lessons
from autonomous.suite import SUITES, load_suite
from autonomous.versions.report import EarlierBatch, EvaluationReport, ProbeScores, SafetyProbe
from memory.types import Episode, Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.lora import attach_saved, detach_adapter
from train.adapt.scoring import answer_questions, score_items, score_tokens
from train.continual.abilities import SafetyPrompt, refusal_margins
from train.continual.items import LearningItem, render_chat, text_item
from train.dtype import TrainingDtype

CANDIDATE, PARENT = "candidate", "parent"
SURPRISE_ITEMS = 4
"""Most lessons of an episode that its surprise is the mean of."""


class SelfEvaluationSystem:
    """Scores candidates on one resident base model, one at a time. Not thread-safe: one owner."""

    def __init__(
        self,
        config: GateConfig,
        *,
        base_folder: Path,
        dtype: TrainingDtype = "auto",
        num_threads: int = 1,
    ) -> None:
        self._config = config
        self._base_folder = base_folder
        self._dtype: TrainingDtype = dtype
        self._num_threads = num_threads
        self._base: BaseModelInMemory | None = None
        self._original: dict[str, list[float]] = {}
        """The frozen original's scores on the suites, which never change."""

    def start(self) -> None:
        """Load the base model; idempotent. Raises: ModelFolderProblem."""
        if self._base is None:
            torch.set_num_threads(self._num_threads)
            self._base = load_base_model(self._base_folder, dtype=self._dtype, device=pick_device("auto"))

    @property
    def base(self) -> BaseModelInMemory:
        """The resident base model; its weights never change."""
        if self._base is None:
            raise RuntimeError("SelfEvaluationSystem has no model yet: call start() first")
        return self._base

    def evaluate(
        self,
        candidate: Path,
        *,
        parent: Path | None,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: Mapping[str, Any],
        guard: Guard,
    ) -> EvaluationReport:
        """Score the adapter folder `candidate` against `parent` (None: the frozen original) and the original.

        `earlier` holds (version id, its questions). `training` goes into the report as it is. `guard` is called between
        the parts; what it raises ends the evaluation. Raises: AdapterError for an unusable adapter folder.
        """
        start = time.monotonic()
        adapters = {CANDIDATE: candidate} if parent is None else {CANDIDATE: candidate, PARENT: parent}
        adapted = attach_saved(self.base.model, adapters)
        try:
            panel = _Panel(
                adapted,
                base=self.base,
                has_parent=parent is not None,
                max_answer_tokens=self._config.max_answer_tokens,
                guard=guard,
            )
            return self._report(panel, questions=questions, earlier=earlier, training=training, start=start)
        finally:
            detach_adapter(adapted)

    def surprise(self, episodes: Sequence[Episode], *, adapter: Path | None, guard: Guard) -> dict[str, float]:
        """How little a version knows of what episodes teach: mean loss of their lessons by episode id, nats per target token.

        `adapter` None asks the frozen original. Episodes that teach nothing are left out. `guard` is called once before.
        Raises AdapterError.
        """
        lessons = {one.id: build_lessons([one], max_items=SURPRISE_ITEMS).items for one in episodes}
        items = [item for taught in lessons.values() for item in taught]
        guard()
        if adapter is None:
            losses = score_items(self.base.model, items, base=self.base)
        else:
            adapted = attach_saved(self.base.model, {CANDIDATE: adapter})
            try:
                losses = score_items(adapted, items, base=self.base)
            finally:
                detach_adapter(adapted)
        found: dict[str, list[float]] = {}
        for item, loss in zip(items, losses, strict=True):
            found.setdefault(item.episode_id, []).append(loss)
        return {key: sum(values) / len(values) for key, values in found.items()}

    def _report(
        self,
        panel: "_Panel",
        *,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: Mapping[str, Any],
        start: float,
    ) -> EvaluationReport:
        control = [text_item(row["text"], item_id=row["id"]) for row in load_suite("control").rows]
        safety = load_suite("safety").rows
        held_out = question_items(questions)
        hits = {who: panel.recall(who, questions) for who in (CANDIDATE, PARENT)}
        nlls = {who: panel.score(who, held_out) for who in (CANDIDATE, PARENT)}
        batches: list[EarlierBatch] = [
            {
                "version_id": version_id,
                "nll_parent": panel.score(PARENT, question_items(batch)),
                "nll_candidate": panel.score(CANDIDATE, question_items(batch)),
            }
            for version_id, batch in earlier
        ]
        control_base = self._of_original("control", lambda: panel.score(None, control))
        margins_base = self._of_original("safety", lambda: panel.margins(None, safety))
        margins = panel.margins(CANDIDATE, safety)
        return EvaluationReport(
            question_nll_candidate=nlls[CANDIDATE],
            question_nll_parent=nlls[PARENT],
            recall_candidate=hits[CANDIDATE],
            recall_parent=hits[PARENT],
            control_nll_base=control_base,
            control_nll_parent=panel.score(PARENT, control) if panel.has_parent else control_base,
            control_nll_candidate=panel.score(CANDIDATE, control),
            earlier=batches,
            safety=[
                SafetyProbe(probe=row["id"], margin_base=base, margin_candidate=margin)
                for row, base, margin in zip(safety, margins_base, margins, strict=True)
            ],
            probe=panel.probe(questions, fallback=load_suite("control").texts[0]),
            training=dict(training),
            seconds=time.monotonic() - start,
            suites_sha256=hashlib.sha256("".join(load_suite(name).sha256 for name in SUITES).encode()).hexdigest(),
        )

    def _of_original(self, name: str, score: Callable[[], list[float]]) -> list[float]:
        if name not in self._original:
            self._original[name] = score()
        return list(self._original[name])


def question_items(questions: Sequence[Question]) -> list[LearningItem]:
    """The held-out forms of the questions, with the answers that were taught."""
    return [
        LearningItem(id=f"{row}", prompt=question.paraphrase, answer=question.answer, episode_id=question.episode_id)
        for row, question in enumerate(questions)
    ]


class _Panel:
    """Candidate, parent and original in one model: each score switches to who is asked, after asking the guard."""

    def __init__(
        self, adapted: Any, *, base: BaseModelInMemory, has_parent: bool, max_answer_tokens: int, guard: Guard
    ) -> None:
        self._adapted = adapted
        self._base = base
        self._max_answer_tokens = max_answer_tokens
        self._guard = guard
        self.has_parent = has_parent

    def score(self, who: str | None, items: Sequence[LearningItem]) -> list[float]:
        """Nats per target token of each item."""
        with self._as(who) as model:
            return score_items(model, items, base=self._base)

    def recall(self, who: str | None, questions: Sequence[Question]) -> list[bool]:
        """Whether the greedy answer to each paraphrase holds its key."""
        with self._as(who) as model:
            answers = answer_questions(
                model,
                [question.paraphrase for question in questions],
                base=self._base,
                max_new_tokens=self._max_answer_tokens,
            )
        return [answer_hits(answer, question.key) for answer, question in zip(answers, questions, strict=True)]

    def margins(self, who: str | None, rows: Sequence[Mapping[str, str]]) -> list[float]:
        """The margin of refusal of each safety probe (train.continual.abilities)."""
        prompts = [SafetyPrompt(row["prompt"], row["refusal"], row["compliance"]) for row in rows]
        with self._as(who) as model:
            return refusal_margins(model, prompts, base=self._base)

    def probe(self, questions: Sequence[Question], *, fallback: str) -> ProbeScores:
        """Log-probabilities of the first learned answer, or of `fallback`, for comparison with the engine."""
        text = fallback
        if questions:
            text = render_chat(self._base.tokenizer, question=questions[0].question) + questions[0].answer
        with self._as(CANDIDATE) as model:
            candidate_logprobs = score_tokens(model, text, base=self._base)
        with self._as(None) as model:
            base_logprobs = score_tokens(model, text, base=self._base)
        return ProbeScores(text=text, candidate_logprobs=candidate_logprobs, base_logprobs=base_logprobs)

    @contextmanager
    def _as(self, who: str | None) -> Iterator[Any]:
        """The model as `who` sees it; None, and a parent that is not there, are the frozen original."""
        self._guard()
        if who is None or (who == PARENT and not self.has_parent):
            with self._adapted.disable_adapter():
                yield self._adapted
        else:
            self._adapted.set_adapter(who)
            yield self._adapted
