"""HoldRegister: passages that are held back from learning until a person looks at them, each with its reasons.

They stay where they are in the memory, can be recalled, and keep their trust: only learning leaves them out. A database of
its own, because who learns and who remembers are different processes. A hold is written without asking the stop latch:
it only takes away from what may be learned.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autonomous.data_gate import NEVER_RELEASED
from autonomous.safety.poison_limits import Finding
from memory.backends import open_tables
from memory.store import SqlDatabase, no_guard
from memory.types import Episode, Guard, Trust

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE hold (
  episode_id TEXT PRIMARY KEY, document_id TEXT NOT NULL, source_id TEXT NOT NULL, trust INTEGER NOT NULL,
  findings TEXT NOT NULL, held_at {real} NOT NULL, released_at {real}, released_by TEXT, reason TEXT);
CREATE INDEX hold_open ON hold(released_at, held_at);
"""

HoldState = Literal["held", "released"]


@dataclass(frozen=True, slots=True)
class Hold:
    """A passage that is not learned. `trust` is what it had then: one that is believed more is judged anew."""

    episode_id: str
    document_id: str
    source_id: str
    trust: Trust
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, episode: Episode, findings: Sequence[Finding]) -> "Hold":
        """Hold a passage for what was found."""
        return cls(episode.id, episode.document_id, episode.source_id, episode.trust, tuple(findings))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "trust": int(self.trust), "findings": [asdict(one) for one in self.findings]}


def left_out_of(besides: Collection[str], held_below: Mapping[str, int]) -> dict[str, int]:
    """What is not counted as waiting to be learned, with the trust up to which it is not: these always, the held so far."""
    return {**held_below, **dict.fromkeys(besides, int(max(Trust)))}


class HoldRegister:
    """See the module. Thread-safe; several processes may open it."""

    def __init__(self, database: SqlDatabase, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    def open(
        cls, folder: Path, *, database: str = "", namespace: str = "holds", clock: Callable[[], float] = time.time
    ) -> "HoldRegister":
        """Open or create holds.db in the folder, or a schema of a PostgreSQL database. Raises StoreProblem."""
        opened = open_tables(
            _SCHEMA, version=SCHEMA_VERSION, path=folder / "holds.db", url=database, namespace=namespace
        )
        return cls(opened, clock=clock)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def hold(self, holds: Sequence[Hold]) -> None:
        """Hold passages, with their newest reasons. What a person has released stays so, but for what nobody can release."""
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO hold(episode_id, document_id, source_id, trust, findings, held_at)"
                " VALUES(:id, :document, :source, :trust, :findings, :now) ON CONFLICT(episode_id) DO UPDATE SET"
                " trust = :trust, findings = :findings, released_at = NULL WHERE hold.released_at IS NULL OR :is_final = 1",
                [
                    {
                        "id": one.episode_id,
                        "document": one.document_id,
                        "source": one.source_id,
                        "trust": int(one.trust),
                        "findings": json.dumps([asdict(found) for found in one.findings]),
                        "now": self._clock(),
                        "is_final": int(any(found.rule in NEVER_RELEASED for found in one.findings)),
                    }
                    for one in holds
                ],
            )

    def states(self, episodes: Sequence[Episode]) -> dict[str, HoldState]:
        """Those of the episodes that are held or were released. One that is believed more than when it was held is neither."""
        trusts = {episode.id: int(episode.trust) for episode in episodes}
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT episode_id, trust, released_at FROM hold WHERE episode_id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(trusts))},
            ).fetchall()
        return {
            key: "held" if released_at is None else "released"
            for key, trust, released_at in rows
            if released_at is not None or trusts[key] <= trust
        }

    def held(self, *, limit: int, offset: int = 0) -> list[Hold]:
        """One page of what waits for a person, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT episode_id, document_id, source_id, trust, findings FROM hold WHERE released_at IS NULL"
                " ORDER BY held_at DESC, episode_id LIMIT :limit OFFSET :offset",
                {"limit": limit, "offset": offset},
            ).fetchall()
        return [
            Hold(row[0], row[1], row[2], Trust(row[3]), tuple(Finding(**one) for one in json.loads(row[4])))
            for row in rows
        ]

    def held_below(self) -> dict[str, int]:
        """All that waits for a person, with the trust that it had; believed more, it waits no longer."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT episode_id, trust FROM hold WHERE released_at IS NULL").fetchall()
        return dict(rows)

    def release(self, ids: Sequence[str], *, by: str, reason: str, guard: Guard = no_guard) -> tuple[str, ...]:
        """Let held passages be learned after all: the ids that were held. Raises ValueError without a name or a reason."""
        for name, value in (("by", by), ("reason", reason)):
            if not value.strip():
                raise ValueError(f"{name} is empty: whoever releases what was held says who he is, and why")
        with self._database.write(guard=guard) as connection:
            rows = connection.execute(
                "UPDATE hold SET released_at = :now, released_by = :by, reason = :reason WHERE released_at IS NULL"
                f" AND episode_id {self._database.one_of('ids')} RETURNING episode_id",
                {"now": self._clock(), "by": by, "reason": reason, "ids": self._database.many(list(ids))},
            ).fetchall()
        return tuple(sorted(row[0] for row in rows))

    def forget(self, ids: Sequence[str]) -> None:
        """Nothing is known any more of passages that were erased."""
        with self._database.write() as connection:
            connection.execute(
                f"DELETE FROM hold WHERE episode_id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(ids))},
            )
