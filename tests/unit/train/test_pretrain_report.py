"""The report of pre-training runs: what it shows, that it is safe and self-contained, and that it stays small."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.pretrain.report import render_html, write_report
from train.pretrain.run_log import EvaluationRecord, EventRecord, RunLog, SampleRecord, StepRecord

EVIL = "<script>alert('\"x\"')</script>&<b>"


class _Page(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _run(name: str = "MoE", *, num_steps: int = 50, num_layers: int = 2, floor: float = 3.0, **fields: Any) -> RunLog:
    random = np.random.default_rng(0)
    steps = [
        StepRecord(
            step=step,
            tokens=1000 * step,
            loss=floor + 6 / step,
            lr=1e-3,
            grad_norm=float(random.exponential()),
            tokens_per_s=5000.0,
            mfu=0.25,
            expert_max_over_mean=tuple(1 + random.exponential(size=num_layers)),
            dead_experts=tuple(random.integers(0, 4, num_layers).tolist()),
            seconds={"data": 0.25, "forward_backward": 0.75},
        )
        for step in range(1, num_steps + 1)
    ]
    evaluations = [EvaluationRecord(step=one.step, tokens=one.tokens, loss=one.loss + 0.1) for one in steps[::10]]
    given: dict[str, Any] = {"baselines": {"unigram": 7.2, "bigram": 4.6}, "steps": steps, "evaluations": evaluations}
    return RunLog(name, **(given | fields))


def test_the_page_says_how_far_each_run_is_below_the_baselines() -> None:
    page = _Page(render_html([_run(), _run("dense twin", floor=3.5)], title="Runs"))
    last = [3.0 + 6 / 41 + 0.1, 3.5 + 6 / 41 + 0.1]
    for loss in last:
        figures = f"{loss:.3f} {loss:.3f} {7.2 - loss:.3f} {4.6 - loss:.3f} 5k 25.0%"
        assert figures in page.text
    assert "unigram 7.200" in page.text
    assert "bigram 4.600" in page.text
    for title in ("Loss", "Learning rate", "Gradient norm", "Speed", "Expert load: MoE", "Dead experts: dense twin"):
        assert title in page.texts
    assert "forward_backward 37.5 s 75.0%" in page.text
    classes = [value for name, value in page.attributes if name == "class"]
    assert {"points run0", "points run1", "faint run0", "faint run1", "dots run0"} <= set(classes)


def test_the_loss_chart_has_a_level_for_each_baseline_and_a_mark_for_each_event_but_checkpoints() -> None:
    events = [EventRecord(step=step, event=name) for step, name in ((10, "checkpoint"), (25, "skip"), (30, "rewind"))]
    html = render_html([_run(events=events)], title="Runs")
    assert re.findall(r'<span class="name"[^>]*>([^<]*)', html) == ["unigram 7.200", "bigram 4.600"]
    marks = re.findall(r'<line class="mark" x1="([\d.]+)".*?<title>(\w+)', html)
    assert marks == [("500.0", "skip"), ("600.0", "rewind")]
    assert "1 checkpoint, 1 skip, 1 rewind" in _Page(html).text


def test_baselines_that_differ_between_runs_are_shown_with_the_runs_name() -> None:
    other = _run("dense", baselines={"unigram": 7.2, "bigram": 4.7})
    text = _Page(render_html([_run(), other], title="Runs")).text
    assert "bigram 4.600" in text
    assert "bigram (dense) 4.700" in text
    assert "unigram (dense)" not in text


def test_everything_from_a_run_is_escaped_and_shown() -> None:
    run = _run(
        EVIL + "name",
        events=[EventRecord(step=3, event=EVIL + "event", detail=EVIL + "detail")],
        samples=[SampleRecord(step=3, prompt=EVIL + "prompt", text=EVIL + "text")],
        baselines={EVIL + "baseline": 4.0},
        config={EVIL + "key": {"inner": EVIL + "value"}},
    )
    page = _Page(render_html([run], title=EVIL + "title"))
    assert "script" not in page.tags
    assert page.tags.count("b") == 1  # the held-out loss
    shown = "".join(page.texts)
    for part in ("name", "event", "detail", "prompt", "text", "baseline", "key.inner", "value", "title"):
        assert EVIL + part in shown


def test_the_page_needs_nothing_from_outside() -> None:
    html = render_html([_run()], title="Runs")
    page = _Page(html)
    assert not {"link", "img", "iframe", "object", "script"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "xlink:href", "srcset") or name.startswith("on")
    ]
    assert not re.search(r"url\(|@import|https?://", html)
    assert "prefers-color-scheme: dark" in html


@pytest.mark.slow
def test_a_run_of_100_000_steps_stays_below_2_megabytes(tmp_path: Path) -> None:
    events = [EventRecord(step=step, event="skip", detail="x" * 1000) for step in range(1, 100_000, 20)]
    samples = [SampleRecord(step=step, prompt="p", text="y" * 50_000) for step in range(100)]
    config = {f"setting{number}": "z" * 2000 for number in range(1000)}
    run = _run(num_steps=100_000, num_layers=24, events=events, samples=samples, config=config)
    write_report([run, _run("dense")], path=tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    page = _Page((tmp_path / "report.html").read_text())
    assert "200 of 5,000 are shown." in page.text
    assert "24 of 100 are shown." in page.text
    assert "400 of 1,000 settings are shown." in page.text
    assert "(48,000 characters more)" in page.text
    assert "99,981" in page.texts  # the last event
    assert "step 99" in page.text


def test_a_run_that_has_only_begun_or_measures_little_has_a_page() -> None:
    bare = StepRecord(step=1, tokens=10, loss=math.nan)
    for run in (
        RunLog("empty"),
        RunLog("one", steps=[bare]),
        RunLog("baseline", baselines={"bigram": 4.0}),
        RunLog("evaluated", evaluations=[EvaluationRecord(step=0, tokens=0, loss=9.0)]),
        RunLog("torn", num_torn=2),
    ):
        page = _Page(render_html([run], title="Runs"))
        assert run.name in page.text
    assert "2 unfinished lines" in page.text


def test_settings_that_differ_between_runs_come_first() -> None:
    one = _run("a", config={"seed": 1, "model": {"layers": 4, "experts": 16}})
    other = _run("b", config={"seed": 1, "model": {"layers": 4, "experts": 0}, "extra": None})
    text = _Page(render_html([one, other], title="Runs")).text
    assert "model.experts 16 0 extra - null seed 1 1 model.layers 4 4" in text


def test_runs_need_names_of_their_own() -> None:
    for runs in ([], [_run(), _run()], [_run(str(number)) for number in range(7)]):
        with pytest.raises(ValueError, match="give 1 to 6 runs, each with a name of its own"):
            render_html(runs, title="Runs")
