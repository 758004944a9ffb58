"""VersionReports over a real ledger and a tiny Llama: benchmarks in the background, pages beside the bundles."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from autonomous.benchmark import Benchmark
from autonomous.benchmark_config import BenchmarkConfig
from autonomous.benchmark_job import AlreadyBenchmarking, benchmark_job
from autonomous.config import AutonomousConfig, GateConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.report_store import load_benchmark
from autonomous.retraining import Job
from autonomous.version_reports import VersionReports
from autonomous.versions.bundle import version_id_of
from autonomous.versions.ledger import UnknownVersion, VersionLedger
from autonomous.versions.states import State
from memory.types import Episode
from tests.episodes import make_episode
from tests.stops import Stopped
from tests.tiny_model import write_adapter, write_tiny_llama
from tests.unit.autonomous.ledger_life import advance, make_bundle
from tests.unit.autonomous.scheduling import DAY, Desk, outcomes, run_all

CONFIG = AutonomousConfig(
    gates=GateConfig(max_answer_tokens=2),
    benchmark=BenchmarkConfig(max_answer_tokens=2, latency_repeats=1, latency_tokens=2, bootstrap_samples=200),
)
EPISODES = [
    make_episode("The Zephyr-3 pump weighs 412 kilograms."),
    make_episode("The access code of the Bremsund archive is KX-4471."),
]


class Passages:
    """MemoryPort over the episodes."""

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        return list(enumerate(EPISODES, 1))[offset : offset + limit]

    def get(self, ids: list[str]) -> list[Episode]:
        return [episode for episode in EPISODES if episode.id in ids]


def never() -> None:
    """A guard that lets everything through."""


def promote(ledger: VersionLedger, parent: str, folder: Path, episode: Episode) -> str:
    """A version with an adapter and one episode, in production."""
    run_id = ledger.start_run(parent=parent, config={})
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
    bundle = make_bundle(parent, mark=folder.name, episodes=(episode.id,))
    ledger.fix_bundle(
        run_id,
        version_id=version_id_of(bundle),
        folder=folder,
        manifest=bundle.model_dump(mode="json"),
        episode_ids=(episode.id,),
        stream_offset=1,
        by="agent",
    )
    name = version_id_of(bundle)
    ledger.promote(advance(ledger, name, State.SHADOW), by="agent", reason="all gates passed")
    return name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[SelfEvaluationSystem, list[Path]]:
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_llama(folder / "base")
    system = SelfEvaluationSystem(CONFIG.gates, base_folder=base, dtype="float32")
    system.start()
    return system, [write_adapter(folder / f"adapter-{seed}", base=base, seed=seed) for seed in (1, 2)]


@pytest.fixture
def reports(tiny: tuple[SelfEvaluationSystem, list[Path]], ledger: VersionLedger, tmp_path: Path) -> VersionReports:
    return VersionReports(
        CONFIG, ledger=ledger, memory=Passages(), benchmark=Benchmark(CONFIG.benchmark, system=tiny[0]), folder=tmp_path
    )


def wait(reports: VersionReports, name: str, start: Callable[[], str]) -> None:
    assert start() == name
    for thread in threading.enumerate():
        if thread.name == f"benchmark {name}":
            thread.join(timeout=60)


@pytest.mark.slow
def test_a_version_is_compared_with_v2_on_what_its_whole_line_has_learned(
    reports: VersionReports,
    tiny: tuple[SelfEvaluationSystem, list[Path]],
    ledger: VersionLedger,
    base: str,
    tmp_path: Path,
) -> None:
    first = promote(ledger, base, tiny[1][0], EPISODES[0])
    assert not reports.has_benchmark(first)
    wait(reports, first, lambda: reports.start(first, guard=never))
    assert reports.has_benchmark(first)
    second = promote(ledger, first, tiny[1][1], EPISODES[1])
    alone = load_benchmark(tmp_path, first)
    assert alone is not None
    assert (alone.current, len(alone.metrics[0].current)) == (None, 0)

    report = reports.run(second, guard=never)
    asked = report.metric("loss on questions")
    assert asked is not None
    assert len(asked.items) == 2
    older = reports.run(first, guard=never)
    assert older.current == second
    assert older.metrics[0].current == report.metrics[0].candidate

    summary = reports.summary(first)
    assert summary["benchmark"]["version"] == first
    assert (summary["is_running"], summary["error"]) == (False, None)
    page = (tmp_path / first / "report.html").read_text("utf-8")
    assert page == reports.page(first)
    assert f"Version {first}" in page
    assert {path.name for path in tiny[1][0].iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_a_run_that_fails_says_so_and_the_next_may_begin(
    reports: VersionReports, tiny: tuple[SelfEvaluationSystem, list[Path]], ledger: VersionLedger, base: str
) -> None:
    name = promote(ledger, base, tiny[1][0], EPISODES[0])
    entered, release = threading.Event(), threading.Event()

    def guard() -> None:
        entered.set()
        release.wait()
        raise Stopped("the latch is set")

    reports.start(name, guard=guard)
    entered.wait()
    assert reports.summary(name)["is_running"]
    with pytest.raises(AlreadyBenchmarking, match=f"version {name} is being benchmarked"):
        reports.start(name, guard=never)
    release.set()
    for thread in threading.enumerate():
        if thread.name == f"benchmark {name}":
            thread.join(timeout=60)
    summary = reports.summary(name)
    assert (summary["is_running"], summary["error"], summary["benchmark"]) == (False, "Stopped: the latch is set", None)


def test_the_daily_job_benchmarks_a_v2_that_has_no_benchmark_and_whoever_asks_gets_another(
    ledger: VersionLedger, base: str, tmp_path: Path
) -> None:
    known: set[str] = set()
    asked: list[str] = []

    def benchmark(job: Job, version: str) -> str:
        asked.append(version)
        known.add(version)
        return "benchmarked"

    desk = Desk(tmp_path, {"evaluate": {"schedule": {"kind": "daily"}}})
    desk.runners["evaluate"] = benchmark_job(ledger, has_benchmark=known.__contains__, benchmark=benchmark)
    scheduler = desk.open()

    def next_day() -> str | None:
        desk.wait(DAY)
        run_all(scheduler)
        return outcomes(scheduler, "evaluate")[0][1]

    assert (next_day(), asked) == ("nothing", [])  # the frozen original
    version = promote(ledger, base, tmp_path / "adapter", EPISODES[0])
    assert (next_day(), asked) == ("done", [version])
    assert (next_day(), asked) == ("nothing", [version])
    scheduler.ask("evaluate", by="ada", reason="once more")
    run_all(scheduler)
    assert asked == [version, version]
    scheduler.close()


def test_what_cannot_be_benchmarked_is_refused(reports: VersionReports, base: str) -> None:
    with pytest.raises(ValueError, match="has no adapter"):
        reports.start(base, guard=never)
    with pytest.raises(UnknownVersion):
        reports.start("v-unknown", guard=never)
    assert reports.summary(base)["benchmark"] is None
