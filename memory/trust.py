"""How far each source is believed: who said so, when, and why. In a database of its own, which several processes open.

An episode never enters with more trust than its source has. A source that nobody has spoken for has the default.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memory.backends import open_tables
from memory.protocols import Episodes
from memory.store import SqlDatabase, no_guard
from memory.types import AppendResult, Episode, Guard, Trust

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE source_trust (
  source_id TEXT PRIMARY KEY, trust INTEGER NOT NULL, decided_by TEXT NOT NULL, reason TEXT NOT NULL,
  decided_at {real} NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class SourceTrust:
    """A decision about a source."""

    source_id: str
    trust: Trust
    by: str
    reason: str
    decided_at: float


class SourceTrusts:
    """See the module. Thread-safe."""

    def __init__(self, database: SqlDatabase, *, default: Trust, clock: Callable[[], float]) -> None:
        self._database = database
        self._default = default
        self._clock = clock

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        default: Trust,
        database: str = "",
        namespace: str = "trust",
        clock: Callable[[], float] = time.time,
    ) -> "SourceTrusts":
        """Open or create trust.db in the folder, or a schema of a PostgreSQL database. Raises StoreProblem."""
        opened = open_tables(
            _SCHEMA, version=SCHEMA_VERSION, path=folder / "trust.db", url=database, namespace=namespace
        )
        return cls(opened, default=default, clock=clock)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def bounded(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The episodes, each with no more trust than its source has."""
        trusts = {source: self.of(source) for source in {episode.source_id for episode in episodes}}
        return [replace(one, trust=Trust(min(one.trust, trusts[one.source_id]))) for one in episodes]

    def append(self, store: Episodes, episodes: Sequence[Episode], *, guard: Guard = no_guard) -> AppendResult:
        """Store episodes, each with no more trust than its source has, also if that fell while they were stored."""
        bounded = self.bounded(episodes)
        result = store.append(bounded, guard=guard)
        for source in {episode.source_id for episode in bounded}:
            trust = self.of(source)
            fallen = [one.id for one in bounded if one.source_id == source and one.trust > trust]
            if fallen:
                store.set_trust(trust, ids=fallen, between=(Trust.UNTRUSTED, Trust.TRUSTED), guard=guard)
        return result

    def of(self, source_id: str) -> Trust:
        """The trust of a source."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT trust FROM source_trust WHERE source_id = :source", {"source": source_id}
            ).fetchone()
        return self._default if row is None else Trust(row[0])

    def decide(self, source_id: str, trust: Trust, *, by: str, reason: str, guard: Guard = no_guard) -> None:
        """Believe a source so far from now on. Raises ValueError without a name or a reason."""
        for name, value in (("source_id", source_id), ("by", by), ("reason", reason)):
            if not value.strip():
                raise ValueError(f"{name} is empty: a decision about a source names it, who decides, and why")
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "INSERT INTO source_trust(source_id, trust, decided_by, reason, decided_at)"
                " VALUES(:source, :trust, :by, :reason, :now) ON CONFLICT(source_id) DO UPDATE SET"
                " trust = :trust, decided_by = :by, reason = :reason, decided_at = :now",
                {"source": source_id, "trust": int(trust), "by": by, "reason": reason, "now": self._clock()},
            )

    def decisions(self) -> list[SourceTrust]:
        """All decisions, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT source_id, trust, decided_by, reason, decided_at FROM source_trust ORDER BY decided_at DESC"
            ).fetchall()
        return [SourceTrust(row[0], Trust(row[1]), *row[2:]) for row in rows]
