"""Chart: lines, points and levels over tokens as paths of SVG, with ticks in percent; the page lays out the labels.

In: series of numbers. Out: what templates/report.html.j2 draws. The drawing area is WIDTH by HEIGHT whatever the page's width:
it is stretched, its strokes are not, and all text is HTML beside it, so that it can be read on a telephone too.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 1000, 300
MAX_POINTS = 400
"""Of a line; more are joined to means."""
LEVELS = 8
"""Shades of a heat map."""
MAX_COLUMNS = 80
"""Of a heat map."""

Floats = npt.NDArray[np.float64]
Scale = Literal["linear", "log"]
SeriesKind = Literal["line", "points", "faint"]


@dataclass(frozen=True, slots=True)
class Series:
    """One line. Values that are not finite are left out."""

    x: Floats
    y: Floats
    colour: int
    """Number of the run."""
    kind: SeriesKind = "line"
    """`points`: a line with a dot at each value. `faint`: a thin line, in a band from the least to the greatest value."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at `place`, percent from the left or from the top."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Path:
    """The attribute `d`, and the classes that style it."""

    classes: str
    d: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Drawn."""

    paths: list[Path]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    levels: list[Tick] = field(default_factory=list)
    """Horizontal lines."""
    marks: list[Tick] = field(default_factory=list)
    """Vertical lines."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A row per layer, a column per span of tokens."""

    paths: list[Path]
    """One per shade, the lightest first."""
    legend: list[str]
    """Range of values of each shade."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    last: list[Tick]
    """Values of the last column."""
    num_rows: int


@dataclass(frozen=True, slots=True)
class Thinned:
    """At most so many points: means of neighbours, and their least and greatest values."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def thin(x: Floats, y: Floats, *, max_points: int = MAX_POINTS) -> Thinned:
    """The finite points, joined to groups of neighbours where they are more than `max_points`."""
    is_finite = np.isfinite(y)
    x, y = x[is_finite], y[is_finite]
    if len(y) <= max_points:
        return Thinned(x, y, y, y)
    starts = np.linspace(0, len(y), max_points, endpoint=False).astype(np.int64)
    sizes = np.diff(np.append(starts, len(y)))
    return Thinned(
        np.add.reduceat(x, starts) / sizes,
        np.add.reduceat(y, starts) / sizes,
        np.minimum.reduceat(y, starts),
        np.maximum.reduceat(y, starts),
    )


def build_chart(
    series: Sequence[Series],
    *,
    scale: Scale = "linear",
    levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[tuple[str, float]] = (),
    starts_at_zero: bool = False,
) -> Chart | None:
    """None without a value to draw. `levels`: values of y with a name, `marks`: of x. `log` leaves out what is not above 0."""
    levels = [(name, value) for name, value in levels if math.isfinite(value)]
    thinned = [thin(one.x, np.where(one.y > 0, one.y, np.nan) if scale == "log" else one.y) for one in series]
    if not any(len(one.mean) for one in thinned):
        return None
    to_y = np.log10 if scale == "log" else np.asarray
    is_band = [one.kind == "faint" for one in series]
    low, high = _range(
        [to_y(one.low if band else one.mean) for one, band in zip(thinned, is_band, strict=True)],
        [to_y(one.high if band else one.mean) for one, band in zip(thinned, is_band, strict=True)],
        levels=[float(to_y(value)) for _, value in levels],
    )
    low = min(low, 0.0) if starts_at_zero else low
    end = max(float(one.x[-1]) for one in thinned if len(one.x)) or 1.0

    def place_x(x: Floats) -> Floats:
        return x / end * WIDTH

    def place_y(y: Floats) -> Floats:
        # What is far beyond the range is cut by the drawing area; a limit keeps the numbers short.
        return np.clip((high - to_y(y)) / (high - low) * HEIGHT, -HEIGHT, 2 * HEIGHT)

    def percent(y: float) -> float:
        return round(100 * (high - y) / (high - low), 2)

    paths: list[Path] = []
    for one, points in zip(series, thinned, strict=True):
        x = place_x(points.x)
        if one.kind == "faint" and (points.high > points.low).any():
            edge = _points(x, place_y(points.high)) + _points(x, place_y(points.low))[::-1]
            paths.append(Path(f"band run{one.colour}", f"M{' '.join(edge)}z"))
        line = _points(x, place_y(points.mean))
        if line:
            paths.append(Path(f"{one.kind} run{one.colour}", f"M{' '.join(line)}"))
        if one.kind == "points" or len(line) == 1:  # a round cap on a line of no length is a dot that is not stretched
            paths.append(Path(f"dots run{one.colour}", "".join(f"M{point}h0" for point in line)))
    ticks = _log_ticks(low, high) if scale == "log" else [(value, value) for value in _nice(low, high, most=6)]
    return Chart(
        paths,
        _x_ticks(end),
        [Tick(percent(place), f"{value:.10g}") for place, value in ticks],
        [Tick(percent(float(to_y(value))), f"{name} {value:.3f}") for name, value in levels],
        _distinct([Tick(round(100 * min(value / end, 1.0), 1), name) for name, value in marks]),
    )


