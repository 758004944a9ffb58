"""The page of continual learning: figures, heat maps, curves; names are escaped."""

from pathlib import Path

import numpy as np
import pytest

from train.continual.metrics import AccuracyMatrix, LossMatrix
from train.continual.report import Curve, WayReport, heat_map, render_html, write_report

ACCURACY = AccuracyMatrix.of([[0.9], [0.5, 1.0]])
LOSSES = LossMatrix(np.array([[2.0, 4.0], [3.0, 1.0]]), np.array([4.0, 5.0]))


def test_the_table_has_the_figures_of_the_matrix(tmp_path: Path) -> None:
    ways = [WayReport("naive <b>", ["one", "two"], ACCURACY, figures={"Seconds": "3"})]
    write_report(ways, path=tmp_path / "pages" / "report.html", title="Digits", note="five seeds")
    page = (tmp_path / "pages" / "report.html").read_text()
    assert "naive &lt;b&gt;" in page
    for text in ("75.0%", "95.0%", "40.0%", "five seeds", '<td class="n">3</td>'):
        assert text in page


def test_losses_are_shaded_by_their_distance_from_the_best_of_the_task() -> None:
    cells = heat_map(LOSSES)
    assert [[cell.shade for cell in row] for row in cells] == [[0, 7], [7, 0]]
    assert cells[1][0].text == "3.000"
    assert [cell.shade for cell in heat_map(ACCURACY)[0]] == [7, None]


def test_a_page_with_curves_draws_them_with_the_steps_at_which_tasks_begin() -> None:
    curves = {name: Curve([0, 10, 20], [4.0, 2.0, 3.0]) for name in ("one", "two")}
    page = render_html([WayReport("x", ["one", "two"], LOSSES, curves=curves, begins=[0, 10])], title="Text")
    assert page.count("points run") == 2
    assert 'over steps"' in page
    assert "<title>two</title>" in page
    assert "before" in page


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ways is empty"):
        render_html([], title="x")
    with pytest.raises(ValueError, match="x: the matrix has 2 tasks, and 1 are named"):
        render_html([WayReport("x", ["one"], LOSSES)], title="x")
