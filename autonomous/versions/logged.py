"""LoggedVersion: what the audit log alone says of a version, fact by fact, each with the row that says it last.

In: the ledger's own audit rows, or its other tables. Out: the same facts from both, so that verify.py can compare them. Long
values are compared by their hash. The order of a version's episodes is no fact: it decides nothing.
"""

import hashlib
import sqlite3
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from autonomous.versions.audit import AuditRow, row_of
from autonomous.versions.bundle import digest_of
from autonomous.versions.transaction import ACTION_PREFIX

Facts: TypeAlias = dict[str, Any]

_STORED = """
SELECT coalesce(version_id, run_id) AS name, state, run_id, version_id, parent, created_at, changed_at, changed_seq, config,
       folder, manifest, stream_offset, adapter_number, report_sha256, gates_sha256, id,
       (SELECT number FROM adapter_numbers AS given WHERE given.version_id = versions.version_id) AS given_number
FROM versions
"""
_NO_CONFIG = hashlib.sha256(b"{}").hexdigest()


@dataclass(slots=True)
class LoggedVersion:
    """See the module."""

    facts: Facts = field(default_factory=dict)
    said_by: dict[str, int] = field(default_factory=dict)

    def say(self, row: AuditRow, **facts: Any) -> None:
        """From this row on these are the facts."""
        self.facts.update(facts)
        self.said_by.update(dict.fromkeys(facts, row.seq))


def logged_versions(connection: sqlite3.Connection) -> dict[str, LoggedVersion]:
    """By name: version id, or run id where there is no bundle. The chain must have been checked before."""
    versions: dict[str, LoggedVersion] = {}
    for values in connection.execute("SELECT * FROM audit WHERE action GLOB ? ORDER BY seq", (ACTION_PREFIX + "*",)):
        row = row_of(values)
        _apply(versions, row, row.action.removeprefix(ACTION_PREFIX), row.after or {})
    return versions


def _apply(versions: dict[str, LoggedVersion], row: AuditRow, action: str, after: dict[str, Any]) -> None:
    match action:
        case "genesis":
            version = versions[row.subject] = _begin(row, run_id=None, version_id=row.subject)
            version.say(row, config=_NO_CONFIG, manifest=row.evidence_sha256, folder=after["folder"], stream_offset=0)
        case "start_run":
            version = versions[row.subject] = _begin(row, run_id=row.subject, version_id=None)
            version.say(row, config=row.evidence_sha256, parent=after["parent"])
        case "fix_bundle":
            version = versions[row.subject] = versions.pop(after["run_id"])
            version.say(row, version_id=row.subject, manifest=row.evidence_sha256, given_number=after["adapter_number"])
            same = ("run_id", "parent", "folder", "stream_offset", "adapter_number", "episodes_sha256")
            version.say(row, **{name: after[name] for name in same})
        case "bind_report":
            versions[row.subject].say(row, report_sha256=after["report_sha256"], gates_sha256=after["gates_sha256"])
            return
        case "release":
            version = versions[row.subject]
            version.say(row, report_sha256=None, gates_sha256=None)
        case _:
            version = versions[row.subject]
    version.say(row, state=after["state"], changed_at=row.ts, changed_seq=row.seq)
    if "held_sha256" in after:
        version.say(row, held_sha256=after["held_sha256"])


def _begin(row: AuditRow, *, run_id: str | None, version_id: str | None) -> LoggedVersion:
    version, empty = LoggedVersion(), digest_of(())
    nothing = ("parent", "folder", "manifest", "stream_offset", "adapter_number", "given_number")
    version.say(row, **dict.fromkeys((*nothing, "report_sha256", "gates_sha256")))
    version.say(row, run_id=run_id, version_id=version_id, created_at=row.ts)
    version.say(row, episodes_sha256=empty, held_sha256=empty)
    return version


def stored_versions(connection: sqlite3.Connection) -> dict[str, Facts]:
    """The same facts as the tables have them. Episodes of a version that is not there are told under a name of their own."""
    learned, held = _ids_of(connection, "version_episodes"), _ids_of(connection, "held_back")
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    versions: dict[str, Facts] = {}
    for row in cursor.execute(_STORED):
        facts = dict(row)
        row_id = facts.pop("id")
        for name in ("config", "manifest"):
            facts[name] = None if facts[name] is None else hashlib.sha256(str(facts[name]).encode()).hexdigest()
        facts["episodes_sha256"] = digest_of(learned.pop(row_id, ()))
        facts["held_sha256"] = digest_of(held.pop(row_id, ()))
        versions[facts.pop("name")] = facts
    return versions | {f"in row {row_id}": {} for row_id in sorted({*learned, *held})}


def _ids_of(connection: sqlite3.Connection, table: str) -> dict[int, list[str]]:
    """Episode ids by the row id of their version."""
    found: dict[int, list[str]] = {}
    for row_id, episode in connection.execute(f"SELECT version, episode_id FROM {table}"):
        found.setdefault(row_id, []).append(str(episode))  # whatever was written there by hand
    return found
