"""The scheduler with clocks that a test sets: slots, missed slots, schedulers on one file, and configuration."""

import sqlite3
import threading
from pathlib import Path

import pytest

from autonomous.jobs import SchedulesConfig
from autonomous.retraining import Job, Outcome
from autonomous.schedule_book import UnknownSchedule
from memory.store import StoreProblem
from tests.unit.autonomous.scheduling import DAY, HOUR, HOURLY, NOON, Desk, outcomes, run_all

# --- slots


def test_a_slot_is_run_once_and_the_next_one_when_it_comes(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    scheduler = desk.open()
    assert run_all(scheduler) == []  # the first slot is the first that comes
    desk.wait(HOUR)
    assert run_all(scheduler) == ["2026-05-04T13:00:00Z"]
    assert run_all(scheduler) == []
    desk.wait(HOUR)
    assert run_all(scheduler) == ["2026-05-04T14:00:00Z"]
    assert outcomes(scheduler, "learn") == [("2026-05-04T14:00:00Z", "done"), ("2026-05-04T13:00:00Z", "done")]
    described = scheduler.book.schedules()[0]
    assert (described["next_due"], described["last"]["detail"]) == (NOON + 3 * HOUR, "worked")


def test_what_was_missed_while_nothing_ran_is_made_up_for_by_the_policy(folder: Path) -> None:
    policies = ("skip", "run_once", "run_all")
    desk = Desk(folder, {one: {"kind": "learn", "schedule": {"kind": "hourly"}, "missed": one} for one in policies})
    desk.open().close()
    desk.wait(5.5 * HOUR)
    scheduler = desk.open()
    run_all(scheduler)
    assert outcomes(scheduler, "skip") == [("2026-05-04T17:00:00Z", "skipped")]
    assert outcomes(scheduler, "run_once") == [("2026-05-04T17:00:00Z", "done")]
    assert outcomes(scheduler, "run_all") == [(f"2026-05-04T{hour}:00:00Z", "done") for hour in (17, 16, 15)]
    stands_for = {name: [run.num_slots for run in scheduler.book.runs(name)] for name in policies}
    assert stands_for == {"skip": [5], "run_once": [5], "run_all": [1, 1, 3]}


def test_slots_that_come_during_a_long_run_wait_as_one_or_as_many_as_the_policy_says(folder: Path) -> None:
    jobs = {
        "retrain": {"max_missed": 2},
        "once": {"kind": "learn", "schedule": {"kind": "hourly"}},
        "all": {"kind": "learn", "schedule": {"kind": "hourly"}, "missed": "run_all", "max_missed": 2},
        "never": {"kind": "learn", "schedule": {"kind": "hourly"}, "missed": "skip"},
    }
    desk = Desk(folder, jobs)
    scheduler = desk.open()
    scheduler.ask("retrain", by="ann", reason="all of it")
    long = scheduler.tick()
    assert long is not None
    for _ in range(5):
        desk.wait(HOUR)
        scheduler.beat()
        assert scheduler.tick() is None
    desk.wait(600)
    scheduler.finish(long, Outcome("done"))
    run_all(scheduler)
    ran = {name: [slot for slot, outcome in outcomes(scheduler, name) if outcome == "done"] for name in jobs}
    assert ran["once"] == ["2026-05-04T17:00:00Z"]
    assert ran["all"] == ["2026-05-04T17:00:00Z", "2026-05-04T16:00:00Z"]
    assert ran["never"] == []


def test_a_clock_that_jumps_back_runs_no_slot_twice_and_says_so(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    scheduler = desk.open()
    desk.wait(2 * HOUR)
    assert len(run_all(scheduler)) == 1
    assert scheduler.findings() == []
    desk.clock.now -= 30 * DAY
    for _ in range(20):
        desk.wait(HOUR)
        assert run_all(scheduler) == []
    assert any("the clock was ahead" in finding for finding in scheduler.findings())
    assert run_all(desk.open()) == []
    desk.clock.now += 31 * DAY
    assert len(run_all(scheduler)) == 1


def test_two_schedulers_on_one_file_run_each_slot_once(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    first, second = desk.open(), desk.open()
    desk.wait(HOUR)
    job = first.tick()
    assert job is not None
    assert second.tick() is None
    first.finish(job, first.execute(job))
    assert second.tick() is None
    desk.wait(HOUR)
    assert len(run_all(second)) == 1
    assert run_all(first) == []


def test_many_threads_begin_a_slot_once(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    schedulers = [desk.open() for _ in range(4)]
    desk.wait(HOUR)
    begun: list[Job | None] = []
    threads = [threading.Thread(target=lambda one=one: begun.append(one.tick())) for one in schedulers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 4
    assert sum(job is not None for job in begun) == 1


# --- configuration and bounds


def test_a_changed_schedule_begins_anew_and_one_that_is_gone_drops_what_waited(folder: Path) -> None:
    desk = Desk(folder, {"night": {"kind": "learn", "schedule": {"kind": "daily"}}})
    scheduler = desk.open()
    scheduler.ask("night", by="ann", reason="now")
    desk.wait(DAY)
    half_hour = SchedulesConfig.model_validate({"jobs": {"learn": {"schedule": {"kind": "hourly", "minute": 30}}}})
    changed = desk.open(half_hour)
    assert run_all(changed) == []
    desk.wait(1800)
    assert run_all(changed) == ["2026-05-05T12:30:00Z"]
    with pytest.raises(UnknownSchedule):
        changed.book.runs("night")
    assert run_all(desk.open(half_hour)) == []  # the same configuration changes nothing


def test_the_table_is_bounded_and_keeps_the_newest(folder: Path) -> None:
    desk = Desk(folder, {"often": {"kind": "learn", "schedule": {"kind": "every", "every_s": 10}}}, kept_runs=5)
    scheduler = desk.open()
    scheduler.ask("drill", by="ann", reason="once")
    run_all(scheduler)
    for _ in range(30):
        desk.wait(10)
        assert len(run_all(scheduler)) == 1
    assert len(outcomes(scheduler, "often")) == 5
    assert outcomes(scheduler, "often")[0][0] == "2026-05-04T12:05:00Z"
    assert len(outcomes(scheduler, "drill")) == 1  # a rare job's runs are not pushed out by a frequent one's


def test_a_file_of_a_newer_release_is_left_as_it_is(folder: Path) -> None:
    desk = Desk(folder, {})
    desk.open().close()
    with sqlite3.connect(folder / "schedules.sqlite") as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreProblem, match="schema version 2"):
        desk.open()
