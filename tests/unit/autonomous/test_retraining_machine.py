"""Any sequence of ticks, crashes, clock jumps, stops, resets and triggers keeps the scheduler's promises."""

from contextlib import ExitStack, suppress
from datetime import datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from autonomous.retraining import Job, RetrainingScheduler
from autonomous.safety.latch import LearningStopped
from autonomous.schedule_rows import origin_of
from tests.unit.autonomous.ledger_life import quick_folder
from tests.unit.autonomous.scheduling import DAY, HOUR, Desk

LEASE_S = 60.0
KEPT = 4
JOBS = {
    "learn": {"schedule": {"kind": "hourly"}},
    "retrain": {"schedule": {"kind": "daily", "at": "13:00"}, "missed": "run_all", "max_missed": 2},
    "often": {"kind": "learn", "schedule": {"kind": "every", "every_s": 900}, "missed": "skip"},
}
WHICH = st.integers(0, 1)
NAMES = st.sampled_from(["learn", "retrain", "often"])
SILENCE = st.sampled_from([LEASE_S / 2, LEASE_S - 1, LEASE_S])
SECONDS = st.sampled_from([1.0, 59.0, 60.0, 899.0, HOUR, 5 * HOUR, DAY, 40 * DAY])


class SchedulerMachine(RuleBasedStateMachine):
    """Two schedulers on one file. The model knows who is alive, what is under way, and what was begun under which epoch."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.desk = Desk(self.stack.enter_context(quick_folder()), JOBS, lease_s=LEASE_S, kept_runs=KEPT)
        self.schedulers = [self.open(), self.open()]
        self.under_way: list[Job | None] = [None, None]
        self.begun: dict[tuple[str, str], list[int]] = {}
        self.ended: set[tuple[str, str]] = set()
        self.asked: dict[int, int] = {}
        self.reset_at = float("-inf")
        self.settled: dict[str, float] = {}

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def open(self) -> RetrainingScheduler:
        scheduler = self.desk.open()
        self.stack.callback(scheduler.close)
        return scheduler

    def epoch(self) -> int:
        return self.desk.latch.state().epoch

    def is_stopped(self) -> bool:
        return self.desk.latch.state().mode != "armed"

    @rule(which=WHICH)
    def tick(self, which: int) -> None:
        if self.under_way[which] is not None:
            return  # `step` does not look for more either
        may_go_on = [other for other in self.under_way if other is not None and not self.is_lost(other)]
        job = self.schedulers[which].tick()
        if job is None:
            return
        assert not self.is_stopped()
        assert not may_go_on  # nothing is taken over before its holder has noticed by itself
        key = (job.run.name, job.run.slot)
        assert key not in self.ended
        self.begun.setdefault(key, []).append(self.epoch())
        assert len({*self.begun[key]}) == 1  # no second attempt behind a reset
        assert len(self.begun[key]) == job.run.attempt <= self.desk.config.jobs[job.run.name].max_attempts
        if origin_of(job.run.slot) == "slot":
            assert job.run.num_slots >= 1
            if job.run.attempt == 1:
                assert self.slot_time(job.run.slot) > self.reset_at
        else:
            assert self.asked[job.run.id] == self.epoch()
        self.under_way[which] = job

    @staticmethod
    def slot_time(slot: str) -> float:
        return datetime.fromisoformat(slot).timestamp()

    @staticmethod
    def is_lost(job: Job) -> bool:
        try:
            job.check()
        except Exception:
            return True
        return False

    @rule(which=WHICH)
    def end(self, which: int) -> None:
        job = self.under_way[which]
        if job is not None:
            is_lost = not self.schedulers[which].finish(job, self.schedulers[which].execute(job))
            if not is_lost:
                self.ended.add((job.run.name, job.run.slot))
            self.under_way[which] = None

    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        self.schedulers[which].close()
        self.schedulers[which] = self.open()
        self.under_way[which] = None

    @rule(seconds=SECONDS)
    def pass_time_with_signs_of_life(self, seconds: float) -> None:
        self.desk.clock.now += seconds
        for _ in range(int(min(seconds, 10 * LEASE_S) // 30) + 1):
            self.desk.monotonic.now += min(seconds, 30)
            for scheduler in self.schedulers:
                scheduler.beat()

    @rule(which=WHICH, seconds=SILENCE)
    def watch_in_silence(self, which: int, seconds: float) -> None:
        self.tick(which)
        self.desk.wait(seconds)
        self.tick(which)

    @precondition(lambda self: any(self.under_way))
    @rule(seconds=SILENCE)
    def watch_one_that_is_silent_since_now(self, seconds: float) -> None:
        holder = 0 if self.under_way[0] is not None else 1
        self.schedulers[holder].beat()
        self.watch_in_silence(1 - holder, seconds)

    @rule(which=WHICH, is_crash=st.booleans())
    def begin_what_the_next_hour_brings(self, which: int, is_crash: bool) -> None:
        self.desk.wait(HOUR)
        self.tick(which)
        if is_crash:
            self.crash(which)

    @rule(which=WHICH)
    def crash_in_what_a_crash_left(self, which: int) -> None:
        self.watch_in_silence(which, LEASE_S)
        self.crash(which)

    @rule()
    def stop_and_reset(self) -> None:
        self.stop()
        self.reset()

    @rule(seconds=SECONDS, sign=st.sampled_from([-1, 1]))
    def jump(self, seconds: float, sign: int) -> None:
        self.desk.clock.now += sign * seconds

    @rule()
    def stop(self) -> None:
        self.desk.latch.stop(reason="random", by="ann", scope="learner")

    @rule()
    def reset(self) -> None:
        if self.is_stopped():
            self.desk.latch.reset(reason="random", by="ann")
            self.reset_at = self.desk.clock.now

    @rule(which=WHICH, name=NAMES, is_person=st.booleans())
    def trigger(self, which: int, name: str, is_person: bool) -> None:
        scheduler = self.schedulers[which]
        before = self.is_stopped()
        with suppress(LearningStopped):
            run = (scheduler.ask if is_person else scheduler.trigger)(name, by="ann", reason="random")
            assert not before
            self.asked.setdefault(run.id, self.epoch())

    @invariant()
    def at_most_one_run_is_under_way_and_may_go_on(self) -> None:
        assert sum(job is not None and not self.is_lost(job) for job in self.under_way) <= 1

    @invariant()
    def while_stopped_nothing_under_way_may_go_on(self) -> None:
        if self.is_stopped():
            assert all(job is None or self.is_lost(job) for job in self.under_way)

    @invariant()
    def the_table_is_bounded(self) -> None:
        for name, job in self.desk.config.jobs.items():
            runs = self.schedulers[0].book.runs(name, limit=1000)
            assert sum(run.state == "ended" for run in runs) <= KEPT + job.max_missed
            assert sum(run.state != "ended" for run in runs) <= job.max_missed + 3
            assert len({run.slot for run in runs}) == len(runs)

    @invariant()
    def what_is_settled_is_never_taken_back(self) -> None:
        for row in self.schedulers[0].book.schedules():
            assert row["settled_to"] >= self.settled.get(row["name"], 0.0)
            self.settled[row["name"]] = row["settled_to"]


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
