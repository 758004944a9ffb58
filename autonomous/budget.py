"""Budget: how much may be learned and done in a day and a month, reserved before and settled after.

A reservation is one SQLite transaction: what is spent, what others have reserved and what is asked for stay within the
limit, or nothing is reserved; so callers at once never pass it together. What was really used is settled by the
reservation's id, once. A reservation whose owner has died expires. Windows are UTC; a clock that goes back is refused,
because a day that is begun twice would be spent twice. Amounts are kept as whole millionths.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from memory.store import Database, SqlConnection, no_guard
from memory.types import Guard

logger = logging.getLogger(__name__)

Kind = Literal["learning_s", "training_tokens", "tool_calls"]
KINDS: tuple[Kind, ...] = ("learning_s", "training_tokens", "tool_calls")
UNITS = 1_000_000
"""Of an amount of 1."""
CLOCK_SLACK_S = 5.0
"""So far a clock may be set back, as time servers do it."""
KEPT_S = 70 * 86_400.0
"""Settled reservations are forgotten after it; the totals stay."""

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE reservation (
  id TEXT NOT NULL, kind TEXT NOT NULL, amount INTEGER NOT NULL, actual INTEGER,
  day TEXT NOT NULL, month TEXT NOT NULL, reserved_at REAL NOT NULL, expires_at REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'expired')), PRIMARY KEY (id, kind)) WITHOUT ROWID;
CREATE INDEX reservation_state ON reservation(state, expires_at);
CREATE TABLE total (
  span TEXT NOT NULL, kind TEXT NOT NULL, spent INTEGER NOT NULL, reserved INTEGER NOT NULL CHECK (reserved >= 0),
  PRIMARY KEY (span, kind)) WITHOUT ROWID;
CREATE TABLE clock (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), latest REAL NOT NULL);
INSERT INTO clock VALUES (1, 0);
"""


class BudgetLimits(BaseModel):
    """Most of each kind within one window. None: unlimited, but counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_s: float | None = Field(None, ge=0)
    """Seconds of learning cycles."""
    training_tokens: float | None = Field(None, ge=0)
    """Tokens that are trained on, repeats counted."""
    tool_calls: float | None = Field(None, ge=0)
    """Calls of tools by the agent."""


class BudgetConfig(BaseModel):
    """What the agent may use up. Unlimited by default; what is used is counted all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: BudgetLimits = BudgetLimits()
    """Per UTC day."""
    month: BudgetLimits = BudgetLimits()
    """Per UTC calendar month."""
    cycle_s: float = Field(3600.0, gt=0)
    """Seconds that a learning cycle reserves before it begins: the longest that is expected."""
    reservation_s: float = Field(21_600.0, gt=0)
    """A reservation that nobody settles expires after so many seconds."""

    @model_validator(mode="after")
    def _a_cycle_fits(self) -> Self:
        for name, limits in (("day", self.day), ("month", self.month)):
            if limits.learning_s is not None and 0 < limits.learning_s < self.cycle_s:
                raise ValueError(
                    f"budget.{name}.learning_s = {limits.learning_s:g} is less than budget.cycle_s = {self.cycle_s:g}, which "
                    "every cycle reserves, so nothing would ever be learned: lower cycle_s, or raise the limit"
                )
        return self


