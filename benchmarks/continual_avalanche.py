"""Our ways not to forget, beside the same ones of Avalanche: accuracy, forgetting and wall time on the same stream.

scikit-learn's digits in five tasks of two classes. A seed gives both the same tasks, initial weights, order of the samples
and recipe; a fresh Adam learns each task. Run as a script it measures one method of one library on one seed, in a process
and a thread of its own: training alone, behind a warm-up on two tasks, in wall and CPU seconds. Avalanche takes our order by
its own data sets and loader; its loggers and metrics are off, and the same code scores both. `differs` says of a pair what
in Avalanche cannot be set.

Avalanche needs torchvision, which breaks transformers beside the CPU's torch. So its packages lie in a folder of their own
(requirements/avalanche.txt), which only the process that measures it looks into.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader

from cluster.bench import BenchContext, Claim, Measurement, ratio_interval
from cluster.bench_images import load_digits_set
from cluster.bench_variants import child_main, run_variants
from cluster.config import REPOSITORY
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.metrics import AccuracyMatrix
from train.continual.progressive import ProgressiveNetworks
from train.continual.scenarios import Scenario, TaskData, split_tasks
from train.continual.study import TABLE, Recipe, Row, accuracy
from train.continual.trainer import ContinualTrainer

FOLDER = REPOSITORY / ".venv/avalanche"
LIBRARIES = ("ours", "Avalanche")
NUM_TASKS = 5
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


@dataclass(frozen=True, slots=True)
class Pair:
    """A method that both have."""

    scenario: Scenario
    ours: Row
    theirs: Build
    differs: str = ""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    if not FOLDER.is_dir():
        raise RuntimeError(f"{FOLDER} is missing, where Avalanche lies: run `make bench NAME=continual_avalanche`")
    for name, pair in PAIRS.items():
        context.note(f"{name}, {pair.scenario}-incremental")
        reports = _measure_pair(context, name, seeds=range(2 if context.quick else 5))
        yield from _claims(f"{name}, {pair.scenario}-incremental", pair, reports)


def _measure_pair(context: BenchContext, name: str, *, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Of each library, a report per seed; which goes first alternates."""
    reports: dict[str, list[dict[str, Any]]] = {library: [] for library in LIBRARIES}
    for seed in seeds:
        found = run_variants(
            Path(__file__), LIBRARIES if seed % 2 == 0 else LIBRARIES[::-1], arguments={"method": name, "seed": seed},
            rounds=1, environment={"HOME": str(context.folder)}, num_threads=1, note=context.note,
        )  # fmt: skip
        for library, result in found.items():
            reports[library] += result.reports
    return reports


def _claims(name: str, pair: Pair, reports: dict[str, list[dict[str, Any]]]) -> Iterator[Claim]:
    num_seeds = len(reports["ours"])
    differs = f"; {pair.differs}" if pair.differs else ""
    for field, title, sign in (("average", "average accuracy", 1), ("worst_forgetting", "worst forgetting", -1)):
        ours, theirs = (100 * np.asarray([one[field] for one in reports[library]]) for library in LIBRARIES)
        gap = ours - theirs
        noise = float(gap.std(ddof=1)) / num_seeds**0.5
        yield Claim(
            f"{name}: {title}, ours - Avalanche's", ">= 0 within noise" if sign > 0 else "<= 0 within noise",
            round(float(gap.mean()), 2), "points", bool(sign * gap.mean() >= -noise),
            f"{num_seeds} seeds, noise {noise:.2f} (standard error of the paired difference); ours {_spread(ours)}, Avalanche "
            f"{_spread(theirs)}; learning accuracy {_spread_of(reports['ours'], 'learning')} and "
            f"{_spread_of(reports['Avalanche'], 'learning')}{differs}",
        )  # fmt: skip
    ours, theirs = (
        Measurement(library, *(tuple(one[field] for one in reports[library]) for field in ("seconds", "cpu_s")))
        for library in LIBRARIES
    )
    ratio = ours.median_s / theirs.median_s
    low, high = ratio_interval(theirs.wall_s, ours.wall_s, seed=0)
    both = ", ".join(
        f"{one.name} {one.median_s:.2f} s (IQR {one.iqr_s:.2f}, CPU {one.median_cpu_s:.2f})" for one in (ours, theirs)
    )
    yield Claim(
        f"{name}: wall time over Avalanche's", "<= 1.0x", round(ratio, 3), "x", ratio <= 1.0,
        f"training alone, one thread, medians of {num_seeds} seeds in turns; {both}; 95 % interval {low:.3f}-{high:.3f}"
        f"{differs}",
    )  # fmt: skip