def build_heat_map(x: Floats, values: Floats, *, least: float) -> HeatMap | None:
    """`values` [times, rows]; `least` is the value of the lightest shade. None without values."""
    is_measured = np.isfinite(values).all(1)
    if not values.shape[1] or not is_measured.any():
        return None
    rows = [thin(x[is_measured], row, max_points=MAX_COLUMNS) for row in values[is_measured].T]
    num_rows, shown = len(rows), np.array([one.mean for one in rows])
    top = max(float(shown.max()), least + 1e-9)
    shades = np.clip((shown - least) / (top - least) * LEVELS, 0, LEVELS - 1).astype(np.int64)
    end = float(rows[0].x[-1]) or 1.0
    edges, height = np.append(0, rows[0].x) / end * WIDTH, HEIGHT / num_rows
    paths = []
    for shade in range(LEVELS):
        cells = [
            f"M{_short(edges[start])} {_short(row * height)}H{_short(edges[stop])}v{_short(height)}H{_short(edges[start])}z"
            for row in range(num_rows)
            for start, stop in _runs(shades[row] == shade)
        ]
        paths.append(Path(f"shade{shade}", "".join(cells)))
    steps = np.linspace(least, top, LEVELS + 1)
    every = math.ceil(num_rows / 16)
    middles = [(row, round(100 * (row + 0.5) / num_rows, 2)) for row in range(0, num_rows, every)]
    return HeatMap(
        paths,
        [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(steps)],
        _x_ticks(end),
        [Tick(middle, str(row)) for row, middle in middles],
        [Tick(middle, f"{shown[row, -1]:.3g}") for row, middle in middles],
        num_rows,
    )


def short_count(value: float) -> str:
    """1500000 as 1.5M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _range(lows: list[Floats], highs: list[Floats], *, levels: list[float]) -> tuple[float, float]:
    """Of y. A spike does not press the rest together: 1 % of the least and of the greatest values of a line may be cut, but
    never its first."""
    least = [min(np.quantile(one, 0.01, method="lower"), one[0]) for one in lows if len(one)]
    greatest = [max(np.quantile(one, 0.99, method="higher"), one[0]) for one in highs if len(one)]
    low, high = float(min(least + levels)), float(max(greatest + levels))
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _nice(low: float, high: float, *, most: int) -> list[float]:
    """At most so many multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, float]]:
    """(place, value): powers of ten, with their multiples where the range is small."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    every = max(1, math.ceil((high - low) / 6))
    powers = range(math.floor(low), math.ceil(high) + 1, every)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [(math.log10(value), value) for value in values if low <= math.log10(value) <= high]


def _x_ticks(end: float) -> list[Tick]:
    return [Tick(round(100 * value / end, 2), short_count(value)) for value in _nice(0, end, most=5)]


def _points(x: Floats, y: Floats) -> list[str]:
    return [f"{_short(left)},{_short(top)}" for left, top in zip(x.tolist(), y.tolist(), strict=True)]


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _runs(is_in: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end of each run of True."""
    changes = np.flatnonzero(np.diff(np.concatenate(([0], is_in.astype(np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in changes.reshape(-1, 2)]


def _distinct(marks: list[Tick]) -> list[Tick]:
    """Those that would be drawn on each other once."""
    return [Tick(place, label) for place, label in dict.fromkeys((mark.place, mark.label) for mark in marks)]
