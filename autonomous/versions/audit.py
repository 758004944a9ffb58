"""The hash chain of the audit log: canonical JSON, one row after another, and the check that names the first bad row.

In: what an actor did to a subject. Out: rows {seq, ts, actor, action, subject, before, after, evidence_sha256,
prev_hash, hash}, where hash = sha256 of the canonical JSON of all other fields and prev_hash is the hash of the row
before. So an altered, dropped or reordered row breaks the chain at its place.

A chain cannot see that its own end was cut off. `Checkpoint` names the last row in a small file next to the database,
replaced atomically after each commit, and never by a row of a chain that does not hold the one it names: a log that was
cut off and grew again is still broken. Its limit: it lies on the same disk, so whoever can write both can cut both. A
second one, signed, may lie elsewhere (checkpoint.py).
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

GENESIS_HASH = "0" * 64
"""`prev_hash` of row 1, and the hash of the checkpoint of an empty log."""

Body = Mapping[str, Any]


def plain(value: Any) -> Any:
    """The JSON value of a Python value; numbers that JSON has no word for become "nan", "inf", "-inf".

    Raises ValueError for a value that is not made of dicts with text keys, lists, tuples, texts, numbers, bools, None.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"key {bad[0]!r} is not a text: JSON has only text keys")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise ValueError(
        f"{type(value).__name__} {value!r:.80} has no JSON form: give dicts, lists, texts, numbers or None"
    )


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII. Shortest float form, as Python writes it."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 of the canonical JSON, hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that happened. `ts` is in seconds since the epoch."""

    seq: int
    ts: float
    actor: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    evidence_sha256: str | None
    prev_hash: str
    hash: str

    def expected_hash(self) -> str:
        """What `hash` must be."""
        return sha256_of({name: getattr(self, name) for name in self.__slots__ if name != "hash"})


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Whether the log is whole. `first_bad_seq` is the first row that was altered, dropped or reordered."""

    ok: bool
    num_rows: int
    first_bad_seq: int | None = None
    reason: str | None = None


class MalformedRow(ValueError):
    """A stored row that this program cannot have written."""


def append_row(
    connection: sqlite3.Connection,
    *,
    ts: float,
    actor: str,
    action: str,
    subject: str,
    before: Body | None,
    after: Body | None,
    evidence: Body | None,
) -> AuditRow:
    """Add the next row inside the caller's open write transaction; keeps the evidence by its hash."""
    last = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS_HASH)
    unsigned = AuditRow(
        seq=last[0] + 1,
        ts=float(ts),
        actor=actor,
        action=action,
        subject=subject,
        before=None if before is None else plain(before),
        after=None if after is None else plain(after),
        evidence_sha256=None if evidence is None else keep_evidence(connection, evidence),
        prev_hash=last[1],
        hash="",
    )
    row = replace(unsigned, hash=unsigned.expected_hash())
    connection.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.seq,
            row.ts,
            actor,
            action,
            subject,
            None if row.before is None else canonical_json(row.before),
            None if row.after is None else canonical_json(row.after),
            row.evidence_sha256,
            row.prev_hash,
            row.hash,
        ),
    )
    return row


def keep_evidence(connection: sqlite3.Connection, evidence: Any) -> str:
    """Store a JSON value under its hash, once; returns the hash."""
    body = canonical_json(evidence)
    digest = hashlib.sha256(body.encode()).hexdigest()
    connection.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?)", (digest, body))
    return digest


def row_of(values: tuple[Any, ...]) -> AuditRow:
    """The row of a `SELECT * FROM audit`. Raises MalformedRow for one that is not canonical."""
    seq, ts, actor, action, subject, before, after, evidence_sha256, prev_hash, digest = values
    try:
        row = AuditRow(
            seq=seq,
            ts=float(ts),
            actor=actor,
            action=action,
            subject=subject,
            before=None if before is None else json.loads(before),
            after=None if after is None else json.loads(after),
            evidence_sha256=evidence_sha256,
            prev_hash=prev_hash,
            hash=digest,
        )
        for text, body in ((before, row.before), (after, row.after)):
            if text is not None and canonical_json(body) != text:
                raise ValueError("not in canonical form")
        row.expected_hash()
    except (TypeError, ValueError) as error:
        raise MalformedRow(f"row {seq} cannot be read: {error}") from error
    return row


def verify_rows(rows: Iterable[tuple[Any, ...]], *, checkpoints: Sequence["Checkpoint"]) -> AuditReport:
    """Walk the chain in seq order; pure. The checkpoints must have been read before the rows were."""
    last = Checkpoint(0, GENESIS_HASH)
    for values in rows:
        if broken := _break_at(values, last=last, checkpoints=checkpoints):
            return AuditReport(False, last.seq, *broken)
        last = Checkpoint(values[0], values[-1])
    for checkpoint in checkpoints:
        if checkpoint.seq > last.seq:
            reason = f"the end was cut off: the checkpoint names row {checkpoint.seq}"
            return AuditReport(False, last.seq, last.seq + 1, reason)
    return AuditReport(True, last.seq)


def _break_at(
    values: tuple[Any, ...], *, last: "Checkpoint", checkpoints: Sequence["Checkpoint"]
) -> tuple[int, str] | None:
    """First bad seq and reason, if the row does not follow `last`."""
    seq = values[0]
    if seq != last.seq + 1:
        bad = min(seq, last.seq + 1)
        return bad, f"row {bad} was dropped or put elsewhere: row {seq} follows row {last.seq}"
    try:
        row = row_of(values)
    except MalformedRow as error:
        return seq, f"row {seq} was altered: {error}"
    if row.expected_hash() != row.hash:
        return seq, f"row {seq} was altered or moved: its hash does not fit its content"
    if row.prev_hash != last.hash:
        bad = max(last.seq, 1)
        return bad, f"row {bad} was replaced: row {seq} was written after another row"
    if any(seq == checkpoint.seq and row.hash != checkpoint.hash for checkpoint in checkpoints):
        return seq, f"row {seq} or one before it was rewritten: the checkpoint names another hash"
    return None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The last row that was committed."""

    seq: int
    hash: str
