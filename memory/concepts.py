"""ConceptGraph: the facts of SemanticMemory in memory, as a graph of concepts that is rebuilt from the rows.

Every stored fact is known here; those that are held now, and those that rules derive from them, are edges of a networkx
MultiDiGraph. Finds what is said about a concept, what is near it, and what fits the words of a question. Not
thread-safe: SemanticMemory holds a lock around it.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from memory.beliefs import Verdict, order_of_belief
from memory.retrieval import query_terms
from memory.rules import Closure, Derivation, Rule, Triple, derived_id
from memory.types import Trust
from memory.words import ARTICLE, concept_key

_WORD = re.compile(r"[^\W_]+")
_COMMON_WORD = 2000
"""A word of more concepts than this is passed over in a question that has a rarer one."""
_MAX_EDGES = 200
"""Of one concept that a search looks at."""
_MAX_CONCEPTS = 64
_VERB_STEM = 4
"""Letters by which a question's verb is known in a relation: lead, leads, leading."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of a fact that is held now."""

    source_id: str
    trust: Trust
    order: tuple[int, float, float, float, str]
    """The greatest of rivals is believed."""


@dataclass(frozen=True, slots=True)
class StoredFact:
    """A fact of the rows, held or not."""

    triple: Triple
    """Subject key, relation, object key."""
    is_functional: bool


