"""The job `evaluate`: the benchmark of what serves, unless it has one already and nobody asks for another."""

from collections.abc import Callable

from autonomous.retraining import Job, Outcome, RunJob
from autonomous.schedule_rows import origin_of
from autonomous.versions.ledger import VersionLedger


class AlreadyBenchmarking(RuntimeError):
    """One version at a time."""


def benchmark_job(
    ledger: VersionLedger, *, has_benchmark: Callable[[str], bool], benchmark: Callable[[Job, str], str]
) -> RunJob:
    """`benchmark` asks everything of a version, and says in a sentence how far that is."""

    def run(job: Job) -> Outcome:
        job.check()
        v2 = ledger.get(ledger.pointers().v2)
        if v2.adapter_number is None:
            return Outcome("nothing", "the frozen original serves: it is what versions are compared with")
        if origin_of(job.run.slot) == "slot" and has_benchmark(v2.name):
            return Outcome("nothing", f"version {v2.name} has its benchmark")
        try:
            return Outcome("done", benchmark(job, v2.name), (v2.name,))
        except AlreadyBenchmarking:
            return Outcome("nothing", "a benchmark is under way already")

    return run
