"""Runs that are asked for, by people and by triggers: what comes together is one run, and runs keep their distance."""

from pathlib import Path
from typing import Any

import pytest

from autonomous.retraining import Outcome
from autonomous.schedule_book import UnknownSchedule
from tests.unit.autonomous.scheduling import DAY, HOUR, Desk, run_all


def test_triggers_that_come_together_are_one_run_and_two_runs_are_apart(folder: Path) -> None:
    desk = Desk(folder, {}, trigger_distance_s=HOUR)
    scheduler = desk.open()
    for number in range(40):
        scheduler.trigger("retrain", by="gaps", reason=f"cluster {number}", evidence={"size": number})
    assert len(run_all(scheduler)) == 1
    (run,) = scheduler.book.runs("retrain")
    assert (run.num_reasons, len(run.reasons)) == (40, 16)
    assert run.reasons[3]["evidence"] == {"size": 3}
    desk.wait(600)
    scheduler.trigger("retrain", by="drift", reason="the stream has changed")
    assert run_all(scheduler) == []
    desk.wait(HOUR - 601)
    assert run_all(scheduler) == []
    desk.wait(1)
    assert len(run_all(scheduler)) == 1


def test_the_same_key_asks_once_also_after_its_run_has_ended(folder: Path) -> None:
    scheduler = Desk(folder, {}).open()
    asked = [scheduler.trigger("retrain", by="gaps", reason="gap 7", key="gap-7").id for _ in range(2)]
    run_all(scheduler)
    again = scheduler.trigger("retrain", by="gaps", reason="gap 7", key="gap-7")
    assert {*asked, again.id} == {again.id}
    assert again.outcome == "done"
    assert again.num_reasons == 1


def test_a_trigger_during_a_run_is_a_run_of_its_own_and_a_persons_request_is_answered_by_it(folder: Path) -> None:
    scheduler = Desk(folder, {}, trigger_distance_s=0).open()
    scheduler.ask("retrain", by="ann", reason="now")
    job = scheduler.tick()
    assert job is not None
    assert scheduler.ask("retrain", by="bob", reason="now too").id == job.run.id
    later = scheduler.trigger("retrain", by="drift", reason="seen only now")
    assert later.id != job.run.id
    scheduler.finish(job, Outcome("done"))
    assert len(run_all(scheduler)) == 1


def test_a_clock_that_went_back_delays_a_trigger_by_no_more_than_the_distance(folder: Path) -> None:
    desk = Desk(folder, {}, trigger_distance_s=HOUR)
    scheduler = desk.open()
    scheduler.trigger("retrain", by="drift", reason="first")
    run_all(scheduler)
    scheduler.trigger("retrain", by="drift", reason="second")
    desk.clock.now -= 365 * DAY
    run_all(scheduler)
    desk.wait(HOUR)
    assert len(run_all(scheduler)) == 1


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"name": "nap", "by": "ann", "reason": "x"}, "there are learn, retrain, evaluate, drill, consolidate"),
        ({"name": "learn", "by": " ", "reason": "x"}, "by is empty"),
        ({"name": "learn", "by": "ann", "reason": ""}, "reason is empty"),
        ({"name": "learn", "by": "ann", "reason": "x", "evidence": {"text": "y" * 5000}}, "give a summary"),
    ],
)
def test_a_request_that_cannot_be_kept_is_refused(folder: Path, request_: dict[str, Any], told: str) -> None:
    scheduler = Desk(folder, {}).open()
    with pytest.raises((ValueError, UnknownSchedule), match=told):
        scheduler.trigger(request_.pop("name"), **request_)
