"""Avalanche's side of benchmarks/continual_avalanche.py: its strategies on our tasks, weights and order of samples.

In: tasks, a strategy, what both libraries begin with. Out: an AccuracyMatrix, by the same scoring as ours. Avalanche needs
torchvision, which breaks transformers beside the CPU's torch. So its packages lie in a folder of their own
(requirements/avalanche.txt), which only the process that measures it looks into.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader

from cluster.bench_images import NUM_TASKS
from cluster.config import REPOSITORY
from train.continual.metrics import AccuracyMatrix
from train.continual.progressive import ProgressiveNetworks
from train.continual.scenarios import Scenario, TaskData
from train.continual.study import Recipe, accuracy, build_mlp

FOLDER = REPOSITORY / ".venv/avalanche"
CAPACITY = 200
"""Samples that replay keeps."""
MEMORY_BATCH = 8
"""Beside 32 new ones: 20 % of the mixed batch."""


@dataclass(frozen=True, slots=True)
class Start:
    """What both libraries begin with."""

    sizes: tuple[int, ...]
    """Widths of the layers, inputs and outputs included."""
    seed: int
    recipe: Recipe


Build = Callable[[dict[str, Any], Start], Any]
"""An Avalanche strategy, of the arguments that all of them take; `plugins` of these is a list to add to."""


def run_avalanche(
    build: Build, tasks: Sequence[TaskData], *, scenario: Scenario, start: Start, clock: AbstractContextManager[Any]
) -> AccuracyMatrix:
    """Learn the tasks in turn. `clock`: entered around the training of each."""
    _find_avalanche()
    from avalanche.benchmarks import tensors_benchmark

    recipe, scores = start.recipe, []
    torch.manual_seed(start.seed)
    model, criterion = build_mlp(start.sizes), _Criterion()
    common = {
        "model": model, "optimizer": Adam(model.parameters(), lr=recipe.lr), "criterion": criterion,
        "train_mb_size": recipe.batch_size, "train_epochs": recipe.epochs, "evaluator": None,
        "plugins": [_same_order([_Order(one, start) for one in tasks])],
    }  # fmt: skip
    strategy = build(common, start)
    stream = tensors_benchmark(
        train_tensors=[(one.train["x"], one.train["y"]) for one in tasks],
        test_tensors=[(one.test["x"], one.test["y"]) for one in tasks],
        task_labels=[one.task.index if scenario == "task" else 0 for one in tasks],
    ).train_stream
    torch.manual_seed(start.seed)
    for data, experience in zip(tasks, stream, strict=True):
        criterion.allowed = data.train["allowed"][0] if scenario == "task" else None
        with clock:
            strategy.train(experience, reset_optimizer_state=True)
        trained = strategy.model.eval()
        seen = tasks[: data.task.index + 1]
        asked = [_Asked(trained, one.task.index) if scenario == "task" else trained for one in seen]
        scores.append([accuracy(one, earlier.test) for one, earlier in zip(asked, seen, strict=True)])
    return AccuracyMatrix.of(scores)


class _Asked(nn.Module):
    """A model of Avalanche's, told which task the inputs are of."""

    def __init__(self, model: nn.Module, task: int) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x, torch.full((len(x),), self.task))
        return out


class _Criterion:
    """Cross-entropy, task-incremental among the classes of the task, as ours is."""

    allowed: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        decided = logits if self.allowed is None else logits.masked_fill(~self.allowed, -torch.inf)
        return nn.functional.cross_entropy(decided, targets)


class _Order:
    """The samples of a task's batches as places in it, an epoch for each time through, drawn before the clock runs."""

    def __init__(self, data: TaskData, start: Start) -> None:
        size, steps = start.recipe.batch_size, data.steps_per_epoch(start.recipe.batch_size)
        num_epochs = 2 * start.recipe.epochs  # enough for PackNet's after pruning, too
        batches = (data.batch(step, batch_size=size, seed=start.seed) for step in range(num_epochs * steps))
        places = [torch.searchsorted(data.train["id"], batch["id"]).tolist() for batch in batches]
        self._epochs = iter([places[begin : begin + steps] for begin in range(0, len(places), steps)])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(next(self._epochs))


def _find_avalanche() -> None:
    """Make it importable. What the environment has itself goes before what lies in the folder."""
    if str(FOLDER) in sys.path:
        return
    sys.path.append(str(FOLDER))
    warnings.simplefilter("ignore")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # its operators were built for another torch; no image is made here, so their names are enough
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[Any] = []
"""Operators are gone with the library that defines them."""