class ConceptGraph:
    """See the module."""

    def __init__(self) -> None:
        self.graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        self.facts: dict[str, StoredFact] = {}
        self.held: dict[str, Held] = {}
        self.derived: dict[str, tuple[Triple, Derivation]] = {}
        self._closure: Closure | None = None  # none without rules, or when they derive too much
        self._names: dict[str, str] = {}
        self._about: dict[str, dict[str, None]] = defaultdict(dict)
        self._concepts_with: dict[str, dict[str, None]] = defaultdict(dict)
        self._rivals: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self._ids_of: dict[Triple, dict[str, None]] = defaultdict(dict)

    # -- facts

    def add(self, fact_id: str, subject: str, relation: str, object_: str, *, is_functional: bool) -> None:
        """Know a stored fact; it is not held yet."""
        triple = concept_key(subject), relation, concept_key(object_)
        self.facts[fact_id] = StoredFact(triple, is_functional)
        self._ids_of[triple][fact_id] = None
        for name, key in ((subject, triple[0]), (object_, triple[2])):
            self._about[key][fact_id] = None
            if key not in self._names:
                self._names[key] = ARTICLE.sub("", name)
                for word in set(_WORD.findall(key)):
                    self._concepts_with[word][key] = None

    def hold(self, fact_id: str, verdict: Verdict | None) -> bool:
        """Hold a stored fact, or hold it no longer; True if that changed."""
        stored, was_held = self.facts[fact_id], fact_id in self.held
        subject, relation, object_ = stored.triple
        if verdict is not None:
            self.held[fact_id] = Held(verdict.claim.source_id, verdict.claim.trust, order_of_belief(verdict))
            if not was_held:
                self.graph.add_edge(subject, object_, key=fact_id, relation=relation)
                if stored.is_functional:
                    self._rivals[subject, relation][fact_id] = None
        elif was_held:
            del self.held[fact_id]
            self._unlink(subject, object_, fact_id)
            self._rivals[subject, relation].pop(fact_id, None)
        return was_held != (verdict is not None)

    def remove(self, fact_id: str) -> None:
        """Forget a fact that was erased, and the concepts that only it named."""
        self.hold(fact_id, None)
        stored = self.facts.pop(fact_id)
        self._ids_of[stored.triple].pop(fact_id)
        if not self._ids_of[stored.triple]:
            del self._ids_of[stored.triple]
        for key in {stored.triple[0], stored.triple[2]}:
            self._about[key].pop(fact_id)
            if not self._about[key]:
                del self._about[key]
                del self._names[key]
                for word in set(_WORD.findall(key)):
                    self._concepts_with[word].pop(key)
                    if not self._concepts_with[word]:
                        del self._concepts_with[word]

    def contradictions(self) -> list[list[str]]:
        """Groups of held facts that contradict each other, the believed one first, the newest group first."""
        groups = [
            sorted(group, key=lambda one: self.held[one].order, reverse=True)
            for group in self._rivals.values()
            if len({self.facts[one].triple[2] for one in group}) > 1
        ]
        return sorted(groups, key=lambda group: max(self.held[one].order[3] for one in group), reverse=True)

    # -- rules

    def use_rules(self, rules: Sequence[Rule]) -> None:
        """Derive all that follows from the held facts, in the place of what was derived before.

        Raises RuleExplosion; then nothing is derived until this is called again.
        """
        self._closure = None
        for fact_id, (triple, _) in self.derived.items():
            self._unlink(triple[0], triple[2], fact_id)
        self.derived = {}
        closure = Closure(rules)
        self._link(closure.add(self.facts[one].triple for one in self.held) if rules else {})
        self._closure = closure if rules else None

    def derive_from(self, came: Iterable[str]) -> None:
        """Derive what follows from facts that are held since the last time, if none left since.

        Raises RuleExplosion; then what was derived before stays, and nothing is added to it until `use_rules`.
        """
        if self._closure is None:
            return
        triples = [self.facts[one].triple for one in came]
        closure, self._closure = self._closure, None
        derived = closure.add(triples)
        for triple in triples:  # what was derived and is read now is no longer derived
            if self.derived.pop(key := derived_id(triple), None):
                self._unlink(triple[0], triple[2], key)
        self._link(derived)
        self._closure = closure

    def ids_of(self, triple: Triple) -> list[str]:
        """Ids of the held or derived facts with these keys."""
        held = [one for one in self._ids_of.get(triple, ()) if one in self.held]
        return held or [one for one in (derived_id(triple),) if one in self.derived]

    def base_of(self, derived: str) -> list[str]:
        """Ids of the held facts that a derived one rests on in the end."""
        base: dict[str, None] = {}
        waiting, seen = [derived], {derived}
        while waiting:
            for premise in self.derived[waiting.pop()][1].premises:
                for one in self.ids_of(premise)[:1]:
                    if one in self.held:
                        base[one] = None
                    elif one not in seen:
                        seen.add(one)
                        waiting.append(one)
        return list(base)

    # -- finding

    def held_by_place(self, subject: str, relation: str) -> list[str]:
        """Held facts of which a subject has one at a time, by subject key and relation."""
        return list(self._rivals.get((subject, relation), ()))

    def name(self, key: str) -> str:
        """How a concept was first written, without its article."""
        return self._names.get(key, key)

    @property
    def num_concepts(self) -> int:
        """Concepts of the facts that are held or derived."""
        return int(self.graph.number_of_nodes())

    def stored_about(self, concept: str) -> list[str]:
        """Ids of all stored facts about a concept, held or not: as subject, as object, then those about concepts whose
        names hold all its words. Each group oldest first.
        """
        key, words = concept_key(concept), set(_WORD.findall(concept_key(concept)))
        ids = dict.fromkeys(sorted(self._about.get(key, ()), key=lambda one: self.facts[one].triple[0] != key))
        for node in self._holding(words):
            ids.update(self._about[node])
        return list(ids)

    def derived_about(self, concept: str) -> list[str]:
        """Ids of the derived facts of which it is subject or object."""
        key = concept_key(concept)
        if key not in self.graph:
            return []
        edges = [*self.graph.out_edges(key, keys=True), *self.graph.in_edges(key, keys=True)]
        return sorted({one for _, _, one in edges if one in self.derived})

    def neighbours(self, concept: str, *, hops: int) -> list[str]:
        """Names of the concepts within `hops` facts that are held or derived, nearest first, then by name."""
        key = concept_key(concept)
        if key not in self.graph:
            return []
        view = self.graph.to_undirected(as_view=True)
        distances = nx.single_source_shortest_path_length(view, key, cutoff=hops)
        return [
            name for distance, name in sorted((d, self.name(node)) for node, d in distances.items()) if distance > 0
        ]

    def search(self, question: str, *, limit: int) -> list[tuple[str, float]]:
        """(id, score) of the held or derived facts whose concepts share the most and the rarest words with a question."""
        words = [word for word in query_terms(question) if word in self._concepts_with]
        rare = [word for word in words if len(self._concepts_with[word]) <= _COMMON_WORD] or words
        scores: dict[str, float] = defaultdict(float)
        matched: dict[str, int] = defaultdict(int)
        for word in rare:
            concepts = self._concepts_with[word]
            weight = math.log1p(len(self._names) / len(concepts))
            for key in concepts:
                scores[key] += weight
                matched[key] += 1
        for key in scores:
            scores[key] *= math.sqrt(matched[key] / max(1, len(set(_WORD.findall(key)))))
        best = sorted(scores, key=lambda key: (-scores[key], key))[:_MAX_CONCEPTS]
        verbs = {word[:_VERB_STEM] for word in query_terms(question)}
        found: dict[str, float] = {}
        for key in best:
            if key not in self.graph:
                continue
            edges = [*self.graph.out_edges(key, keys=True), *self.graph.in_edges(key, keys=True)][:_MAX_EDGES]
            for subject, object_, one in edges:
                relation = self.graph.edges[subject, object_, one]["relation"]
                is_asked = any(word[:_VERB_STEM] in verbs for word in relation.split())
                found[one] = sum(scores.get(end, 0.0) for end in {subject, object_}) + is_asked
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit]

    def _holding(self, words: set[str]) -> list[str]:
        """Concepts whose names hold all these words."""
        if not words or not all(word in self._concepts_with for word in words):
            return []
        rarest, *others = sorted(words, key=lambda word: len(self._concepts_with[word]))
        return [
            key for key in self._concepts_with[rarest] if all(key in self._concepts_with[other] for other in others)
        ]

    def _link(self, derived: Mapping[Triple, Derivation]) -> None:
        for triple, why in derived.items():
            key = derived_id(triple)
            self.derived[key] = (triple, why)
            self.graph.add_edge(triple[0], triple[2], key=key, relation=triple[1])

    def _unlink(self, subject: str, object_: str, fact_id: str) -> None:
        self.graph.remove_edge(subject, object_, key=fact_id)
        for key in {subject, object_}:
            if self.graph.degree(key) == 0:
                self.graph.remove_node(key)
