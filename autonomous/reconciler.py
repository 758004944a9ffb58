"""Reconciler: what follows from the ledger is done, and done again after a crash, until it holds.

In: the ledger. Out: adapters loaded or dropped on the engine's replicas, and passages of a version that a person rolled
back, which are not recalled until they are released. Every effect is idempotent: it is derived from rows that are committed.
"""

import logging
from collections.abc import Callable
from functools import partial

from autonomous.ports import EnginePort, MemoryPort
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.schema import VersionRecord
from autonomous.versions.states import State
from train.adapt.reference import AdapterRef

logger = logging.getLogger(__name__)

BY = "agent:reconciler"
SUSPECTED = "memory.suspected"
"""Audit action: the passages of a version that was rolled back wait for their release."""
LIVE_STATES = (State.SHADOW, State.CANARY, State.PRODUCTION)
GONE_STATES = (State.ARCHIVED, State.QUARANTINED)
MAX_DROPPED = 64
"""Newest versions that left, whose adapters are dropped once more after a restart."""


class Reconciler:
    """See the module. Not thread-safe: one owner, who calls `step` every second or so."""

    def __init__(
        self,
        *,
        ledger: VersionLedger,
        engine: EnginePort,
        memory: MemoryPort,
        latch: Latch,
        adapter_of: Callable[[VersionRecord], AdapterRef | None],
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._memory = memory
        self._latch = latch
        self._adapter_of = adapter_of
        self._loaded: set[str] = set()
        self._dropped: set[str] = set()
        self._seen = -1

    def step(self) -> None:
        """Bring the effects up to the ledger, if that has moved. What fails is tried again by the next step."""
        seq = self._ledger.last_seq()
        if seq == self._seen:
            return
        is_done = self._suspect() & self._load() & self._drop()
        if is_done:
            self._seen = seq

    def _load(self) -> bool:
        records = [record for record in self._ledger.in_states(LIVE_STATES) if _key(record) not in self._loaded]
        return self._apply("load", records, lambda adapter: self._engine.prepare(adapter, ""), self._loaded)

    def _drop(self) -> bool:
        left = self._ledger.in_states(GONE_STATES)[:MAX_DROPPED]
        records = [record for record in left if _key(record) not in self._dropped]
        return self._apply("drop", records, self._engine.drop, self._dropped)

    def _apply(
        self,
        what: str,
        records: list[VersionRecord],
        effect: Callable[[AdapterRef], object],
        done: set[str],
    ) -> bool:
        """The effect on the adapter of each; whether all is done."""
        is_done = True
        for record in records:
            adapter = self._adapter_of(record)
            if adapter is None or self._try(f"{what} {record.name}", partial(effect, adapter)):
                done.add(_key(record))
            else:
                is_done = False
        return is_done

    def _suspect(self) -> bool:
        """Passages that a version learned which a person rolled back for what it said."""
        is_done = True
        for name in self._ledger.unsettled_suspects(SUSPECTED):
            is_done &= self._try(f"suspect what {name} learned", partial(self._suspect_one, name))
        return is_done

    def _suspect_one(self, name: str) -> None:
        self._latch.permit("memory write").check()
        ids = self._ledger.held_back_by(name)
        held = self._memory.suspect(ids) if ids else ()
        self._ledger.append_audit(actor=BY, action=SUSPECTED, subject=name, after={"episodes": len(held)})

    @staticmethod
    def _try(what: str, effect: Callable[[], object]) -> bool:
        try:
            effect()
        except LearningStopped as error:
            logger.info("%s waits: %s", what, error)
            return False
        except Exception:  # a replica or a store is away: the next step tries again
            logger.exception("could not %s; it is tried again", what)
            return False
        return True


def _key(record: VersionRecord) -> str:
    """Of a version at one place of its life: what leaves for the second time is dropped for the second time."""
    return f"{record.name} {record.state} {record.changed_at}"
