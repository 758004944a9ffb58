"""SemanticMemory: facts as a graph of concepts, each fact with the episodes that say it.

SQLite is the log and the truth; a networkx MultiDiGraph of it is rebuilt at opening and answers what is near what.
The cursor (last episode consumed) commits with the facts, so a crash neither loses nor repeats an extraction. A fact
without any source left is erased: forgetting an episode takes its facts along.
"""

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import networkx as nx

from memory.store import Database, no_guard
from memory.types import Fact, Guard

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE fact (
  id TEXT PRIMARY KEY, subject TEXT NOT NULL, relation TEXT NOT NULL, object TEXT NOT NULL, recorded_at REAL NOT NULL);
CREATE TABLE fact_source (
  fact_id TEXT NOT NULL REFERENCES fact(id) ON DELETE CASCADE, episode_id TEXT NOT NULL, sentence TEXT NOT NULL,
  PRIMARY KEY (fact_id, episode_id));
CREATE INDEX fact_source_episode ON fact_source(episode_id);
CREATE TABLE cursor (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), last_seq INTEGER NOT NULL);
INSERT INTO cursor VALUES (1, 0);
"""
_ARTICLE = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def concept_key(name: str) -> str:
    """The node of a concept: its name without case, article and surplus space."""
    return _ARTICLE.sub("", " ".join(name.split())).casefold()


class SemanticMemory:
    """See the module. Open with `SemanticMemory.open`. Every method may be called from any thread."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._graph_lock = threading.Lock()
        self._graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        with database.read() as connection:
            for row in connection.execute("SELECT id, subject, relation, object FROM fact ORDER BY rowid"):
                self._link(*row)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> "SemanticMemory":
        """Open or create the store in `folder`. Raises: StoreProblem (newer schema, damaged file)."""
        return cls(Database(folder / "semantic.db", schema=_SCHEMA, version=SCHEMA_VERSION), clock=clock)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def cursor(self) -> int:
        """Seq of the last episode whose facts are in; 0 at the start."""
        with self._database.read() as connection:
            last_seq: int = connection.execute("SELECT last_seq FROM cursor").fetchone()[0]
        return last_seq

    def add(self, facts: Sequence[Fact], *, last_seq: int, guard: Guard = no_guard) -> int:
        """Store facts and move the cursor to `last_seq` in one transaction; how many facts are new.

        A known fact gains the new episode as a source. The cursor never goes back. Raises what `guard` raises, and then
        nothing is written.
        """
        with self._database.exclusive():
            new = []
            with self._database.write(guard=guard) as connection:
                for fact in facts:
                    row = (fact.id, fact.subject, fact.relation, fact.object)
                    if connection.execute(
                        "INSERT INTO fact VALUES(?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (*row, self._clock())
                    ).rowcount:
                        new.append(row)
                    connection.execute(
                        "INSERT INTO fact_source VALUES(?, ?, ?) ON CONFLICT DO NOTHING",
                        (fact.id, fact.episode_id, fact.sentence),
                    )
                connection.execute("UPDATE cursor SET last_seq = max(last_seq, ?)", (last_seq,))
            with self._graph_lock:
                for row in new:
                    self._link(*row)
        return len(new)

    def about(self, subject: str, *, limit: int = 20) -> list[Fact]:
        """Facts that say something of a concept: with it as subject, then as object, then of concepts whose name holds
        all its words ("Kestrel vault" -> "the access code of the Kestrel vault"). Each group oldest first.
        """
        key, words = concept_key(subject), set(_WORD.findall(concept_key(subject)))
        with self._graph_lock:
            related = [node for node in self._graph if words and words <= self._graph.nodes[node]["words"]]
            ids: dict[str, None] = {}
            if key in self._graph:
                ids.update((fact_id, None) for _, _, fact_id in self._graph.out_edges(key, keys=True))
                ids.update((fact_id, None) for _, _, fact_id in self._graph.in_edges(key, keys=True))
            for node in related:
                ids.update((fact_id, None) for _, _, fact_id in self._graph.out_edges(node, keys=True))
                ids.update((fact_id, None) for _, _, fact_id in self._graph.in_edges(node, keys=True))
        with self._database.read() as connection:
            facts = (_read_fact(connection, fact_id) for fact_id in list(ids)[:limit])
            return [fact for fact in facts if fact is not None]

    def sources(self, fact_id: str) -> list[str]:
        """Ids of the episodes that say a fact, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT episode_id FROM fact_source WHERE fact_id = ? ORDER BY rowid", (fact_id,))
            return [row[0] for row in rows]

    def neighbours(self, concept: str, *, hops: int = 1) -> list[str]:
        """Names of the concepts within `hops` facts, in either direction, nearest first, then by name."""
        if hops < 1:
            raise ValueError(f"hops is {hops}: give at least 1")
        key = concept_key(concept)
        with self._graph_lock:
            if key not in self._graph:
                return []
            view = self._graph.to_undirected(as_view=True)
            distances = nx.single_source_shortest_path_length(view, key, cutoff=hops)
            found = sorted((distance, self._graph.nodes[node]["name"]) for node, distance in distances.items())
        return [name for distance, name in found if distance > 0]

    def forget_episodes(self, ids: Iterable[str], *, guard: Guard = no_guard) -> int:
        """Drop episodes as sources and erase the facts that no other episode says; how many facts were erased."""
        with self._database.exclusive():
            with self._database.write(guard=guard) as connection:
                touched = {
                    row[0]
                    for episode_id in ids
                    for row in connection.execute(
                        "DELETE FROM fact_source WHERE episode_id = ? RETURNING fact_id", (episode_id,)
                    ).fetchall()
                }
                erase = (
                    "DELETE FROM fact WHERE id = ?1 AND id NOT IN (SELECT fact_id FROM fact_source WHERE fact_id = ?1)"
                    " RETURNING id, subject, object"
                )
                orphans = [row for fact_id in touched for row in connection.execute(erase, (fact_id,)).fetchall()]
            with self._graph_lock:
                for fact_id, subject, object_ in orphans:
                    self._unlink(fact_id, concept_key(subject), concept_key(object_))
            if touched:
                self._database.checkpoint()
                logger.info("forgot facts=%d of sources removed=%d", len(orphans), len(touched))
        return len(orphans)

    def health(self) -> dict[str, int]:
        """num_facts, num_concepts, size_bytes."""
        with self._graph_lock:
            num_facts, num_concepts = self._graph.number_of_edges(), self._graph.number_of_nodes()
        return {"num_facts": num_facts, "num_concepts": num_concepts, "size_bytes": self._database.size_bytes()}

    def _link(self, fact_id: str, subject: str, relation: str, object_: str) -> None:
        for name in (subject, object_):
            key = concept_key(name)
            if key not in self._graph:
                self._graph.add_node(key, name=_ARTICLE.sub("", name), words=frozenset(_WORD.findall(key)))
        self._graph.add_edge(concept_key(subject), concept_key(object_), key=fact_id, relation=relation)

    def _unlink(self, fact_id: str, subject_key: str, object_key: str) -> None:
        self._graph.remove_edge(subject_key, object_key, key=fact_id)
        for key in {subject_key, object_key}:
            if self._graph.degree(key) == 0:
                self._graph.remove_node(key)


def _read_fact(connection: sqlite3.Connection, fact_id: str) -> Fact | None:
    """A fact with the sentence and the episode of its oldest source; None if it was erased meanwhile."""
    row = connection.execute(
        "SELECT id, subject, relation, object, sentence, episode_id FROM fact JOIN fact_source ON fact_id = id"
        " WHERE id = ? ORDER BY fact_source.rowid LIMIT 1",
        (fact_id,),
    ).fetchone()
    return None if row is None else Fact(*row)
