"""The error budget of promotions: after two rollbacks within seven days nothing is promoted until a person unlocks it.

In: the audit log. Out: whether promotions are frozen, and why.
"""

import sqlite3
from dataclasses import dataclass

from autonomous.versions.transaction import ACTION_PREFIX

MAX_ROLLBACKS = 2
WINDOW_S = 7 * 86_400.0
PREFIX = "promotions."
"""Of the audit rows about promotions as such, which only the ledger writes."""
UNLOCK = PREFIX + "unlock"
_ROLLBACK = ACTION_PREFIX + "rollback"


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why nothing is promoted. `rolled_back` are the versions that left, oldest first; `since` in seconds since the epoch."""

    since: float
    rolled_back: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"promotions are frozen: {', '.join(self.rolled_back)} were rolled back, two within {WINDOW_S / 86_400:.0f} days. "
            'Find out why, then unlock them: autonomous unlock --reason "..." --by NAME'
        )


def find_freeze(connection: sqlite3.Connection) -> Freeze | None:
    """The freeze that holds, if one does: it ends by an unlock alone, which settles the rollbacks before it.

    Only the times between rollbacks count, so no clock frees anything.
    """
    rows = connection.execute(
        "SELECT ts, subject FROM audit WHERE action = :rollback AND seq >"
        " (SELECT coalesce(max(seq), 0) FROM audit WHERE action = :unlock) ORDER BY seq",
        {"rollback": _ROLLBACK, "unlock": UNLOCK},
    ).fetchall()
    for first, last in zip(rows, rows[MAX_ROLLBACKS - 1 :], strict=False):
        if last[0] - first[0] < WINDOW_S:
            return Freeze(since=last[0], rolled_back=tuple(row[1] for row in rows))
    return None