# Strategies.


def _same_order(orders: Sequence[_Order]) -> Any:
    from avalanche.core import SupervisedPlugin

    class SameOrder(SupervisedPlugin):  # type: ignore[misc]
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            data = strategy.adapted_dataset
            order = orders[strategy.clock.train_exp_counter]
            strategy.dataloader = DataLoader(data, batch_sampler=order, collate_fn=data.collate_fn)

    return SameOrder()


def plugin(name: str = "", **options: Any) -> Build:
    """Plain training with one plugin, or with none."""

    def build(common: dict[str, Any], _: Start) -> Any:
        from avalanche.training import Naive, plugins

        if name:
            common["plugins"].append(getattr(plugins, name)(**options))
        return Naive(**common)

    return build


def repaired_si(common: dict[str, Any], _: Start) -> Any:
    """With copies where Avalanche keeps views of the weights, which on a CPU move with them, and without its clip."""
    from avalanche.training import Naive
    from avalanche.training.plugins import SynapticIntelligencePlugin as Released

    class Repaired(Released):  # type: ignore[misc]
        def after_training_exp(self, strategy: Any, **_: Any) -> None:
            self.update_ewc_data(
                strategy.model, self.ewc_data, self.syn_data, np.inf, self.excluded_parameters, 1, eps=self.eps
            )

    def extract(model: Any, target: Any, excluded: Any) -> None:
        for name, weight in Released.allowed_parameters(model, excluded):
            target[name].data = weight.detach().clone().flatten()

    Released.extract_weights = staticmethod(extract)
    common["plugins"].append(Repaired(si_lambda=2.0, eps=1e-3))
    return Naive(**common)


def replay(common: dict[str, Any], start: Start) -> Any:
    """From the second task on the order is its own: its loader mixes the buffer in."""
    from avalanche.training import Naive
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    policy, size = ReservoirSamplingBuffer(max_size=CAPACITY), start.recipe.batch_size
    common["plugins"].append(ReplayPlugin(CAPACITY, size, MEMORY_BATCH, storage_policy=policy))
    return Naive(**common)


def der(common: dict[str, Any], _: Start) -> Any:
    """Its loss is CE_new + beta CE_old + alpha MSE, ours (32 CE_new + 8 CE_old + 8 MSE / 2) / 40."""
    from avalanche.training import DER

    return DER(**common, mem_size=CAPACITY, batch_size_mem=MEMORY_BATCH, alpha=0.125, beta=0.25)


def packnet(common: dict[str, Any], start: Start) -> Any:
    """Its epochs include those after pruning."""
    from avalanche.models.packnet import PackNetModel, PackNetPlugin
    from avalanche.training import Naive

    after = start.recipe.epochs // 2
    common["plugins"].append(PackNetPlugin(after, 0.5))
    return Naive(**common | {"model": PackNetModel(common["model"]), "train_epochs": start.recipe.epochs + after})


def progressive(common: dict[str, Any], start: Start) -> Any:
    """Each column begins with our weights, but for what it reads of others."""
    from avalanche.core import SupervisedPlugin
    from avalanche.models import MultiHeadClassifier
    from avalanche.models.pnn import PNN
    from avalanche.training import PNNStrategy

    torch.manual_seed(start.seed)  # as ours: columns are drawn in turn, and training draws nothing in between
    drawn = ProgressiveNetworks(start.sizes)
    for _ in range(NUM_TASKS):
        drawn.add_column()

    class SameStart(SupervisedPlugin):  # type: ignore[misc]
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            task, model = strategy.experience.task_label, strategy.model
            column = [layer.columns[task].itoh for layer in model.layers]
            column.append(model.classifier.classifiers[str(task)].classifier)
            for ours, theirs in zip(drawn.columns[task].layers, column, strict=True):
                theirs.load_state_dict(ours.state_dict())

    inputs, width, *more, outputs = start.sizes
    model = PNN(1 + len(more), in_features=inputs, hidden_features_per_column=width, adapter="linear")
    model.classifier = MultiHeadClassifier(width, initial_out_features=outputs)  # as wide for each task
    model.max_class_label = outputs
    common["plugins"].append(SameStart())
    return PNNStrategy(**common | {"model": model, "optimizer": Adam(model.parameters(), lr=start.recipe.lr)})
