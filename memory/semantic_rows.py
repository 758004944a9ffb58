"""The rows of SemanticMemory in SQL that SQLite and PostgreSQL both run: facts, the claims about them, the rest.

A claim is inserted, taken back (`retracted_at`) or erased, never changed. Times of recording never go back, whatever
the clock does.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from memory.beliefs import FOREVER, KnownClaim
from memory.claims import is_functional
from memory.rules import Rule
from memory.store import SqlConnection, SqlDatabase
from memory.types import Claim, Fact, Trust

SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE fact (
  id TEXT PRIMARY KEY, subject TEXT NOT NULL, relation TEXT NOT NULL, object TEXT NOT NULL,
  subject_key TEXT NOT NULL, object_key TEXT NOT NULL, is_functional INTEGER NOT NULL);
CREATE TABLE claim (
  number {integer} PRIMARY KEY, fact_id TEXT NOT NULL REFERENCES fact(id) ON DELETE CASCADE, episode_id TEXT NOT NULL,
  source_id TEXT NOT NULL, sentence TEXT NOT NULL, trust INTEGER NOT NULL, confidence {real} NOT NULL,
  is_denial INTEGER NOT NULL, said_at {real} NOT NULL, recorded_at {real} NOT NULL, retracted_at {real});
CREATE INDEX claim_fact ON claim(fact_id);
CREATE INDEX claim_episode ON claim(episode_id);
CREATE INDEX claim_source ON claim(source_id);
CREATE TABLE totals (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1), last_number {integer} NOT NULL, last_recorded_at {real} NOT NULL);
INSERT INTO totals VALUES (1, 0, 0);
CREATE TABLE place (shard INTEGER PRIMARY KEY, seq {integer} NOT NULL);
CREATE TABLE rule (
  name TEXT NOT NULL, text TEXT NOT NULL, recorded_at {real} NOT NULL, removed_at {real}, PRIMARY KEY (name, recorded_at));
CREATE TABLE conflict (
  source_id TEXT NOT NULL, fact_id TEXT NOT NULL REFERENCES fact(id) ON DELETE CASCADE,
  other_id TEXT NOT NULL REFERENCES fact(id) ON DELETE CASCADE, PRIMARY KEY (source_id, fact_id, other_id));
CREATE INDEX conflict_fact ON conflict(fact_id);
CREATE INDEX conflict_other ON conflict(other_id);
CREATE TABLE alarm (
  source_id TEXT PRIMARY KEY, raised_at {real} NOT NULL, num_contradicting INTEGER NOT NULL, num_facts INTEGER NOT NULL,
  held_at {real}, settled_at {real}, settled_by TEXT, reason TEXT);
CREATE TABLE consolidation (
  run TEXT PRIMARY KEY, started_at {real} NOT NULL, state TEXT NOT NULL, steps TEXT NOT NULL, problem TEXT NOT NULL,
  ended_at {real});
CREATE TABLE erasure (  -- what is being erased: its ids are known until all of it is done
  kind TEXT NOT NULL, value TEXT NOT NULL, ids TEXT NOT NULL, PRIMARY KEY (kind, value));
CREATE TABLE enrichment (
  episode_id TEXT PRIMARY KEY, state TEXT NOT NULL, num_attempts INTEGER NOT NULL, error TEXT NOT NULL,
  queued_at {real} NOT NULL, tried_at {real});
CREATE INDEX enrichment_state ON enrichment(state, queued_at);
"""
_CLAIM = "fact_id, episode_id, source_id, sentence, trust, confidence, is_denial, said_at, recorded_at, retracted_at"


