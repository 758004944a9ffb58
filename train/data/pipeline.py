"""DataPipeline: a run from sources to packed tokens, on one process, on Ray tasks, or on Ray Data.

In: a PipelineConfig. Out, in its `output` folder: text/*.parquet (documents), audit/*.parquet (what was dropped, with all
reasons), tokens/*.h5 (packed sequences) with tokens/documents/*.parquet (which tokens came from which document), losses.jsonl
(what could not be read), manifest.json (every file with its hash), report.html and report.json. All but run.json, which
holds times, is the same byte by byte for the same inputs and configuration, however often the run was killed, and on however
many workers it ran.

The drivers below are all that knows Ray. They call the same jobs (jobs.py), which exchange files and not objects.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from train.data.config import DataConfigError, PipelineConfig, hash_json
from train.data.dedup_index import DedupIndex
from train.data.filesystem import resolve
from train.data.jobs import PHASES, Job, open_run, run_job
from train.data.jobs_finish import token_format_of
from train.data.listing import refuse_overlap
from train.data.manifest import read_manifest, write_results
from train.data.report import PipelineReport
from train.data.run_folder import PLAN_VERSION, WORK, RunFolder, RunMismatch
from train.data.tokenizer import Encoder
from train.data.units import plan_units

DriverKind = Literal["local", "ray", "ray_data"]
JOBS_PER_WORKER = 2
"""Ray tasks that are submitted ahead of each worker."""
MAX_RETRIES = 3
"""Of a Ray task whose worker died; jobs are idempotent."""
TIMES_NAME = "run.json"

OnProgress = Callable[[str, int, int], None]
"""(what is done, jobs done, jobs in all)."""


class Driver(Protocol):
    """Runs jobs of one phase, in any order, and yields each when it is committed."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Raises what a job raised."""


