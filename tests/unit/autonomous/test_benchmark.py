"""Benchmark on a tiny random Llama: every suite asked of everyone, yielding to evaluations; its report; the page."""

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autonomous.benchmark import PART_ITEMS, Benchmark
from autonomous.benchmark_config import BenchmarkConfig
from autonomous.benchmark_report import (
    BenchmarkReport,
    Latency,
    MetricScores,
    Outcome,
    compare,
    interval_of,
)
from autonomous.config import GateConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Question
from autonomous.report_page import metrics_of, render_version, training_charts
from autonomous.report_store import load_benchmark, load_history, save_benchmark, write_version_report
from autonomous.triggers import Trigger
from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.report import DomainScores, EvaluationReport, SafetyProbe
from autonomous.versions.schema import VersionRecord
from autonomous.versions.states import State
from tests.stops import Stopped, refuse
from tests.tiny_model import write_adapter, write_tiny_llama

CONFIG = BenchmarkConfig(max_answer_tokens=3, latency_repeats=2, latency_tokens=3, bootstrap_samples=200)
QUESTIONS = [
    Question(f"What is {row}?", f"Name {row}.", f"It is cape {row}.", f"cape {row}", f"e{row}", "d") for row in range(3)
]


def never() -> None:
    """A guard that lets everything through."""


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), base=base_folder, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def system(base_folder: Path) -> SelfEvaluationSystem:
    system = SelfEvaluationSystem(GateConfig(max_answer_tokens=3), base_folder=base_folder, dtype="float32")
    system.start()
    return system


def run(
    system: SelfEvaluationSystem, adapters: list[Path], *, guard: Callable[[], None] = never, has_current: bool = True
) -> BenchmarkReport:
    return Benchmark(CONFIG, system=system, clock=lambda: 1_700_000_000.0).run(
        adapters[0],
        version="v-1",
        current=adapters[1] if has_current else None,
        current_version="v-0",
        questions=QUESTIONS,
        guard=guard,
    )


@pytest.fixture(scope="module")
def report(system: SelfEvaluationSystem, adapters: list[Path]) -> BenchmarkReport:
    return run(system, adapters)


def test_every_metric_has_a_score_of_everyone_for_every_item(report: BenchmarkReport) -> None:
    sizes = {metric.name: len(metric.items) for metric in report.metrics}
    assert sizes == {
        "loss on general": 22,
        "loss on conversation": 22,
        "loss on code": 10,
        "loss on docs": 10,
        "loss on sentinel texts": 8,
        "loss on questions": 3,
        "recall": 3,
        "review margin": 48,
        "reviews told apart": 24,
        "instructions": 64,
        "safety": 16,
        "sentinel safety": 12,
        "privacy": 16,
    }
    for metric in report.metrics:
        assert len(metric.candidate) == len(metric.current) == len(metric.original) == len(set(metric.items))
        assert all(map(math.isfinite, (*metric.candidate, *metric.current, *metric.original)))
        if metric.kind == "share":
            assert {*metric.candidate, *metric.original} <= {0.0, 1.0}
        if metric.kind == "loss":
            assert metric.candidate != metric.original != metric.current
    assert len(report.comparisons) == 2 * len(report.metrics)
    assert report.latency is not None
    assert len(report.latency.first_token_s) == len(report.latency.tokens_per_s_original) == CONFIG.latency_repeats
    assert min(report.latency.first_token_ratio, report.latency.rate_ratio) > 0
    assert (report.current, report.created_at, len(report.code_sha256)) == ("v-0", 1_700_000_000.0, 64)


def test_twins_are_told_apart_by_the_sum_of_their_margins(report: BenchmarkReport) -> None:
    margins, apart = report.metric("review margin"), report.metric("reviews told apart")
    assert margins is not None
    assert apart is not None
    sums = [first + second for first, second in zip(margins.candidate[::2], margins.candidate[1::2], strict=True)]
    assert apart.candidate == tuple(float(total > 0) for total in sums)


def test_a_report_survives_json_and_one_of_another_format_is_refused(report: BenchmarkReport) -> None:
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert BenchmarkReport.from_dict(values) == report
    assert BenchmarkReport.from_dict(values).sha256() == report.sha256()
    with pytest.raises(ValueError, match="format 2, this program reads 1"):
        BenchmarkReport.from_dict(values | {"format": 2})
    with pytest.raises(ValueError, match=r"other fields.*seconds"):
        BenchmarkReport.from_dict({name: value for name, value in values.items() if name != "seconds"})


