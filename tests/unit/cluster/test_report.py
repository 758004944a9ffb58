"""The guided run against a small running system, and its report."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.bench import Claim
from cluster.cli_common import Failure
from cluster.guided import choose_questions, run_guided
from cluster.report import (
    AnswerRecord,
    Check,
    GuidedReport,
    LearningRecord,
    QuestionRecord,
    draw_curve,
    render_html,
    write_report,
)

EVIL = "<script>alert('x')</script>"


def _guided(system: Any, documents: Path, folder: Path) -> tuple[GuidedReport, str]:
    shown = io.StringIO()
    console = Console(file=shown, width=120)
    report = run_guided(
        system.config_path,
        source=documents, once=False, approve=False, folder=folder, console=console,
    )  # fmt: skip
    return report, shown.getvalue()


def test_the_guided_run_goes_from_documents_to_a_version_that_answers_and_through_the_stop(
    system: Any, documents: Path, tmp_path: Path
) -> None:
    report, shown = _guided(system, documents, tmp_path)
    assert report.error is None
    assert report.is_ok
    assert report.num_hits("before") == 0
    assert report.num_hits("after") == report.num_hits("after_reworded") == len(report.questions) == 5
    assert report.learning is not None
    assert report.learning.state == "PRODUCTION"
    assert report.learning.curve == [(1, 2.5), (2, 1.25), (3, 0.5)]
    assert all(check.is_ok for check in report.stop)
    assert {refused["path"] for refused in report.feed["refused"]} == {"empty.txt", "picture.bin"}
    assert "learning delay" in {claim.name for claim in report.targets}
    assert report.url in shown
    assert json.loads((tmp_path / "demo-report.json").read_text())["questions"]
    assert (tmp_path / "demo-report.html").read_text().startswith("<!doctype html>")


def test_where_two_people_decide_the_reset_waits_as_expected_and_the_command_is_told(
    system: Any, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reset(*, reason: str, by: str) -> dict[str, Any]:
        return {**await system.parts.safety_status(), "waiting": {"by": by, "reason": reason, "at": 0.0, "until": 9.0}}

    monkeypatch.setattr(system.parts, "reset", reset)
    report, shown = _guided(system, documents, tmp_path)
    assert report.is_ok
    checks = {check.name: check for check in report.stop}
    assert checks["reset"].expected == "waits for a second person"
    assert checks["GET /v1/safety"].observed == "stopped"
    assert "autonomous reset --reason" in shown


def test_a_quarantined_version_is_told_as_such_and_the_run_goes_on(
    system: Any, documents: Path, tmp_path: Path
) -> None:
    system.parts.outcome = "QUARANTINED"
    report, shown = _guided(system, documents, tmp_path)
    assert report.is_ok
    assert report.learning is not None
    assert "G2 gain, G3 control failed" in report.learning.outcome
    assert "G2 gain, G3 control failed" in " ".join(shown.split())
    assert report.num_hits("after") == 0
    assert {record.after.version for record in report.questions if record.after} == {"ver-base"}
    assert "learning delay" not in {claim.name for claim in report.targets}
    assert len(report.stop) == 7


def test_a_source_without_readable_documents_ends_the_run_with_the_reason_and_still_writes_a_report(
    system: Any, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    report, _ = _guided(system, tmp_path / "nothing", tmp_path)
    assert not report.is_ok
    assert "no readable document" in str(report.error)
    assert "no readable document" in (tmp_path / "demo-report.html").read_text()


def test_the_guided_run_does_not_begin_while_learning_is_stopped(system: Any, documents: Path, tmp_path: Path) -> None:
    system.parts.latch.stop(reason="it lied", by="alice")
    report, _ = _guided(system, documents, tmp_path)
    assert "autonomous reset" in str(report.error)
    assert report.questions == []


def test_a_missing_source_is_refused_before_anything_starts(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no folder or file"):
        run_guided(
            config_path,
            source=tmp_path / "gone",
            once=False,
            approve=False,
            folder=tmp_path,
            console=Console(file=io.StringIO()),
        )
    assert not (tmp_path / "demo-report.json").exists()


def _report() -> GuidedReport:
    answer = AnswerRecord(
        text=EVIL, version="ver-1", hit=True, seconds=0.5, sources=[{"title": EVIL, "cosine": 0.5, "source": "x"}]
    )
    question = QuestionRecord(
        question=EVIL,
        reworded=EVIL,
        document=EVIL,
        expected="x",
        key="x",
        before=answer,
        with_sources=answer,
        after=None,
    )
    learning = LearningRecord(
        run_id="run-1", phase="done", version="ver-1", state="PRODUCTION", outcome="serves", seconds=9.0,
        gates=[{"name": "G2", "verdict": "pass", "value": 1.0, "threshold": None, "reason": EVIL}],
        curve=[(1, 2.0), (2, 1.0)], timings={"training_s": 3.0},
    )  # fmt: skip
    return GuidedReport(
        started_at=1_700_000_000.0, seconds=12.0, environment={"cpu": EVIL, "load_average": [1, 2]},
        stages={"ray": 4.0},
        feed={"num_documents": 3, "refused": [{"path": EVIL, "status": "s", "reason": EVIL, "fix": EVIL}]},
        questions=[question], learning=learning, url="http://127.0.0.1:1", is_left_up=True, notes=[EVIL],
        stop=[Check(name="stop", expected="stopped", observed=EVIL, is_ok=False, seconds=0.1)],
        targets=[Claim("a", "< 1 s", 0.5, "s", True, EVIL), Claim("b", "-", None, "s", None, "")], error=EVIL,
    )  # fmt: skip


def test_the_page_escapes_everything_that_came_from_documents_or_the_model() -> None:
    page = render_html(_report())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_the_page_needs_nothing_from_outside() -> None:
    page = render_html(_report())
    for outside in ("src=", "@import", "url(", "<link"):
        assert outside not in page
    assert page.count("http") == page.count("http://127.0.0.1:1")


def test_the_report_survives_a_round_trip_through_its_file(tmp_path: Path) -> None:
    json_path, _ = write_report(_report(), folder=tmp_path)
    assert GuidedReport.model_validate_json(json_path.read_text()) == _report()


def test_a_failed_stop_check_makes_the_run_a_failure() -> None:
    assert not _report().model_copy(update={"error": None}).is_ok


def test_a_report_with_nothing_in_it_still_makes_a_page() -> None:
    assert "Guided run" in render_html(GuidedReport(started_at=0.0))


def test_the_curve_stays_inside_its_frame_and_needs_two_points() -> None:
    assert draw_curve([(1, 2.0)]) == ""
    curve = str(draw_curve([(1, 2.0), (5, 0.0), (9, 4.0)]))
    points = curve.split('points="', maxsplit=1)[1].split('"', maxsplit=1)[0].split()
    for x, y in (map(float, point.split(",")) for point in points):
        assert 0 <= x <= 640
        assert 0 <= y <= 220


def test_questions_come_from_different_documents_first() -> None:
    questions = [{"document_id": document, "question": n} for n, document in enumerate("aabbc")]
    assert [question["question"] for question in choose_questions(questions, count=3)] == [0, 2, 4]
    assert [question["question"] for question in choose_questions(questions, count=5)] == [0, 2, 4, 1, 3]
