"""The version ledger: the one truth about which model versions exist, in which state, and why.

In: runs, bundles, reports and decisions, each with the name of who acts. Out: records, the slots V1, V2, V3, and an
audit log as a hash chain (audit.py). SQLite, so several processes and threads may use it at once.

Every mutation is one transaction that holds the compare-and-swap, its effects and its audit row; `guard`, the emergency
stop, is asked right before COMMIT (it must not use this ledger), and if it raises, nothing was written. Invariants, at
every instant and through kill -9: exactly one PRODUCTION after `genesis`; no episode is both held back and learned by
production's line; a version gets into traffic only with all gates passed on its own bundle; an adapter number is given
once. The questions are in queries.py.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from autonomous.versions.audit import GENESIS_HASH, AuditRow, Body, Checkpoint
from autonomous.versions.budget import PREFIX, UNLOCK, find_freeze
from autonomous.versions.bundle import version_id_of
from autonomous.versions.gates import REQUIRED_GATES, Decision, GateResult, decide_promotion
from autonomous.versions.queries import LedgerNotReady, LedgerQueries, Names, checkpoint_of
from autonomous.versions.schema import (
    SCHEMA,
    VERSION,
    Pointers,
    UnknownVersion,
    VersionRecord,
    find_record,
    held_back,
    learned_by_line,
    select_in_states,
    select_line,
    select_records,
)
from autonomous.versions.states import (
    BAD_STATES,
    COMPOUND_TRANSITIONS,
    QUARANTINE_PATHS,
    SERVED_STATES,
    IllegalTransition,
    StaleTransition,
    State,
    is_machine,
)
from autonomous.versions.transaction import ACTION_PREFIX, Transaction, check_text
from memory.store import Database, no_guard
from memory.types import Guard

__all__ = [
    "DuplicateVersion",
    "LedgerNotReady",
    "NothingToRollBack",
    "Pointers",
    "PromotionRefused",
    "PromotionsFrozen",
    "UnknownVersion",
    "VersionLedger",
    "VersionRecord",
]

logger = logging.getLogger(__name__)

Gates: TypeAlias = Sequence[GateResult]

REPORT_STATES = frozenset({State.EVALUATING, State.GATED, State.AWAITING_APPROVAL, State.SHADOW, State.CANARY})
"""Where a report may be bound. A later one replaces the earlier for the decision; both stay in the audit log."""


class PromotionRefused(ValueError):
    """The version is not fit for traffic: a gate is missing or not passed, or its line learned what is held back."""


class PromotionsFrozen(PromotionRefused):
    """Nothing is promoted: too many rollbacks, or an audit log that was altered. A person has to find out why."""


class NothingToRollBack(ValueError):
    """No earlier version is left to serve."""


class DuplicateVersion(ValueError):
    """A version of this name exists already."""


class VersionLedger(LedgerQueries):
    """The ledger in one SQLite file. Thread-safe, and safe for several processes. What returned is on disk."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, warm_versions: int = 3) -> None:
        """Open or create. Raises memory.store.StoreProblem for a newer schema or a file that is no database."""
        if warm_versions < 1:
            raise ValueError(f"warm_versions is {warm_versions}: keep at least 1, the version that a rollback restores")
        super().__init__(Database(path, schema=SCHEMA, version=VERSION), checkpoint=checkpoint_of(path))
        self._clock = clock
        self._warm_versions = warm_versions
        with self._database.write() as connection:  # under the write lock: no row can be committed meanwhile
            (num_rows,) = connection.execute("SELECT count(*) FROM audit").fetchone()
            if num_rows == 0 and not self._checkpoint.path.exists():
                self._checkpoint.write(Checkpoint(0, GENESIS_HASH))

    def close(self) -> None:
        """Close all connections; later calls raise ValueError."""
        self._database.close()

    @contextmanager
    def _write(self, guard: Guard = no_guard) -> Iterator[Transaction]:
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                transaction = Transaction(connection, now=float(self._clock()))
                yield transaction
            if transaction.last_row is not None:
                self._write_checkpoint(transaction.last_row)

    def _write_checkpoint(self, row: AuditRow) -> None:
        try:
            self._checkpoint.write(Checkpoint(row.seq, row.hash))
        except (OSError, ValueError) as error:  # the commit is done; the next one writes the checkpoint anew
            logger.error("audit checkpoint not written after row %d: %s", row.seq, error)

    # -- from a run to a decision

    def genesis(
        self, version_id: str, *, folder: Path, manifest: dict[str, Any], by: str, guard: Guard = no_guard
    ) -> None:
        """Make the frozen original the first PRODUCTION. Idempotent: with the same base and tokenizer nothing changes.

        Other code with the same weights is the same original, so an upgraded program keeps the genesis it finds.
        Raises: ValueError if this ledger began with another base model.
        """
        _check_name(version_id, manifest)
        with self._write(guard) as transaction:
            first = select_records(transaction.connection, "WHERE run_id IS NULL")
            if first:
                found = first[0].manifest or {}
                if any(found.get(part) != manifest.get(part) for part in ("base_sha256", "tokenizer_sha256")):
                    raise ValueError(
                        f"genesis {version_id} has another base model or tokenizer than this ledger's {first[0].name}: "
                        "give the new base model a data folder of its own"
                    )
                return
            transaction.insert_genesis(version_id, folder=folder, manifest=manifest, by=by)

    def start_run(
        self, *, parent: str | None, config: dict[str, Any], by: str = "agent", guard: Guard = no_guard
    ) -> str:
        """Record a learning run in DRAFT; returns its id. Raises ValueError for a parent that nothing may build on."""
        run_id = f"run-{secrets.token_hex(6)}"
        with self._write(guard) as transaction:
            if parent is not None:
                record = find_record(transaction.connection, parent)
                if not record.is_fixed or record.state in BAD_STATES:
                    raise ValueError(f"parent {parent} is {record.state}: train on top of the version that serves (V2)")
                parent = record.name
            transaction.insert_run(run_id, parent=parent, config=config, by=by)
        return run_id

    def transition(
        self,
        name: str,
        *,
        expected: State,
        to: State,
        by: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        guard: Guard = no_guard,
    ) -> None:
        """One step of one version, if it still is in `expected`.

        GATED needs bound gates that all passed. On the way to quarantine the version's episodes are held back; back to
        CANDIDATE they are released and the report is void, because the gates are to be asked again.
        Raises: StaleTransition, IllegalTransition, PromotionRefused, UnknownVersion.
        """
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, name)
            if record.state is expected and (method := COMPOUND_TRANSITIONS.get((expected, to))):
                raise IllegalTransition(
                    f"version {record.name} goes from {expected} to {to} by the ledger's {method}()"
                )
            transaction.check(record, expected=expected, to=to, by=by, evidence=evidence)
            if to is State.GATED:
                _check_gates(record)
            transaction.move(record, to, action="transition", by=by, reason=reason, evidence=evidence)

    def fix_bundle(
        self,
        run_id: str,
        *,
        version_id: str,
        folder: Path,
        manifest: dict[str, Any],
        episode_ids: Sequence[str],
        stream_offset: int,
        by: str,
        guard: Guard = no_guard,
    ) -> int:
        """TRAINING -> CANDIDATE: name, folder, data and stream offset in one transaction; returns the adapter number.

        From here on the version is immutable. Raises: StaleTransition, DuplicateVersion, ValueError for a name that is
        not the manifest's hash or a manifest with another parent.
        """
        _check_name(version_id, manifest)
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, run_id)
            transaction.check(record, expected=State.TRAINING, to=State.CANDIDATE, by=by)
            if manifest.get("parent") != record.parent:
                raise ValueError(
                    f"manifest.parent is {manifest.get('parent')!r}, the run's parent is {record.parent!r}"
                )
            if select_records(transaction.connection, "WHERE version_id = :id", {"id": version_id}):
                raise DuplicateVersion(
                    f"version {version_id} exists already: the same batch on the same parent gave the same bundle. "
                    "Go on with that version instead"
                )
            return transaction.fix(
                record,
                version_id=version_id,
                folder=folder,
                manifest=manifest,
                episode_ids=episode_ids,
                stream_offset=stream_offset,
                by=by,
            )

    def bind_report(
        self, version_id: str, *, report: dict[str, Any], gates: Gates, by: str, guard: Guard = no_guard
    ) -> str:
        """Bind an evaluation and its gates to a version; returns the report's hash. The state does not change."""
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, version_id)
            if record.state not in REPORT_STATES:
                raise StaleTransition(record.name, expected=_one_of(REPORT_STATES), actual=record.state)
            return transaction.bind(record, report=report, gates=gates, by=by)

    def promote(self, version_id: str, *, by: str, reason: str, guard: Guard = no_guard) -> Names:
        """SHADOW or CANARY -> PRODUCTION; the old one becomes SUPERSEDED. Returns versions that are ARCHIVED by it.

        The frozen original is never archived: it costs no adapter and is what every rollback may end at.
        Raises: StaleTransition; PromotionRefused without all gates passed, for an ancestor that never served or was
        taken out of service, and for a line that learned an episode that is held back; PromotionsFrozen.
        """
        self.check_promotions()
        with self._write(guard) as transaction:
            connection = transaction.connection
            if freeze := find_freeze(connection, now=transaction.now):
                raise PromotionsFrozen(str(freeze))
            record = find_record(connection, version_id)
            if record.state not in (State.SHADOW, State.CANARY):
                raise StaleTransition(record.name, expected="SHADOW or CANARY", actual=record.state)
            old = _production(transaction)
            _check_gates(record)
            for ancestor in select_line(connection, record)[:-1]:
                if ancestor.state not in SERVED_STATES:
                    raise PromotionRefused(
                        f"version {record.name} builds on {ancestor.name}, which is {ancestor.state}: "
                        "train its batch again on top of the version that serves"
                    )
            if suspect := learned_by_line(connection, record) & held_back(connection):
                raise PromotionRefused(
                    f"version {record.name} learned {len(suspect)} episodes that are held back since, for instance "
                    f"{min(suspect)}: train again without them"
                )
            transaction.move(old, State.SUPERSEDED, action="supersede", by=by, reason=f"{record.name} serves: {reason}")
            transaction.move(record, State.PRODUCTION, action="promote", by=by, reason=reason)
            warm = [found for found in select_in_states(connection, [State.SUPERSEDED]) if not found.is_genesis]
            archived = warm[self._warm_versions :]
            for cold in archived:
                transaction.move(cold, State.ARCHIVED, action="archive", by=by, reason="beyond warm_versions")
            return [cold.name for cold in archived]

    def frozen(self) -> str:
        """Why nothing is promoted (too many rollbacks, an audit log that was altered); "" if promotions go on."""
        report = self.verify_audit()
        if not report.ok:
            return (
                f"promotions are frozen: the audit log is broken at row {report.first_bad_seq} ({report.reason}). Restore "
                "ledger.sqlite from a copy whose log is whole: autonomous audit verify"
            )
        with self._database.read() as connection:
            return str(find_freeze(connection, now=float(self._clock())) or "")

    def check_promotions(self) -> None:
        """Raises PromotionsFrozen where `frozen` says why."""
        if why := self.frozen():
            raise PromotionsFrozen(why)

    def unlock_promotions(self, *, by: str, reason: str) -> None:
        """A person has found out why versions were rolled back: the rollbacks so far are settled.

        Raises IllegalTransition for a machine's name, ValueError without a reason, or if nothing is frozen by rollbacks.
        """
        if is_machine(by):
            raise IllegalTransition(
                f"promotions are unlocked only by a person, not by {by!r}: give a person's name as by"
            )
        check_text("reason", reason)
        with self._write() as transaction:
            freeze = find_freeze(transaction.connection, now=transaction.now)
            if freeze is None:
                raise ValueError("promotions are not frozen by rollbacks: there is nothing to unlock")
            before = {"since": freeze.since, "rolled_back": list(freeze.rolled_back)}
            transaction.audit(UNLOCK, by=by, subject="promotions", before=before, after={"reason": reason})

    def quarantine(
        self,
        name: str,
        *,
        by: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        hold_back: bool = True,
        guard: Guard = no_guard,
    ) -> None:
        """To V3 by way of REJECTED or ROLLED_BACK; its episodes are held back, but for those that production learned.

        `hold_back=False` frees its episodes: for a version that leaves through no fault of its data.
        Raises: IllegalTransition where no way leads there: PRODUCTION leaves by `rollback`, a run ends FAILED.
        """
        with self._write(guard) as transaction:
            record = find_record(transaction.connection, name)
            if record.state not in QUARANTINE_PATHS:
                raise IllegalTransition(
                    f"version {record.name} is {record.state}: quarantine leads from {_one_of(QUARANTINE_PATHS)}. "
                    "PRODUCTION leaves by rollback, a run without a bundle ends FAILED"
                )
            transaction.quarantine(record, by=by, reason=reason, evidence=evidence)
            if not hold_back:
                transaction.connection.execute("DELETE FROM held_back WHERE version = ?", (record.row_id,))

    def rollback(self, *, by: str, reason: str, expected: str | None = None) -> tuple[str, str]:
        """The newest fit predecessor serves again, and production goes to quarantine; returns (bad, restored).

        `expected` is the version that the caller saw serving: two people who press the button at once roll back once.
        It asks no guard: it takes a suspect version out of traffic and lets nothing new in, so it must work while the
        emergency stop holds. Raises: NothingToRollBack, StaleTransition.
        """
        with self._write() as transaction:
            connection = transaction.connection
            bad = _production(transaction)
            if expected is not None and expected != bad.name:
                actual = find_record(connection, expected)
                raise StaleTransition(expected, expected=State.PRODUCTION, actual=actual.state)
            restored = None if bad.is_genesis else self._predecessor(transaction, bad)
            if restored is None:
                raise NothingToRollBack(
                    f"version {bad.name} serves and no earlier version is left: stop learning instead"
                )
            transaction.move(bad, State.ROLLED_BACK, action="rollback", by=by, reason=reason, serving=restored)
            transaction.move(restored, State.PRODUCTION, action="restore", by=by, reason=f"{bad.name} left: {reason}")
            transaction.quarantine(find_record(connection, bad.name), by=by, reason=reason, evidence=None)
            return bad.name, restored.name

    @staticmethod
    def _predecessor(transaction: Transaction, bad: VersionRecord) -> VersionRecord | None:
        """The version that served last and neither builds on a bad version nor learned what is held back."""
        connection = transaction.connection
        suspect = held_back(connection)
        for found in select_in_states(connection, [State.SUPERSEDED]):
            line = select_line(connection, found)
            is_sound = all(ancestor.state in SERVED_STATES and ancestor.name != bad.name for ancestor in line)
            if is_sound and not learned_by_line(connection, found) & suspect:
                return found
        return None

    def recover(self, *, by: str, guard: Guard = no_guard) -> Names:
        """After a crash of the process that learns: close what it left; returns the versions that wait for it.

        Runs without a bundle are FAILED: nothing of them exists. A crash is inconclusive (a pause, not a verdict), so
        CANDIDATE, EVALUATING and GATED stay where they are and are returned, oldest first, to be evaluated again or
        carried on. A quarantine that was cut off half way is completed. To be called only by the one who owns the
        learner: another process's running training would be closed too.
        """
        with self._write(guard) as transaction:
            connection = transaction.connection
            for run in select_in_states(connection, [State.DRAFT, State.TRAINING]):
                transaction.move(run, State.FAILED, action="recover", by=by, reason="cut off by a crash or a restart")
            for half in select_in_states(connection, [State.REJECTED, State.ROLLED_BACK]):
                transaction.quarantine(half, by=by, reason="completed after a restart", evidence=None)
            waiting = select_in_states(connection, [State.CANDIDATE, State.EVALUATING, State.GATED])
            return [record.name for record in reversed(waiting)]

    # -- audit

    def append_audit(
        self,
        *,
        actor: str,
        action: str,
        subject: str,
        before: Body | None = None,
        after: Body | None = None,
        evidence: Body | None = None,
    ) -> int:
        """Add a row about something outside of the ledger; returns its seq. Asks no guard: a stop is audited too."""
        if prefix := next((one for one in (ACTION_PREFIX, PREFIX) if action.startswith(one)), None):
            raise ValueError(f"action {action!r} begins with {prefix!r}, which only the ledger writes: rename it")
        with self._write() as transaction:
            return transaction.audit(
                action, by=actor, subject=subject, before=before, after=after, evidence=evidence
            ).seq


def _production(transaction: Transaction) -> VersionRecord:
    found = select_in_states(transaction.connection, [State.PRODUCTION])
    if not found:
        raise LedgerNotReady("the ledger has no production version: call genesis first")
    return found[0]


def _check_name(version_id: str, manifest: dict[str, Any]) -> None:
    if version_id != (named := version_id_of(manifest)):
        raise ValueError(
            f"version_id is {version_id!r}, but the manifest's hash names {named}: use version_id_of(bundle)"
        )


def _check_gates(record: VersionRecord) -> None:
    decision = decide_promotion(record.gates)
    if decision is not Decision.GO:
        passed = {gate.name for gate in record.gates if gate.verdict == "pass"}
        missing = [name for name in REQUIRED_GATES if name not in passed]
        others = [gate.name for gate in record.gates if gate.name not in passed]
        named = ", ".join(dict.fromkeys([*missing, *others]))
        raise PromotionRefused(
            f"version {record.name}: the bound gates say {decision}, not passed: {named}. "
            "Evaluate it, bind the report with all gates, and try again"
        )


def _one_of(states: Any) -> str:
    return " or ".join(sorted(states))
