"""SemanticMemory: what is held to be so, since when, and who says it. A graph of concepts over claims that never change.

The database is the log and the truth: facts, and claims about them with the episode that says or denies them. What is
held at a moment is decided from the claims that were known then (beliefs.py), so nothing is ever overwritten and
contradictions stand side by side. Rules derive further facts (rules.py). The place in the stream of episodes commits
with the claims, so a crash neither loses nor repeats an extraction. A fact whose last claim is erased is erased.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from memory.alarms import SourceAlarms, conflicts_of
from memory.backends import open_tables
from memory.beliefs import LATEST, KnownClaim, Verdict, belief_of, beliefs_as_of, decide, derived_belief
from memory.claims import is_functional
from memory.concepts import ConceptGraph
from memory.rules import Rule, RuleExplosion, derive
from memory.semantic_reader import SemanticReader
from memory.semantic_rows import SCHEMA, SCHEMA_VERSION
from memory.store import SqlConnection, SqlDatabase, no_guard
from memory.types import Alarm, Belief, Claim, Contradiction, Guard
from memory.words import concept_key

logger = logging.getLogger(__name__)


class SemanticConfig(BaseModel):
    """Where facts are kept, and when a source is suspect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Holds semantic.db."""
    database: str = ""
    """URL of a PostgreSQL database instead; see EpisodicConfig."""
    namespace: str = "semantic"
    """The schema there."""
    alarm_facts: int = Field(5, gt=0)
    """A source with so many facts that contradict those of others, no less trusted than itself, raises an alarm,"""
    alarm_share: float = Field(0.2, gt=0, le=1)
    """if they are so large a share of its facts that have one object at a time."""


class SemanticMemory(SemanticReader):
    """See the module. Open with `SemanticMemory.open`. Every method may be called from any thread."""

    def __init__(self, config: SemanticConfig, database: SqlDatabase, *, clock: Callable[[], float]) -> None:
        super().__init__(database)
        self.config = config
        self._alarms = SourceAlarms(least_facts=config.alarm_facts, least_share=config.alarm_share)
        self.clock = clock
        self.stating = threading.RLock()
        """Held by whoever reads episodes and states what they claim, and by whoever erases or holds episodes: else what was
        erased in between would be stated again."""
        self._lock = threading.Lock()  # of the graph; taken after the writer lock, never before
        self._graph = ConceptGraph()
        with database.read() as connection:
            facts, claims = self._rows.log(connection)
            self._rules = self._rows.rules(connection, recorded_at=LATEST)
        for fact_id, subject, relation, object_, has_one in facts:
            self._graph.add(fact_id, subject, relation, object_, is_functional=bool(has_one))
            self._graph.hold(fact_id, decide(claims[fact_id], valid_at=LATEST, recorded_at=LATEST))
        try:
            self._graph.use_rules(self._rules)
        except RuleExplosion:
            logger.exception("nothing is derived: remove a rule")

    @classmethod
    def open(cls, config: SemanticConfig, *, clock: Callable[[], float] = time.time) -> "SemanticMemory":
        """Open or create the store. Raises: StoreProblem (newer schema, damaged file, a server that does not answer)."""
        database = open_tables(
            SCHEMA, version=SCHEMA_VERSION, path=config.folder / "semantic.db", url=config.database,
            namespace=config.namespace,
        )  # fmt: skip
        database.checkpoint()  # of a process that was killed between an erasure and this
        return cls(config, database, clock=clock)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    # -- writing

    def add(self, claims: Sequence[Claim], *, places: Mapping[int, int] | None = None, guard: Guard = no_guard) -> int:
        """Store claims and move the places in the stream in one transaction; how many facts are new.

        A claim that is known changes nothing. A place never goes back. Raises what `guard` raises; then nothing is
        written.
        """
        facts = {one.fact.id: one.fact for one in claims}
        keys = {key: (concept_key(fact.subject), concept_key(fact.object)) for key, fact in facts.items()}
        with self.database.exclusive():
            with self.database.write(guard=guard) as connection:
                new, touched = self._rows.add_claims(connection, claims, keys=keys, now=self.clock())
                for shard, seq in (places or {}).items():
                    connection.execute(
                        "INSERT INTO place(shard, seq) VALUES(:shard, :seq) ON CONFLICT(shard) DO UPDATE SET"
                        " seq = CASE WHEN place.seq > excluded.seq THEN place.seq ELSE excluded.seq END",
                        {"shard": shard, "seq": seq},
                    )
                verdicts = self._verdicts(connection, touched)
                with self._lock:
                    conflicts = conflicts_of(facts, verdicts, self._graph)
                self._alarms.note(connection, conflicts, now=self.clock())
            with self._lock:
                for key in (key for key in facts if key in new):
                    fact = facts[key]
                    functional = is_functional(fact)
                    self._graph.add(key, fact.subject, fact.relation, fact.object, is_functional=functional)
                self._hold(verdicts)
        return len(new)

    def withdraw_episodes(self, ids: Sequence[str], *, guard: Guard = no_guard) -> int:
        """Believe episodes no longer, because they are held back; how many facts are not held any more.

        Questions as of earlier still find what was believed then. If they are released, their claims come anew.
        """
        with self.database.exclusive():
            with self.database.write(guard=guard) as connection:
                touched = self._rows.withdraw(connection, ids, now=self.clock())
                verdicts = self._verdicts(connection, touched)
            with self._lock:
                return self._hold(verdicts)

    def withdraw_source(self, source_id: str, *, guard: Guard = no_guard) -> int:
        """As `withdraw_episodes`, for all that a source has said."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT episode_id FROM claim WHERE source_id = :source AND retracted_at IS NULL",
                {"source": source_id},
            ).fetchall()
        return self.withdraw_episodes([row[0] for row in rows], guard=guard) if rows else 0

    def forget_episodes(self, ids: Iterable[str], *, guard: Guard = no_guard) -> int:
        """Erase what episodes claim, and the facts that nobody else claims; how many facts were erased."""
        with self.database.exclusive():
            with self.database.write(guard=guard) as connection:
                gone, kept = self._rows.erase(connection, list(ids))
                verdicts = self._verdicts(connection, kept)
            with self._lock:
                for fact_id in gone:
                    self._graph.remove(fact_id)
                self._hold(verdicts, has_left=bool(gone))
            self.database.checkpoint()
            if gone or kept:
                logger.info("forgot facts=%d of %d that the episodes claimed", len(gone), len(gone) + len(kept))
        return len(gone)

    def begin_erasure(self, kind: str, value: str, ids: Sequence[str], *, guard: Guard = no_guard) -> list[str]:
        """Write down what is about to be erased; its ids, with those of an earlier attempt that did not end."""
        with self.database.write(guard=guard) as connection:
            return self._rows.begin_erasure(connection, kind, value, ids)

    def end_erasure(self, kind: str, value: str) -> None:
        """It is done and told: nothing of it has to be known any more."""
        with self.database.write() as connection:
            self._rows.end_erasure(connection, kind, value)

    def add_rule(self, rule: Rule, *, guard: Guard = no_guard) -> int:
        """Keep a rule and apply it from now on; how many facts it derives. A rule of this name is replaced.

        Raises RuleExplosion if too much would follow; then the rules stay as they are.
        """
        with self.database.exclusive():
            rules = [*(one for one in self._rules if one.name != rule.name), rule]
            with self._lock:
                derive((self._graph.facts[one].triple for one in self._graph.held), rules)
            with self.database.write(guard=guard) as connection:
                self._rows.set_rule(connection, rule.name, str(rule), now=self.clock())
            self._use_rules(rules)
            return sum(why.rule == rule.name for _, why in self._graph.derived.values())

    def remove_rule(self, name: str, *, is_erased: bool = False, guard: Guard = no_guard) -> bool:
        """Apply a rule no longer, and drop what only it derives; False if there is none of this name.

        Questions as of earlier still find what it derived, unless it is erased with all that it said under this name.
        """
        with self.database.exclusive():
            with self.database.write(guard=guard) as connection:
                self._rows.set_rule(connection, name, None, now=self.clock())
                num_erased = 0
                if is_erased:
                    num_erased = connection.execute("DELETE FROM rule WHERE name = :name", {"name": name}).rowcount
            if num_erased:
                self.database.checkpoint()
            rules = [rule for rule in self._rules if rule.name != name]
            was_there = len(rules) < len(self._rules) or num_erased > 0
            self._use_rules(rules)
        return was_there

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that are applied."""
        return tuple(self._rules)

    # -- questions

    def about(
        self,
        concept: str,
        *,
        limit: int = 20,
        valid_at: float | None = None,
        recorded_at: float | None = None,
    ) -> list[Belief]:
        """What is held about a concept: with it as subject, then as object, then of concepts whose name holds all its words
        ("Kestrel vault" -> "the access code of the Kestrel vault"), then what rules derive.

        `valid_at` asks for a moment of the world, `recorded_at` for what was known at a moment; both in seconds since
        the epoch, and the latest where they are left out.
        """
        if valid_at is not None or recorded_at is not None:
            with self._lock:
                wanted = self._graph.stored_about(concept)
            beliefs = {one.fact.id: one for one in self._as_of(wanted, valid_at=valid_at, recorded_at=recorded_at)}
            key = concept_key(concept)
            derived = [
                one.fact.id
                for one in beliefs.values()
                if one.rule is not None and key in (concept_key(one.fact.subject), concept_key(one.fact.object))
            ]
            return [beliefs[one] for one in (*wanted, *derived) if one in beliefs][:limit]
        with self._lock:
            ids = [one for one in self._graph.stored_about(concept) if one in self._graph.held]
            ids += self._graph.derived_about(concept)
        return self._beliefs(ids[:limit])

    def search(self, question: str, *, limit: int = 20) -> list[Belief]:
        """What is held about the concepts that share the most and the rarest words with a question, best first."""
        with self._lock:
            ids = [one for one, _ in self._graph.search(question, limit=limit)]
        return self._beliefs(ids)

    def resolve(self, subject: str, relation: str, *, valid_at: float | None = None) -> list[Belief]:
        """What is held for a subject and a relation, the one that is believed first: newest from the highest trust."""
        found = [
            one
            for one in self.about(subject, limit=10_000, valid_at=valid_at)
            if one.fact.relation == relation and concept_key(one.fact.subject) == concept_key(subject)
        ]
        return sorted(found, key=lambda one: (one.trust, one.confidence, one.valid_from, one.recorded_at), reverse=True)

    def contradictions(self, *, limit: int = 100) -> list[Contradiction]:
        """Facts that cannot all hold, the newest first; both sides stay until somebody settles it."""
        with self._lock:
            groups = self._graph.contradictions()[:limit]
        return [Contradiction(tuple(self._beliefs(group))) for group in groups]

    def snapshot(self, *, valid_at: float | None = None, recorded_at: float | None = None) -> list[Belief]:
        """All that was held of a moment of the world as known at a moment, derived facts last."""
        return self._as_of(None, valid_at=valid_at, recorded_at=recorded_at)

    def neighbours(self, concept: str, *, hops: int = 1) -> list[str]:
        """Names of the concepts within `hops` facts, in either direction, nearest first, then by name."""
        if hops < 1:
            raise ValueError(f"hops is {hops}: give at least 1")
        with self._lock:
            return self._graph.neighbours(concept, hops=hops)

    # -- alarms

    def alarms(self) -> list[Alarm]:
        """Sources that contradict many facts of others and that nobody has settled, newest first."""
        with self.database.read() as connection:
            return self._alarms.open(connection)

    def note_hold(self, source_id: str, *, guard: Guard = no_guard) -> None:
        """What the source of an alarm has said is held back now; from here on it is a person's to release."""
        with self.database.exclusive(), self.database.write(guard=guard) as connection:
            self._alarms.hold(connection, source_id, now=self.clock())

    def settle_alarm(self, source_id: str, *, by: str, reason: str, guard: Guard = no_guard) -> bool:
        """A person has looked at it; it is raised again only by further contradictions. False if there is none."""
        with self.database.exclusive(), self.database.write(guard=guard) as connection:
            return self._alarms.settle(connection, source_id, by=by, reason=reason, now=self.clock())

    def health(self) -> dict[str, Any]:
        """num_facts, num_derived, num_concepts, num_contradictions, num_alarms, waiting and failed enrichments, size."""
        with self._lock:
            sizes = {
                "num_facts": len(self._graph.held),
                "num_derived": len(self._graph.derived),
                "num_concepts": self._graph.num_concepts,
                "num_contradictions": len(self._graph.contradictions()),
            }
        with self.database.read() as connection:
            (num_alarms,) = connection.execute("SELECT count(*) FROM alarm WHERE settled_at IS NULL").fetchone()
            enrichment = dict(connection.execute("SELECT state, count(*) FROM enrichment GROUP BY state").fetchall())
        return {
            **sizes,
            "num_alarms": num_alarms,
            "num_enrichments_waiting": enrichment.get("waiting", 0),
            "num_enrichments_failed": enrichment.get("failed", 0),
            "size_bytes": self.database.size_bytes(),
        }

    # -- helpers

    def _as_of(
        self, wanted: Collection[str] | None, *, valid_at: float | None, recorded_at: float | None
    ) -> list[Belief]:
        """Of these facts, or of all, what was held; all, and what follows from them, where rules were applied then."""
        known_at = LATEST if recorded_at is None else recorded_at
        with self.database.read() as connection:
            rules = self._rows.rules(connection, recorded_at=known_at)
            facts, claims = self._rows.log(connection, fact_ids=None if rules else wanted)
        names = {row[0]: (row[1], row[2], row[3]) for row in facts}
        at = LATEST if valid_at is None else valid_at
        return beliefs_as_of(names, claims, rules, valid_at=at, recorded_at=known_at)

    def _verdicts(self, connection: SqlConnection, fact_ids: Iterable[str]) -> dict[str, Verdict | None]:
        claims: dict[str, list[KnownClaim]] = {one: [] for one in fact_ids}
        for claim in self._rows.claims_of(connection, list(claims)):
            claims[claim.fact_id].append(claim)
        return {one: decide(known, valid_at=LATEST, recorded_at=LATEST) for one, known in claims.items()}

    def _hold(self, verdicts: Mapping[str, Verdict | None], *, has_left: bool = False) -> int:
        """Follow the verdicts in the graph and by the rules; how many facts are no longer held. Under the lock."""
        before = {one for one in verdicts if one in self._graph.held}
        for fact_id, verdict in verdicts.items():
            self._graph.hold(fact_id, verdict)
        came = [one for one in verdicts if one in self._graph.held and one not in before]
        num_left = sum(one not in self._graph.held for one in before)
        try:
            if num_left or has_left:
                self._graph.use_rules(self._rules)
            else:
                self._graph.derive_from(came)
        except RuleExplosion:
            logger.exception("the rules derive too much: remove one")
        return num_left

    def _use_rules(self, rules: list[Rule]) -> None:
        with self._lock:
            self._rules = rules
            self._graph.use_rules(rules)

    def _beliefs(self, ids: Sequence[str]) -> list[Belief]:
        """The held and derived facts of these ids, in their order, without those that left meanwhile."""
        with self._lock:
            derived = {one: self._graph.derived[one] for one in ids if one in self._graph.derived}
            bases = {one: self._graph.base_of(one) for one in derived}
            premises = {
                one: tuple(found for premise in why.premises for found in self._graph.ids_of(premise)[:1])
                for one, (_, why) in derived.items()
            }
            names = {key: self._graph.name(key) for triple, _ in derived.values() for key in (triple[0], triple[2])}
        stored = dict.fromkeys(one for one in ids if one not in derived)
        stored |= dict.fromkeys(one for base in bases.values() for one in base)
        with self.database.read() as connection:
            texts = self._rows.facts_of(connection, stored)
            verdicts = self._verdicts(connection, stored)
        found = {
            one: belief_of(texts[one], verdict, fact_id=one)
            for one, verdict in verdicts.items()
            if verdict is not None and one in texts
        }
        for one, (triple, why) in derived.items():
            if all(base in found for base in bases[one]):
                rests_on = [found[base] for base in bases[one]]
                found[one] = derived_belief(
                    triple, rule=why.rule, premises=premises[one], rests_on=rests_on, names=names
                )
        return [found[one] for one in ids if one in found]
