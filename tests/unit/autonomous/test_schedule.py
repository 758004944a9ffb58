"""When something is due: against dateutil's recurrence rules, and at the ends of months."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from dateutil.rrule import DAILY, HOURLY, MONTHLY, WEEKLY, rrule
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autonomous.jobs import ScheduledJob, SchedulesConfig, decide_slots
from autonomous.schedule import WEEKDAYS, Schedule, missed, next_due

START = datetime(1999, 12, 1)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 1), timezones=st.just(UTC))
TIMES = st.builds(time, st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
GRACE = timedelta(seconds=300)


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@st.composite
def calendars(draw: Callable[..., object]) -> tuple[Schedule, rrule]:
    """A schedule and dateutil's rule for the same slots."""
    kind = draw(st.sampled_from(["hourly", "daily", "weekly", "monthly"]))
    clock: time = draw(TIMES)  # type: ignore[assignment]
    by = {"byhour": clock.hour, "byminute": clock.minute, "bysecond": clock.second, "dtstart": START}
    match kind:
        case "hourly":
            return Schedule(kind="hourly", minute=clock.minute), rrule(
                HOURLY, byminute=clock.minute, bysecond=0, dtstart=START
            )
        case "daily":
            return Schedule(kind="daily", at=clock), rrule(DAILY, **by)
        case "weekly":
            day: int = draw(st.integers(0, 6))  # type: ignore[assignment]
            return Schedule(kind="weekly", weekday=WEEKDAYS[day], at=clock), rrule(WEEKLY, byweekday=day, **by)
    of_month: int = draw(st.integers(1, 31))  # type: ignore[assignment]
    days = range(min(of_month, 28), of_month + 1)  # of these the last that the month has
    return Schedule(kind="monthly", day=of_month, at=clock), rrule(MONTHLY, bymonthday=days, bysetpos=-1, **by)


def naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


@given(calendars(), MOMENTS)
def test_next_slot_is_the_one_that_dateutil_finds(case: tuple[Schedule, rrule], after: datetime) -> None:
    schedule, rule = case
    expected = rule.replace(dtstart=START if schedule.kind == "monthly" else naive(after).replace(microsecond=0))
    found = next_due(schedule, after)
    assert found is not None
    assert naive(found) == expected.after(naive(after))


@given(calendars(), MOMENTS, st.timedeltas(timedelta(0), timedelta(days=70)), st.integers(1, 5))
def test_missed_slots_are_those_that_dateutil_counts_between(
    case: tuple[Schedule, rrule], last: datetime, passed: timedelta, limit: int
) -> None:
    schedule, rule = case
    now = last + passed
    near = rule.replace(dtstart=START if schedule.kind == "monthly" else naive(last).replace(microsecond=0))
    expected = [slot for slot in near.between(naive(last), naive(now), inc=True) if slot > naive(last)]
    found = missed(schedule, last, now, limit=limit)
    assert found.num_slots == len(expected)
    assert [naive(slot) for slot in found.slots] == expected[-limit:]


