"""Our ways not to forget, beside the same ones of Avalanche: accuracy, forgetting and wall time on the same stream.

scikit-learn's digits in five tasks of two classes. A seed gives both the same tasks, initial weights, order of the samples
and recipe; a fresh Adam learns each task. Run as a script it measures one method of one library on one seed, in a process
and a thread of its own: training alone, behind a warm-up on two tasks, in wall and CPU seconds. Avalanche takes our order by
its own data sets and loader; its loggers and metrics are off, and the same code scores both. `differs` says of a pair what
in Avalanche cannot be set.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.bench import BenchContext, Claim, Measurement, ratio_interval
from cluster.bench_avalanche import (
    CAPACITY,
    FOLDER,
    Build,
    Start,
    der,
    packnet,
    plugin,
    progressive,
    repaired_si,
    replay,
    run_avalanche,
)
from cluster.bench_images import NUM_TASKS, load_digits_set
from cluster.bench_variants import child_main, run_variants
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.metrics import AccuracyMatrix
from train.continual.scenarios import Scenario, TaskData, split_tasks
from train.continual.study import TABLE, Recipe, Row, layer_sizes, run_study

LIBRARIES = ("ours", "Avalanche")


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
    pair, seed, full = PAIRS[arguments["method"]], arguments["seed"], Recipe()
    tasks = split_tasks(load_digits_set(seed), scenario=pair.scenario, num_tasks=NUM_TASKS, seed=seed)
    sizes = layer_sizes(tasks, full)

    def work(tasks: Sequence[TaskData], recipe: Recipe, clock: _Clock) -> AccuracyMatrix:
        if variant == "ours":
            return run_study(pair.ours, tasks, scenario=pair.scenario, seed=seed, recipe=recipe, clock=clock)
        start = Start(sizes, seed, recipe)
        return run_avalanche(pair.theirs, tasks, scenario=pair.scenario, start=start, clock=clock)

    work(tasks[:2], Recipe(epochs=2), _Clock())
    clock = _Clock()
    matrix = work(tasks, Recipe(epochs=arguments.get("epochs", full.epochs)), clock)
    return {
        "seconds": clock.wall_s, "cpu_s": clock.cpu_s, "average": matrix.average, "learning": matrix.learning,
        "worst_forgetting": matrix.worst_forgetting,
    }  # fmt: skip


class _Clock(AbstractContextManager[None]):
    """Seconds of the blocks that it is used for, together."""

    wall_s = cpu_s = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._begin[0]
        self.cpu_s += time.process_time() - self._begin[1]


EMPIRICAL = Row(lambda _, seed: [EWCRegularizer(EWCConfig(seed=seed, fisher="empirical"))])
FISHER = "lambda 5000 / 2 here, 2500 there; Avalanche squares the gradient of a batch's mean, ours that of each sample"
SI = "c = lambda / 2 = 1 and xi = 1e-3 in both; Avalanche counts the gradient of the penalty, too"
RESERVOIR = f"{CAPACITY} samples, 8 beside 32 new, in turn; Avalanche's come in an order of its own"


PAIRS: dict[str, Pair] = {
    "naive": Pair("domain", TABLE["naive"], plugin()),
    "EWC": Pair("domain", TABLE["EWC"], plugin("EWCPlugin", ewc_lambda=2500), f"{FISHER}, for all classes"),
    "EWC, empirical": Pair("domain", EMPIRICAL, plugin("EWCPlugin", ewc_lambda=2500), FISHER),
    "EWC, online": Pair(
        "domain", TABLE["EWC, online"], plugin("EWCPlugin", ewc_lambda=2500, mode="online", decay_factor=1.0),
        f"{FISHER}, for all classes",
    ),
    "SI": Pair(
        "domain", TABLE["SI"], plugin("SynapticIntelligencePlugin", si_lambda=2.0, eps=1e-3),
        f"{SI}; as released it holds nothing on a CPU, since the weights that it compares with move along",
    ),
    "SI, Avalanche repaired": Pair(
        "domain", TABLE["SI"], repaired_si,
        f"{SI}, and lets importance be negative; repaired here: it copies the weights, and does not clip at 1e-3",
    ),
    "LwF": Pair(
        "domain", TABLE["LwF"], plugin("LwFPlugin", alpha=4.0, temperature=2.0),
        "T = 2; 0.5 CE + 0.5 T^2 KL here, CE + 4 KL there: twice as much, which Adam does not notice",
    ),
    "replay, 200": Pair("domain", TABLE["replay, 200"], replay, RESERVOIR),
    "replay, 200, ten classes": Pair("class", TABLE["replay, 200"], replay, RESERVOIR),
    "DER++, 200": Pair("class", TABLE["DER++, 200"], der, f"{RESERVOIR}, and keeps equally many of each class"),
    "PackNet": Pair(
        "task", TABLE["PackNet"], packnet,
        "30 epochs, half pruned, 15 epochs; pruned weights begin the next task as new draws here, as they were there",
    ),
    "progressive": Pair(
        "task", TABLE["progressive"], progressive,
        "linear laterals in both, in Avalanche beside an MLP of the inputs for the first layer, and none to the outputs",
    ),
}  # fmt: skip

if __name__ == "__main__":
    child_main(measure)
