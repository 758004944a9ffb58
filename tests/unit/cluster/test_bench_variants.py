"""Variants in processes of their own: turns, errors, and what is judged."""

from pathlib import Path

import pytest

from cluster import bench_variants
from cluster.bench_variants import VariantResult, judge, judge_speed_up, run_variants, speed_up

SCRIPT = """
import os, sys
from cluster.bench_variants import child_main

def measure(variant, arguments):
    if variant == "broken":
        sys.exit("no such thing")
    with open(arguments["log"], "a") as log:
        log.write(variant + " ")
    threads = int(os.environ["OMP_NUM_THREADS"])
    return {"seconds": arguments["seconds"][variant], "threads": threads, "set": os.environ.get("SET")}

child_main(measure)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "measure.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
def test_variants_take_turns_in_processes_of_their_own(script: Path, tmp_path: Path):
    log = tmp_path / "log"
    arguments = {"log": str(log), "seconds": {"ours": 1.0, "theirs": 3.0}}
    found = run_variants(
        script, ["ours", "theirs"], arguments=arguments, rounds=3, environment={"SET": "yes"}, num_threads=1
    )
    assert log.read_text().split() == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert found["ours"].seconds == (1.0, 1.0, 1.0)
    assert found["ours"].median_of("threads") == 1
    assert [report["set"] for report in found["theirs"].reports] == ["yes"] * 3
    ratio = speed_up(found["ours"], found["theirs"])
    assert (ratio.ratio, ratio.low, ratio.high) == (3, 3, 3)


@pytest.mark.slow
def test_a_variant_that_fails_is_named_with_its_last_words(script: Path):
    with pytest.raises(RuntimeError, match=r"measure, variant 'broken' ended with 1: no such thing"):
        run_variants(script, ["broken"], arguments={}, rounds=1)


def _result(name: str, *seconds: float) -> VariantResult:
    return VariantResult(name, seconds, tuple({"seconds": one} for one in seconds))


def test_a_speed_is_judged_only_where_bfloat16_was_computed(monkeypatch: pytest.MonkeyPatch):
    found = speed_up(_result("ours", 1.0, 1.1, 0.9), _result("theirs", 1.5, 1.6, 1.4))
    for is_fast, verdict in ((True, True), (False, None)):
        monkeypatch.setattr(bench_variants, "has_fast_bfloat16", lambda is_fast=is_fast: is_fast)
        claim = judge_speed_up("x", found, least=1.2, conditions="")
        assert claim.ok is verdict
        assert ("float32" in claim.conditions) is not is_fast
        assert judge("m", "<= 1", 2.0, "x", is_met=False, conditions="", needs_bfloat16=False).ok is False


def test_a_ratio_whose_interval_holds_both_answers_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_variants, "has_fast_bfloat16", lambda: True)
    near = speed_up(_result("ours", 1.0, 1.3, 0.8), _result("theirs", 1.2, 1.3, 1.1))
    assert "the interval holds both answers" in judge_speed_up("x", near, least=1.2, conditions="").conditions
    assert "both answers" not in judge_speed_up("x", near, least=0.5, conditions="").conditions
