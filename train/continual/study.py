"""One method on one stream of tasks, scored on every task after each: what the table of methods is made of.

In: tasks, a recipe, a seed. Out: an AccuracyMatrix. The same seed gives the same weights, order of classes and batches to each
method. `autonomous bench continual` runs it over methods, scenarios and seeds.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.lwf import LearningWithoutForgetting, LwFConfig
from train.continual.method import ContinualMethod, Task
from train.continual.metrics import AccuracyMatrix
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.packnet import PackNet, PackNetConfig
from train.continual.progressive import ProgressiveColumns, ProgressiveNetworks
from train.continual.rows import Batch, classify
from train.continual.scenarios import SCENARIOS, Scenario, TaskData
from train.continual.si import SynapticIntelligence
from train.continual.trainer import ContinualTrainer


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a study trains: a network of linear layers with ReLU, by Adam."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    epochs: int = 30
    """Passes over each task's samples."""
    batch_size: int = 32
    """New samples of a step."""
    lr: float = 1e-3


Build = Callable[[Scenario, int], list[ContinualMethod]]
"""The methods of a row of the table, of a scenario and a seed."""
TASK: tuple[Scenario, ...] = ("task",)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table."""

    build: Build
    scenarios: tuple[Scenario, ...] = SCENARIOS
    is_progressive: bool = False
    is_joint: bool = False
    """All tasks at once: what there is to lose."""


DEFAULT = "DER++, all"
"""The default policy: a fifth of each batch are old samples, all of which are kept, with their logits."""
TABLE: dict[str, Row] = {
    "joint": Row(lambda *_: [], is_joint=True),
    "naive": Row(lambda *_: []),
    "EWC": Row(lambda _, seed: [EWCRegularizer(EWCConfig(seed=seed, max_samples=1000))]),
    "EWC, online": Row(lambda _, seed: [EWCRegularizer(EWCConfig(seed=seed, max_samples=1000, is_online=True))]),
    "SI": Row(lambda *_: [SynapticIntelligence()]),
    "LwF": Row(lambda scenario, _: [LearningWithoutForgetting(LwFConfig(splits_tasks=scenario == "task"))]),
    "replay, 200": Row(lambda _, seed: [BatchReplay(ReplayConfig(capacity=200, seed=seed))]),
    "DER++, 200": Row(lambda _, seed: [BatchReplay(ReplayConfig(capacity=200, logits_weight=0.5, seed=seed))]),
    "replay, all": Row(lambda _, seed: [BatchReplay(ReplayConfig(seed=seed))]),
    DEFAULT: Row(lambda _, seed: [BatchReplay(ReplayConfig(logits_weight=0.5, seed=seed))]),
    "PackNet": Row(lambda _, seed: [PackNet(PackNetConfig(seed=seed))], scenarios=TASK),
    "progressive": Row(lambda *_: [ProgressiveColumns()], scenarios=TASK, is_progressive=True),
}


def run_study(
    row: Row,
    tasks: Sequence[TaskData],
    *,
    scenario: Scenario,
    seed: int,
    recipe: Recipe,
    clock: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it has no state
) -> AccuracyMatrix:
    """Learn the tasks in turn. A joint row learns them all at once, and has that score in every line. `clock`: entered around
    the training of each task."""
    torch.manual_seed(seed)
    sizes = layer_sizes(tasks, recipe)
    model: nn.Module = ProgressiveNetworks(sizes) if row.is_progressive else build_mlp(sizes)
    methods = row.build(scenario, seed)
    trainer = ContinualTrainer(
        model, "classifier", methods=methods, optimizer=lambda weights: Adam(weights, lr=recipe.lr)
    )
    if row.is_joint:
        _learn(trainer, _joined(tasks), seed=seed, recipe=recipe)
        return AccuracyMatrix.of([_scores(trainer, tasks, num_learned=0)] * len(tasks))
    scores = []
    for data in tasks:
        with clock:
            _learn(trainer, data, seed=seed, recipe=recipe)
        scores.append(_scores(trainer, tasks, num_learned=data.task.index + 1))
    start = build_mlp(sizes)  # a model that learned nothing, of another draw
    return AccuracyMatrix.of(scores, untrained=[accuracy(start, one.test) for one in tasks])


def _scores(trainer: ContinualTrainer, tasks: Sequence[TaskData], *, num_learned: int) -> list[float]:
    """Of every task; those that were learned as they are served."""
    found = []
    for one in tasks:
        with trainer.serving(one.task.index if one.task.index < num_learned else None):
            found.append(accuracy(trainer.learner.model, one.test))
    return found


def layer_sizes(tasks: Sequence[TaskData], recipe: Recipe) -> tuple[int, ...]:
    """Inputs, hidden widths and outputs of the network for these tasks: as many as compete."""
    allowed = tasks[0].train.get("allowed")
    outputs = 1 + max(int(one.train["y"].max()) for one in tasks) if allowed is None else allowed.shape[1]
    return (tasks[0].train["x"].shape[1], *recipe.hidden, outputs)


def build_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """Share of the samples that are classified right, by a model in evaluation mode."""
    rows = classify(model, batch)
    return float((rows.decided.argmax(1) == rows.targets).double().mean())


def _learn(trainer: ContinualTrainer, data: TaskData, *, seed: int, recipe: Recipe) -> None:
    size = recipe.batch_size
    trainer.learn(
        data.task, lambda step: data.batch(step, batch_size=size, seed=seed),
        num_steps=data.steps_per_epoch(size) * recipe.epochs, samples=lambda: data.batches(batch_size=size),
    )  # fmt: skip


def _joined(tasks: Sequence[TaskData]) -> TaskData:
    whole = {name: torch.cat([one.train[name] for one in tasks]) for name in tasks[0].train}
    return TaskData(Task("all at once", 0), whole, tasks[0].test)
