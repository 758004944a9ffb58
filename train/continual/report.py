"""The report of continual learning: one HTML file with what tasks did to each other, for each way that was tried.

In: for each way its matrix of scores, and where they were measured while it learned the loss of every task over the steps.
Out: a table of the ways, and for each a heat map of its matrix and its curves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from train.continual.metrics import AccuracyMatrix, LossMatrix
from train.pretrain.chart import LEVELS, Chart, Series, build_chart
from train.pretrain.page import page_environment

NUM_COLOURS = 6
"""Of the page's lines; with more tasks they are used again."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A task's loss while all of them were learned."""

    steps: Sequence[int]
    losses: Sequence[float]
    """Nats per token."""


@dataclass(frozen=True, slots=True)
class WayReport:
    """One way to learn the tasks."""

    name: str
    tasks: Sequence[str]
    """In the order in which they were learned."""
    matrix: AccuracyMatrix | LossMatrix
    figures: Mapping[str, str] = field(default_factory=dict)
    """What else the table says of it, by column."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """By task."""
    begins: Sequence[int] = ()
    """The step at which each task began."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Of a heat map. `shade`: 0 the lightest; None: not measured."""

    text: str
    shade: int | None


@dataclass(frozen=True, slots=True)
class _Panel:
    name: str
    tasks: Sequence[str]
    explanation: str
    rows: list[tuple[str, list[Cell]]]
    chart: Chart | None


def write_report(ways: Sequence[WayReport], *, path: Path, title: str, note: str = "") -> None:
    """Write the page. Raises ValueError without a way, and for a matrix of other tasks; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(ways, title=title, note=note), "utf-8")


def render_html(ways: Sequence[WayReport], *, title: str, note: str = "") -> str:
    """The page. `note`: how the numbers were made."""
    if not ways:
        raise ValueError("ways is empty: give at least one")
    for way in ways:
        size = len(_values(way.matrix))
        if size != len(way.tasks):
            raise ValueError(f"{way.name}: the matrix has {size} tasks, and {len(way.tasks)} are named: name them all")
    columns = list(dict.fromkeys(column for way in ways for column in (*_figures(way), *way.figures)))
    return (
        page_environment("train.continual")
        .get_template("continual.html.j2")
        .render(
            title=title,
            note=note,
            columns=columns,
            rows=[
                (way.name, [(_figures(way) | dict(way.figures)).get(column, "") for column in columns]) for way in ways
            ],
            panels=[_panel(way) for way in ways],
            num_colours=NUM_COLOURS,
        )
    )


def heat_map(matrix: AccuracyMatrix | LossMatrix) -> list[list[Cell]]:
    """Accuracies as they are, from 0 to 1; losses by how far they lie above the best of their column, up to a half."""
    values = _values(matrix)
    is_accuracy = isinstance(matrix, AccuracyMatrix)
    best = np.nanmin(values, axis=0)
    cells = []
    for row in values:
        shades = row if is_accuracy else 2 * (row - best) / best
        cells.append(
            [
                Cell("", None)
                if np.isnan(value)
                else Cell(
                    f"{100 * value:.1f}" if is_accuracy else f"{value:.3f}", int(np.clip(shade * LEVELS, 0, LEVELS - 1))
                )
                for value, shade in zip(row, shades, strict=True)
            ]
        )
    return cells


def _panel(way: WayReport) -> _Panel:
    cells = heat_map(way.matrix)
    rows = [(f"after {name}", row) for name, row in zip(way.tasks, cells, strict=True)]
    if isinstance(way.matrix, LossMatrix):
        untrained = [Cell(f"{value:.3f}", None) for value in way.matrix.untrained]
        rows.insert(0, ("before", untrained))
        explanation = "Held-out loss of each task, nats per token. The darker, the further above the task's best loss."
    else:
        explanation = "Accuracy on each task, percent. The darker, the higher."
    series = [
        Series(np.asarray(curve.steps, np.float64), np.asarray(curve.losses, np.float64), index % NUM_COLOURS, "points")
        for index, curve in enumerate(way.curves.get(name, Curve((), ())) for name in way.tasks)
    ]
    marks = [(name, float(step)) for name, step in zip(way.tasks, way.begins, strict=False)]
    return _Panel(way.name, way.tasks, explanation, rows, build_chart(series, marks=marks) if way.curves else None)


def _figures(way: WayReport) -> dict[str, str]:
    matrix = way.matrix
    if isinstance(matrix, AccuracyMatrix):
        return {
            "Accuracy": f"{matrix.average:.1%}", "Learning": f"{matrix.learning:.1%}",
            "Backward": f"{matrix.backward_transfer:+.1%}", "Forgetting": f"{matrix.forgetting:.1%}",
            "Worst task": f"{matrix.worst_forgetting:.1%}",
        }  # fmt: skip
    drops = matrix.drop_per_domain
    return {
        "Loss": f"{matrix.average:.3f}",
        "Learned, nats": f"{matrix.learned.mean():.3f}",
        "Backward": f"{matrix.backward_transfer:+.3f}",
        "Forward": f"{matrix.forward_transfer:+.3f}",
        "Forgetting": f"{drops.mean() if drops.size else 0.0:.1%}",
        "Worst task": f"{matrix.worst_drop:.1%}",
    }


def _values(matrix: AccuracyMatrix | LossMatrix) -> np.ndarray:
    return matrix.scores if isinstance(matrix, AccuracyMatrix) else matrix.losses