class LocalDriver:
    """In this process, one after the other."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """See Driver."""
        yield from map(run_job, jobs)


class RayDriver:
    """One Ray task per job; as many at once as the cluster has CPUs, or `num_workers`."""

    def __init__(self, num_workers: int | None = None) -> None:
        import ray

        self._ray = ray
        if not ray.is_initialized():
            raise RuntimeError("Ray is not initialised: call ray.init() before the driver is made")
        self._num_workers = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """See Driver."""
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(run_job)
        waiting: list[Any] = []
        queue = iter(jobs)
        is_empty = False
        while waiting or not is_empty:
            while not is_empty and len(waiting) < JOBS_PER_WORKER * self._num_workers:
                job = next(queue, None)
                is_empty = job is None
                if job is not None:
                    waiting.append(task.remote(job))
            if waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                yield from ray.get(done)


class RayDataDriver:
    """Ray Data over a small data set of jobs, so that its executor schedules them beside other pipelines."""

    def __init__(self, num_workers: int | None = None) -> None:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("Ray is not initialised: call ray.init() before the driver is made")
        self._num_workers = num_workers

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """See Driver."""
        import ray.data

        rows = [dataclasses.asdict(job) for job in jobs]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = data.map(_run_row, num_cpus=1, concurrency=self._num_workers)
        for row in done.iter_rows():
            yield Job(**row)


def _run_row(row: dict[str, Any]) -> dict[str, Any]:
    run_job(Job(**row))
    return row


DRIVERS: dict[DriverKind, Callable[[int | None], Driver]] = {
    "local": lambda _: LocalDriver(),
    "ray": RayDriver,
    "ray_data": RayDataDriver,
}


class DataPipeline:
    """One run. `run` may be called again, in this process or another, until it has returned."""

    def __init__(self, config: PipelineConfig, *, driver: DriverKind = "local", num_workers: int | None = None) -> None:
        """Raises RuntimeError if the driver needs Ray and Ray is not initialised."""
        self.config = config
        self._driver = DRIVERS[driver](num_workers)
        self._driver_kind = driver
        self._folder = RunFolder(config.output)

    def run(self, *, restart: bool = False, on_progress: OnProgress = lambda *_: None) -> PipelineReport:
        """Do what is not done yet, and return what the run did.

        Raises: ValueError for sources and a tokenizer that cannot be used, or an output within a source; RunMismatch if the
        folder holds another run; what a job raised, such as DiskFull. Whatever is committed stays.
        """
        start = time.monotonic()
        on_progress("list the sources", 0, 1)
        for source in self.config.sources:
            refuse_overlap(source, output=self.config.output)
        plan: dict[str, Any] = {
            "version": PLAN_VERSION,
            "config": self.config.written(),
            "config_sha256": self.config.sha256(),
            "inputs": fingerprint_inputs(self.config),
            "units": [unit.to_json() for unit in plan_units(self.config.sources)],
        }
        check_tokenizer(self.config)
        run_id = plan["run_id"] = hash_json(plan)
        plan["index"] = self._index_state(run_id, restart=restart)
        self._folder.begin(plan, restart=restart)
        open_run.cache_clear()
        done = read_manifest(self._folder)
        if done is not None:
            self._clean_up()
            return done
        location = self.config.output
        times: dict[str, float] = {"list the sources": time.monotonic() - start}
        for name, phase in PHASES.items():
            start = time.monotonic()
            total = phase.count(open_run(location, run_id))
            jobs = [Job(location, run_id, name, i) for i in range(total) if self._folder.record(name, i) is None]
            num_done = total - len(jobs)
            if jobs:
                on_progress(phase.label, num_done, total)
            for _ in self._driver.run(jobs) if jobs else ():
                num_done += 1
                on_progress(phase.label, num_done, total)
            times[phase.label] = time.monotonic() - start
        self._folder.write_json(TIMES_NAME, {"driver": self._driver_kind, "seconds": times})
        report = write_results(open_run(location, run_id))
        self._clean_up()
        return report

    def _index_state(self, run_id: str, *, restart: bool) -> list[str]:
        """What the index held when the run began: what it goes on with, whatever was added since."""
        if self.config.index.path is None:
            return []
        known = self._folder.read_plan() or {}
        if known.get("run_id") == run_id and not restart:
            return list(known["index"])
        index = DedupIndex.open(self.config.index.path, self.config.dedup)
        if index.has_run(run_id):
            raise RunMismatch(
                f"index.path = {self.config.index.path} holds this run's documents already, a second run would drop them all: "
                "remove the index, or change the sources"
            )
        return index.state

    def _clean_up(self) -> None:
        if not self.config.keep_work:
            self._folder.delete(WORK)


def check_tokenizer(config: PipelineConfig) -> None:
    """What would end the run hours later: raises DataConfigError if the tokenizer that is given cannot encode, has no token to
    end documents with, or has ids that the shards cannot hold."""
    folder = config.tokenizer.folder
    if folder is None:
        return
    try:
        backend = config.tokenizer.backend
        encoder = Encoder.open(folder, backend="tokenizers" if backend == "auto" else backend)  # auto falls back to it
        token_format_of(encoder, sequence_length=config.packing.sequence_length)
    except ValueError as error:
        raise DataConfigError(f"tokenizer.folder = {folder} cannot be used: {error}") from error


def fingerprint_inputs(config: PipelineConfig) -> dict[str, str]:
    """SHA-256 of what a run reads beside its sources. Raises DataConfigError naming the field if it cannot be read."""
    wanted = {f"evaluation_sets.{one.name}": one.path for one in config.evaluation_sets}
    if config.tokenizer.folder is not None:
        wanted["tokenizer.folder"] = str(Path(config.tokenizer.folder) / "tokenizer.json")
    found = {}
    for field, location in wanted.items():
        filesystem, path = resolve(location)
        digest = hashlib.sha256()
        try:
            with filesystem.open_input_stream(path, compression=None) as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise DataConfigError(f"{field}: {location} cannot be read ({error}): correct the path") from error
        found[field] = digest.hexdigest()
    return found
