"""Schedule: the moments at which something is due, and what is to be done about those that passed unseen.

In: a schedule and moments. Out: moments. Pure: no clock is read and nothing is kept. All moments are datetimes in UTC, which
has no summer time, so a slot exists once. The slots of a calendar lie where they lie, whoever looks and when; those of
`every` count from the moment that is given.
"""

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ScheduleKind = Literal["hourly", "daily", "weekly", "monthly", "every", "manual"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(weeks=1)

_FIELDS: dict[ScheduleKind, tuple[str, ...]] = {
    "hourly": ("minute",),
    "daily": ("at",),
    "weekly": ("weekday", "at"),
    "monthly": ("day", "at"),
    "every": ("every_s",),
    "manual": (),
}


class Schedule(BaseModel):
    """When something is due. Each kind has its own fields; the others keep their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ScheduleKind = "manual"
    """manual: only when it is asked for."""
    every_s: float | None = Field(None, ge=1, le=10 * 366 * 86_400)
    """every: seconds from one slot to the next."""
    minute: int = Field(0, ge=0, le=59)
    """hourly: minute of the hour."""
    at: time = time(0, 0)
    """daily, weekly, monthly: time of day, UTC."""
    weekday: Weekday = "monday"
    """weekly: day of the week."""
    day: int = Field(1, ge=1, le=31)
    """monthly: day of the month; a month that is shorter has its slot on its last day."""

    @field_validator("at")
    @classmethod
    def _is_utc(cls, at: time) -> time:
        if at.tzinfo is not None or at.microsecond:
            raise ValueError(f"at = {at}: write the time of day in UTC, without a zone and in whole seconds")
        return at

    @model_validator(mode="after")
    def _has_only_its_own_fields(self) -> "Schedule":
        if (self.kind == "every") != (self.every_s is not None):
            raise ValueError(
                f"kind = '{self.kind}' and every_s = {self.every_s}: every_s belongs to the kind 'every', which needs it"
            )
        for names in _FIELDS.values():
            for name in names:
                value = getattr(self, name)
                if name not in _FIELDS[self.kind] and value != type(self).model_fields[name].default:
                    raise ValueError(f"{name} = {value} means nothing for kind = '{self.kind}': remove it")
        return self

    def __str__(self) -> str:
        match self.kind:
            case "hourly":
                return f"hourly at minute {self.minute}"
            case "daily":
                return f"daily at {self.at:%H:%M} UTC"
            case "weekly":
                return f"weekly on {self.weekday} at {self.at:%H:%M} UTC"
            case "monthly":
                return f"monthly on day {self.day} at {self.at:%H:%M} UTC"
            case "every":
                return f"every {self.every_s:g} s"
            case "manual":
                return "on demand"


@dataclass(frozen=True, slots=True)
class Missed:
    """Slots that are over. `slots` are the newest of them, oldest first; `num_slots` counts all."""

    slots: tuple[datetime, ...]
    num_slots: int


def next_due(schedule: Schedule, after: datetime) -> datetime | None:
    """The first slot behind `after`; None for a schedule without slots. Raises ValueError for a moment without a zone."""
    after = _checked(after)
    if schedule.kind == "manual":
        return None
    return _slot(schedule, _index(schedule, after, start=after) + 1, start=after)


def missed(schedule: Schedule, last: datetime, now: datetime, *, limit: int = 100) -> Missed:
    """The slots behind `last` up to and with `now`: none if the clock stands at `last` or before it.

    At most `limit` of them are listed; the time it takes does not depend on how many there are. Raises ValueError.
    """
    last, now = _checked(last), _checked(now)
    if limit < 1:
        raise ValueError(f"limit = {limit}: list at least one slot")
    if schedule.kind == "manual" or now <= last:
        return Missed((), 0)
    first, end = (_index(schedule, moment, start=last) + 1 for moment in (last, now))
    listed = range(max(first, end - limit), end)
    return Missed(tuple(_slot(schedule, index, start=last) for index in listed), end - first)


def _checked(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: give a moment in UTC")
    return moment.astimezone(UTC)


def _index(schedule: Schedule, moment: datetime, *, start: datetime) -> int:
    """Number of the last slot that is not behind `moment`; slots are numbered in order."""
    if schedule.kind == "monthly":
        index = moment.year * 12 + moment.month - 1
        return index if _slot(schedule, index, start=start) <= moment else index - 1
    first, period = _grid(schedule, start)
    return (moment - first) // period


def _slot(schedule: Schedule, index: int, *, start: datetime) -> datetime:
    if schedule.kind == "monthly":
        year, month = index // 12, index % 12 + 1
        day = min(schedule.day, calendar.monthrange(year, month)[1])
        return datetime.combine(date(year, month, day), schedule.at, tzinfo=UTC)
    first, period = _grid(schedule, start)
    return first + index * period


def _grid(schedule: Schedule, start: datetime) -> tuple[datetime, timedelta]:
    """Slot 0 and the distance of two slots."""
    at = timedelta(hours=schedule.at.hour, minutes=schedule.at.minute, seconds=schedule.at.second)
    match schedule.kind:
        case "hourly":
            return EPOCH + timedelta(minutes=schedule.minute), HOUR
        case "daily":
            return EPOCH + at, DAY
        case "weekly":
            return FIRST_MONDAY + WEEKDAYS.index(schedule.weekday) * DAY + at, WEEK
        case "every":
            assert schedule.every_s is not None, "checked when the schedule was made"
            return start, timedelta(seconds=schedule.every_s)
    raise AssertionError(f"kind {schedule.kind} has no grid")
