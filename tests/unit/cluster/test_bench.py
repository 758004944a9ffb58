"""The harness: what it finds, how it compares, what it prints."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autonomous.config import LearningConfig
from autonomous.lessons import build_lessons
from cluster import bench
from cluster.bench_documents import DOCUMENTS_PER_BATCH, FACTS_PER_DOCUMENT, make_documents
from cluster.cli import run
from cluster.client import Client
from cluster.config import load_config
from memory.types import Episode

CLAIM = (
    "from cluster.bench import Claim\ndef run(context):\n    yield Claim('speed', '< 2 s', 1.5, 's', True, 'once')\n"
)


def _folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def test_a_name_is_the_beginning_of_file_names(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model_speed=CLAIM, model_size=CLAIM, loop=CLAIM, _helper=CLAIM)
    assert [path.stem for path in bench.discover(["model"], folder=folder)] == ["model_size", "model_speed"]
    assert [path.stem for path in bench.discover([], folder=folder)] == ["loop", "model_size", "model_speed"]
    assert [path.stem for path in bench.discover(["loop", "lo"], folder=folder)] == ["loop"]


def test_a_whole_name_is_that_file_alone(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model=CLAIM, model_size=CLAIM)
    assert [path.stem for path in bench.discover(["model"], folder=folder)] == ["model"]
    assert [path.stem for path in bench.discover(["model_"], folder=folder)] == ["model_size"]


def test_an_unknown_name_lists_those_that_exist(tmp_path: Path) -> None:
    folder = _folder(tmp_path, loop=CLAIM, serve=CLAIM)
    with pytest.raises(bench.UnknownBenchmark, match=r"'memory'; there are: loop, serve"):
        bench.discover(["memory"], folder=folder)


def test_every_benchmark_of_the_repository_can_be_loaded() -> None:
    paths = bench.discover([])
    assert {"loop_delays", "serve_http"} <= {path.stem for path in paths}
    for path in paths:
        bench.load_benchmark(path)


def test_a_broken_benchmark_does_not_take_the_others_with_it(tmp_path: Path, config_path: Path) -> None:
    folder = _folder(tmp_path, bad="def run(context):\n    raise OSError('no disk')\n", empty="", good=CLAIM)
    report = bench.run_benchmarks(
        bench.discover([], folder=folder),
        config=load_config(config_path), config_path=config_path, client=None, quick=True, note=lambda _: None,
    )  # fmt: skip
    assert [claim.name for claim in report.claims] == ["speed"]
    assert report.broken["bad"] == "OSError: no disk"
    assert "no function run" in report.broken["empty"]


def test_json_holds_claims_and_machine_and_nothing_else_is_on_stdout(
    tmp_path: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.discover, "__kwdefaults__", {"folder": _folder(tmp_path, good=CLAIM)})
    assert run(["bench", "--json", "--quick", "--config", str(config_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"claims", "machine"}
    assert printed["claims"] == [
        {"name": "speed", "target": "< 2 s", "measured": 1.5, "unit": "s", "ok": True, "conditions": "once"}
    ]
    assert {"cpu", "cores", "memory_gib", "python", "torch", "vllm", "ray", "load_average"} <= set(printed["machine"])


def test_side_by_side_alternates_which_goes_first_after_the_warm_up() -> None:
    order: list[str] = []
    bench.side_by_side(lambda: order.append("a"), lambda: order.append("b"), repeats=4, warmup=1)
    assert "".join(order) == "ab" + "abbaabba"


def test_side_by_side_finds_the_ratio_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    rng = np.random.default_rng(0)
    found = bench.side_by_side(lambda: work(rng.uniform(0.9, 1.1)), lambda: work(rng.uniform(2.7, 3.3)), repeats=9)
    assert 2.4 < found.ratio_low <= found.ratio <= found.ratio_high < 3.7
    assert len(found.a.wall_s) == len(found.b.cpu_s) == 9


def test_sleeping_costs_wall_time_and_no_cpu_time() -> None:
    found = bench.side_by_side(lambda: time.sleep(0.02), lambda: time.sleep(0.02), repeats=3, warmup=0)
    assert found.a.median_s >= 0.02
    assert found.a.median_cpu_s < 0.02


def test_cpu_time_counts_a_process_once_even_if_it_is_named_twice() -> None:
    assert bench.cpu_time_s([os.getpid(), os.getpid()]) == pytest.approx(bench.cpu_time_s(), abs=0.5)


def test_a_comparison_with_too_few_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        bench.side_by_side(lambda: None, lambda: None, repeats=2)


@given(
    pairs=st.lists(st.tuples(st.floats(0.001, 10), st.floats(0.001, 10)), min_size=3, max_size=12),
    seed=st.integers(0, 5),
)
def test_the_interval_lies_between_the_smallest_and_the_largest_possible_ratio(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    a, b = zip(*pairs, strict=True)
    low, high = bench.ratio_interval(a, b, seed=seed)
    assert min(b) / max(a) <= low * (1 + 1e-9)
    assert low <= high
    assert high <= max(b) / min(a) * (1 + 1e-9)


def test_made_up_documents_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    assert make_documents(5, seed=1) == make_documents(5, seed=1)
    names = [document.name for document in itertools.chain(make_documents(50, seed=1), make_documents(50, seed=2))]
    assert len(set(names)) == 100


def test_made_up_documents_of_a_batch_teach_as_much_as_it_takes() -> None:
    documents = make_documents(DOCUMENTS_PER_BATCH, seed=1)
    lessons = build_lessons(
        [Episode(one.name, one.name, "s", one.name, one.text, 0, 0.0) for one in documents], max_items=99
    )
    assert all(any(one.name in asked.question for asked in lessons.questions) for one in documents)
    assert len(lessons.questions) == FACTS_PER_DOCUMENT * DOCUMENTS_PER_BATCH
    assert len(lessons.items) == LearningConfig().max_batch_items


def test_retrieval_delays_are_those_of_documents_that_are_erased_again(client: Client) -> None:
    module = bench.load_benchmark(bench.FOLDER / "loop_delays.py")
    found, cited = module.retrieval_delays(client, count=3, note=lambda _: None)
    assert found.ok is (found.measured < 2)
    assert cited.measured >= found.measured > 0
    assert "3 of 3 cite it" in cited.conditions
    assert client.list_documents()["documents"] == []


def test_learning_delays_are_those_of_a_batch_that_was_promoted_and_answers(client: Client) -> None:
    module = bench.load_benchmark(bench.FOLDER / "loop_delays.py")
    claims = {claim.name: claim for claim in module.learning_delays(client, repeats=1, note=lambda _: None)}
    assert all(claim.ok for claim in claims.values() if claim.target != "reported"), claims
    assert claims["facts learned in a minute"].measured > 0
    assert claims["hot swap"].measured == 0.05
    assert "1 of 1 runs of 2 made-up documents" in claims["learning delay, document -> weights"].conditions
    assert "6 of 6 reworded questions hit" in claims["learning delay, document -> weights"].conditions


def test_learning_that_is_not_promoted_is_no_delay_and_says_why(system: Any, client: Client) -> None:
    system.parts.outcome = "QUARANTINED"
    module = bench.load_benchmark(bench.FOLDER / "loop_delays.py")
    claims = {claim.name: claim for claim in module.learning_delays(client, repeats=1, note=lambda _: None)}
    delay = claims["learning delay, document -> weights"]
    assert (delay.measured, delay.ok) == (None, None)
    assert "a batch was not promoted (" in delay.conditions


def test_delays_are_measured_on_a_system_of_their_own_though_one_runs(
    system: Any, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start(config: Any, **_: Any) -> None:
        started.append(config.home)
        raise RuntimeError("started")

    monkeypatch.setattr("cluster.up.bring_up", start)
    config, folder = load_config(system.config_path), tmp_path / "bench"
    context = bench.BenchContext(
        quick=True, config=config, config_path=system.config_path, folder=folder, client=client
    )
    with pytest.raises(RuntimeError, match="started"):
        list(bench.load_benchmark(bench.FOLDER / "loop_delays.py").run(context))
    assert started == [folder / "home"]
    assert client.list_documents()["documents"] == []


def test_the_http_ratio_is_decided_only_by_its_whole_interval_and_by_equal_work() -> None:
    decide = bench.load_benchmark(bench.FOLDER / "serve_http.py").decide
    one = bench.Measurement("x", (1.0,), (1.0,))

    def interval(low: float, high: float) -> bench.Comparison:
        return bench.Comparison(one, one, (low + high) / 2, low, high, 1.0)

    assert decide(interval(1.0, 1.2), (256, 256)) is True
    assert decide(interval(1.4, 1.6), (256, 250)) is False
    assert decide(interval(1.2, 1.4), (256, 256)) is None
    assert decide(interval(0.1, 0.2), (256, 63)) is None
