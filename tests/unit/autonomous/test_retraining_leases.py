"""Who may go on with a run: a lease ends with the signs of life, and every run with the emergency stop."""

from pathlib import Path

import pytest

from autonomous.retraining import LeaseLost, Outcome
from autonomous.safety.latch import LearningStopped
from tests.unit.autonomous.scheduling import DAY, HOUR, HOURLY, Desk, outcomes, run_all

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
