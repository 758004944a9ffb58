"""Studies of continual learning on images, many at once, in processes of one thread: for benchmarks/continual.py."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from cluster.bench_images import IMAGE_SETS, NUM_TASKS
from train.continual.metrics import AccuracyMatrix
from train.continual.scenarios import Scenario, split_tasks
from train.continual.study import TABLE, run_study

NUM_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Study:
    """One method on one stream."""

    data: str
    scenario: Scenario
    row: str
    seed: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What it did."""

    matrix: AccuracyMatrix
    seconds: float


def run_studies(studies: Sequence[Study], *, note: Callable[[str], None]) -> dict[Study, Finding]:
    """All of them, in two processes; says now and then how far it is."""
    found: dict[Study, Finding] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=spawn, initializer=_take_one_thread) as pool:
        for study, finding in zip(studies, pool.map(_measure, studies), strict=True):
            found[study] = finding
            if len(found) % 50 == 0:
                note(f"  {len(found)} of {len(studies)} runs")
    return found


def _take_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _measure(study: Study) -> Finding:
    images = IMAGE_SETS[study.data]
    tasks = split_tasks(images.load(study.seed), scenario=study.scenario, num_tasks=NUM_TASKS, seed=study.seed)
    start = time.perf_counter()
    matrix = run_study(TABLE[study.row], tasks, scenario=study.scenario, seed=study.seed, recipe=images.recipe)
    return Finding(matrix, time.perf_counter() - start)
