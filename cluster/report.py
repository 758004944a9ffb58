"""What a guided run really did, as JSON and as one HTML page that needs nothing from outside.

In flow the records that cluster/guided.py fills in as it goes; out flow demo-report.json and demo-report.html.
"""

import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from cluster.bench import Claim

JSON_NAME = "demo-report.json"
HTML_NAME = "demo-report.html"
CURVE_WIDTH, CURVE_HEIGHT = 640, 220
_MARGIN_LEFT, _MARGIN_BOTTOM, _MARGIN = 46, 30, 12


class Record(BaseModel):
    """Base of the parts of a report."""

    model_config = ConfigDict(extra="forbid")


class Step(Record):
    """One step of the run, as it happened."""

    name: str
    seconds: float
    result: str


class AnswerRecord(Record):
    """One answer. `hit`: it holds the expected key."""

    text: str
    version: str
    hit: bool
    seconds: float
    timings: dict[str, float] = Field(default_factory=dict)
    sources: list[dict[str, Any]] = Field(default_factory=list)


class QuestionRecord(Record):
    """One question with its answers; None where it was not asked."""

    question: str
    reworded: str
    """The same question in words that training never shows."""
    document: str
    expected: str
    key: str
    before: AnswerRecord | None = None
    """From the weights alone, before learning."""
    with_sources: AnswerRecord | None = None
    """With retrieval, before learning."""
    after: AnswerRecord | None = None
    """From the weights alone, after learning."""
    after_reworded: AnswerRecord | None = None
    """The reworded question, from the weights alone, after learning."""


class LearningRecord(Record):
    """A learning run. `curve` is (step, loss in nats per token)."""

    run_id: str
    phase: str
    version: str | None
    state: str | None
    outcome: str
    seconds: float
    curve: list[tuple[int, float]] = Field(default_factory=list)
    gates: list[dict[str, Any]] = Field(default_factory=list)
    timings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class Check(Record):
    """One thing that had to happen, and what happened."""

    name: str
    expected: str
    observed: str
    is_ok: bool
    seconds: float


class GuidedReport(Record):
    """The whole run. Times in seconds, moments in seconds since the epoch."""

    started_at: float
    seconds: float = 0.0
    environment: dict[str, Any] = Field(default_factory=dict)
    stages: dict[str, float] = Field(default_factory=dict)
    """Where bringing the system up took its time; empty if it was up already."""
    feed: dict[str, Any] = Field(default_factory=dict)
    questions: list[QuestionRecord] = Field(default_factory=list)
    learning: LearningRecord | None = None
    stop: list[Check] = Field(default_factory=list)
    targets: list[Claim] = Field(default_factory=list)
    steps: list[Step] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader must know to judge the numbers."""
    url: str = ""
    is_left_up: bool = False
    error: str | None = None
    """Why the run ended early."""

    @property
    def is_ok(self) -> bool:
        """It went through, and the emergency stop did its duty. A quarantined version is a result, not a failure."""
        return self.error is None and all(check.is_ok for check in self.stop)

    def num_hits(self, which: str) -> int:
        """How many answers of one kind ("before", "with_sources", "after", "after_reworded") hold their key."""
        return sum(1 for question in self.questions if (answer := getattr(question, which)) and answer.hit)


def write_report(report: GuidedReport, *, folder: Path) -> tuple[Path, Path]:
    """Write the two files into `folder`; returns their paths (JSON, HTML)."""
    json_path, html_path = folder / JSON_NAME, folder / HTML_NAME
    json_path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    html_path.write_text(render_html(report), encoding="utf-8")
    return json_path, html_path


def render_html(report: GuidedReport) -> str:
    """The page. Everything that came from documents or from the model is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["moment"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    environment.filters["number"] = _number
    curve = draw_curve(report.learning.curve) if report.learning else Markup("")
    return environment.get_template("report.html.j2").render(report=report, curve=curve)


def draw_curve(points: list[tuple[int, float]]) -> Markup:
    """The learning curve as inline SVG: step to the right, loss upwards from 0. Empty for fewer than 2 points."""
    if len(points) < 2:
        return Markup("")
    last_step, top = points[-1][0], max(loss for _, loss in points) * 1.05 or 1.0
    inner_width = CURVE_WIDTH - _MARGIN_LEFT - _MARGIN
    inner_height = CURVE_HEIGHT - _MARGIN_BOTTOM - _MARGIN

    def x_of(step: float) -> float:
        return _MARGIN_LEFT + inner_width * step / last_step

    def y_of(loss: float) -> float:
        return _MARGIN + inner_height * (1 - loss / top)

    line = " ".join(f"{x_of(step):.1f},{y_of(loss):.1f}" for step, loss in points)
    dots = "".join(f'<circle cx="{x_of(step):.1f}" cy="{y_of(loss):.1f}" r="2.5"/>' for step, loss in points)
    ticks = "".join(
        f'<path class="grid" d="M{_MARGIN_LEFT} {y_of(loss):.1f} H{CURVE_WIDTH - _MARGIN}"/>'
        f'<text x="{_MARGIN_LEFT - 6}" y="{y_of(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
        for loss in (top * part for part in (0.0, 0.25, 0.5, 0.75, 1.0))
    )
    labels = "".join(
        f'<text x="{x_of(step):.1f}" y="{CURVE_HEIGHT - 10}" text-anchor="middle">{step}</text>'
        for step in sorted({points[0][0], last_step // 2, last_step} - {0})
    )
    return Markup(  # only numbers went in
        f'<svg viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" aria-label="loss by step">{ticks}{labels}'
        f'<polyline points="{line}"/>{dots}</svg>'
    )


def _number(value: Any) -> str:
    """A measured value for a table cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
