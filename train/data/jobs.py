"""The jobs of a run: plain functions that read files, call kernels, and write files; any process may run any of them.

A job is named by its run's folder, its phase and its number. It reads what earlier phases wrote, writes files of its own, and
commits (run_folder.py); it holds at most one work unit in memory. The order of the phases is that of PHASES.
"""

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from train.data.jobs_dedup import (
    choose_duplicates,
    choose_repeats,
    hash_unit_pieces,
    merge_bands,
    num_verify_jobs,
    pair_band,
    pair_equal_texts,
    verify_slice,
)
from train.data.jobs_finish import finish_unit, lay_out_shards, num_shards, pack_shard, prepare_tokenizer
from train.data.jobs_prepare import hash_evaluation_sets, prepare_unit
from train.data.run import Run
from train.data.run_folder import RunMismatch


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the run in a folder."""

    location: str
    run_id: str
    phase: str
    index: int


class Phase(NamedTuple):
    """What its jobs do, how many there are, given a run whose earlier phases are done, and what a person reads."""

    work: Callable[[Run, int], None]
    count: Callable[[Run], int]
    label: str


def _once(_: Run) -> int:
    return 1


def _per_unit(run: Run) -> int:
    return len(run.units)


def _if_pieces(run: Run) -> bool:
    return run.config.line_dedup.pieces != "off"


PHASES: dict[str, Phase] = {
    "evaluation": Phase(
        hash_evaluation_sets, lambda run: int(bool(run.config.evaluation_sets)), "hash evaluation sets"
    ),
    "prepare": Phase(prepare_unit, _per_unit, "read, clean and judge"),
    "exact": Phase(pair_equal_texts, _once, "pair equal texts"),
    "band": Phase(pair_band, lambda run: run.config.dedup.minhash.num_bands, "pair similar texts"),
    "candidates": Phase(merge_bands, _once, "merge the pairs"),
    "verify": Phase(verify_slice, num_verify_jobs, "verify the pairs"),
    "duplicates": Phase(choose_duplicates, _once, "choose who stays"),
    "pieces": Phase(hash_unit_pieces, lambda run: len(run.units) * _if_pieces(run), "hash repeated lines"),
    "repeats": Phase(choose_repeats, lambda run: int(_if_pieces(run)), "find repeated lines"),
    "tokenizer": Phase(prepare_tokenizer, _once, "train or check the tokenizer"),
    "finish": Phase(finish_unit, _per_unit, "write text and tokens"),
    "layout": Phase(lay_out_shards, _once, "lay out the sequences"),
    "pack": Phase(pack_shard, num_shards, "pack the shards"),
}
"""In their order: each needs the earlier ones."""


def run_job(job: Job) -> Job:
    """Do a job and commit it. Doing it again gives the same files."""
    gc.freeze()  # what the process holds by now needs no look at every collection: that was 8 % of a run over web pages
    try:
        PHASES[job.phase].work(open_run(job.location, job.run_id), job.index)
    finally:
        gc.unfreeze()
    return job


@functools.lru_cache(maxsize=2)
def open_run(location: str, run_id: str) -> Run:
    """The run in this folder; once per process, because its tools take a second to make. Raises RunMismatch if another one
    is there now."""
    run = Run(location)
    if run.id != run_id:
        raise RunMismatch(f"{location} holds another run by now: whoever started this one has been replaced")
    return run
