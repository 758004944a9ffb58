"""The report of pre-training runs: one HTML file that needs nothing from outside, with runs drawn over each other.

In: RunLogs, the first of which is the run in question, the others what it is compared with. Out: losses over tokens with the
baselines' levels, learning rate, gradient norm, speed, where the time went, expert load, events, samples, configuration.
However long a run was, the page stays small: lines are thinned, lists and texts cut, and the page says so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from train.pretrain.chart import Chart, HeatMap, Series, build_chart, build_heat_map
from train.pretrain.page import page_environment
from train.pretrain.run_log import EventRecord, RunLog, SampleRecord

MAX_RUNS = 6
"""Colours of the page."""
MAX_EVENTS, MAX_SAMPLES, MAX_SETTINGS = 200, 24, 400
"""Rows of a table; those between the first and the last go, evenly."""
MAX_TEXT, MAX_DETAIL = 2000, 300
"""Characters of a text of the model, and of a cell."""
CHECKPOINT = "checkpoint"
"""The one event without a line in the chart of losses: there are too many."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunRow:
    """Figures of one run. None where nothing was measured."""

    name: str
    colour: int
    num_steps: int
    tokens: int
    train_loss: float | None
    """Mean of the last hundredth of the steps."""
    held_out_loss: float | None
    best_held_out_loss: float | None
    tokens_per_s: float | None
    """Median."""
    mfu: float | None
    """Median."""
    below: dict[str, float]
    """For each baseline, how much lower the last held-out loss is."""
    num_torn: int


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart under a title."""

    title: str
    explanation: str
    chart: Chart


@dataclass(frozen=True, slots=True)
class LoadPanel:
    """A heat map of a run's experts under a title."""

    title: str
    explanation: str
    colour: int
    chart: HeatMap


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting of the configuration in all runs."""

    name: str
    values: list[str]
    is_different: bool


def write_report(runs: Sequence[RunLog], *, path: Path, title: str = "Pre-training") -> None:
    """Write the page. Raises ValueError for no run, too many, or two of one name; OSError."""
    path.write_text(render_html(runs, title=title), "utf-8")


def render_html(runs: Sequence[RunLog], *, title: str) -> str:
    """The page. Everything that came from the runs is escaped."""
    names = [run.name for run in runs]
    if not 0 < len(runs) <= MAX_RUNS or len(set(names)) < len(names):
        raise ValueError(f"runs = {names}: give 1 to {MAX_RUNS} runs, each with a name of its own")
    events = [(number, event) for number, run in enumerate(runs) for event in run.events]
    samples = [(number, sample) for number, run in enumerate(runs) for sample in run.samples]
    baselines = _baselines(runs)
    settings = _settings(runs)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            names=names,
            rows=[_row(run, number, baselines=baselines) for number, run in enumerate(runs)],
            baselines=baselines,
            panels=_panels(runs, baselines=baselines),
            loads=[panel for number, run in enumerate(runs) for panel in _loads(run, number, has_name=len(runs) > 1)],
            seconds=[
                (number, _seconds(run)) for number, run in enumerate(runs) if any(step.seconds for step in run.steps)
            ],
            event_counts=[(number, dict(Counter(one.event for one in run.events))) for number, run in enumerate(runs)],
            events=[_event(number, event) for number, event in _spread(events, MAX_EVENTS)],
            num_events=len(events),
            samples=[_sample(number, sample) for number, sample in _spread(samples, MAX_SAMPLES)],
            num_samples=len(samples),
            settings=settings[:MAX_SETTINGS],
            num_settings=len(settings),
        )
    )


def _row(run: RunLog, colour: int, *, baselines: Mapping[str, float]) -> RunRow:
    held_out = [one.loss for one in run.evaluations if np.isfinite(one.loss)]
    losses = run.column("loss")
    return RunRow(
        name=run.name,
        colour=colour,
        num_steps=run.steps[-1].step if run.steps else 0,
        tokens=run.steps[-1].tokens if run.steps else 0,
        train_loss=_finite(np.nanmean, losses[-max(1, len(losses) // 100) :]),
        held_out_loss=held_out[-1] if held_out else None,
        best_held_out_loss=min(held_out, default=None),
        tokens_per_s=_finite(np.nanmedian, run.column("tokens_per_s")),
        mfu=_finite(np.nanmedian, run.column("mfu")),
        below={name: loss - held_out[-1] for name, loss in baselines.items()} if held_out else {},
        num_torn=run.num_torn,
    )


def _finite(statistic: Any, values: Any) -> float | None:
    values = values[np.isfinite(values)]
    return float(statistic(values)) if len(values) else None


def _baselines(runs: Sequence[RunLog]) -> dict[str, float]:
    """By name; where runs have different values under one name, with the run's name."""
    found: dict[str, float] = {}
    for run in runs:
        for name, loss in run.baselines.items():
            is_taken = name in found and round(found[name], 4) != round(loss, 4)
            found[f"{name} ({run.name})" if is_taken else name] = loss
    return found