class BudgetExceeded(RuntimeError):
    """There is no room for what was asked. Nothing was reserved."""

    def __init__(self, kind: str, *, span: str, limit: float, used: float, amount: float, resets_at: float) -> None:
        self.kind, self.span, self.limit, self.used = kind, span, limit, used
        self.amount, self.resets_at = amount, resets_at  # resets_at in seconds since the epoch
        when = datetime.fromtimestamp(resets_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        name = "day" if len(span) == len("2026-01-01") else "month"
        super().__init__(
            f"the budget of {kind} for {span} is {limit:g}; {used:g} are spent or reserved, and {amount:g} more were asked. "
            f"It begins anew at {when}; raise agent.budget.{name}.{kind} to go on before"
        )

    def __reduce__(self) -> tuple[object, ...]:  # an exception with keyword arguments does not unpickle by itself
        return partial(
            BudgetExceeded, self.kind, span=self.span, limit=self.limit, used=self.used, amount=self.amount,
            resets_at=self.resets_at,
        ), ()  # fmt: skip


class ClockWentBack(RuntimeError):
    """The clock shows an earlier time than before: what was spent of a window would be spent again."""


class UnknownReservation(LookupError):
    """No reservation of this id."""


class BudgetBroken(RuntimeError):
    """The limiter does not limit: found at the start, before anything relies on it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one kind in one window; `limit` None: unlimited."""

    kind: str
    span: str
    spent: float
    reserved: float
    limit: float | None


class Budget:
    """See the module. Thread-safe; several processes may open one file."""

    def __init__(self, path: Path, config: BudgetConfig, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create, and make sure that the limiter fires. Raises StoreProblem, BudgetBroken."""
        self.config = config
        self._database = Database(path, schema=_SCHEMA, version=SCHEMA_VERSION)
        self._clock = clock
        self._test_limiter()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def reserve(self, kind: Kind, amount: float, run_id: str, *, guard: Guard = no_guard) -> str:
        """`reserve_all` of one kind; the id is the run's."""
        return self.reserve_all({kind: amount}, run_id, guard=guard)

    def reserve_all(self, amounts: Mapping[Kind, float], run_id: str, *, guard: Guard = no_guard) -> str:
        """Reserve the most that a run can use of each kind, of all or of none; returns the id for `settle`: the run's.

        A call that is repeated changes nothing, but reserves anew what has expired. Raises BudgetExceeded, ClockWentBack,
        ValueError for an amount that is negative, not finite, or another than the id reserved before, and for an id that is
        settled; and what `guard` raises.
        """
        units = {kind: _units(amount, kind) for kind, amount in amounts.items()}
        if not run_id:
            raise ValueError("run_id is empty: a reservation is known by the run that it is for")
        with self._database.write(guard=guard) as connection:
            now = self._tick(connection)
            _sweep(connection, now)
            for kind, amount in units.items():
                row = connection.execute(
                    "SELECT amount, state FROM reservation WHERE id = :id AND kind = :kind",
                    {"id": run_id, "kind": kind},
                ).fetchone()
                if row is not None and row[0] != amount:
                    raise ValueError(
                        f"run {run_id} has reserved {row[0] / UNITS:g} {kind} already, and {amount / UNITS:g} are asked for: "
                        "give another run its own id"
                    )
                if row is not None and row[1] == "settled":
                    raise ValueError(
                        f"run {run_id} has settled its {kind}: a run that begins again has an id of its own"
                    )
                if row is not None and row[1] == "expired":
                    connection.execute(
                        "DELETE FROM reservation WHERE id = :id AND kind = :kind", {"id": run_id, "kind": kind}
                    )
                if row is None or row[1] == "expired":
                    limits = {"day": getattr(self.config.day, kind), "month": getattr(self.config.month, kind)}
                    _reserve(
                        connection,
                        kind,
                        amount,
                        run_id,
                        limits=limits,
                        now=now,
                        reservation_s=self.config.reservation_s,
                    )
        return run_id

    def settle(self, reservation_id: str, actual: Mapping[Kind, float]) -> None:
        """Count what was really used, and free the rest. Asks no guard: what is used up is used up.

        Once per kind; a repeated call changes nothing. Also after the reservation expired. Raises UnknownReservation.
        """
        units = {kind: _units(amount, kind) for kind, amount in actual.items()}
        with self._database.write() as connection:
            for kind, amount in units.items():
                row = connection.execute(
                    "SELECT amount, state, day, month FROM reservation WHERE id = :id AND kind = :kind",
                    {"id": reservation_id, "kind": kind},
                ).fetchone()
                if row is None:
                    raise UnknownReservation(
                        f"no reservation of {kind} by {reservation_id!r}: reserve before it is used, settle afterwards"
                    )
                reserved, state, *spans = row
                if state == "settled":
                    continue
                for span in spans:
                    _count(connection, span, kind, spent=amount, reserved=-reserved if state == "reserved" else 0)
                connection.execute(
                    "UPDATE reservation SET state = 'settled', actual = :actual WHERE id = :id AND kind = :kind",
                    {"actual": amount, "id": reservation_id, "kind": kind},
                )
                if amount > reserved:
                    logger.warning("run %s used %g of %s, more than it reserved", reservation_id, amount / UNITS, kind)

    def usage(self) -> list[Usage]:
        """Of this day and this month, kind by kind. What expired is free."""
        now = self._clock()
        day, month = _spans(now)
        rows = []
        with self._database.write() as connection:
            _sweep(connection, now)
            for span, limits in ((day, self.config.day), (month, self.config.month)):
                for kind in KINDS:
                    spent, reserved = _totals(connection, span, kind)
                    rows.append(Usage(kind, span, spent / UNITS, reserved / UNITS, getattr(limits, kind)))
        return rows

    def _tick(self, connection: SqlConnection) -> float:
        now = float(self._clock())
        (latest,) = connection.execute("SELECT latest FROM clock").fetchone()
        if now < latest - CLOCK_SLACK_S:
            raise ClockWentBack(
                f"the clock is {latest - now:.0f} s behind the latest time that the budget has seen: set it right; if it was "
                "the earlier time that was wrong, the budget goes on when the clock has come there"
            )
        now = max(now, float(latest))
        connection.execute("UPDATE clock SET latest = :now", {"now": now})
        return now

    def _test_limiter(self) -> None:
        """Reserve up to a limit of 1 and beyond it, in a transaction that is rolled back."""
        limits = {"day": 1.0, "month": None}
        is_refused = False
        with suppress(_RollBack), self._database.write() as connection:
            _reserve(connection, "self-test", UNITS, "a", limits=limits, now=0.0, reservation_s=1.0)
            try:
                _reserve(connection, "self-test", 1, "b", limits=limits, now=0.0, reservation_s=1.0)
            except BudgetExceeded:
                is_refused = True
            raise _RollBack
        if not is_refused:
            raise BudgetBroken("the budget let through more than its limit in the test at its start: do not use it")


class CycleBudget:
    """Guards learning cycles: what one could use up at most is reserved before it begins."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def begin(self, run_id: str, *, num_tokens: int, guard: Guard = no_guard) -> None:
        """Reserve for a run that trains on so many tokens at most; idempotent. Raises BudgetExceeded, ClockWentBack."""
        amounts: dict[Kind, float] = {"learning_s": self._budget.config.cycle_s, "training_tokens": float(num_tokens)}
        self._budget.reserve_all(amounts, run_id, guard=guard)

    def end(self, run_id: str, *, seconds: float, num_tokens: int) -> None:
        """Settle a run, however it ended; idempotent. Raises UnknownReservation if it never began."""
        self._budget.settle(run_id, {"learning_s": seconds, "training_tokens": float(num_tokens)})


class _RollBack(Exception):
    """Ends the transaction of the self-test."""


def _reserve(
    connection: SqlConnection, kind: str, amount: int, run_id: str, *, limits: Mapping[str, float | None], now: float,
    reservation_s: float,
) -> None:  # fmt: skip
    day, month = _spans(now)
    for span, name in ((day, "day"), (month, "month")):
        spent, reserved = _totals(connection, span, kind)
        limit = limits[name]
        if limit is not None and spent + reserved + amount > round(limit * UNITS):
            raise BudgetExceeded(
                kind, span=span, limit=limit, used=(spent + reserved) / UNITS, amount=amount / UNITS,
                resets_at=_reset_of(now, name),
            )  # fmt: skip
    for span in (day, month):
        _count(connection, span, kind, spent=0, reserved=amount)
    connection.execute(
        "INSERT INTO reservation(id, kind, amount, day, month, reserved_at, expires_at, state)"
        " VALUES(:id, :kind, :amount, :day, :month, :now, :expires, 'reserved')",
        {
            "id": run_id, "kind": kind, "amount": amount, "day": day, "month": month, "now": now,
            "expires": now + reservation_s,
        },
    )  # fmt: skip


def _sweep(connection: SqlConnection, now: float) -> None:
    """Free reservations whose time is up, and forget old ones."""
    rows = connection.execute(
        "UPDATE reservation SET state = 'expired' WHERE state = 'reserved' AND expires_at <= :now"
        " RETURNING kind, amount, day, month",
        {"now": now},
    ).fetchall()
    for kind, amount, *spans in rows:
        for span in spans:
            _count(connection, span, kind, spent=0, reserved=-amount)
    connection.execute(
        "DELETE FROM reservation WHERE state <> 'reserved' AND reserved_at < :old", {"old": now - KEPT_S}
    )
    if rows:
        logger.warning("%d reservations expired: whoever held them did not settle", len(rows))


def _count(connection: SqlConnection, span: str, kind: str, *, spent: int, reserved: int) -> None:
    connection.execute(
        "INSERT INTO total(span, kind, spent, reserved) VALUES(:span, :kind, 0, 0) ON CONFLICT DO NOTHING",
        {"span": span, "kind": kind},
    )
    connection.execute(
        "UPDATE total SET spent = spent + :spent, reserved = reserved + :reserved WHERE span = :span AND kind = :kind",
        {"span": span, "kind": kind, "spent": spent, "reserved": reserved},
    )


def _totals(connection: SqlConnection, span: str, kind: str) -> tuple[int, int]:
    row: Any = connection.execute(
        "SELECT spent, reserved FROM total WHERE span = :span AND kind = :kind", {"span": span, "kind": kind}
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def _spans(now: float) -> tuple[str, str]:
    """The UTC day and month of a time."""
    moment = datetime.fromtimestamp(now, UTC)
    return moment.strftime("%Y-%m-%d"), moment.strftime("%Y-%m")


def _reset_of(now: float, window: str) -> float:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "day":
        return (today + timedelta(days=1)).timestamp()
    return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


def _units(amount: float, kind: str) -> int:
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"{kind} is {amount}: give a finite amount of at least 0")
    return math.ceil(round(amount * UNITS, 3))
