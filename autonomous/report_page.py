"""The page of a version: its gates, its losses while it was trained, its scores beside those of V2 and of the original.

In: the ledger's record, the evaluation report and, where there is one, the benchmark. Out: one HTML page that needs nothing
from outside, in the style of the training pages (train.pretrain.page).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from autonomous.benchmark_report import BenchmarkReport, Comparison, Kind, MetricScores, interval_of
from autonomous.triggers import Trigger
from autonomous.versions.gate_results import GateResult
from autonomous.versions.report import EvaluationReport, SafetyProbe
from autonomous.versions.schema import VersionRecord
from train.pretrain.chart import Chart, Series, build_chart
from train.pretrain.page import page_environment

INTERVAL_CONFIDENCE = 0.9
"""Two-sided: each end is a one-sided bound of 95 %, as the gates'."""
INTERVAL_SAMPLES = 2000
WHO = ("this version", "V2", "original")
"""In the order of the page's colours."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mean with its interval: places from 0 to 100 on the row's own scale."""

    colour: int
    place: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of all who were asked. Its scale runs between the outermost ends of the intervals, a share's from 0 to 1."""

    name: str
    unit: str
    num_items: int
    marks: tuple[Mark, ...]
    outcomes: tuple[Comparison | None, ...]
    """Against V2 and against the original."""


def render_version(
    record: VersionRecord,
    report: EvaluationReport | None,
    benchmark: BenchmarkReport | None,
    *,
    triggers: Sequence[Trigger] = (),
) -> str:
    """The page. Without a benchmark the scores are those that the gates decided from."""
    metrics = benchmark.metrics if benchmark else () if report is None else metrics_of(report)
    rows = [metric_row(metric, benchmark.comparisons if benchmark else ()) for metric in metrics]
    return (
        page_environment("autonomous")
        .get_template("version.html.j2")
        .render(
            record=record,
            gates=[_gate(gate) for gate in record.gates],
            report=report,
            report_sha256=report.sha256() if report else "",
            benchmark=benchmark,
            created=_utc(record.created_at),
            benchmarked=_utc(benchmark.created_at) if benchmark else "",
            who=[name for number, name in enumerate(WHO) if any(m.colour == number for row in rows for m in row.marks)],
            colours={name: number for number, name in enumerate(WHO)},
            rows=rows,
            charts=[] if report is None else training_charts(report.training),
            triggers=triggers,
        )
    )


def metrics_of(report: EvaluationReport) -> tuple[MetricScores, ...]:
    """The scores of an evaluation in the form of a benchmark's."""
    found: list[MetricScores] = []

    def add(
        name: str, kind: Kind, candidate: Sequence[float], current: Sequence[float], original: Sequence[float]
    ) -> None:
        if len(candidate):
            items = tuple(map(str, range(len(candidate))))
            found.append(MetricScores(name, kind, items, tuple(candidate), tuple(current), tuple(original)))

    for scores in report.domains:
        add(f"loss on {scores['domain']}", "loss", scores["nll_candidate"], scores["nll_parent"], scores["nll_base"])
    add(
        "loss on control texts",
        "loss",
        report.control_nll_candidate,
        report.control_nll_parent,
        report.control_nll_base,
    )
    add("loss on questions", "loss", report.question_nll_candidate, report.question_nll_parent, ())
    recalled, recalled_parent = (list(map(float, hits)) for hits in (report.recall_candidate, report.recall_parent))
    add("recall", "share", recalled, recalled_parent, ())
    for asked in report.earlier:
        add(f"loss on earlier questions: {asked['domain']}", "loss", asked["nll_candidate"], asked["nll_parent"], ())
    for name, probes in (
        ("safety", report.safety),
        ("sentinel safety", report.sentinel_safety),
        ("privacy", report.privacy),
    ):
        add(name, "share", _refused(probes, "margin_candidate"), (), _refused(probes, "margin_base"))
    return tuple(found)


def metric_row(metric: MetricScores, comparisons: Sequence[Comparison]) -> MetricRow:
    """Means and intervals of whoever has finite scores, on one scale."""
    drawn: list[tuple[int, float, float, float]] = []
    for colour, scores in enumerate((metric.candidate, metric.current, metric.original)):
        if len(scores) and np.isfinite(scores).all():
            low, high = interval_of(scores, kind=metric.kind, confidence=INTERVAL_CONFIDENCE, samples=INTERVAL_SAMPLES)
            drawn.append((colour, float(np.mean(scores)), low, high))
    least, greatest = (
        (0.0, 1.0)
        if metric.kind == "share" or not drawn
        else (min(low for *_, low, _ in drawn), max(high for *_, high in drawn))
    )
    width = (greatest - least) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - least) / width, 2)

    return MetricRow(
        name=metric.name,
        unit="share" if metric.kind == "share" else "nats per token",
        num_items=len(metric.candidate),
        marks=tuple(
            Mark(
                colour,
                place(mean),
                place(low),
                place(high),
                f"{mean:.1%}" if metric.kind == "share" else f"{mean:.3f}",
            )
            for colour, mean, low, high in drawn
        ),
        outcomes=tuple(
            next((one for one in comparisons if (one.metric, one.against) == (metric.name, against)), None)
            for against in ("V2", "original")
        ),
    )


def training_charts(training: dict[str, Any]) -> list[tuple[str, str, Chart]]:
    """Title, explanation and drawing of what was recorded at each step of the training."""
    charts = []
    for key, title, explanation in (
        ("losses", "Loss", "Of the new items before each step, nats per token."),
        ("kls", "KL to the original", "On generic texts before each step, nats per token."),
        ("grad_norms", "Gradient norm", "Before clipping, L2."),
    ):
        values = np.array([np.nan if value is None else value for value in training.get(key) or ()], dtype=np.float64)
        steps = np.arange(1, len(values) + 1, dtype=np.float64)
        chart = build_chart([Series(steps, values, 0, "points")], starts_at_zero=True)
        if chart is not None:
            charts.append((title, explanation, chart))
    return charts


def _refused(probes: Sequence[SafetyProbe], side: str) -> list[float]:
    return [float(probe[side] > 0) for probe in probes]  # type: ignore[literal-required]


def _gate(gate: GateResult) -> dict[str, Any]:
    def told(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return {**gate.to_dict(), "value": told(gate.value), "threshold": told(gate.threshold)}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
