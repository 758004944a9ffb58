"""Who contradicts whom, and the alarm against a source that contradicts many.

A poisoner who is let in says much that others deny. Of two facts that cannot both hold the less trusted source is at
fault, of equals the one that came later; one source may change its own mind. A source at fault against many facts, and
with a large share of its own, raises an alarm that stays until a person settles it.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping

from memory.beliefs import Verdict, order_of_belief
from memory.claims import is_functional
from memory.concepts import ConceptGraph, Held
from memory.store import SqlConnection
from memory.types import Alarm, Fact
from memory.words import concept_key

logger = logging.getLogger(__name__)

Conflict = tuple[str, str, str]
"""Source at fault, its fact, the fact that it contradicts."""
_EXAMPLES = 5


def conflicts_of(
    facts: Mapping[str, Fact], verdicts: Mapping[str, Verdict | None], graph: ConceptGraph
) -> set[Conflict]:
    """Contradictions of facts that are about to be held, with those of the graph and with each other in their order."""
    conflicts: set[Conflict] = set()
    groups: dict[tuple[str, str], dict[str, tuple[str, Held]]] = defaultdict(dict)
    for key, fact in facts.items():
        verdict = verdicts.get(key)
        if verdict is None or not is_functional(fact):
            continue
        held = Held(verdict.claim.source_id, verdict.claim.trust, order_of_belief(verdict))
        place, object_key = (concept_key(fact.subject), fact.relation), concept_key(fact.object)
        group = groups[place]
        for rival in graph.held_by_place(*place):
            group.setdefault(rival, (graph.facts[rival].triple[2], graph.held[rival]))
        for rival, (other_key, other) in group.items():
            if rival == key or other_key == object_key or other.source_id == held.source_id:
                continue
            is_at_fault = other.trust >= held.trust
            conflicts.add((held.source_id, key, rival) if is_at_fault else (other.source_id, rival, key))
        group[key] = (object_key, held)
    return conflicts


class SourceAlarms:
    """Conflicts and alarms in the rows of SemanticMemory."""

    def __init__(self, *, least_facts: int, least_share: float) -> None:
        self._least_facts = least_facts
        self._least_share = least_share

    def note(self, connection: SqlConnection, conflicts: Iterable[Conflict], *, now: float) -> None:
        """Write conflicts down, and raise what alarms they make due."""
        rows = [{"source": source, "fact": fact, "other": other} for source, fact, other in sorted(conflicts)]
        if not rows:
            return
        connection.executemany(
            "INSERT INTO conflict(source_id, fact_id, other_id) VALUES(:source, :fact, :other) ON CONFLICT DO NOTHING",
            rows,
        )
        for source in sorted({row["source"] for row in rows}):
            self._raise_if_due(connection, source, now=now)

    @staticmethod
    def open(connection: SqlConnection) -> list[Alarm]:
        """Alarms that nobody has settled, newest first."""
        rows = connection.execute(
            "SELECT source_id, num_contradicting, num_facts, raised_at, held_at FROM alarm WHERE settled_at IS NULL"
            " ORDER BY raised_at DESC"
        ).fetchall()
        found = []
        for source_id, num_contradicting, num_facts, raised_at, held_at in rows:
            sentences = connection.execute(
                "SELECT DISTINCT sentence FROM claim JOIN conflict ON conflict.fact_id = claim.fact_id"
                " AND conflict.source_id = claim.source_id WHERE claim.source_id = :source"
                f" ORDER BY sentence LIMIT {_EXAMPLES}",
                {"source": source_id},
            ).fetchall()
            examples = tuple(row[0] for row in sentences)
            is_held = held_at is not None
            found.append(Alarm(source_id, num_contradicting, num_facts, raised_at, examples, is_held))
        return found

    @staticmethod
    def hold(connection: SqlConnection, source_id: str, *, now: float) -> None:
        """All that the source has said is held back now."""
        connection.execute(
            "UPDATE alarm SET held_at = :now WHERE source_id = :source", {"source": source_id, "now": now}
        )

    @staticmethod
    def settle(connection: SqlConnection, source_id: str, *, by: str, reason: str, now: float) -> bool:
        """Close an alarm; False if there is none."""
        changed = connection.execute(
            "UPDATE alarm SET settled_at = :now, settled_by = :by, reason = :reason"
            " WHERE source_id = :source AND settled_at IS NULL",
            {"source": source_id, "now": now, "by": by, "reason": reason},
        ).rowcount
        return bool(changed)

    def _raise_if_due(self, connection: SqlConnection, source_id: str, *, now: float) -> None:
        (num_contradicting,) = connection.execute(
            "SELECT count(DISTINCT fact_id) FROM conflict WHERE source_id = :source", {"source": source_id}
        ).fetchone()
        (num_facts,) = connection.execute(
            "SELECT count(DISTINCT fact_id) FROM claim JOIN fact ON fact.id = fact_id"
            " WHERE source_id = :source AND is_functional = 1 AND retracted_at IS NULL",
            {"source": source_id},
        ).fetchone()
        if num_contradicting < max(self._least_facts, self._least_share * num_facts):
            return
        raised = connection.execute(
            "INSERT INTO alarm(source_id, raised_at, num_contradicting, num_facts)"
            " VALUES(:source, :now, :contradicting, :facts) ON CONFLICT(source_id) DO UPDATE SET raised_at = :now,"
            " num_contradicting = :contradicting, num_facts = :facts, held_at = NULL, settled_at = NULL, settled_by = NULL,"
            " reason = NULL"
            " WHERE alarm.num_contradicting < :contradicting",
            {"source": source_id, "now": now, "contradicting": num_contradicting, "facts": num_facts},
        ).rowcount
        if raised:
            logger.warning("source=%s contradicts others with facts=%d of %d", source_id, num_contradicting, num_facts)
