"""The questions of the version ledger: slots, records, lines of descent, learned episodes, the audit log.

In: version ids or run ids. Out: values from one consistent snapshot; nothing here writes or waits for a writer.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from autonomous.versions.audit import AuditReport, AuditRow, row_of
from autonomous.versions.checkpoint import CheckpointFile
from autonomous.versions.history import Step, evidence_of, proposer_of, steps_of, successor_of
from autonomous.versions.schema import (
    DESCENDANTS,
    Pointers,
    VersionRecord,
    find_record,
    held_back,
    learned_by_line,
    select_in_states,
    select_line,
    select_records,
)
from autonomous.versions.states import State
from autonomous.versions.transaction import ACTION_PREFIX
from autonomous.versions.verify import Readable, verify_ledger

Records: TypeAlias = list[VersionRecord]
Names: TypeAlias = list[str]
Rows: TypeAlias = list[AuditRow]


class LedgerNotReady(ValueError):
    """There is no production version yet."""


class LedgerQueries:
    """What can be asked of a ledger. VersionLedger adds what changes it."""

    def __init__(self, database: Readable, *, checkpoints: Sequence[CheckpointFile]) -> None:
        self._database = database
        self._checkpoints = tuple(checkpoints)

    def pointers(self) -> Pointers:
        """Which versions are V1, V2 and V3. Raises LedgerNotReady before `genesis`."""
        newest = (
            "SELECT version_id, json_extract(after, '$.percent') FROM versions JOIN audit ON seq = changed_seq"
            " WHERE state IN ({}) ORDER BY changed_seq DESC LIMIT 1"
        )
        with self._database.read() as connection:
            (v1, percent), (v2, _), (v3, _) = (
                connection.execute(newest.format(states)).fetchone() or (None, None)
                for states in ("'SHADOW', 'CANARY'", "'PRODUCTION'", "'QUARANTINED'")
            )
        if v2 is None:
            raise LedgerNotReady("the ledger has no production version: call genesis first")
        return Pointers(v1=v1 or v2, v2=v2, v3=v3, canary_percent=percent or 0.0)

    def get(self, name: str) -> VersionRecord:
        """By version id or run id. Raises UnknownVersion."""
        with self._database.read() as connection:
            return find_record(connection, name)

    def has(self, name: str) -> bool:
        """Whether there is a version or run of this name."""
        with self._database.read() as connection:
            return bool(select_records(connection, "WHERE version_id = :name OR run_id = :name", {"name": name}))

    def list(self, limit: int = 100) -> Records:
        """Versions and runs, newest first."""
        with self._database.read() as connection:
            return select_records(connection, "ORDER BY id DESC LIMIT :limit", {"limit": limit})

    def in_states(self, states: Iterable[State]) -> Records:
        """Versions and runs in one of these states, the last moved first."""
        with self._database.read() as connection:
            return select_in_states(connection, states)

    def lineage(self, version_id: str) -> Records:
        """The version and its ancestors, root first."""
        with self._database.read() as connection:
            return select_line(connection, find_record(connection, version_id))

    def episodes_of(self, version_id: str) -> Names:
        """Episodes that the version itself was trained on, in their order; its ancestors' are not in it."""
        query = "SELECT episode_id FROM version_episodes WHERE version = ? ORDER BY position"
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query, (find_record(connection, version_id).row_id,))]

    def learned_episodes(self, version_id: str) -> set[str]:
        """Episodes that the version and its ancestors were trained on."""
        with self._database.read() as connection:
            return learned_by_line(connection, find_record(connection, version_id))

    def trained_on(self, episode_ids: Sequence[str]) -> Records:
        """Versions that were themselves trained on one of these episodes, newest first."""
        trained = "SELECT version FROM version_episodes WHERE episode_id IN (SELECT value FROM json_each(:ids))"
        ids = json.dumps(list(episode_ids))
        with self._database.read() as connection:
            return select_records(connection, f"WHERE id IN ({trained}) ORDER BY id DESC", {"ids": ids})

    def versions_that_learned(self, episode_ids: Sequence[str]) -> Names:
        """Versions that were trained on one of these episodes, themselves or by an ancestor; oldest first."""
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(DESCENDANTS, {"episodes": json.dumps(list(episode_ids))})]

    def learned(self, episode_ids: Sequence[str]) -> set[str]:
        """Those of these episodes that any version was trained on."""
        query = "SELECT DISTINCT episode_id FROM version_episodes WHERE episode_id IN (SELECT value FROM json_each(?))"
        with self._database.read() as connection:
            return {row[0] for row in connection.execute(query, (json.dumps(list(episode_ids)),))}

    def held_back(self) -> set[str]:
        """Episodes of rejected and rolled back versions: not to be learned again."""
        with self._database.read() as connection:
            return held_back(connection)

    def held_back_by(self, version_id: str) -> Names:
        """Those of a version's own episodes that are held back on its account."""
        query = "SELECT episode_id FROM held_back WHERE version = ? ORDER BY episode_id"
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query, (find_record(connection, version_id).row_id,))]

    def unsettled_suspects(self, settled: str) -> Names:
        """Versions whose rollback says that what they learned is suspect, without a later audit row of this action."""
        query = """
            SELECT subject FROM audit AS rolled WHERE action = ? AND json_extract(after, '$.is_suspect')
            AND NOT EXISTS (SELECT 1 FROM audit WHERE action = ? AND subject = rolled.subject AND seq > rolled.seq)
        """
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query, (ACTION_PREFIX + "rollback", settled))]

    def last_seq(self) -> int:
        """Of the newest audit row: it moves with every change."""
        with self._database.read() as connection:
            return int(connection.execute("SELECT coalesce(max(seq), 0) FROM audit").fetchone()[0])

    def audit(self, limit: int = 100) -> Rows:
        """The newest rows, newest first."""
        with self._database.read() as connection:
            return [
                row_of(row) for row in connection.execute("SELECT * FROM audit ORDER BY seq DESC LIMIT ?", (limit,))
            ]

    def audit_about(self, name: str, limit: int = 100) -> Rows:
        """The newest rows about a version and the run that it was, newest first. Raises UnknownVersion."""
        query = "SELECT * FROM audit WHERE subject IN (?, ?) ORDER BY seq DESC LIMIT ?"
        with self._database.read() as connection:
            record = find_record(connection, name)
            return [row_of(row) for row in connection.execute(query, (record.name, record.run_id, limit))]

    def steps(self, name: str) -> Sequence[Step]:
        """What happened to a version and to the run that it was, oldest first."""
        with self._database.read() as connection:
            return steps_of(connection, find_record(connection, name))

    def successor(self, name: str) -> str | None:
        """The version that took its place when it last left service; None if it never did."""
        with self._database.read() as connection:
            return successor_of(connection, find_record(connection, name))

    def proposer(self, name: str) -> str:
        """Who asked for the run of a version; "" for the frozen original."""
        with self._database.read() as connection:
            return proposer_of(connection, find_record(connection, name))

    def evidence(self, sha256: str) -> Any:
        """What is kept under a hash; None if nothing is."""
        with self._database.read() as connection:
            return evidence_of(connection, sha256)

    def verify_audit(self) -> AuditReport:
        """Whether no row was altered, dropped, reordered or cut off, and the versions are where the log says."""
        return verify_ledger(self._database, checkpoint_files=self._checkpoints)
