"""A labelled set becomes tasks in three ways, and the study says of each method what must come out."""

import pytest
import torch

from train.continual.metrics import AccuracyMatrix
from train.continual.scenarios import SCENARIOS, LabelledSet, Scenario, split_tasks
from train.continual.study import TABLE, Recipe, run_study

RECIPE = Recipe(hidden=(64,), epochs=20, lr=1e-2)


def _clusters(*, num_classes: int = 6, samples: int = 60) -> LabelledSet:
    """A Gaussian around a point of its own for each class, hardly overlapping."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.5 * torch.randn(num_classes, 16, generator=generator)
    y = torch.arange(num_classes).repeat(samples)
    x = centres[y] + torch.randn(len(y), 16, generator=generator)
    cut = 2 * len(y) // 3
    return LabelledSet(x[:cut], y[:cut], x[cut:], y[cut:])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_sample_is_in_one_task_and_the_scenario_says_what_competes(scenario: Scenario):
    data = _clusters()
    tasks = split_tasks(data, scenario=scenario, num_tasks=3, seed=1)
    ids = torch.cat([one.train["id"] for one in tasks])
    assert sorted(ids.tolist()) == list(range(len(data.y)))
    for one in tasks:
        assert torch.equal(data.x[one.train["id"]], one.train["x"])
        labels = data.y[one.train["id"]]
        if scenario == "domain":
            _, first, second = one.task.name.split()
            assert set(labels.tolist()) == {int(first), int(second)}
            assert torch.equal(one.train["y"], (labels == int(second)).long())
            assert one.task.classes is None
            continue
        assert torch.equal(one.train["y"], labels)
        assert set(labels.tolist()) == set(one.task.classes or ())
        if scenario == "task":
            assert one.train["allowed"][0].nonzero().flatten().tolist() == sorted(one.task.classes or ())
        assert ("allowed" in one.train) == (scenario == "task")
    again = split_tasks(data, scenario=scenario, num_tasks=3, seed=1)
    assert [one.task for one in again] == [one.task for one in tasks]


def test_an_epoch_has_every_sample_once_and_each_its_own_order():
    (task, *_) = split_tasks(_clusters(), scenario="class", num_tasks=3, seed=0)
    steps = task.steps_per_epoch(32)
    epochs = [
        torch.cat([task.batch(step, batch_size=32, seed=0)["id"] for step in range(first, first + steps)])
        for first in (0, steps)
    ]
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist()) == sorted(task.train["id"].tolist())
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(task.batch(3, batch_size=32, seed=0)["id"], task.batch(3, batch_size=32, seed=0)["id"])


def test_what_cannot_be_split_is_named():
    data = _clusters()
    with pytest.raises(ValueError, match="num_tasks = 4 does not divide 6 classes"):
        split_tasks(data, scenario="class", num_tasks=4, seed=0)
    unseen = LabelledSet(data.x, data.y, data.x_test, data.y_test + 1)
    with pytest.raises(ValueError, match=r"y_test has labels \[6\] that y has not"):
        split_tasks(unseen, scenario="class", num_tasks=3, seed=0)
    gap = data.y != 2
    missing = LabelledSet(data.x[gap], data.y[gap], data.x_test[data.y_test != 2], data.y_test[data.y_test != 2])
    with pytest.raises(ValueError, match="has no samples: give every class some"):
        split_tasks(missing, scenario="class", num_tasks=6, seed=0)


def _matrix(name: str, scenario: Scenario) -> AccuracyMatrix:
    tasks = split_tasks(_clusters(), scenario=scenario, num_tasks=3, seed=0)
    return run_study(TABLE[name], tasks, scenario=scenario, seed=0, recipe=RECIPE)


@pytest.mark.parametrize("name", TABLE)
def test_each_method_learns_and_those_that_cannot_forget_do_not(name: str):
    matrix = _matrix(name, "task")
    assert matrix.learning > 0.9
    if name in ("PackNet", "progressive"):
        assert matrix.worst_forgetting == 0


def test_tasks_to_come_are_scored_by_the_model_as_it_is_and_before_by_one_that_learned_nothing():
    """Where classes compete, a class to come is never said; one of two domains' classes is right by chance."""
    matrix = _matrix("naive", "class")
    assert all(matrix.scores[row, column] == 0 for row in range(3) for column in range(row + 1, 3))
    assert matrix.untrained is not None
    assert matrix.forward_transfer == pytest.approx(-matrix.untrained[1:].mean())
    matrix = _matrix("replay, all", "domain")
    assert all(0.2 < matrix.scores[row, column] < 0.8 for row in range(3) for column in range(row + 1, 3))


def test_where_all_classes_compete_naive_training_loses_the_earlier_ones_and_replay_keeps_them():
    assert _matrix("naive", "class").worst_forgetting > 0.9
    kept = _matrix("DER++, all", "class")
    assert kept.worst_forgetting < 0.1
    assert kept.learning > 0.9
