"""The version ledger: the one truth about which model versions exist, in which state, and why.

In: runs, bundles, reports and decisions, each with the name of who acts. Out: records, the slots V1, V2, V3, and an
audit log as a hash chain (audit.py). SQLite, so several processes and threads may use it at once.

Every mutation is one transaction that holds the compare-and-swap, its effects and its audit row; `guard`, the emergency
stop, is asked right before COMMIT (it must not use this ledger), and if it raises, nothing was written. Invariants, at
every instant and through kill -9: exactly one PRODUCTION after `genesis`; no episode is both held back and learned by
production's line; a version gets into traffic only with all gates passed on its own bundle; an adapter number is given
once. The questions are in queries.py, what decides which version serves in promotions.py, what people decide in governance.py.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from autonomous.versions.approval import PromotionRefused
from autonomous.versions.bundle import digest_of, version_id_of
from autonomous.versions.gates import GateResult
from autonomous.versions.governance import Governance
from autonomous.versions.promotions import (
    NothingToRollBack,
    PromotionsFrozen,
    check_gates,
    one_of,
)
from autonomous.versions.queries import LedgerNotReady, Names
from autonomous.versions.schema import (
    Pointers,
    UnknownVersion,
    VersionRecord,
    find_record,
    select_in_states,
    select_records,
)
from autonomous.versions.states import (
    BAD_STATES,
    COMPOUND_TRANSITIONS,
    IllegalTransition,
    StaleTransition,
    State,
)
from memory.store import no_guard
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

Gates: TypeAlias = Sequence[GateResult]

REPORT_STATES = frozenset({State.EVALUATING, State.GATED, State.AWAITING_APPROVAL, State.SHADOW, State.CANARY})
"""Where a report may be bound. A later one replaces the earlier for the decision; both stay in the audit log."""


class DuplicateVersion(ValueError):
    """A version of this name exists already."""


class VersionLedger(Governance):
    """The ledger in one SQLite file. Thread-safe, and safe for several processes. What returned is on disk."""

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

        GATED needs bound gates that all passed. On the way to quarantine the version's episodes are held back; it is left by
        `release`.
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
                check_gates(record)
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
        not the manifest's hash or a manifest with another parent or other episodes.
        """
        _check_name(version_id, manifest)
        if (named := manifest["data"]["episodes_sha256"]) != (given := digest_of(episode_ids)):
            raise ValueError(
                f"manifest.data.episodes_sha256 is {named}, the digest of episode_ids is {given}: name the episodes that "
                "the version was trained on"
            )
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
                raise StaleTransition(record.name, expected=one_of(REPORT_STATES), actual=record.state)
            return transaction.bind(record, report=report, gates=gates, by=by)

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


def _check_name(version_id: str, manifest: dict[str, Any]) -> None:
    if version_id != (named := version_id_of(manifest)):
        raise ValueError(
            f"version_id is {version_id!r}, but the manifest's hash names {named}: use version_id_of(bundle)"
        )
