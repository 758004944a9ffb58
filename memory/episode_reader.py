"""EpisodeReader: the questions that the rows of episodes answer by themselves, without words or vectors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memory.episode_rows import FIELDS, RECALLABLE, TICK_S, episode_from, sql_of
from memory.store import SqlDatabase
from memory.types import DocumentInfo, Episode, EpisodeFilter, EpisodeTraits, Trust


class EpisodeReader:
    """The reading half of EpisodicMemory. Every method may be called from any thread."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def find(self, where: EpisodeFilter, *, limit: int, offset: int = 0) -> list[tuple[int, Episode]]:
        """One page of the episodes that pass a filter, without repeats, as (order of writing, episode), newest first by
        when they happened.

        With `min_trust` below STANDARD it lists what waits in quarantine too.
        """
        condition, parameters = sql_of(where, self._database)
        condition = f"duplicate_of IS NULL AND {condition} ORDER BY happened_at DESC, recorded_at DESC"
        return self._page(condition, limit=limit, offset=offset, **parameters)

    def episodes_after(self, seq: int, *, limit: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """The next live episodes of the stream as (seq, episode), ascending, repeats too: what a follower reads."""
        condition = "seq > :seq AND trust >= :trust ORDER BY seq"
        return self._page(condition, limit=limit, order="seq", seq=seq, trust=int(min_trust))

    def freshest(self, *, limit: int, offset: int, min_trust: Trust = Trust.STANDARD) -> list[tuple[int, Episode]]:
        """One page of live episodes without repeats, most salient first, newest first: the order of learning.

        Each as (order of writing, episode); the order is in microseconds and the same over all shards of a memory.
        """
        condition = "duplicate_of IS NULL AND trust >= :trust ORDER BY salience DESC, recorded_at DESC"
        return self._page(condition, limit=limit, offset=offset, trust=int(min_trust))

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """The live episodes of these ids, quarantined ones too, in the order of `ids`, without unknown ones."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {FIELDS} FROM episode WHERE deleted_at IS NULL AND id {self._database.one_of('ids')}",
                {"ids": self._database.many(ids)},
            ).fetchall()
        found = {row[0]: episode_from(row) for row in rows}
        return [found[key] for key in ids if key in found]

    def has(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are stored and not erased."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT id FROM episode WHERE deleted_at IS NULL AND id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(ids))},
            )
            return {row[0] for row in rows}

    def num_learnable(self, left_out: Mapping[str, int]) -> int:
        """How many passages `freshest` offers, but for these, by id, that are believed no more than it says there."""
        by_trust: dict[int, list[str]] = {}
        for key, trust in left_out.items():
            by_trust.setdefault(trust, []).append(key)
        query = (
            f"SELECT count(*) FROM episode WHERE {RECALLABLE} AND trust <= :trust AND id {self._database.one_of('ids')}"
        )
        with self._database.read() as connection:
            (total,) = connection.execute("SELECT num_recallable FROM totals").fetchone()
            for trust, ids in by_trust.items():
                values = {"trust": trust, "ids": self._database.many(ids)}
                total -= connection.execute(query, values).fetchone()[0]
        return int(total)

    def documents(self, *, limit: int, offset: int, source_id: str | None = None) -> list[DocumentInfo]:
        """One page of the stored documents, newest first; `trust` is the least of a document's passages."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document_id, min(source_id), min(title), count(*), min(recorded_at), min(trust) FROM episode"
                " WHERE deleted_at IS NULL AND (:source IS NULL OR source_id = :source)"
                f" GROUP BY document_id ORDER BY min(recorded_at) DESC LIMIT {limit:d} OFFSET {offset:d}",
                {"source": source_id},
            ).fetchall()
        return [DocumentInfo(*(*row[:5], Trust(row[5]))) for row in rows]

    def ids_of(self, document_id: str) -> tuple[str, ...]:
        """Ids of a document's episodes in commit order: quarantined ones, and those that made room, too."""
        return self._ids("document_id", document_id)

    def ids_of_source(self, source_id: str) -> tuple[str, ...]:
        """Ids of a source's episodes in commit order: quarantined ones, and those that made room, too."""
        return self._ids("source_id", source_id)

    def departed(self, *, before: float, after: str = "", limit: int) -> list[str]:
        """One page of the ids of episodes that made room before a time, seconds since the epoch; ascending, behind `after`."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT id FROM departed WHERE departed_at < :before AND id > :after ORDER BY id LIMIT {limit:d}",
                {"before": before, "after": after},
            ).fetchall()
        return [row[0] for row in rows]

    def last_recorded_at(self) -> float:
        """When the newest row was written, seconds since the epoch; 0 for an empty store."""
        with self._database.read() as connection:
            (found,) = connection.execute("SELECT last_recorded_at FROM totals").fetchone()
        return float(found)

    def traits(self) -> list[EpisodeTraits]:
        """Of every episode that can be recalled, in the order of the stream."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, salience, recorded_at, times_seen + (SELECT coalesce(sum(times_seen), 0) FROM episode AS repeat"
                " WHERE repeat.duplicate_of = episode.seq AND repeat.deleted_at IS NULL)"
                f" FROM episode WHERE {RECALLABLE} ORDER BY seq"
            ).fetchall()
        return [EpisodeTraits(row[0], row[1], row[2], int(row[3])) for row in rows]

    def _ids(self, column: str, value: str) -> tuple[str, ...]:
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT id, seq FROM episode WHERE deleted_at IS NULL AND {column} = :value"
                f" UNION SELECT id, 0 FROM departed WHERE {column} = :value"
                f" UNION SELECT id, 0 FROM revised WHERE {column} = :value AND kind = 'pruned' ORDER BY 2, 1",
                {"value": value},
            ).fetchall()
        return tuple(row[0] for row in rows)

    def _page(
        self, condition: str, *, limit: int, offset: int = 0, order: str = "recorded_at", **parameters: Any
    ) -> list[tuple[int, Episode]]:
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {order}, {FIELDS} FROM episode WHERE deleted_at IS NULL AND {condition}"
                f" LIMIT {limit:d} OFFSET {offset:d}",
                parameters,
            ).fetchall()
        scale = 1 if order == "seq" else round(1 / TICK_S)
        return [(round(row[0] * scale), episode_from(row[1:])) for row in rows]
