"""Self-evaluation: a candidate version, its parent and the frozen original answer the same questions; numbers come out.

Measured are held-out questions on what was learned, questions of earlier batches, unrelated control texts, safety probes,
and the log-probabilities of one text that the serving engine must reproduce. The gates (autonomous.versions.gates) decide
from the report; nothing is decided here.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autonomous.config import GateConfig
from autonomous.lessons import Question, build_lessons
from autonomous.panel import CANDIDATE, PARENT, Panel, question_items
from autonomous.panel_weights import open_panel, version_model
from autonomous.suite import SUITES, load_suite
from autonomous.versions.report import EarlierBatch, EvaluationReport, SafetyProbe
from memory.types import Episode, Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.scoring import score_items
from train.continual.items import text_item
from train.dtype import TrainingDtype

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
        """Score the version's folder `candidate` against `parent` (None: the frozen original) and the original.

        `earlier` holds (version id, its questions). `training` goes into the report as it is. `guard` is called between
        the parts; what it raises ends the evaluation. Raises: AdapterError, WeightsError for an unusable folder.
        """
        start = time.monotonic()
        with open_panel(
            candidate, parent, base=self.base, max_answer_tokens=self._config.max_answer_tokens, guard=guard
        ) as panel:
            return self._report(panel, questions=questions, earlier=earlier, training=training, start=start)

    def surprise(self, episodes: Sequence[Episode], *, adapter: Path | None, guard: Guard) -> dict[str, float]:
        """How little a version knows of what episodes teach: mean loss of their lessons by episode id, nats per target token.

        `adapter` None asks the frozen original. Episodes that teach nothing are left out. `guard` is called once before.
        Raises AdapterError, WeightsError.
        """
        lessons = {one.id: build_lessons([one], max_items=SURPRISE_ITEMS).items for one in episodes}
        items = [item for taught in lessons.values() for item in taught]
        guard()
        with version_model(adapter, base=self.base) as model:
            losses = score_items(model, items, base=self.base)
        found: dict[str, list[float]] = {}
        for item, loss in zip(items, losses, strict=True):
            found.setdefault(item.episode_id, []).append(loss)
        return {key: sum(values) / len(values) for key, values in found.items()}

    def _report(
        self,
        panel: Panel,
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
