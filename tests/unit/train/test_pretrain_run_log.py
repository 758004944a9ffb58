"""The metrics file of a run, read back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.pretrain.run_log import RunLog, load_run


def _step(step: int, *, loss: float = 2.0, **fields: Any) -> dict[str, Any]:
    return {"kind": "step", "step": step, "tokens": 100 * step, "loss": loss, **fields}


def _load(folder: Path, *records: dict[str, Any]) -> RunLog:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_run(path, name="run")


def test_every_kind_of_record_is_read_back(tmp_path: Path) -> None:
    run = _load(
        tmp_path,
        {"kind": "baseline", "name": "bigram", "loss": 4.5},
        _step(1, lr=0.1, grad_norm=None, expert_max_over_mean=[1.5, 2], dead_experts=[0, 3], seconds={"data": 0.5}),
        _step(2, loss=math.nan, an_own_metric=7),
        {"kind": "evaluation", "step": 2, "tokens": 200, "loss": 3.5},
        {"kind": "sample", "step": 2, "prompt": "a", "text": "b"},
        {"kind": "event", "step": 2, "event": "skip", "detail": {"why": "nan"}},
    )
    assert run.baselines == {"bigram": 4.5}
    assert run.evaluations[0].loss == 3.5
    assert (run.samples[0].prompt, run.samples[0].text) == ("a", "b")
    assert run.events[0].detail == {"why": "nan"}
    np.testing.assert_equal(run.column("loss"), [2.0, np.nan])
    np.testing.assert_equal(run.column("lr"), [0.1, np.nan])
    np.testing.assert_equal(run.column("grad_norm"), [np.nan, np.nan])
    np.testing.assert_equal(run.layers("dead_experts"), [[0, 3], [np.nan, np.nan]])
    assert run.steps[0].seconds == {"data": 0.5}


def test_what_a_run_wrote_before_it_went_back_is_left_out(tmp_path: Path) -> None:
    def at(step: int, loss: float) -> list[dict[str, Any]]:
        return [
            {"kind": "evaluation", "step": step, "tokens": 100 * step, "loss": loss},  # also before its step
            _step(step, loss=loss),
            {"kind": "sample", "step": step, "prompt": "", "text": str(loss)},
        ]

    before = [record for step in range(1, 7) for record in at(step, 1.0)]
    rewind = {"kind": "event", "step": 6, "event": "rewind", "detail": ""}
    after = [record for step in range(4, 6) for record in at(step, 2.0)]
    run = _load(tmp_path, *before, rewind, *after)
    assert [(one.step, one.loss) for one in run.steps] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert [one.step for one in run.samples] == [1, 2, 3, 4, 5]
    assert [one.step for one in run.evaluations] == [1, 2, 3, 5]
    assert [one.event for one in run.events] == ["rewind"]


def test_lines_that_a_killed_writer_left_unfinished_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(_step(1)).encode()
    path.write_bytes(whole + b"\n" + whole[:30] + b"\n\n" + json.dumps(_step(2)).encode() + b"\n" + b'{"kind": "st\xc3')
    run = load_run(path, name="run")
    assert [one.step for one in run.steps] == [1, 2]
    assert run.num_torn == 2


def test_a_record_of_another_form_is_an_error_that_names_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: kind is 'stepp'"):
        _load(tmp_path, _step(1), {"kind": "stepp"})
    with pytest.raises(ValueError, match=r"line 1: tokens: .*integer"):
        _load(tmp_path, {"kind": "step", "step": 1, "tokens": "many", "loss": 1.0})
    (tmp_path / "other.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="kind is None"):
        load_run(tmp_path / "other.jsonl", name="run")


def test_tokens_of_a_step_lie_between_those_of_its_neighbours(tmp_path: Path) -> None:
    run = _load(tmp_path, _step(10), _step(20))
    assert run.tokens_at([0, 5, 10, 15, 20, 30]) == [0, 500, 1000, 1500, 2000, 2000]
    assert RunLog("empty").tokens_at([3]) == [0.0]
