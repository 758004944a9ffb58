"""Metrics of continual learning on matrices that are worked out by hand."""

import numpy as np
import pytest

from train.continual.metrics import AccuracyMatrix, LossMatrix, recovered_fraction

ROWS = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]
UNTRAINED = [0.1, 0.1, 0.2]


def test_the_numbers_of_a_matrix_made_by_hand():
    matrix = AccuracyMatrix.of(ROWS, untrained=UNTRAINED)
    assert matrix.average == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert matrix.learning == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert matrix.backward_transfer == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert matrix.forward_transfer == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert matrix.forgetting_per_task.tolist() == pytest.approx([0.2, 0.3])
    assert matrix.forgetting == pytest.approx(0.25)
    assert matrix.worst_forgetting == pytest.approx(0.3)


def test_forgetting_counts_from_the_best_score_of_the_history_and_is_never_negative():
    matrix = AccuracyMatrix.of([[0.5], [0.9, 0.5], [0.8, 0.7, 0.5]])
    assert matrix.forgetting_per_task.tolist() == pytest.approx([0.1, 0.0])
    assert matrix.backward_transfer == pytest.approx(((0.8 - 0.5) + (0.7 - 0.5)) / 2)


def test_a_single_task_forgets_nothing():
    matrix = AccuracyMatrix.of([[0.7]], untrained=[0.1])
    assert (matrix.forgetting, matrix.worst_forgetting, matrix.backward_transfer, matrix.forward_transfer) == (
        0,
        0,
        0,
        0,
    )


def test_nothing_that_is_given_is_changed():
    rows, scores = [list(row) for row in ROWS], np.array(ROWS)
    matrices = AccuracyMatrix.of(rows, untrained=UNTRAINED), AccuracyMatrix(scores)
    _ = [(one.average, one.learning, one.forgetting, one.worst_forgetting, one.backward_transfer) for one in matrices]
    assert rows == ROWS
    assert scores.tolist() == ROWS


def test_what_was_not_scored_is_named():
    with pytest.raises(ValueError, match="scores lacks a task that was learned already"):
        AccuracyMatrix.of([[0.5], [0.5]])
    with pytest.raises(ValueError, match="forward transfer needs the scores of tasks to come"):
        _ = AccuracyMatrix.of([[0.5], [0.5, 0.5]]).forward_transfer
    with pytest.raises(ValueError, match=r"shape \[1, 2\]"):
        AccuracyMatrix(np.ones((1, 2)))


def test_losses_are_compared_with_the_best_one_of_each_domain():
    ours = LossMatrix(np.array([[2.0, 3.8, 5.0], [2.2, 3.0, 5.0], [2.1, 3.3, 4.0]]), np.array([3.0, 4.0, 5.0]))
    assert ours.drop_per_domain.tolist() == pytest.approx([0.05, 0.1])
    assert ours.worst_drop == pytest.approx(0.1)
    assert ours.learned.tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert ours.average == pytest.approx((2.1 + 3.3 + 4.0) / 3)
    assert ours.backward_transfer == pytest.approx(((2.0 - 2.1) + (3.0 - 3.3)) / 2)
    assert ours.forward_transfer == pytest.approx(((4.0 - 3.8) + (5.0 - 5.0)) / 2)
    naive = LossMatrix(np.array([[2.0, 4.0, 5.0], [3.0, 3.0, 5.0], [3.0, 4.5, 4.0]]), np.array([3.0, 4.0, 5.0]))
    assert recovered_fraction(ours, naive) == pytest.approx(1 - 0.075 / 0.5)
    with pytest.raises(ValueError, match="naive fine-tuning forgets nothing"):
        recovered_fraction(naive, LossMatrix(np.ones((2, 2)), np.ones(2)))
