"""The writes of the ledger inside one open transaction: every change with its audit row.

In: a connection in a write transaction (ledger.py opens, guards and commits it). Out: changed rows of `versions` and
what hangs on them, and `last_row`, the newest audit row, for the checkpoint after the commit.
"""

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from autonomous.versions.audit import AuditRow, Body, append_row, canonical_json, keep_evidence
from autonomous.versions.bundle import digest_of
from autonomous.versions.gates import GateResult, decide_promotion
from autonomous.versions.schema import VersionRecord, find_record, learned_by_line, select_in_states
from autonomous.versions.states import QUARANTINE_PATHS, IllegalTransition, State, decide_transition

ACTION_PREFIX = "version."
"""Of the ledger's own audit actions: from these rows alone all that is known of a version can be derived (logged.py)."""
HOLDING_STATES = frozenset({State.REJECTED, State.ROLLED_BACK, State.QUARANTINED})
"""On arrival in these, the version's episodes are held back."""


class Transaction:
    """One open write transaction. `now` is the time of all its rows, seconds since the epoch."""

    def __init__(self, connection: sqlite3.Connection, *, now: float) -> None:
        self.connection = connection
        self.now = now
        self.last_row: AuditRow | None = None

    def audit(
        self,
        action: str,
        *,
        by: str,
        subject: str,
        before: Body | None = None,
        after: Body | None = None,
        evidence: Body | None = None,
    ) -> AuditRow:
        """Append the next row of the chain."""
        for name, text in (("by", by), ("action", action), ("subject", subject)):
            check_text(name, text)
        self.last_row = append_row(
            self.connection,
            ts=self.now,
            actor=by,
            action=action,
            subject=subject,
            before=before,
            after=after,
            evidence=evidence,
        )
        return self.last_row

    def insert_genesis(self, version_id: str, *, folder: Path, manifest: dict[str, Any], by: str) -> None:
        """The first row: the frozen original, serving."""
        after = {"state": State.PRODUCTION.value, "folder": str(folder)}
        row = self.audit(ACTION_PREFIX + "genesis", by=by, subject=version_id, after=after, evidence=manifest)
        self.connection.execute(
            "INSERT INTO versions (version_id, state, created_at, changed_at, changed_seq, config, folder, manifest, "
            "stream_offset) VALUES (?, 'PRODUCTION', ?, ?, ?, '{}', ?, ?, 0)",
            (version_id, self.now, self.now, row.seq, str(folder), canonical_json(manifest)),
        )

    def insert_run(self, run_id: str, *, parent: str | None, config: dict[str, Any], by: str) -> None:
        """A run in DRAFT."""
        after = {"state": State.DRAFT.value, "parent": parent}
        row = self.audit(ACTION_PREFIX + "start_run", by=by, subject=run_id, after=after, evidence=config)
        self.connection.execute(
            "INSERT INTO versions (run_id, parent, state, created_at, changed_at, changed_seq, config) "
            "VALUES (?, ?, 'DRAFT', ?, ?, ?, ?)",
            (run_id, parent, self.now, self.now, row.seq, canonical_json(config)),
        )

    def check(
        self, record: VersionRecord, *, expected: State, to: State, by: str, evidence: Body | None = None
    ) -> None:
        """Raises what `decide_transition` raises, and IllegalTransition for archiving the frozen original."""
        decide_transition(record.state, expected=expected, to=to, name=record.name, by=by, has_evidence=bool(evidence))
        if record.is_genesis and to is State.ARCHIVED:
            raise IllegalTransition(
                f"version {record.name} is the frozen original: it stays loadable for every rollback"
            )

    def move(
        self,
        record: VersionRecord,
        to: State,
        *,
        action: str,
        by: str,
        reason: str,
        evidence: Body | None = None,
        serving: VersionRecord | None = None,
        details: Body | None = None,
        hold_back: Collection[str] | None = None,
    ) -> None:
        """One checked step with its audit row and what follows from it for held back episodes.

        `serving` is the version that serves after the transaction, where that is not the present PRODUCTION; `details`
        go into the audit row. Of the episodes of a version that is put away only those of `hold_back` are held; None: all.
        """
        check_text("reason", reason)
        self.check(record, expected=record.state, to=to, by=by, evidence=evidence)
        held: Body = {}
        if to in HOLDING_STATES:
            held = self._hold_back(record, serving=serving, only=hold_back)
        elif record.state is State.QUARANTINED:
            held = self._hold_back(record, serving=serving, only=())
        report = {} if record.report_sha256 is None else {"report_sha256": record.report_sha256}
        row = self.audit(
            ACTION_PREFIX + action,
            by=by,
            subject=record.name,
            before={"state": record.state.value, **report},
            after={"state": to.value, "reason": reason, **(details or {}), **held, **report},
            evidence=evidence,
        )
        self.connection.execute(
            "UPDATE versions SET state = ?, changed_at = ?, changed_seq = ? WHERE id = ? AND state = ?",
            (to.value, self.now, row.seq, record.row_id, record.state.value),
        )
        if record.state is State.QUARANTINED:
            self.connection.execute(
                "UPDATE versions SET report_sha256 = NULL, gates_sha256 = NULL WHERE id = ?", (record.row_id,)
            )

    def quarantine(
        self,
        record: VersionRecord,
        *,
        by: str,
        reason: str,
        evidence: Body | None,
        action: str = "quarantine",
        hold_back: Collection[str] | None = None,
    ) -> None:
        """All steps from where the version is to QUARANTINED; `action` names the first in the audit log."""
        for to in QUARANTINE_PATHS[record.state]:
            self.move(record, to, action=action, by=by, reason=reason, evidence=evidence, hold_back=hold_back)
            action = "quarantine"
            record = find_record(self.connection, record.name)

    def fix(
        self,
        record: VersionRecord,
        *,
        version_id: str,
        folder: Path,
        manifest: dict[str, Any],
        episode_ids: Sequence[str],
        stream_offset: int,
        by: str,
    ) -> int:
        """Give the run its bundle, its data and a fresh adapter number."""
        if stream_offset < 0:
            raise ValueError(f"stream_offset is {stream_offset}: it counts episodes from 0")
        episodes = list(dict.fromkeys(episode_ids))
        number = self.connection.execute("INSERT INTO adapter_numbers (version_id) VALUES (?)", (version_id,)).lastrowid
        assert number is not None, "an INSERT into a rowid table has a rowid"
        row = self.audit(
            ACTION_PREFIX + "fix_bundle",
            by=by,
            subject=version_id,
            before={"state": record.state.value, "run_id": record.run_id},
            after={
                "state": State.CANDIDATE.value,
                "run_id": record.run_id,
                "parent": record.parent,
                "folder": str(folder),
                "adapter_number": number,
                "stream_offset": stream_offset,
                "episodes_sha256": digest_of(episodes),
            },
            evidence=manifest,
        )
        self.connection.execute(
            "UPDATE versions SET version_id = ?, state = 'CANDIDATE', changed_at = ?, changed_seq = ?, folder = ?, "
            "manifest = ?, stream_offset = ?, adapter_number = ? WHERE id = ?",
            (
                version_id,
                self.now,
                row.seq,
                str(folder),
                canonical_json(manifest),
                stream_offset,
                number,
                record.row_id,
            ),
        )
        self.connection.executemany(
            "INSERT INTO version_episodes VALUES (?, ?, ?)",
            [(record.row_id, position, episode) for position, episode in enumerate(episodes)],
        )
        return number

    def bind(self, record: VersionRecord, *, report: dict[str, Any], gates: Sequence[GateResult], by: str) -> str:
        """Keep report and gates under their hashes and name both in the audit row."""
        report_sha256 = keep_evidence(self.connection, report)
        gates_sha256 = keep_evidence(self.connection, [gate.to_dict() for gate in gates])
        self.audit(
            ACTION_PREFIX + "bind_report",
            by=by,
            subject=record.name,
            before={"report_sha256": record.report_sha256},
            after={
                "report_sha256": report_sha256,
                "gates_sha256": gates_sha256,
                "decision": decide_promotion(gates).value,
            },
        )
        self.connection.execute(
            "UPDATE versions SET report_sha256 = ?, gates_sha256 = ? WHERE id = ?",
            (report_sha256, gates_sha256, record.row_id),
        )
        return report_sha256

    def _hold_back(
        self, record: VersionRecord, *, serving: VersionRecord | None, only: Collection[str] | None
    ) -> dict[str, Any]:
        """Hold the version's own episodes back, `only` these of them, and free the others. Those that the serving line
        learned too stay free: there they passed the gates. Returns what is held on its account then, for the audit row.
        """
        known: set[str] = set()
        for production in [serving] if serving else select_in_states(self.connection, [State.PRODUCTION]):
            known |= learned_by_line(self.connection, production)
        query = "SELECT episode_id FROM version_episodes WHERE version = ?"
        own = {episode for (episode,) in self.connection.execute(query, (record.row_id,))}
        self.connection.execute("DELETE FROM held_back WHERE version = ?", (record.row_id,))
        self.connection.executemany(
            "INSERT INTO held_back VALUES (?, ?)",
            [(episode, record.row_id) for episode in sorted((own if only is None else own & set(only)) - known)],
        )
        query = "SELECT episode_id FROM held_back WHERE version = ?"
        held = [episode for (episode,) in self.connection.execute(query, (record.row_id,))]
        return {"num_held": len(held), "held_sha256": digest_of(held)}


def check_text(name: str, text: str) -> None:
    """Raises ValueError for an empty text, and for one that no database can store."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r}: say who, what or why; it goes into the audit log")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {text!r}, which is not valid Unicode: remove the lone surrogate") from error