def _panels(runs: Sequence[RunLog], *, baselines: Mapping[str, float]) -> list[Panel]:
    tokens = [run.column("tokens") for run in runs]

    def lines(name: str) -> list[Series]:
        return [Series(tokens[number], run.column(name), number) for number, run in enumerate(runs)]

    faint = [Series(one.x, one.y, one.colour, "faint") for one in lines("loss")]
    held_out = [
        Series(
            np.array([one.tokens for one in run.evaluations], np.float64),
            np.array([one.loss for one in run.evaluations], np.float64),
            number,
            "points",
        )
        for number, run in enumerate(runs)
    ]
    marks = []
    for run in runs:
        events = [one for one in run.events if one.event != CHECKPOINT]
        places = run.tokens_at([one.step for one in events])
        marks += [(one.event, place) for one, place in zip(events, places, strict=True)]
    charts = (
        (
            "Loss",
            "Nats per token over tokens read. Dots: held-out data. Thin: training, the mean of neighbouring steps in a band "
            "from their least to their greatest. Dashed: baselines. Vertical: events, which are listed below.",
            build_chart([*faint, *held_out], levels=list(baselines.items()), marks=marks),
        ),
        ("Learning rate", "Of the schedule.", build_chart(lines("lr"), starts_at_zero=True)),
        ("Gradient norm", "Before clipping, logarithmic.", build_chart(lines("grad_norm"), scale="log")),
        ("Speed", "Tokens per second, over all ranks.", build_chart(lines("tokens_per_s"), starts_at_zero=True)),
    )
    return [Panel(title, explanation, chart) for title, explanation, chart in charts if chart is not None]


def _loads(run: RunLog, colour: int, *, has_name: bool) -> list[LoadPanel]:
    tokens = run.column("tokens")
    suffix = f": {run.name}" if has_name else ""
    maps = (
        (
            "Expert load",
            "Of the busiest expert over the mean, by layer with experts (left) and tokens; 1 is even. Right: the last column.",
            build_heat_map(tokens, run.layers("expert_max_over_mean"), least=1.0),
        ),
        (
            "Dead experts",
            "Experts that got no token in a step, by layer with experts (left) and tokens. Right: the last column.",
            build_heat_map(tokens, run.layers("dead_experts"), least=0.0),
        ),
    )
    return [
        LoadPanel(f"{title}{suffix}", explanation, colour, chart)
        for title, explanation, chart in maps
        if chart is not None
    ]


def _seconds(run: RunLog) -> list[tuple[str, float, float]]:
    """(phase, seconds, share), the longest first."""
    total: Counter[str] = Counter()
    for step in run.steps:
        total.update(step.seconds)
    whole = sum(total.values()) or 1
    return [(phase, seconds, seconds / whole) for phase, seconds in total.most_common()]


def _event(number: int, event: EventRecord) -> tuple[int, int, str, str]:
    detail = event.detail if isinstance(event.detail, str) else json.dumps(event.detail)
    return number, event.step, event.event, _cut(detail, MAX_DETAIL)


def _sample(number: int, sample: SampleRecord) -> tuple[int, int, str, str]:
    return number, sample.step, _cut(sample.prompt, MAX_TEXT), _cut(sample.text, MAX_TEXT)


def _settings(runs: Sequence[RunLog]) -> list[SettingRow]:
    """Those that differ first."""
    flat = [_flatten(run.config) for run in runs]
    rows = []
    for name in dict.fromkeys(name for one in flat for name in one):
        values = [_cut(one.get(name, "-"), MAX_DETAIL) for one in flat]
        rows.append(SettingRow(name, values, len({one.get(name) for one in flat}) > 1))
    return sorted(rows, key=lambda row: not row.is_different)


def _flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flatten(value, prefix=f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def _spread(items: Sequence[T], most: int) -> Sequence[T]:
    """So many of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int).tolist()]
