"""Geometry of the report's charts."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.pretrain.chart import (
    HEIGHT,
    LEVELS,
    MAX_COLUMNS,
    WIDTH,
    Chart,
    Scale,
    Series,
    build_chart,
    build_heat_map,
    short_count,
    thin,
)


def _points_of(chart: Chart, classes: str) -> np.ndarray:
    path = next(one for one in chart.paths if one.classes == classes)
    return np.array([[float(number) for number in point.split(",")] for point in path.d.strip("Mz").split(" ")])


def _chart(x: list[float], y: list[float], **options: object) -> Chart:
    chart = build_chart([Series(np.array(x), np.array(y), 0)], **options)  # type: ignore[arg-type]
    assert chart is not None
    return chart


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=300), st.integers(1, 50))
@settings(deadline=None)
def test_thinning_keeps_the_mean_and_the_extremes(values: list[float], most: int) -> None:
    y = np.array(values, np.float64)
    x = np.arange(len(y), dtype=np.float64)
    found = thin(x, y, max_points=most)
    finite = y[np.isfinite(y)]
    assert len(found.mean) == min(len(finite), most)
    assert (found.low <= found.mean + 1e-6).all()
    assert (found.mean <= found.high + 1e-6).all()
    assert (np.diff(found.x) > 0).all()
    if len(finite):
        assert (found.low.min(), found.high.max()) == (finite.min(), finite.max())
    if len(finite) % most == 0 and len(finite):
        assert found.mean.mean() == pytest.approx(finite.mean(), abs=1e-6)
    if len(finite) <= most:
        np.testing.assert_array_equal(found.mean, finite)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_value_is_drawn_where_the_ticks_and_levels_say(scale: Scale) -> None:
    chart = _chart([0, 50, 100], [1, 10, 5], scale=scale, levels=[("bigram", 5.0)])
    points = _points_of(chart, "line run0")
    assert points[:, 0].tolist() == [0, WIDTH / 2, WIDTH]
    assert points[1, 1] < points[2, 1] < points[0, 1]  # above is more
    assert chart.levels[0].label == "bigram 5.000"
    assert points[2, 1] == pytest.approx(chart.levels[0].place / 100 * HEIGHT, abs=0.1)
    inside = [tick for tick in chart.y_ticks if 1 <= float(tick.label) <= 10]
    levels = [(tick.label, float(tick.label)) for tick in inside]
    same = _chart([0, 50, 100], [1, 10, 5], scale=scale, levels=levels)
    assert [level.place for level in same.levels] == [tick.place for tick in inside]
    assert len(inside) >= 3
    assert [(tick.label, tick.place) for tick in chart.x_ticks][:3] == [("0", 0), ("20", 20), ("40", 40)]


def test_a_spike_does_not_press_the_other_values_together() -> None:
    x, y = np.arange(300.0), np.linspace(9, 3, 300)
    calm = _points_of(_chart(x.tolist(), y.tolist()), "line run0")
    spiked_y = y.copy()
    spiked_y[150] = 1e9
    spiked = _points_of(_chart(x.tolist(), spiked_y.tolist()), "line run0")
    assert abs(np.delete(calm - spiked, 150, axis=0)).max() < HEIGHT / 50
    assert spiked[150, 1] < 0  # beyond the drawing area, which cuts it
    assert spiked[0, 1] > 0


def test_a_thinned_faint_line_lies_in_a_band_of_its_extremes() -> None:
    x = np.arange(4000.0)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    chart = build_chart([Series(x, y, 2, "faint")])
    assert chart is not None
    band, line = _points_of(chart, "band run2"), _points_of(chart, "faint run2")
    assert len(band) == 2 * len(line)
    top, bottom = band[:, 1].min(), band[:, 1].max()
    assert 0 <= top < bottom <= HEIGHT
    np.testing.assert_allclose(line[:, 1], (top + bottom) / 2, atol=0.2)


def test_there_is_no_chart_without_a_value_and_one_value_is_a_dot() -> None:
    nothing = np.array([np.nan, np.nan])
    assert build_chart([Series(np.array([1.0, 2.0]), nothing, 0)]) is None
    assert build_chart([Series(np.array([1.0]), np.array([0.0]), 0)], scale="log") is None
    assert build_chart([], levels=[("bigram", 4.0)]) is None
    chart = _chart([7], [2])
    assert [path.classes for path in chart.paths] == ["line run0", "dots run0"]
    assert chart.y_ticks


def test_marks_at_one_place_are_drawn_once() -> None:
    marks = [("skip", 10.0), ("skip", 10.01), ("rewind", 10.0), ("skip", 60.0), ("late", 900.0)]
    chart = _chart([0, 100], [1, 2], marks=marks)
    assert [(mark.label, mark.place) for mark in chart.marks] == [
        ("skip", 10),
        ("rewind", 10),
        ("skip", 60),
        ("late", 100),
    ]


def _cells(d: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)v([\d.]+)H([\d.]+)z", d)
    assert "".join("M{} {}H{}v{}H{}z".format(*one) for one in found) == d
    return [(float(left), float(top), float(right), float(height)) for left, top, right, height, _ in found]


@given(st.integers(1, 200), st.integers(1, 7), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_the_cells_of_a_heat_map_cover_it_once(num_times: int, num_rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).exponential(1, (num_times, num_rows)) + 1
    found = build_heat_map(np.arange(1.0, num_times + 1), values, least=1.0)
    assert found is not None
    assert len(found.paths) == len(found.legend) == LEVELS
    cells = [cell for path in found.paths for cell in _cells(path.d)]
    assert len(cells) <= num_rows * MAX_COLUMNS
    area = sum((right - left) * height for left, _, right, height in cells)
    assert area == pytest.approx(WIDTH * HEIGHT, rel=0.01)


def test_a_darker_shade_is_a_greater_value_and_the_last_ones_stand_beside_their_row() -> None:
    values = np.array([[1.0, 9.0], [1.0, 5.0], [np.nan, 7.0], [3.0, 1.0]])
    found = build_heat_map(np.array([1.0, 2.0, 3.0, 4.0]), values, least=1.0)
    assert found is not None
    assert found.paths[LEVELS - 1].d == "M0 150H250v150H0z"  # 9, of the second row, in the first quarter
    assert [tick.label for tick in found.last] == ["3", "1"]  # the time that was not measured in all rows is left out
    assert [tick.place for tick in found.last] == [25, 75]
    assert build_heat_map(np.array([1.0]), np.empty((1, 0)), least=0) is None
    assert build_heat_map(np.array([1.0]), np.array([[np.nan]]), least=0) is None


def test_counts_are_written_short() -> None:
    assert [short_count(value) for value in (0, 999, 1500, 20e6, 1.25e9, 15e12)] == [
        "0", "999", "1.5k", "20M", "1.25B", "15T",
    ]  # fmt: skip