@given(st.integers(1, 10**6), MOMENTS, st.timedeltas(timedelta(0), timedelta(days=30)))
def test_every_counts_from_the_moment_that_is_given(every_s: int, last: datetime, passed: timedelta) -> None:
    schedule = Schedule(kind="every", every_s=every_s)
    assert next_due(schedule, last) == last + timedelta(seconds=every_s)
    found = missed(schedule, last, last + passed, limit=3)
    assert found.num_slots == int(passed.total_seconds() // every_s)
    assert all((slot - last) % timedelta(seconds=every_s) == timedelta(0) for slot in found.slots)
    assert all(last < slot <= last + passed for slot in found.slots)


@given(
    st.one_of(calendars().map(lambda case: case[0]), st.builds(Schedule, kind=st.just("every"), every_s=TIMES.map(
        lambda clock: 1 + clock.hour * 3600 + clock.second))),
    MOMENTS, st.timedeltas(timedelta(0), timedelta(days=400)),
)  # fmt: skip
def test_walking_from_slot_to_slot_finds_those_that_were_missed(
    schedule: Schedule, last: datetime, passed: timedelta
) -> None:
    found = missed(schedule, last, last + passed, limit=4)
    if found.slots:
        start = found.slots[0]
        for slot in found.slots[1:]:
            start = next_due(schedule, start)  # type: ignore[assignment]
            assert start == slot
        assert next_due(schedule, found.slots[-1]) > last + passed  # type: ignore[operator]


def test_a_month_that_is_too_short_has_its_slot_on_its_last_day() -> None:
    schedule = Schedule(kind="monthly", day=31, at=time(3))
    slots = missed(schedule, at(2024, 1, 31, 3), at(2024, 5, 1)).slots
    assert [(slot.month, slot.day) for slot in slots] == [(2, 29), (3, 31), (4, 30)]
    assert next_due(Schedule(kind="monthly", day=30), at(2023, 1, 30, 1)) == at(2023, 2, 28)


def test_a_slot_at_this_very_moment_has_passed_and_a_clock_that_went_back_misses_nothing() -> None:
    daily = Schedule(kind="daily", at=time(3))
    assert next_due(daily, at(2026, 5, 4, 3)) == at(2026, 5, 5, 3)
    assert missed(daily, at(2026, 5, 4), at(2026, 5, 4, 3)).slots == (at(2026, 5, 4, 3),)
    assert missed(daily, at(2026, 5, 4, 3), at(2026, 5, 1)).num_slots == 0


def test_a_thousand_years_of_seconds_are_counted_at_once() -> None:
    found = missed(Schedule(kind="every", every_s=1), at(1100, 1, 1), at(2100, 1, 1), limit=2)
    assert found.num_slots == (at(2100, 1, 1) - at(1100, 1, 1)).total_seconds()
    assert found.slots[-1] == at(2100, 1, 1)


def test_moments_of_other_zones_are_the_same_moments_and_those_without_a_zone_are_refused() -> None:
    tokyo = timezone(timedelta(hours=9))
    daily = Schedule(kind="daily", at=time(3))
    assert next_due(daily, datetime(2026, 5, 4, 11, tzinfo=tokyo)) == at(2026, 5, 4, 3)
    with pytest.raises(ValueError, match="no time zone"):
        next_due(daily, datetime(2026, 5, 4))
    assert next_due(Schedule(), at(2026, 5, 4)) is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "every"}, "every_s = None"),
        ({"kind": "daily", "every_s": 60}, "every_s belongs to the kind 'every'"),
        ({"kind": "daily", "weekday": "sunday"}, "weekday = sunday means nothing for kind = 'daily'"),
        ({"kind": "hourly", "at": "03:00"}, "at = 03:00:00 means nothing"),
        ({"kind": "daily", "at": "03:00+02:00"}, "without a zone"),
        ({"kind": "monthly", "day": 32}, "less than or equal to 31"),
        ({"kind": "yearly"}, "Input should be"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused_with_the_field(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told.replace("(", r"\(")):
        Schedule.model_validate(fields)


@given(calendars())
def test_a_schedule_survives_its_json(case: tuple[Schedule, rrule]) -> None:
    assert Schedule.model_validate_json(case[0].model_dump_json()) == case[0]


# --- jobs and the policy for what was missed


def job(policy: str, schedule: Schedule | None = None) -> ScheduledJob:
    return ScheduledJob.model_validate(
        {"kind": "retrain", "missed": policy, "schedule": schedule or Schedule(kind="hourly"), "max_missed": 2}
    )


def test_of_five_missed_hours_a_policy_runs_none_the_newest_or_the_newest_few() -> None:
    last, now = at(2026, 5, 4, 10), at(2026, 5, 4, 15, 30)
    plans = {
        policy: decide_slots(job(policy), settled_to=last, now=now, grace=GRACE)
        for policy in ("skip", "run_once", "run_all")
    }
    assert {policy: [slot.hour for slot in plan.to_run] for policy, plan in plans.items()} == {
        "skip": [],
        "run_once": [15],
        "run_all": [14, 15],
    }
    assert [plan.num_skipped for plan in plans.values()] == [5, 4, 3]
    assert all(plan.newest == at(2026, 5, 4, 15) for plan in plans.values())


def test_a_slot_within_the_grace_is_not_missed() -> None:
    last = at(2026, 5, 4, 10)
    in_time = decide_slots(job("skip"), settled_to=last, now=at(2026, 5, 4, 11, 5), grace=GRACE)
    late = decide_slots(job("skip"), settled_to=last, now=at(2026, 5, 4, 11, 5, 1), grace=GRACE)
    assert (len(in_time.to_run), len(late.to_run)) == (1, 0)


def test_the_drill_is_weekly_unless_the_configuration_says_otherwise() -> None:
    given = SchedulesConfig.model_validate(
        {"jobs": {"retrain": {"schedule": {"kind": "daily"}}, "night": {"kind": "learn"}}}
    )
    assert [*given.jobs] == ["learn", "retrain", "evaluate", "drill", "consolidate", "night"]
    assert str(given.jobs["drill"].schedule) == "weekly on sunday at 04:00 UTC"
    assert (given.jobs["retrain"].kind, given.jobs["retrain"].schedule.kind) == ("retrain", "daily")


@pytest.mark.parametrize("jobs", [{"Night run": {"kind": "learn"}}, {"night": {}}, {"drill": {"kind": "sleep"}}])
def test_a_job_with_a_bad_name_or_kind_is_refused(jobs: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"name of a job|kind"):
        SchedulesConfig.model_validate({"jobs": jobs})


def test_an_interval_is_the_schedule_of_learning_and_contradicts_another_one() -> None:
    every = SchedulesConfig().with_learning_every(1800)
    assert str(every.jobs["learn"].schedule) == "every 1800 s"
    assert SchedulesConfig().with_learning_every(0) == SchedulesConfig()
    nightly = SchedulesConfig.model_validate({"jobs": {"learn": {"schedule": {"kind": "daily"}}}})
    with pytest.raises(ValueError, match="set interval_s = 0"):
        nightly.with_learning_every(1800)
