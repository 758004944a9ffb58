"""The benchmarks of an agent of one process: by themselves, ended with it, and what they ask to be learned again."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autonomous import agent_home, version_reports
from autonomous.agent import AutonomousLearningAgent
from autonomous.benchmark_config import BenchmarkConfig
from autonomous.jobs import SchedulesConfig
from autonomous.report_store import load_benchmark
from autonomous.triggers import Trigger
from memory.types import Guard
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.tiny_agent import CONFIG, DOCUMENTS, approve, make_agent
from tests.waiting import until

EACH_SECOND = SchedulesConfig.model_validate(
    {
        "poll_s": 0.05,
        "settle_s": 0.0,
        "jobs": {"evaluate": {"schedule": {"kind": "every", "every_s": 1}}, "retrain": {"num_to_label": 0}},
    }
)
QUICK = BenchmarkConfig(
    max_questions=2, max_answer_tokens=2, latency_repeats=1, latency_tokens=2, bootstrap_samples=200
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def make_agent_that_benchmarks(base: Path, home: Path) -> AutonomousLearningAgent:
    return make_agent(base, home, CONFIG.model_copy(update={"benchmark": QUICK, "schedules": EACH_SECOND}))


async def learn(agent: AutonomousLearningAgent) -> str:
    await agent.add(DOCUMENTS)
    version = (await agent.learn()).version
    assert version is not None
    await approve(agent, version)
    return version


def outcomes_of(home: Path, job: str) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(home / "schedules.sqlite")) as connection:
        return list(connection.execute("SELECT slot, outcome FROM runs WHERE name = ? ORDER BY id", (job,)))


@pytest.mark.slow
async def test_the_version_that_serves_is_benchmarked_and_what_it_lost_is_asked_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(history: Any, _: Any) -> list[Trigger]:
        return [Trigger("fall", "recall", history[-1].version, None, 0.1, 0.9, 20, 0.001, "recall fell")]

    monkeypatch.setattr(version_reports, "decide_triggers", lost)
    async with make_agent_that_benchmarks(base, tmp_path) as agent:
        version = await learn(agent)
        report = await asyncio.to_thread(until, lambda: load_benchmark(tmp_path / "reports", version), timeout_s=60)
        assert report.metric("loss on questions") is not None
        asked = await asyncio.to_thread(until, lambda: outcomes_of(tmp_path, "retrain"), timeout_s=60)
    assert [slot for slot, _ in asked] == [f"trigger {version}/recall/fall"]


@pytest.mark.slow
async def test_stopping_the_agent_ends_its_benchmark(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = threading.Event()

    class Endless:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, *_: Any, guard: Guard, **__: Any) -> None:
            has_begun.set()
            until(guard, timeout_s=60)  # it goes on until it is refused

    monkeypatch.setattr(agent_home, "Benchmark", Endless)
    agent = make_agent_that_benchmarks(base, tmp_path)
    await agent.start()
    version = await learn(agent)
    assert await asyncio.to_thread(has_begun.wait, 60)
    async with asyncio.timeout(20):
        await agent.stop()
    assert outcomes_of(tmp_path, "evaluate")[-1][1] == "stopped"
    assert load_benchmark(tmp_path / "reports", version) is None
