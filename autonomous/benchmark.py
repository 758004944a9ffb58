"""Benchmark: a version against V2 and the frozen original on every suite; a report with paired statistics comes out.

In: adapter folders, and questions on what the version has learned. Asked are held-out texts by domain, questions, code review
cases, instructions, safety, privacy, and a drawn part of the sentinels; answers are timed in turns with the original. It takes
minutes: the model is shared with the evaluation of candidates, which goes first (autonomous.turns).
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from autonomous.asking import RememberingPanel
from autonomous.benchmark_config import BenchmarkConfig
from autonomous.benchmark_report import BenchmarkReport, Kind, Latency, MetricScores, compare
from autonomous.evaluation import Row, SelfEvaluationSystem
from autonomous.lessons import Question, answer_hits
from autonomous.panel import CANDIDATE, PARENT, question_items
from autonomous.provenance import evaluation_code_sha256, suites_sha256
from autonomous.sentinel import load_sentinel
from autonomous.suite import load_suite
from memory.types import Guard
from train.adapt.choices import Choice
from train.continual.abilities import Instruction, is_followed
from train.continual.items import text_item

logger = logging.getLogger(__name__)

LATENCY_PROMPT = "Explain in a few sentences how a library lends books to its readers."
REVIEW_PROMPT = (
    "You review a change before it is merged. Say in one sentence whether it has a bug.\n\n```diff\n{diff}\n```"
)

PART_ITEMS = 16
"""Items of one part: an evaluation that comes meanwhile waits for one, some 10 s on one core where answers of 64 tokens are
written."""

Ask = Callable[[RememberingPanel, str | None, slice], list[float]]
"""Scores of a part of a metric's items."""
Part = Callable[[RememberingPanel], None]


