"""SemanticReader: the questions that the rows of facts and claims answer by themselves, without the graph."""

from collections.abc import Sequence

from memory.beliefs import KnownClaim
from memory.semantic_rows import SemanticRows
from memory.store import SqlDatabase


class SemanticReader:
    """The reading half of SemanticMemory. Every method may be called from any thread."""

    def __init__(self, database: SqlDatabase) -> None:
        self.database = database
        self._rows = SemanticRows(database)

    def places(self) -> dict[int, int]:
        """Seq of the last episode whose claims are in, by shard of the episodic memory."""
        with self.database.read() as connection:
            return dict(connection.execute("SELECT shard, seq FROM place").fetchall())

    def began_at(self) -> float | None:
        """When the first claim came in that is still there, seconds since the epoch; None for an empty memory."""
        with self.database.read() as connection:
            row = connection.execute("SELECT recorded_at FROM claim ORDER BY number LIMIT 1").fetchone()
        return None if row is None else float(row[0])

    def claims_of(self, fact_id: str) -> list[KnownClaim]:
        """Everything that was ever claimed about a fact and not erased, oldest first: episodes, sources, times."""
        with self.database.read() as connection:
            return self._rows.claims_of(connection, [fact_id])

    def claiming(self, ids: Sequence[str]) -> set[str]:
        """Those of these episodes of which claims are kept, believed or not."""
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT DISTINCT episode_id FROM claim WHERE episode_id {self.database.one_of('ids')}",
                {"ids": self.database.many(ids)},
            )
            return {row[0] for row in rows}

    def facts_of_episodes(self, ids: Sequence[str]) -> list[str]:
        """Ids of the facts that these episodes claim."""
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT DISTINCT fact_id FROM claim WHERE episode_id {self.database.one_of('ids')} ORDER BY fact_id",
                {"ids": self.database.many(ids)},
            )
            return [row[0] for row in rows]