class SemanticRows:
    """See the module. Each method runs inside its caller's transaction."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def add_claims(
        self, connection: SqlConnection, claims: Sequence[Claim], *, keys: Mapping[str, tuple[str, str]], now: float
    ) -> tuple[set[str], set[str]]:
        """Store claims: ids of the facts that are new, and of all whose claims changed. A claim that is known changes
        nothing; one whose trust, time or confidence is another takes the known one back.

        `keys` are subject and object keys by fact id.
        """
        facts = {claim.fact.id: claim.fact for claim in claims}
        new = facts.keys() - {
            row[0]
            for row in connection.execute(
                f"SELECT id FROM fact WHERE id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(facts))},
            )
        }
        connection.executemany(
            "INSERT INTO fact VALUES(:id, :subject, :relation, :object, :subject_key, :object_key, :functional)",
            [_fact_row(facts[key], keys[key]) for key in sorted(new)],
        )
        known = {
            (claim.fact_id, claim.episode_id, claim.is_denial): claim
            for claim in self.claims_of(connection, facts)
            if claim.retracted_at == FOREVER
        }
        fresh, replaced = [], []
        for claim in {(one.fact.id, one.fact.episode_id, one.is_denial): one for one in claims}.values():
            before = known.get((claim.fact.id, claim.fact.episode_id, claim.is_denial))
            if before is None or (
                claim.confidence >= before.confidence
                and (before.trust, before.said_at, before.confidence) != (claim.trust, claim.said_at, claim.confidence)
            ):
                fresh.append(claim)
                if before is not None:
                    replaced.append(before)
        if not fresh:
            return new, set(new)
        last_number, recorded_at = self._tick(connection, len(fresh), now=now)
        connection.executemany(
            "UPDATE claim SET retracted_at = :now WHERE fact_id = :fact AND episode_id = :episode"
            " AND is_denial = :denial AND retracted_at IS NULL",
            [
                {"now": recorded_at, "fact": one.fact_id, "episode": one.episode_id, "denial": int(one.is_denial)}
                for one in replaced
            ],
        )
        connection.executemany(
            f"INSERT INTO claim(number, {_CLAIM}) VALUES(:number, :fact_id, :episode_id, :source_id, :sentence, :trust,"
            " :confidence, :is_denial, :said_at, :recorded_at, NULL)",
            [
                {
                    "number": last_number - len(fresh) + 1 + place,
                    "fact_id": claim.fact.id,
                    "episode_id": claim.fact.episode_id,
                    "source_id": claim.source_id,
                    "sentence": claim.fact.sentence,
                    "trust": int(claim.trust),
                    "confidence": claim.confidence,
                    "is_denial": int(claim.is_denial),
                    "said_at": claim.said_at,
                    "recorded_at": recorded_at,
                }
                for place, claim in enumerate(fresh)
            ],
        )
        return new, {claim.fact.id for claim in fresh}

    def withdraw(self, connection: SqlConnection, episode_ids: Sequence[str], *, now: float) -> set[str]:
        """Take back what episodes claim: ids of the facts concerned. The claims stay for questions as of earlier.

        If the episodes are released, a model may read them again.
        """
        _, recorded_at = self._tick(connection, 0, now=now)
        connection.execute(
            f"DELETE FROM enrichment WHERE episode_id {self._database.one_of('ids')}",
            {"ids": self._database.many(episode_ids)},
        )
        rows = connection.execute(
            f"UPDATE claim SET retracted_at = :now WHERE retracted_at IS NULL AND episode_id"
            f" {self._database.one_of('ids')} RETURNING fact_id",
            {"now": recorded_at, "ids": self._database.many(episode_ids)},
        ).fetchall()
        return {row[0] for row in rows}

    def erase(self, connection: SqlConnection, episode_ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Erase what episodes claim: ids of the facts that are gone with it, and of those that others claim too."""
        ids = {"ids": self._database.many(episode_ids)}
        rows = connection.execute(
            f"DELETE FROM claim WHERE episode_id {self._database.one_of('ids')} RETURNING fact_id", ids
        ).fetchall()
        touched = {row[0] for row in rows}
        kept = {claim.fact_id for claim in self.claims_of(connection, touched)}
        gone = touched - kept
        for statement in (
            f"DELETE FROM conflict WHERE fact_id {self._database.one_of('gone')}",
            f"DELETE FROM conflict WHERE other_id {self._database.one_of('gone')}",
            f"DELETE FROM fact WHERE id {self._database.one_of('gone')}",
        ):
            connection.execute(statement, {"gone": self._database.many(sorted(gone))})
        for statement in (  # what was held against a source that says nothing of it any more
            "DELETE FROM conflict WHERE NOT EXISTS (SELECT 1 FROM claim WHERE claim.fact_id = conflict.fact_id"
            " AND claim.source_id = conflict.source_id)",
            "DELETE FROM alarm WHERE NOT EXISTS (SELECT 1 FROM conflict WHERE conflict.source_id = alarm.source_id)",
        ):
            connection.execute(statement)
        connection.execute(f"DELETE FROM enrichment WHERE episode_id {self._database.one_of('ids')}", ids)
        return gone, kept

    def set_rule(self, connection: SqlConnection, name: str, text: str | None, *, now: float) -> None:
        """Apply a rule from now on, in the place of the one of this name; no text: apply it no longer."""
        _, recorded_at = self._tick(connection, 0, now=now)
        connection.execute(
            "UPDATE rule SET removed_at = :now WHERE name = :name AND removed_at IS NULL",
            {"name": name, "now": recorded_at},
        )
        if text is not None:
            connection.execute(
                "INSERT INTO rule(name, text, recorded_at, removed_at) VALUES(:name, :text, :now, NULL)",
                {"name": name, "text": text, "now": recorded_at},
            )

    @staticmethod
    def rules(connection: SqlConnection, *, recorded_at: float) -> list[Rule]:
        """Those that were applied at a moment of the record, by name."""
        rows = connection.execute(
            "SELECT name, text FROM rule WHERE recorded_at <= :at AND (removed_at IS NULL OR removed_at > :at) ORDER BY name",
            {"at": recorded_at},
        )
        return [Rule.parse(name, text) for name, text in rows.fetchall()]

    @staticmethod
    def begin_erasure(connection: SqlConnection, kind: str, value: str, ids: Sequence[str]) -> list[str]:
        """Write down what is about to be erased; these ids, and those of an attempt that did not end."""
        parameters = {"kind": kind, "value": value}
        row = connection.execute("SELECT ids FROM erasure WHERE kind = :kind AND value = :value", parameters).fetchone()
        wanted = list(dict.fromkeys([*(json.loads(row[0]) if row else ()), *ids]))
        if wanted:
            connection.execute(
                "INSERT INTO erasure(kind, value, ids) VALUES(:kind, :value, :ids)"
                " ON CONFLICT(kind, value) DO UPDATE SET ids = :ids",
                {**parameters, "ids": json.dumps(wanted)},
            )
        return wanted

    @staticmethod
    def end_erasure(connection: SqlConnection, kind: str, value: str) -> None:
        """It is over."""
        connection.execute("DELETE FROM erasure WHERE kind = :kind AND value = :value", {"kind": kind, "value": value})

    def claims_of(self, connection: SqlConnection, fact_ids: Iterable[str]) -> list[KnownClaim]:
        """All claims about these facts."""
        rows = connection.execute(
            f"SELECT {_CLAIM} FROM claim WHERE fact_id {self._database.one_of('ids')} ORDER BY number",
            {"ids": self._database.many(list(fact_ids))},
        )
        return [claim_from(row) for row in rows]

    def facts_of(self, connection: SqlConnection, fact_ids: Iterable[str]) -> dict[str, tuple[str, str, str]]:
        """Subject, relation and object as they were written, by id."""
        rows = connection.execute(
            f"SELECT id, subject, relation, object FROM fact WHERE id {self._database.one_of('ids')}",
            {"ids": self._database.many(list(fact_ids))},
        )
        return {row[0]: tuple(row[1:]) for row in rows}

    def log(
        self, connection: SqlConnection, *, fact_ids: Collection[str] | None = None
    ) -> tuple[list[tuple[Any, ...]], dict[str, list[KnownClaim]]]:
        """Rows of all facts, or of these, the oldest first, and the claims by fact.

        A row is (id, subject, relation, object, whether a subject has one object at a time).
        """
        fact = claim = ""
        parameters = {}
        if fact_ids is not None:
            fact, claim = (f"WHERE {name} {self._database.one_of('ids')}" for name in ("id", "fact_id"))
            parameters["ids"] = self._database.many(list(fact_ids))
        claims: dict[str, list[KnownClaim]] = defaultdict(list)
        for row in connection.execute(f"SELECT {_CLAIM} FROM claim {claim} ORDER BY number", parameters):
            claims[row[0]].append(claim_from(row))
        rows = connection.execute(f"SELECT id, subject, relation, object, is_functional FROM fact {fact}", parameters)
        facts = {row[0]: row for row in rows}
        return [facts[key] for key in claims], claims

    @staticmethod
    def _tick(connection: SqlConnection, num: int, *, now: float) -> tuple[int, float]:
        """(last number, time of recording), the time behind all that were given."""
        found: tuple[int, float] = connection.execute(
            "UPDATE totals SET last_number = last_number + :num, last_recorded_at ="
            " CASE WHEN last_recorded_at + 1e-6 > :now THEN last_recorded_at + 1e-6 ELSE :now END"
            " RETURNING last_number, last_recorded_at",
            {"num": num, "now": now},
        ).fetchone()
        return found


def claim_from(row: Sequence[Any]) -> KnownClaim:
    """From the columns of a claim."""
    return KnownClaim(
        fact_id=row[0], episode_id=row[1], source_id=row[2], sentence=row[3], trust=Trust(row[4]), confidence=row[5],
        is_denial=bool(row[6]), said_at=row[7], recorded_at=row[8], retracted_at=FOREVER if row[9] is None else row[9],
    )  # fmt: skip


def _fact_row(fact: Fact, keys: tuple[str, str]) -> dict[str, Any]:
    return {
        "id": fact.id,
        "subject": fact.subject,
        "relation": fact.relation,
        "object": fact.object,
        "subject_key": keys[0],
        "object_key": keys[1],
        "functional": int(is_functional(fact)),
    }