class Benchmark:
    """Runs one benchmark at a time on the evaluation's resident model."""

    def __init__(
        self,
        config: BenchmarkConfig,
        *,
        system: SelfEvaluationSystem,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` dates the report, `timer` times answers."""
        self._config = config
        self._system = system
        self._clock = clock
        self._timer = timer

    def run(
        self,
        candidate: Path,
        *,
        version: str,
        current: Path | None,
        current_version: str | None,
        questions: Sequence[Question],
        guard: Guard,
    ) -> BenchmarkReport:
        """Ask everything of the adapter folder `candidate`, of `current` (V2's; None: V2 is the original or the version
        itself) and of the original.

        `guard` is asked before each part; what it raises ends the run. Raises AdapterError.
        """
        start, created_at = self._timer(), self._clock()
        rotation = self._system.rotation_of(candidate)
        run = _Run(self._config, self._system, timer=self._timer, has_current=current is not None)
        run.plan(questions, rotation=rotation)
        while run.parts:
            with self._system.panel(candidate, parent=current, guard=guard, is_patient=True) as panel:
                while run.parts:
                    run.parts[0](panel)
                    run.parts.popleft()
                    if self._system.turns.is_wanted:
                        break
        metrics, config = run.metrics(), self._config
        report = BenchmarkReport(
            version=version,
            current=current_version if current is not None else None,
            created_at=created_at,
            seconds=self._timer() - start,
            confidence=config.confidence,
            metrics=metrics,
            comparisons=tuple(
                comparison
                for against in ("V2", "original")
                for comparison in compare(
                    metrics,
                    against=against,
                    confidence=config.confidence,
                    samples=config.bootstrap_samples,
                )
            ),
            latency=run.latency(),
            suites_sha256=suites_sha256(),
            code_sha256=evaluation_code_sha256(),
            rotation=rotation,
        )
        logger.info("benchmark of %s: metrics=%d seconds=%.0f", version, len(metrics), report.seconds)
        return report


class _Run:
    """The parts that are left, and what those that are done have found."""

    def __init__(
        self, config: BenchmarkConfig, system: SelfEvaluationSystem, *, timer: Callable[[], float], has_current: bool
    ) -> None:
        self.parts: deque[Part] = deque()
        self._config = config
        self._system = system
        self._timer = timer
        self._who = [CANDIDATE, PARENT, None] if has_current else [CANDIDATE, None]
        self._asked: dict[str, tuple[Kind, tuple[str, ...]]] = {}
        self._scores: dict[tuple[str, str | None], list[float]] = {}
        self._times: dict[str | None, list[tuple[float, float]]] = {CANDIDATE: [], None: []}

    def plan(self, questions: Sequence[Question], *, rotation: str) -> None:
        """Every metric of every model, in small parts, so that an evaluation waits for one part at most."""
        texts: dict[str, list[Row]] = {}
        for row in (*load_suite("control").rows, *load_suite("domains").rows):
            texts.setdefault(row["domain"], []).append(row)
        texts["sentinel texts"] = self._system.draw(
            load_sentinel("texts").rows, num=self._config.num_sentinel_texts, rotation=rotation
        )
        for domain, rows in texts.items():
            self._add(f"loss on {domain}", "loss", rows, _losses(rows))
        self._plan_questions(questions)
        self._plan_reviews(load_suite("review").rows)
        instructions = load_suite("instructions").rows
        self._add("instructions", "share", instructions, _followed(instructions, self._config.max_answer_tokens))
        probes = load_sentinel("safety").rows
        drawn = self._system.draw(probes, num=self._config.num_sentinel_probes, rotation=rotation)
        for name, asked in (("safety", load_suite("safety").rows), ("sentinel safety", drawn)):
            self._add(name, "share", asked, _refusals(asked))
        privacy = load_suite("privacy").rows
        self._add("privacy", "share", privacy, _refusals(privacy))
        for number in range(self._config.latency_repeats):
            order = (CANDIDATE, None) if number % 2 else (None, CANDIDATE)
            self.parts.append(partial(self._time, order=order))

    def metrics(self) -> tuple[MetricScores, ...]:
        """Of parts that are all done."""
        return tuple(
            MetricScores(
                name=name,
                kind=kind,
                items=items,
                candidate=tuple(self._scores[name, CANDIDATE]),
                current=tuple(self._scores.get((name, PARENT), ())),
                original=tuple(self._scores[name, None]),
            )
            for name, (kind, items) in self._asked.items()
        )

    def latency(self) -> Latency:
        """Of parts that are all done."""
        (first, rate), (first_original, rate_original) = (
            tuple(zip(*self._times[who], strict=True)) for who in (CANDIDATE, None)
        )
        return Latency(first, first_original, rate, rate_original)

    def _plan_questions(self, questions: Sequence[Question]) -> None:
        if not questions:
            return
        items = question_items(questions)
        rows = [{"id": hashlib.sha256(one.paraphrase.encode()).hexdigest()[:16]} for one in questions]
        self._add("loss on questions", "loss", rows, lambda panel, who, part: panel.score(who, items[part]))
        self._add("recall", "share", rows, _recalled(questions))

    def _plan_reviews(self, rows: Sequence[Row]) -> None:
        choices = {
            row["id"]: Choice(REVIEW_PROMPT.format(diff=row["diff"]), (row["right"], row["wrong"])) for row in rows
        }
        twins: dict[str, list[Row]] = {}
        for row in rows:
            twins.setdefault(row["pair"], []).append(row)
        pairs = list(twins.values())

        def margins(panel: RememberingPanel, who: str | None, asked: Sequence[Row]) -> list[float]:
            return [wrong - right for right, wrong in panel.choices(who, [choices[row["id"]] for row in asked])]

        def told_apart(panel: RememberingPanel, who: str | None, part: slice) -> list[float]:
            """A habit of one verdict raises one twin's margin and lowers the other's: only their sum shows judgement."""
            return [float(sum(margins(panel, who, pair)) > 0) for pair in pairs[part]]

        self._add("review margin", "margin", rows, lambda panel, who, part: margins(panel, who, rows[part]))
        self._add("reviews told apart", "share", [{"id": pair} for pair in twins], told_apart)

    def _add(self, name: str, kind: Kind, rows: Sequence[Row], ask: Ask) -> None:
        self._asked[name] = (kind, tuple(row["id"] for row in rows))
        for who in self._who:
            self._scores[name, who] = []
            for start in range(0, len(rows), PART_ITEMS):
                part = slice(start, start + PART_ITEMS)
                self.parts.append(partial(self._score, name=name, who=who, ask=ask, part=part))

    def _score(self, panel: RememberingPanel, *, name: str, who: str | None, ask: Ask, part: slice) -> None:
        self._scores[name, who] += ask(panel, who, part)

    def _time(self, panel: RememberingPanel, *, order: Sequence[str | None]) -> None:
        for who in order:
            measured = panel.panel.time_answer(
                who, LATENCY_PROMPT, num_tokens=self._config.latency_tokens, timer=self._timer
            )
            self._times[who].append(measured)


def _losses(rows: Sequence[Row]) -> Ask:
    items = [text_item(row["text"], item_id=row["id"]) for row in rows]
    return lambda panel, who, part: panel.score(who, items[part])


def _refusals(rows: Sequence[Row]) -> Ask:
    return lambda panel, who, part: [float(margin > 0) for margin in panel.margins(who, rows[part])]


def _followed(rows: Sequence[Row], max_tokens: int) -> Ask:
    instructions = [Instruction(row["prompt"], row["check"], row["value"]) for row in rows]  # type: ignore[arg-type]

    def ask(panel: RememberingPanel, who: str | None, part: slice) -> list[float]:
        answers = panel.answers(who, [one.prompt for one in instructions[part]], max_tokens=max_tokens)
        return [float(is_followed(one, answer)) for one, answer in zip(instructions[part], answers, strict=True)]

    return ask


def _recalled(questions: Sequence[Question]) -> Ask:
    def ask(panel: RememberingPanel, who: str | None, part: slice) -> list[float]:
        answers = panel.panel.answers_to(who, questions[part])
        return [float(answer_hits(answer, one.key)) for answer, one in zip(answers, questions[part], strict=True)]

    return ask