def _spread(points: Any) -> str:
    return f"{points.mean():.1f} ± {points.std(ddof=1):.1f}"


def _spread_of(reports: list[dict[str, Any]], field: str) -> str:
    return _spread(100 * np.asarray([one[field] for one in reports]))


# The process side.


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Of one library: seconds of training, and what it left of the tasks. `arguments`: method, seed and, for a short trial,
    epochs."""
    torch.set_num_threads(1)
    pair, seed, recipe = PAIRS[arguments["method"]], arguments["seed"], Recipe()
    data = load_digits_set(seed)
    tasks = split_tasks(data, scenario=pair.scenario, num_tasks=NUM_TASKS, seed=seed)
    sizes = (data.x.shape[1], *recipe.hidden, 1 + max(int(one.train["y"].max()) for one in tasks))
    work = {"ours": _ours, "Avalanche": _avalanche}[variant]
    work(pair, tasks[:2], Start(sizes, seed, Recipe(epochs=2)))
    matrix, clock = work(pair, tasks, Start(sizes, seed, Recipe(epochs=arguments.get("epochs", recipe.epochs))))
    return {
        "seconds": clock.wall_s, "cpu_s": clock.cpu_s, "average": matrix.average, "learning": matrix.learning,
        "worst_forgetting": matrix.worst_forgetting,
    }  # fmt: skip


class _Clock:
    """Seconds of the blocks that it is used for, together."""

    wall_s = cpu_s = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._begin[0]
        self.cpu_s += time.process_time() - self._begin[1]


def _mlp(start: Start) -> nn.Module:
    """With the weights that a seed gives both libraries."""
    torch.manual_seed(start.seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(start.sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _columns(start: Start) -> ProgressiveNetworks:
    """Before the first task. Columns are drawn in turn, and training draws nothing in between."""
    torch.manual_seed(start.seed)
    return ProgressiveNetworks(start.sizes)


def _ours(pair: Pair, tasks: Sequence[TaskData], start: Start) -> tuple[AccuracyMatrix, _Clock]:
    recipe, clock, scores = start.recipe, _Clock(), []
    model = _columns(start) if pair.ours.is_progressive else _mlp(start)
    methods = pair.ours.build(pair.scenario, start.seed)
    trainer = ContinualTrainer(
        model, "classifier", methods=methods, optimizer=lambda weights: Adam(weights, lr=recipe.lr)
    )
    size = recipe.batch_size
    for data in tasks:
        with clock:
            trainer.learn(
                data.task, lambda step, data=data: data.batch(step, batch_size=size, seed=start.seed),
                num_steps=data.steps_per_epoch(size) * recipe.epochs,
                samples=lambda data=data: data.batches(batch_size=size),
            )  # fmt: skip
        found = []
        for earlier in tasks[: data.task.index + 1]:
            with trainer.serving(earlier.task.index):
                found.append(accuracy(model, earlier.test))
        scores.append(found)
    return AccuracyMatrix.of(scores), clock


def _avalanche(pair: Pair, tasks: Sequence[TaskData], start: Start) -> tuple[AccuracyMatrix, _Clock]:
    _find_avalanche()
    from avalanche.benchmarks import tensors_benchmark

    recipe, clock, scores = start.recipe, _Clock(), []
    model, criterion = _mlp(start), _Criterion()
    common = {
        "model": model, "optimizer": Adam(model.parameters(), lr=recipe.lr), "criterion": criterion,
        "train_mb_size": recipe.batch_size, "train_epochs": recipe.epochs, "evaluator": None,
        "plugins": [_same_order([_Order(one, start) for one in tasks])],
    }  # fmt: skip
    strategy = pair.theirs(common, start)
    stream = tensors_benchmark(
        train_tensors=[(one.train["x"], one.train["y"]) for one in tasks],
        test_tensors=[(one.test["x"], one.test["y"]) for one in tasks],
        task_labels=[one.task.index if pair.scenario == "task" else 0 for one in tasks],
    ).train_stream
    torch.manual_seed(start.seed)
    for data, experience in zip(tasks, stream, strict=True):
        criterion.allowed = data.train["allowed"][0] if pair.scenario == "task" else None
        with clock:
            strategy.train(experience, reset_optimizer_state=True)
        model = strategy.model.eval()
        seen = tasks[: data.task.index + 1]
        asked = [_Asked(model, one.task.index) if pair.scenario == "task" else model for one in seen]
        scores.append([accuracy(one, earlier.test) for one, earlier in zip(asked, seen, strict=True)])
    return AccuracyMatrix.of(scores), clock


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


# Avalanche's strategies.


def _same_order(orders: Sequence[_Order]) -> Any:
    from avalanche.core import SupervisedPlugin

    class SameOrder(SupervisedPlugin):  # type: ignore[misc]
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            data = strategy.adapted_dataset
            order = orders[strategy.clock.train_exp_counter]
            strategy.dataloader = DataLoader(data, batch_sampler=order, collate_fn=data.collate_fn)

    return SameOrder()


def _plugin(name: str = "", **options: Any) -> Build:
    """Plain training with one plugin, or with none."""

    def build(common: dict[str, Any], _: Start) -> Any:
        from avalanche.training import Naive, plugins

        if name:
            common["plugins"].append(getattr(plugins, name)(**options))
        return Naive(**common)

    return build


def _repaired_si(common: dict[str, Any], _: Start) -> Any:
    """With copies where Avalanche keeps views of the weights, which on a CPU move with them, and without its clip."""
    from avalanche.training import Naive
    from avalanche.training.plugins import SynapticIntelligencePlugin as Released

    class Repaired(Released):  # type: ignore[misc,valid-type]
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


def _replay(common: dict[str, Any], start: Start) -> Any:
    """From the second task on the order is its own: its loader mixes the buffer in."""
    from avalanche.training import Naive
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    policy, size = ReservoirSamplingBuffer(max_size=CAPACITY), start.recipe.batch_size
    common["plugins"].append(ReplayPlugin(CAPACITY, size, MEMORY_BATCH, storage_policy=policy))
    return Naive(**common)


def _der(common: dict[str, Any], _: Start) -> Any:
    """Its loss is CE_new + beta CE_old + alpha MSE, ours (32 CE_new + 8 CE_old + 8 MSE / 2) / 40."""
    from avalanche.training import DER

    return DER(**common, mem_size=CAPACITY, batch_size_mem=MEMORY_BATCH, alpha=0.125, beta=0.25)


def _packnet(common: dict[str, Any], start: Start) -> Any:
    """Its epochs include those after pruning."""
    from avalanche.models.packnet import PackNetModel, PackNetPlugin
    from avalanche.training import Naive

    after = start.recipe.epochs // 2
    common["plugins"].append(PackNetPlugin(after, 0.5))
    return Naive(**common | {"model": PackNetModel(common["model"]), "train_epochs": start.recipe.epochs + after})


def _progressive(common: dict[str, Any], start: Start) -> Any:
    """Each column begins with our weights, but for what it reads of others."""
    from avalanche.core import SupervisedPlugin
    from avalanche.models import MultiHeadClassifier
    from avalanche.models.pnn import PNN
    from avalanche.training import PNNStrategy

    drawn = _columns(start)
    for _ in range(NUM_TASKS):
        drawn.add_column()

    class SameStart(SupervisedPlugin):  # type: ignore[misc]
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            task, model = strategy.experience.task_label, strategy.model
            column = [layer.columns[task].itoh for layer in model.layers]
            column.append(model.classifier.classifiers[str(task)].classifier)
            for ours, theirs in zip(drawn.columns[task].layers, column, strict=True):  # type: ignore[arg-type]
                theirs.load_state_dict(ours.state_dict())

    inputs, width, *more, outputs = start.sizes
    model = PNN(1 + len(more), in_features=inputs, hidden_features_per_column=width, adapter="linear")
    model.classifier = MultiHeadClassifier(width, initial_out_features=outputs)  # as wide for each task
    model.max_class_label = outputs
    common["plugins"].append(SameStart())
    return PNNStrategy(**common | {"model": model, "optimizer": Adam(model.parameters(), lr=start.recipe.lr)})


EMPIRICAL = Row(lambda _, seed: [EWCRegularizer(EWCConfig(seed=seed, fisher="empirical"))])
FISHER = "lambda 5000 / 2 here, 2500 there; Avalanche squares the gradient of a batch's mean, ours that of each sample"
SI = "c = lambda / 2 = 1 and xi = 1e-3 in both; Avalanche counts the gradient of the penalty, too"
RESERVOIR = f"{CAPACITY} samples, 8 beside 32 new, in turn; Avalanche's come in an order of its own"


PAIRS: dict[str, Pair] = {
    "naive": Pair("domain", TABLE["naive"], _plugin()),
    "EWC": Pair("domain", TABLE["EWC"], _plugin("EWCPlugin", ewc_lambda=2500), f"{FISHER}, for all classes"),
    "EWC, empirical": Pair("domain", EMPIRICAL, _plugin("EWCPlugin", ewc_lambda=2500), FISHER),
    "EWC, online": Pair(
        "domain", TABLE["EWC, online"], _plugin("EWCPlugin", ewc_lambda=2500, mode="online", decay_factor=1.0),
        f"{FISHER}, for all classes",
    ),
    "SI": Pair(
        "domain", TABLE["SI"], _plugin("SynapticIntelligencePlugin", si_lambda=2.0, eps=1e-3),
        f"{SI}; as released it holds nothing on a CPU, since the weights that it compares with move along",
    ),
    "SI, Avalanche repaired": Pair(
        "domain", TABLE["SI"], _repaired_si,
        f"{SI}, and lets importance be negative; repaired here: it copies the weights, and does not clip at 1e-3",
    ),
    "LwF": Pair(
        "domain", TABLE["LwF"], _plugin("LwFPlugin", alpha=4.0, temperature=2.0),
        "T = 2; 0.5 CE + 0.5 T^2 KL here, CE + 4 KL there: twice as much, which Adam does not notice",
    ),
    "replay, 200": Pair("domain", TABLE["replay, 200"], _replay, RESERVOIR),
    "replay, 200, ten classes": Pair("class", TABLE["replay, 200"], _replay, RESERVOIR),
    "DER++, 200": Pair("class", TABLE["DER++, 200"], _der, f"{RESERVOIR}, and keeps equally many of each class"),
    "PackNet": Pair(
        "task", TABLE["PackNet"], _packnet,
        "30 epochs, half pruned, 15 epochs; pruned weights begin the next task as new draws here, as they were there",
    ),
    "progressive": Pair(
        "task", TABLE["progressive"], _progressive,
        "linear laterals in both, in Avalanche beside an MLP of the inputs for the first layer, and none to the outputs",
    ),
}  # fmt: skip

if __name__ == "__main__":
    child_main(measure)
