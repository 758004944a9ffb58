"""The scheduler with clocks that a test sets: slots, triggers, leases, stops, and what is written down of them."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autonomous.jobs import SchedulesConfig
from autonomous.retraining import Job, LeaseLost, Outcome, select_before
from autonomous.safety.latch import LearningStopped
from autonomous.schedule_book import UnknownSchedule
from memory.store import StoreProblem
from tests.unit.autonomous.ledger_life import quick_folder
from tests.unit.autonomous.scheduling import DAY, HOUR, NOON, Desk, run_all

HOURLY = {"learn": {"schedule": {"kind": "hourly"}}}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


def outcomes(scheduler: Any, name: str) -> list[tuple[str, str | None]]:
    return [(run.slot, run.outcome) for run in scheduler.book.runs(name, limit=1000)]


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


# --- leases


def test_a_crashed_run_is_begun_again_after_a_whole_lease_and_marked_after_its_last_attempt(folder: Path) -> None:
    desk = Desk(folder, HOURLY, lease_s=60)
    crashed = desk.open()
    desk.wait(HOUR)
    assert crashed.tick() is not None
    other = desk.open()
    assert other.tick() is None  # from now on it watches
    desk.wait(59)
    assert other.tick() is None
    desk.wait(1)
    again = other.tick()
    assert again is not None
    assert (again.run.slot, again.run.attempt) == ("2026-05-04T13:00:00Z", 2)
    last = desk.open()
    last.tick()
    desk.wait(60)
    assert last.tick() is None
    assert outcomes(last, "learn") == [("2026-05-04T13:00:00Z", "crashed")]
    assert any("sign of life" in finding for finding in last.findings())


def test_a_sign_of_life_keeps_a_long_run_and_no_jump_of_the_clock_ends_it(folder: Path) -> None:
    desk = Desk(folder, HOURLY, lease_s=60)
    holder, other = desk.open(), desk.open()
    desk.wait(HOUR)
    job = holder.tick()
    assert job is not None
    for _ in range(10):
        desk.wait(50)
        holder.beat()
        desk.clock.now += DAY  # of the wall clock alone
        assert other.tick() is None
        job.check()
    assert holder.finish(job, Outcome("done"))


def test_who_was_taken_over_may_do_nothing_more_and_cannot_tell_the_end(folder: Path) -> None:
    desk = Desk(folder, HOURLY, lease_s=60)
    frozen, other = desk.open(), desk.open()
    desk.wait(HOUR)
    job = frozen.tick()
    assert job is not None
    assert other.tick() is None
    desk.wait(60)
    with pytest.raises(LeaseLost):  # already before another takes over
        job.check()
    again = other.tick()
    assert again is not None
    assert again.fence > job.fence
    frozen.beat()
    with pytest.raises(LeaseLost):
        job.check()
    assert frozen.execute(job).result == "stopped"
    assert not frozen.finish(job, Outcome("done"))
    assert other.finish(again, Outcome("failed", "no room"))
    assert outcomes(other, "learn") == [("2026-05-04T13:00:00Z", "failed")]


# --- the emergency stop


def test_while_stopped_nothing_begins_and_a_reset_begins_nothing(folder: Path) -> None:
    desk = Desk(folder, {**HOURLY, "soon": {"kind": "retrain", "schedule": {"kind": "every", "every_s": 1000}}})
    scheduler = desk.open()
    desk.wait(HOUR)
    running = scheduler.tick()
    assert running is not None
    waiting = scheduler.trigger("retrain", by="drift", reason="the stream has changed")
    desk.latch.stop(reason="drill", by="ann", scope="learner")
    assert scheduler.execute(running).result == "stopped"
    scheduler.finish(running, Outcome("stopped", "by ann"))
    desk.wait(10 * HOUR)
    assert scheduler.tick() is None
    for ask in (scheduler.ask, scheduler.trigger):
        with pytest.raises(LearningStopped):
            ask("learn", by="ann", reason="now")
    desk.latch.reset(reason="over", by="ann")
    assert scheduler.tick() is None
    assert {run.outcome for run in scheduler.book.runs("retrain") if run.id == waiting.id} == {"dropped"}
    desk.wait(999)
    assert scheduler.tick() is None
    desk.wait(1)
    assert run_all(scheduler) == ["2026-05-04T23:16:40Z"]  # its interval began anew
    desk.wait(HOUR)
    assert "2026-05-05T00:00:00Z" in run_all(scheduler)


def test_a_stop_and_a_reset_that_no_scheduler_saw_begin_nothing_either(folder: Path) -> None:
    desk = Desk(folder, HOURLY)
    desk.open().close()
    desk.wait(2 * HOUR)
    desk.latch.stop(reason="drill", by="ann")
    desk.latch.reset(reason="over", by="ann")
    scheduler = desk.open()
    assert run_all(scheduler) == []
    desk.wait(HOUR)
    assert run_all(scheduler) == ["2026-05-04T15:00:00Z"]


def test_a_run_that_crashed_before_a_stop_is_not_begun_again_after_the_reset(folder: Path) -> None:
    desk = Desk(folder, HOURLY, lease_s=60)
    crashed, other = desk.open(), desk.open()
    desk.wait(HOUR)
    assert crashed.tick() is not None
    desk.latch.stop(reason="drill", by="ann")
    desk.latch.reset(reason="over", by="ann")
    other.tick()
    desk.wait(60)
    assert other.tick() is None
    assert outcomes(other, "learn") == [("2026-05-04T13:00:00Z", "stopped")]


# --- triggers and requests


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


# --- runners


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

    desk.runners["retrain"] = select_before(select, desk.work)
    scheduler = desk.open()
    for _ in range(2):
        scheduler.ask("retrain", by="ann", reason="now")
        run_all(scheduler)
    assert asked == [7, 7]
    assert [(run.num_to_label, run.outcome) for run in scheduler.book.runs("retrain")] == [(None, "done"), (2, "done")]


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