def test_where_v2_is_the_original_nothing_is_compared_with_it_twice(
    system: SelfEvaluationSystem, adapters: list[Path]
) -> None:
    report = run(system, adapters, has_current=False)
    assert report.current is None
    assert {one.against for one in report.comparisons} == {"original"}
    assert all(metric.current == () for metric in report.metrics)


def test_an_evaluation_that_comes_meanwhile_waits_for_one_part(
    system: SelfEvaluationSystem, adapters: list[Path], report: BenchmarkReport
) -> None:
    calls, held_at, during = [0], [0], [0]

    def evaluation() -> None:
        with system.panel(adapters[1], parent=None, guard=never):
            held_at[0] = calls[0]

    thread = threading.Thread(target=evaluation)

    def guard() -> None:
        calls[0] += 1
        if calls[0] == 5:
            thread.start()
            while not system.turns.is_wanted:
                thread.join(timeout=0.001)
            during[0] = calls[0]

    again = run(system, adapters, guard=guard)
    thread.join()
    assert during[0] == 5
    assert 5 <= held_at[0] <= 5 + PART_ITEMS  # the part asks its panel at most once for each of its items
    assert calls[0] > held_at[0]
    assert {metric.name: metric.candidate for metric in again.metrics} == {
        metric.name: metric.candidate for metric in report.metrics
    }


def test_a_stop_between_two_parts_ends_the_benchmark(system: SelfEvaluationSystem, adapters: list[Path]) -> None:
    calls = []

    def guard() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(system, adapters, guard=guard)
    assert len(calls) == 3
    with system.panel(adapters[0], parent=None, guard=never):
        pass  # the model is free again


# -- comparisons


def scores(kind: str, candidate: list[float], original: list[float], *, name: str = "metric") -> MetricScores:
    items = tuple(map(str, range(len(candidate))))
    return MetricScores(name, kind, items, tuple(candidate), (), tuple(original))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "candidate", "original", "outcome"),
    [
        ("loss", [1.0] * 8, [2.0] * 8, Outcome.BETTER),
        ("loss", [2.0] * 8, [1.0] * 8, Outcome.WORSE),
        ("loss", [1.0, 2.0], [2.0, 1.0], Outcome.UNDECIDED),
        ("margin", [2.0] * 8, [1.0] * 8, Outcome.BETTER),
        ("share", [1.0] * 8, [0.0] * 8, Outcome.BETTER),
        ("share", [0.0] * 8, [1.0] * 8, Outcome.WORSE),
        ("share", [1.0] * 4, [0.0] * 4, Outcome.UNDECIDED),
        ("share", [1.0] * 8, [1.0] * 8, Outcome.UNDECIDED),
    ],
)
def test_a_metric_is_better_worse_or_undecided(
    kind: str, candidate: list[float], original: list[float], outcome: Outcome
) -> None:
    (found,) = compare([scores(kind, candidate, original)], against="original", confidence=0.95, samples=500)
    assert found.outcome is outcome
    assert (
        found.gain == pytest.approx(sum(candidate) / len(candidate) - sum(original) / len(original)) or kind == "loss"
    )
    assert found.lower <= found.gain <= found.upper


def test_what_one_metric_alone_would_prove_many_together_may_not() -> None:
    one = scores("share", [1.0] * 5, [0.0] * 5)
    others = [scores("share", [1.0] * 5, [1.0] * 5, name=str(number)) for number in range(12)]
    alone, *_ = compare([one], against="original", confidence=0.95, samples=200)
    among, *_ = compare([one, *others], against="original", confidence=0.95, samples=200)
    assert (alone.outcome, among.outcome) == (Outcome.BETTER, Outcome.UNDECIDED)
    assert among.p_better == pytest.approx(13 / 32)
    assert "too few for so many metrics" in among.reason


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="metric is not finite"):
        compare([scores("loss", [math.nan, 1.0], [1.0, 1.0])], against="original", confidence=0.95, samples=200)


def test_intervals_hold_their_means_and_a_share_of_all_is_not_certain() -> None:
    low, high = interval_of([1.0] * 16, kind="share", confidence=0.9, samples=200)
    assert (low < 0.9, high) == (True, 1.0)
    low, high = interval_of([1.0, 2.0, 3.0], kind="loss", confidence=0.9, samples=500)
    assert 1.0 <= low < 2.0 < high <= 3.0


def test_latency_is_told_by_medians_over_the_originals() -> None:
    latency = Latency((0.2, 9.0, 0.4), (0.1, 0.2, 0.3), (10.0, 20.0), (20.0, 40.0))
    assert (latency.first_token_ratio, latency.rate_ratio) == (pytest.approx(2.0), pytest.approx(0.5))


# -- reports on disk


