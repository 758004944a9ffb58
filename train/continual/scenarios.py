"""A labelled set cut into tasks, in the three ways in which the literature does it (arXiv:1904.07734).

task    each task brings its own classes, and whoever asks says which task it is of: only those classes compete
domain  each task brings other inputs for the same classes: which of its pair an input is
class   each task brings its own classes, and all that were seen compete

In: samples with labels. Out: a stream of tasks, each with its training and its test samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.continual.method import Task
from train.continual.rows import Batch

Scenario = Literal["task", "domain", "class"]
SCENARIOS: tuple[Scenario, ...] = ("task", "domain", "class")


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Training and test samples; labels from 0 on."""

    x: Float[Tensor, "train inputs"]
    y: Int[Tensor, " train"]
    x_test: Float[Tensor, "test inputs"]
    y_test: Int[Tensor, " test"]

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.y.max()) + 1


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its samples, as batches of all of them."""

    task: Task
    train: Batch
    test: Batch

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches that a pass over the samples takes; the last one may be smaller."""
        return -(-len(self.train["y"]) // batch_size)

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        """Of a step, counted from 0; each epoch has an order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch(batch_size))
        order = np.random.default_rng([seed, self.task.index, epoch]).permutation(len(self.train["y"]))
        part = torch.from_numpy(order[place * batch_size :][:batch_size])
        return {name: value[part] for name, value in self.train.items()}

    def batches(self, *, batch_size: int) -> Iterator[Batch]:
        """Once through, in order."""
        for part in torch.arange(len(self.train["y"])).split(batch_size):
            yield {name: value[part] for name, value in self.train.items()}


def split_tasks(data: LabelledSet, *, scenario: Scenario, num_tasks: int, seed: int) -> list[TaskData]:
    """Tasks of equally many classes, in an order drawn by `seed`.

    Raises ValueError for a number of tasks that does not divide the classes, for a task without samples, and for test samples
    of a class that is not trained.
    """
    num_classes = data.num_classes
    if num_tasks < 1 or num_classes % num_tasks:
        raise ValueError(f"num_tasks = {num_tasks} does not divide {num_classes} classes: choose a divisor")
    if unseen := set(data.y_test.tolist()) - set(data.y.tolist()):
        raise ValueError(f"y_test has labels {sorted(unseen)} that y has not: leave these samples out, or train them")
    order = np.random.default_rng(seed).permutation(num_classes)
    tasks = []
    for index, part in enumerate(np.split(order, num_tasks)):
        classes = tuple(int(label) for label in part)
        task = Task(f"classes {' '.join(map(str, classes))}", index, classes=None if scenario == "domain" else classes)
        ids = torch.arange(len(data.y))
        train = _select(data.x, data.y, ids, classes, scenario=scenario, num_classes=num_classes)
        test_ids = torch.arange(len(data.y_test))
        test = _select(data.x_test, data.y_test, test_ids, classes, scenario=scenario, num_classes=num_classes)
        if not len(train["y"]) or not len(test["y"]):
            raise ValueError(f"task {index} ({task.name}) has no samples: give every class some, to train and to test")
        tasks.append(TaskData(task, train, test))
    return tasks


def _select(
    x: Tensor, y: Tensor, ids: Tensor, classes: tuple[int, ...], *, scenario: Scenario, num_classes: int
) -> Batch:
    chosen = torch.isin(y, torch.tensor(classes))
    batch = {"id": ids[chosen], "x": x[chosen], "y": y[chosen]}
    if scenario == "domain":
        batch["y"] = torch.stack([batch["y"] == label for label in classes]).int().argmax(0)
    if scenario == "task":
        allowed = torch.zeros(num_classes, dtype=torch.bool)
        allowed[list(classes)] = True
        batch["allowed"] = allowed.expand(len(batch["y"]), num_classes)
    return batch
