"""The scheduler's loop and the runners behind it: what they raise, how they beat, and what is written down of them."""

import sqlite3
import threading
from pathlib import Path

from autonomous.jobs import SchedulesConfig
from autonomous.retraining import Job, Outcome, choose_before
from tests.unit.autonomous.scheduling import HOUR, HOURLY, Desk, outcomes, run_all


def test_what_a_runner_raises_is_the_runs_failure_and_a_finding(folder: Path) -> None:
    desk = Desk(folder, {})

    def broken(job: Job) -> Outcome:
        raise OSError("the disk is gone")

    desk.runners["learn"] = broken
    del desk.runners["drill"]
    scheduler = desk.open()
    for name in ("learn", "drill"):
        scheduler.ask(name, by="ann", reason="now")
    run_all(scheduler)
    assert scheduler.findings() == [
        "learn: its last run failed: OSError: the disk is gone",
        "drill: its last run failed: no part of this system does jobs of the kind 'drill'",
    ]


def test_a_retraining_first_asks_for_labels_and_goes_on_without_them(folder: Path) -> None:
    desk = Desk(folder, {"retrain": {"num_to_label": 7}})
    asked: list[int] = []

    def select(budget: int) -> list[str]:
        asked.append(budget)
        if len(asked) > 1:
            raise OSError("the queue is gone")
        return ["a", "b"]

    desk.runners["retrain"] = choose_before(select, desk.work)
    scheduler = desk.open()
    for _ in range(2):
        scheduler.ask("retrain", by="ann", reason="now")
        run_all(scheduler)
    assert asked == [7, 7]
    assert [(run.num_to_label, run.outcome) for run in scheduler.book.runs("retrain")] == [(None, "done"), (2, "done")]


def test_closing_waits_for_the_run_and_writes_its_end_down(folder: Path) -> None:
    desk = Desk(folder, {})
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(job: Job) -> Outcome:
        has_begun.set()
        assert may_end.wait(10)
        return Outcome("done", "slowly")

    desk.runners["learn"] = slow
    scheduler = desk.open()
    scheduler.ask("learn", by="ann", reason="now")
    scheduler.step()
    assert has_begun.wait(10)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    may_end.set()
    closing.join(10)
    after = desk.open()
    assert [outcome for _, outcome in outcomes(after, "learn")] == ["done"]
    assert after.findings() == []
    after.close()


def test_a_step_begins_beats_and_writes_the_end_down(folder: Path) -> None:
    desk = Desk(folder, {}, lease_s=60)
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(job: Job) -> Outcome:
        has_begun.set()
        assert may_end.wait(10)
        return Outcome("done", "slowly", ("run-1",))

    desk.runners["learn"] = slow
    scheduler, other = desk.open(), desk.open()
    scheduler.ask("learn", by="ann", reason="now")
    scheduler.step()
    assert has_begun.wait(10)
    for _ in range(3):
        desk.wait(40)
        scheduler.step()
        assert other.tick() is None
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "job-learn":
            thread.join(10)
    scheduler.step()
    (run,) = scheduler.book.runs("learn")
    assert (run.state, run.outcome, run.results, run.beats) == ("ended", "done", ("run-1",), 3)


def test_a_scheduler_whose_file_cannot_be_written_says_so_and_goes_on(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    scheduler = desk.open()
    desk.wait(HOUR)
    with sqlite3.connect(folder / "schedules.sqlite") as connection:
        connection.execute("ALTER TABLE scheduler RENAME TO gone")
    scheduler.step()
    assert any("cannot work" in finding for finding in scheduler.findings())
    with sqlite3.connect(folder / "schedules.sqlite") as connection:
        connection.execute("ALTER TABLE gone RENAME TO scheduler")
    assert len(run_all(scheduler)) == 1
    scheduler.step()
    assert scheduler.findings() == []


def test_it_steps_until_its_event_is_set_and_not_before_the_other_parts_are_there(folder: Path) -> None:
    desk = Desk(folder, {}, settle_s=0, poll_s=0.001)
    is_over = threading.Event()

    def last(job: Job) -> Outcome:
        is_over.set()
        return Outcome("done")

    desk.runners["learn"] = last
    scheduler = desk.open()
    scheduler.ask("learn", by="ann", reason="now")
    scheduler.run_until(is_over)
    never = desk.open(SchedulesConfig(settle_s=1e6))
    never.run_until(is_over)
    assert outcomes(never, "learn")[0][0].startswith("asked")