def record(name: str = "v-1") -> VersionRecord:
    gates = (GateResult("G2 gain", Verdict.INCONCLUSIVE, None, 0.1, "too few <items> to be sure"),)
    return VersionRecord(
        name=name, run_id="run-1", state=State.PRODUCTION, parent="v-0", created_at=1.7e9, changed_at=1.7e9, num_episodes=8,
        config={}, is_fixed=True, stored_folder=None, manifest=None, stream_offset=3, adapter_number=2,
        report_sha256="0" * 64, gates=gates, percent=None, report_json=None, row_id=1,
    )  # fmt: skip


EVALUATED = EvaluationReport(
    question_nll_candidate=[0.1, 0.2],
    question_nll_parent=[1.1, 1.2],
    recall_candidate=[True, False],
    recall_parent=[False, False],
    domains=[DomainScores(domain="code", nll_base=[1.0, 2.0], nll_parent=[1.0, 2.0], nll_candidate=[1.0, math.nan])],
    safety=[SafetyProbe(probe="a", margin_base=1.0, margin_candidate=-1.0)],
    training={"losses": [3.0, 1.0], "grad_norms": [1.0, None], "kls": []},
)


def test_the_page_shows_gates_scores_with_intervals_losses_and_what_is_to_be_learned_again(
    report: BenchmarkReport,
) -> None:
    trigger = Trigger("drift", "loss on code", "v-1", "v-0", 2.0, 1.0, 10, 0.01, "it rose")
    page = render_version(record(), EVALUATED, report, triggers=[trigger])
    assert "too few &lt;items&gt; to be sure" in page
    assert page.count('<div class="lane') == 3 * len(report.metrics)
    assert page.count('class="inconclusive"') == 1
    assert "it rose" in page
    assert page.count("<svg") == 2  # losses and gradient norms; no KL was recorded
    assert not re.search(r"(?:src|href)=", page)  # nothing from outside
    assert not re.search(r"(?:left|width):-?(?:nan|inf|[0-9]{4})", page)


def test_without_a_benchmark_the_page_shows_what_the_gates_decided_from() -> None:
    page = render_version(record(), EVALUATED, None)
    assert "Of the evaluation that the gates decided from" in page
    assert "loss on code" in page  # the candidate's broken loss is left out, the others are drawn
    assert page.count('<div class="lane') == 2 + 2 + 2 + 2
    empty = render_version(replace(record(), gates=()), None, None)
    assert "Not evaluated yet" in empty


def test_scores_of_an_evaluation_keep_their_names_and_kinds() -> None:
    found = {metric.name: metric.kind for metric in metrics_of(EVALUATED)}
    assert found == {"loss on code": "loss", "loss on questions": "loss", "recall": "share", "safety": "share"}
    assert metrics_of(EvaluationReport()) == ()
    assert training_charts({}) == []


def test_benchmarks_are_kept_by_version_and_read_in_the_order_in_which_they_were_made(
    tmp_path: Path, report: BenchmarkReport
) -> None:
    for version, created_at in (("v-2", 30.0), ("v-1", 10.0), ("v-1", 20.0)):
        save_benchmark(tmp_path, replace(report, version=version, created_at=created_at), guard=never)
    newest = load_benchmark(tmp_path, "v-1")
    assert newest is not None
    assert newest.created_at == 20.0
    assert [one.created_at for one in load_history(tmp_path)] == [10.0, 20.0, 30.0]
    assert [one.created_at for one in load_history(tmp_path, limit=2)] == [20.0, 30.0]
    assert load_benchmark(tmp_path, "v-3") is None
    for number in range(12):
        save_benchmark(tmp_path, replace(report, created_at=100.0 + number), guard=never)
    assert len(list((tmp_path / "v-1").iterdir())) == 8


def test_a_benchmark_of_an_earlier_program_is_left_out_of_the_history(tmp_path: Path, report: BenchmarkReport) -> None:
    path = save_benchmark(tmp_path, report, guard=never)
    path.with_name("benchmark-000000000001.json").write_text(json.dumps({"format": 0}), encoding="utf-8")
    assert load_history(tmp_path) == [report]


def test_a_stop_keeps_a_benchmark_from_appearing(tmp_path: Path, report: BenchmarkReport) -> None:
    with pytest.raises(Stopped):
        save_benchmark(tmp_path, report, guard=refuse)
    assert list((tmp_path / "v-1").iterdir()) == []


def test_a_report_lies_below_its_folder_whatever_the_version_is_called(tmp_path: Path, report: BenchmarkReport) -> None:
    page = write_version_report(tmp_path, record(), EVALUATED, report)
    assert page == tmp_path / "v-1" / "report.html"
    for name in ("..", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="report's folder is named by"):
            write_version_report(tmp_path, record(name), None, None)
