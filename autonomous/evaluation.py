"""Self-evaluation: a candidate version, its parent and the frozen original answer the same questions; numbers come out.

Measured are held-out questions on what was learned and on what the line has learned before, held-out texts by domain, safety
and privacy probes, a drawn part of the sentinels, and the log-probabilities of one text that the engine must reproduce.
Nothing is asked twice of the same weights (autonomous.asking), and what is known of the original is asked while a batch still
trains (`prepare`). The gates (autonomous.versions.gates) decide from the report; nothing is decided here. What takes longer is
the benchmark's (autonomous.benchmark).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from autonomous.asking import RememberingPanel, ScoreMemory
from autonomous.config import GateConfig
from autonomous.leaks import Leak, find_leaks
from autonomous.lessons import Question, answer_hits, build_lessons
from autonomous.panel import CANDIDATE, PARENT, Panel, question_items
from autonomous.panel_weights import WeightsPanel, open_panel, version_model
from autonomous.provenance import evaluation_code_sha256, evaluation_texts, suites_sha256
from autonomous.safety.probes import probe_items, probe_margins, probes_from
from autonomous.sentinel import draw_rows, load_sentinel
from autonomous.suite import load_suite
from autonomous.turns import Turns
from autonomous.versions.data_gates import BELIEFS_KEY, DATA_KEY
from autonomous.versions.report import DomainScores, EarlierQuestions, EvaluationReport, SafetyProbe
from memory.types import Episode, Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.scoring import score_items
from train.adapt.weights import version_sha256
from train.continual.items import LearningItem, text_item
from train.data.pii import ALL_KINDS, SECRET_KINDS, find_sensitive
from train.dtype import TrainingDtype

SURPRISE_ITEMS = 6
"""Most lessons of an episode that its surprise is the mean of: those of two facts."""

Row = Mapping[str, str]


class SelfEvaluationSystem:
    """Scores candidates on one resident base model, one at a time: callers of other threads wait for their turn."""

    def __init__(
        self,
        config: GateConfig,
        *,
        base_folder: Path,
        dtype: TrainingDtype = "auto",
        num_threads: int = 1,
        secret: bytes = b"",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`secret` draws the sentinels (autonomous.sentinel.load_secret); `clock` says when others are drawn."""
        self._config = config
        self._base_folder = base_folder
        self._dtype: TrainingDtype = dtype
        self._num_threads = num_threads
        self._secret = secret
        self._clock = clock
        self._base: BaseModelInMemory | None = None
        self._memory = ScoreMemory()
        self.turns = Turns()

    def start(self) -> None:
        """Load the base model; idempotent, also from two threads. Raises: ModelFolderProblem."""
        if self._base is not None:
            return
        with self.turns.urgent():
            if self._base is None:
                torch.set_num_threads(self._num_threads)
                self._base = load_base_model(self._base_folder, dtype=self._dtype, device=pick_device("auto"))

    @property
    def base(self) -> BaseModelInMemory:
        """The resident base model; its weights never change."""
        if self._base is None:
            raise RuntimeError("SelfEvaluationSystem has no model yet: call start() first")
        return self._base

    def prepare(self, *, guard: Guard) -> None:
        """Ask the original what every evaluation asks of it, so that no candidate waits for that; idempotent."""
        with self.turns.urgent():
            most = self._config.max_answer_tokens
            alone = WeightsPanel({}, base=self.base, max_answer_tokens=most, guard=guard)
            panel = self._remembering(alone, weights={})
            for text in self._texts().values():
                panel.score(None, text)
            for rows in (load_suite("safety").rows, load_suite("privacy").rows, load_sentinel("safety").rows):
                panel.margins(None, rows)
        self.find_leaks([""])

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

        `earlier` holds (domain, questions on what its line has learned there). `training` goes into the report as it is.
        `guard` is called between the parts; what it raises ends the evaluation. Raises: AdapterError, WeightsError for an
        unusable folder.
        """
        start = time.monotonic()
        with self.panel(candidate, parent=parent, guard=guard) as panel:
            return self._report(
                panel,
                questions=questions,
                earlier=earlier,
                training=training,
                start=start,
                rotation=self.rotation_of(candidate),
            )

    @contextmanager
    def panel(
        self, candidate: Path, *, parent: Path | None, guard: Guard, is_patient: bool = False
    ) -> Iterator[RememberingPanel]:
        """Candidate, parent and original as one panel, while nobody else has the model. Raises AdapterError, WeightsError."""
        folders = {CANDIDATE: candidate} if parent is None else {CANDIDATE: candidate, PARENT: parent}
        weights: dict[str | None, str] = {who: version_sha256(folder) for who, folder in folders.items()}
        turn: AbstractContextManager[None] = self.turns.patient() if is_patient else self.turns.urgent()
        most = self._config.max_answer_tokens
        with turn, open_panel(candidate, parent, base=self.base, max_answer_tokens=most, guard=guard) as panel:
            yield self._remembering(panel, weights=weights)

    def surprise(self, episodes: Sequence[Episode], *, adapter: Path | None, guard: Guard) -> dict[str, float]:
        """How little a version knows of what episodes teach: mean loss of their lessons by episode id, nats per target token.

        `adapter` None asks the frozen original. Episodes that teach nothing are left out. `guard` is called once before.
        Raises AdapterError, WeightsError.
        """
        lessons = {one.id: build_lessons([one], max_items=SURPRISE_ITEMS).items for one in episodes}
        items = [item for taught in lessons.values() for item in taught]
        guard()
        with self.turns.urgent(), version_model(adapter, base=self.base) as model:
            losses = score_items(model, items, base=self.base)
        found: dict[str, list[float]] = {}
        for item, loss in zip(items, losses, strict=True):
            found.setdefault(item.episode_id, []).append(loss)
        return {key: sum(values) / len(values) for key, values in found.items()}

    def find_leaks(self, texts: Sequence[str]) -> list[Leak]:
        """Which texts hold an item of a suite that the learner must not read, or a sentinel."""
        return find_leaks(texts, evaluation_texts())

    def rotation_of(self, candidate: Path) -> str:
        """Names a draw of sentinels: another for each candidate, and for one candidate after `rotation_s`."""
        return f"{version_sha256(candidate)[:16]}/{int(self._clock() // self._config.rotation_s)}"

    def draw(self, rows: Sequence[Row], *, num: int, rotation: str) -> list[Row]:
        """A part of a sentinel set."""
        return draw_rows(rows, num=num, secret=self._secret, rotation=rotation)

    def _remembering(self, panel: Panel, *, weights: Mapping[str | None, str]) -> RememberingPanel:
        return RememberingPanel(panel, memory=self._memory, weights={None: self.base.sha256, **weights})

    def _report(
        self,
        panel: RememberingPanel,
        *,
        questions: Sequence[Question],
        earlier: Sequence[tuple[str, Sequence[Question]]],
        training: Mapping[str, Any],
        start: float,
        rotation: str,
    ) -> EvaluationReport:
        texts = self._texts()
        control = [text_item(row["text"], item_id=row["id"]) for row in load_suite("control").rows]
        sentinels = load_sentinel("safety").rows
        drawn = self.draw(sentinels, num=self._config.num_sentinels, rotation=rotation)
        held_out = question_items(questions)
        probes = probes_from((training.get(DATA_KEY) or {}).get("probes", ()))
        believed = {who: panel.score(who, probe_items(probes)) for who in (PARENT, CANDIDATE)}
        beliefs = probe_margins(probes, parent=believed[PARENT], candidate=believed[CANDIDATE])
        answers = {who: panel.panel.answers_to(who, questions) for who in (CANDIDATE, PARENT)}
        hits = {
            who: [answer_hits(answer, question.key) for answer, question in zip(given, questions, strict=True)]
            for who, given in answers.items()
        }
        nlls = {who: panel.score(who, held_out) for who in (CANDIDATE, PARENT)}
        asked_again: list[EarlierQuestions] = [
            {
                "domain": domain,
                "nll_parent": panel.score(PARENT, question_items(known)),
                "nll_candidate": panel.score(CANDIDATE, question_items(known)),
            }
            for domain, known in earlier
        ]
        return EvaluationReport(
            question_nll_candidate=nlls[CANDIDATE],
            question_nll_parent=nlls[PARENT],
            recall_candidate=hits[CANDIDATE],
            recall_parent=hits[PARENT],
            domains=[
                DomainScores(
                    domain=domain,
                    nll_base=panel.score(None, items),
                    nll_parent=panel.score(PARENT, items),
                    nll_candidate=panel.score(CANDIDATE, items),
                )
                for domain, items in texts.items()
            ],
            control_nll_base=panel.score(None, control),
            control_nll_parent=panel.score(PARENT, control),
            control_nll_candidate=panel.score(CANDIDATE, control),
            earlier=asked_again,
            safety=_probes(panel, load_suite("safety").rows),
            sentinel_safety=_probes(panel, drawn),
            privacy=_probes(panel, load_suite("privacy").rows),
            told_secrets=find_told(answers[CANDIDATE], questions),
            leaks=sorted({leak.item_id for leak in self.find_leaks(_taught_texts(questions))}),
            probe=panel.panel.probe(questions, fallback=load_suite("control").texts[0]),
            training={**training, BELIEFS_KEY: beliefs},
            seconds=time.monotonic() - start,
            suites_sha256=suites_sha256(),
            code_sha256=evaluation_code_sha256(),
            rotation=rotation,
        )

    def _texts(self) -> dict[str, list[LearningItem]]:
        """By domain the held-out texts that every candidate is asked; those of the control suite come first."""
        found: dict[str, list[LearningItem]] = {}
        for row in (*load_suite("control").rows, *load_suite("domains").rows):
            items = found.setdefault(row["domain"], [])
            if len(items) < self._config.texts_per_domain:
                items.append(text_item(row["text"], item_id=row["id"]))
        return found


def find_told(answers: Sequence[str], questions: Sequence[Question]) -> list[str]:
    """Kinds of what answers should not tell: any secret, and personal data that stands so in what was taught."""
    taught = "\n".join(_taught_texts(questions))
    return sorted(
        {
            span.kind
            for answer in answers
            for span in find_sensitive(answer, kinds=ALL_KINDS)
            if span.kind in SECRET_KINDS or answer[span.start : span.end] in taught
        }
    )


def _taught_texts(questions: Sequence[Question]) -> list[str]:
    return [f"{question.question}\n{question.answer}" for question in questions]


def _probes(panel: RememberingPanel, rows: Sequence[Row]) -> list[SafetyProbe]:
    pairs = zip(rows, panel.margins(None, rows), panel.margins(CANDIDATE, rows), strict=True)
    return [SafetyProbe(probe=row["id"], margin_base=base, margin_candidate=margin) for row, base, margin in pairs]
