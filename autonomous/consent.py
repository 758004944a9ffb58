"""Two people must agree: the first asks, a second, different one executes, within a time and while nothing has changed.

In: the request that is open, who calls, what the matter hangs on (`bound_to`: an epoch of the latch, a row of the ledger).
Out: whether this call asks or executes. Pure; safety/reset_request.py keeps the request of a reset in a file,
versions/governance.py that of a release in the audit log.
"""

import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from autonomous.people import is_machine, is_same_person


class Step(StrEnum):
    """What a call does."""

    ASK = "ask"
    """It is the first: it is recorded, and waits for a second person."""
    EXECUTE = "execute"
    """It is the second: both agree."""


class SecondPersonNeeded(RuntimeError):
    """The one who asked cannot be the second person too."""


class NothingRequested(RuntimeError):
    """There is no open request to withdraw."""


@dataclass(frozen=True, slots=True)
class ConsentRequest:
    """What one person has asked for. Times in seconds since the epoch (Unix)."""

    by: str
    reason: str
    at: float
    until: float
    bound_to: str
    """What it hangs on: once that is another, the request is void."""

    def is_open(self, *, bound_to: str, now: float) -> bool:
        """Whether a second person may still agree. A clock that was set back voids it: nobody knows how long it has waited."""
        return self.bound_to == bound_to and self.at <= now < self.until

    def to_dict(self) -> dict[str, Any]:
        """What a person is shown."""
        return {**asdict(self), "waits_for": "a second person"}

    def __str__(self) -> str:
        until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.until))
        return f"asked for by {self.by} ({self.reason}); waits until {until} for a second person"


def decide_consent(request: ConsentRequest | None, *, by: str, bound_to: str, now: float) -> Step:
    """Whether this call is the first or the second.

    Raises SecondPersonNeeded if the one who asked calls again while his request is open, ValueError for a machine's name.
    """
    if is_machine(by):
        raise ValueError(f"by is {by!r}: two people must agree, and the program is none; give a person's name")
    if request is None or not request.is_open(bound_to=bound_to, now=now):
        return Step.ASK
    if is_same_person(request.by, by):
        raise SecondPersonNeeded(
            f"{by} cannot agree to what {request.by} has asked for: it is {request}. Another person has to give the same "
            "command under his own name; or withdraw it"
        )
    return Step.EXECUTE
