"""LabelQueue: the answers that a retraining put before people, kept until somebody has voted on each.

Chosen by uncertainty sampling (labelling.py). A row goes with its request, whose log-probability is the uncertainty it was
chosen by: pruned or erased, it is in no queue any more.
"""

from collections.abc import Callable, Sequence

from memory.store import Database, no_guard
from memory.types import Guard


class LabelQueue:
    """See the module. Thread-safe."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def put(self, response_ids: Sequence[str], *, guard: Guard = no_guard) -> None:
        """Let these wait behind the others, in this order; what waits already keeps its place, what is not in the log is left
        out. Idempotent.
        """
        with self._database.write(guard=guard) as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO to_label(response_id, chosen_at) SELECT id, :now FROM request WHERE id = :id",
                [{"id": key, "now": self._clock()} for key in response_ids],
            )

    def waiting(self) -> dict[str, float]:
        """Answers that nobody has voted on, first come first, with when each was chosen, seconds since the epoch."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT response_id, chosen_at FROM to_label WHERE NOT EXISTS"
                " (SELECT 1 FROM vote WHERE vote.response_id = to_label.response_id) ORDER BY place"
            ).fetchall()
        return dict(rows)
