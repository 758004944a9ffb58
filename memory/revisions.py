"""What consolidation changes in the rows of episodes, written down so that it can be taken back.

A step of a run is applied once: its changes, the rows as they were before, and that it is done commit together.
"""

import json
from collections.abc import Mapping, Sequence

from memory.episode_rows import EpisodeRows, IndexChange
from memory.store import SqlConnection, SqlDatabase
from memory.types import Trust


class Revisions:
    """See the module. Each method runs inside its caller's transaction."""

    def __init__(self, database: SqlDatabase, rows: EpisodeRows) -> None:
        self._database = database
        self._rows = rows

    def apply(
        self,
        connection: SqlConnection,
        run: str,
        step: str,
        *,
        saliences: Mapping[str, float],
        prune: Sequence[str],
        now: float,
        change: IndexChange,
    ) -> int:
        """Do a step, or tell how many rows it changed when it was done."""
        parameters = {"run": run, "step": step}
        done = connection.execute(
            "SELECT num_rows FROM revision WHERE run = :run AND step = :step", parameters
        ).fetchone()
        if done is not None:
            return int(done[0])
        condition = f"id {self._database.one_of('ids')}"
        before = self._rows.select(connection, condition, {"ids": self._database.many(list(saliences))})
        changed = [row for row in before if saliences[row["id"]] != row["salience"]]
        self._remember(connection, run, "salience", changed, saliences)
        connection.executemany(
            "UPDATE episode SET salience = :salience WHERE id = :id",
            [{"salience": float(saliences[row["id"]]), "id": row["id"]} for row in changed],
        )
        gone = self._rows.select(connection, condition, {"ids": self._database.many(prune)})
        repeats = f"duplicate_of {self._database.one_of('seqs')}"  # they say the same: they go along
        known = {row["id"] for row in gone}
        gone += [
            row
            for row in self._rows.select(
                connection, repeats, {"seqs": self._database.many([row["seq"] for row in gone])}
            )
            if row["id"] not in known
        ]
        self._remember(connection, run, "pruned", gone, {})
        self._rows.depart(connection, gone, now=now, change=change)
        num_rows = len(changed) + len(gone)
        connection.execute(
            "INSERT INTO revision(run, step, num_rows) VALUES(:run, :step, :num)", {**parameters, "num": num_rows}
        )
        return num_rows

    def undo(self, connection: SqlConnection, run: str, *, now: float, change: IndexChange) -> int:
        """Take a run back. A salience that is another by now, and an episode that is there again, stay."""
        rows = connection.execute(
            "SELECT kind, before, after_salience FROM revised WHERE run = :run ORDER BY id", {"run": run}
        ).fetchall()
        pruned = [json.loads(text) for kind, text, _ in rows if kind == "pruned"]
        ids = self._database.many([row["id"] for row in pruned])
        known = {
            row[0]
            for row in connection.execute(
                f"SELECT id FROM episode WHERE id {self._database.one_of('ids')}", {"ids": ids}
            )
        }
        back = sorted((row for row in pruned if row["id"] not in known), key=lambda row: float(row["recorded_at"]))
        connection.executemany("DELETE FROM departed WHERE id = :id", back)
        self._rows.insert(connection, back, now=now, change=change)
        num_rows = len(back)
        for kind, text, after in rows:  # behind them: they went with the salience that the run had given them
            if kind == "salience":
                before = json.loads(text)
                num_rows += connection.execute(
                    "UPDATE episode SET salience = :before WHERE id = :id AND salience = :after AND deleted_at IS NULL",
                    {"before": before["salience"], "id": before["id"], "after": after},
                ).rowcount
        for table in ("revised", "revision"):
            connection.execute(f"DELETE FROM {table} WHERE run = :run", {"run": run})
        return num_rows

    def set_trust(
        self,
        connection: SqlConnection,
        trust: Trust,
        *,
        ids: Sequence[str] | None,
        source_id: str | None,
        between: tuple[Trust, Trust],
    ) -> None:
        """What was let go has this trust too, if an undo brings it back."""
        rows = connection.execute(
            "SELECT run, id, before FROM revised WHERE kind = 'pruned' AND (:source IS NULL OR source_id = :source)",
            {"source": source_id},
        ).fetchall()
        wanted = None if ids is None else set(ids)
        kept = [(run, key, json.loads(text)) for run, key, text in rows if wanted is None or key in wanted]
        connection.executemany(
            "UPDATE revised SET before = :before WHERE run = :run AND id = :id AND kind = 'pruned'",
            [
                {"run": run, "id": key, "before": json.dumps({**row, "trust": int(trust)})}
                for run, key, row in kept
                if between[0] <= row["trust"] <= between[1]
            ],
        )

    def forget(self, connection: SqlConnection, *, but: Sequence[str]) -> int:
        """Drop what was written down of all runs but these."""
        parameters = {"runs": self._database.many(list(but))}
        connection.execute(f"DELETE FROM revision WHERE NOT run {self._database.one_of('runs')}", parameters)
        dropped: int = connection.execute(
            f"DELETE FROM revised WHERE NOT run {self._database.one_of('runs')}", parameters
        ).rowcount
        return dropped

    @staticmethod
    def _remember(
        connection: SqlConnection,
        run: str,
        kind: str,
        rows: Sequence[dict[str, object]],
        saliences: Mapping[str, float],
    ) -> None:
        connection.executemany(
            "INSERT INTO revised(run, id, kind, document_id, source_id, before, after_salience)"
            " VALUES(:run, :id, :kind, :document_id, :source_id, :before, :after)",
            [
                {
                    "run": run,
                    "id": row["id"],
                    "kind": kind,
                    "document_id": row["document_id"],
                    "source_id": row["source_id"],
                    "before": json.dumps(row if kind == "pruned" else {"id": row["id"], "salience": row["salience"]}),
                    "after": saliences.get(str(row["id"])),
                }
                for row in rows
            ],
        )
