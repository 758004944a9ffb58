"""Forward rule application: from facts that are held to facts that follow, with the premises of each.

A rule is a conjunction of triples with variables and one triple that follows, for instance "?a is part of ?b" and "?b
is located in ?c" give "?a is located in ?c". A Closure works semi-naively: each round joins what is new with all that is
known, until nothing new comes.
Source: Abiteboul, Hull and Vianu, Foundations of Databases, ch. 13 (semi-naive evaluation).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from memory.words import concept_key

MAX_DERIVED = 200_000
"""Beyond it a set of rules is refused: it would not end in reasonable time."""
_TRIPLE = re.compile(r"^\s*(\?\w+|\"[^\"]+\")\s+(.+?)\s+(\?\w+|\"[^\"]+\")\s*$")

Triple = tuple[str, str, str]
"""Subject key, relation, object key."""


class RuleExplosion(ValueError):
    """The rules derive more than can be held."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`conditions` and `conclusion` are triples whose subject and object are "?variables" or concept keys."""

    name: str
    conditions: tuple[Triple, ...]
    conclusion: Triple

    @classmethod
    def parse(cls, name: str, text: str) -> "Rule":
        """From '?a is part of ?b & ?b is located in ?c => ?a is located in ?c'; a fixed concept stands in quotes.

        Raises ValueError for a text of another form, or a conclusion with a variable that no condition binds.
        """
        left, arrow, right = text.partition("=>")
        if not arrow or not name.strip():
            raise ValueError(
                f"rule {name!r} is {text!r}: write 'condition & condition => conclusion', and give it a name"
            )
        conditions = tuple(_triple(name, part) for part in left.split("&"))
        conclusion = _triple(name, right)
        bound = {term for subject, _, object_ in conditions for term in (subject, object_) if term.startswith("?")}
        loose = [term for term in (conclusion[0], conclusion[2]) if term.startswith("?") and term not in bound]
        if loose:
            raise ValueError(f"rule {name!r} concludes {loose[0]}, which no condition names: bind it on the left side")
        return cls(name, conditions, conclusion)

    def __str__(self) -> str:
        def shown(triple: Triple) -> str:
            ends = [term if term.startswith("?") else f'"{term}"' for term in (triple[0], triple[2])]
            return f"{ends[0]} {triple[1]} {ends[1]}"

        return f"{' & '.join(map(shown, self.conditions))} => {shown(self.conclusion)}"


@dataclass(frozen=True, slots=True)
class Derivation:
    """The rule and the facts that a derived fact follows from."""

    rule: str
    premises: tuple[Triple, ...]


def derived_id(triple: Triple) -> str:
    """Id of a fact that a rule derived: 32 hex characters."""
    return hashlib.sha256("\x00".join(("derived", *triple)).encode()).hexdigest()[:32]


def derive(known: Iterable[Triple], rules: Sequence[Rule]) -> dict[Triple, Derivation]:
    """What follows from `known` and is not in it. Raises RuleExplosion beyond MAX_DERIVED facts."""
    return Closure(rules).add(known)


class Closure:
    """Stated facts that come bit by bit, and what follows from them. What comes is joined with what is there, by index."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._facts = _Facts()
        self._derived: set[Triple] = set()

    def add(self, stated: Iterable[Triple]) -> dict[Triple, Derivation]:
        """What follows now and did not before. A derived fact that is stated now is no longer derived.

        Raises RuleExplosion beyond MAX_DERIVED facts in all; then the closure is of no use any more.
        """
        stated = list(stated)
        self._derived.difference_update(stated)
        fresh = self._facts.add(stated)
        derived: dict[Triple, Derivation] = {}
        while fresh and self._rules:
            found: dict[Triple, Derivation] = {}
            for rule in self._rules:
                for place, condition in enumerate(rule.conditions):
                    others = [*rule.conditions[:place], *rule.conditions[place + 1 :]]
                    for fact in fresh:
                        binding = _match(condition, fact, {})
                        if binding is None:
                            continue
                        for bound, premises in _join(others, binding, self._facts):
                            conclusion = _apply(rule.conclusion, bound)
                            if conclusion not in self._facts.all and conclusion not in found:
                                found[conclusion] = Derivation(rule.name, (fact, *premises))
                                self._check_size(len(found))
            derived |= found
            self._derived |= found.keys()
            fresh = self._facts.add(found)
        return derived

    def _check_size(self, num_more: int) -> None:
        if len(self._derived) + num_more > MAX_DERIVED:
            names = ", ".join(rule.name for rule in self._rules)
            raise RuleExplosion(f"the rules {names} derive more than {MAX_DERIVED} facts")


class _Facts:
    """Triples by relation and subject, and by relation and object."""

    def __init__(self) -> None:
        self.all: set[Triple] = set()
        self.by_subject: dict[tuple[str, str], list[Triple]] = defaultdict(list)
        self.by_object: dict[tuple[str, str], list[Triple]] = defaultdict(list)
        self.by_relation: dict[str, list[Triple]] = defaultdict(list)

    def add(self, triples: Iterable[Triple]) -> list[Triple]:
        """Those that were not there, each once, in their order."""
        new = [triple for triple in dict.fromkeys(triples) if triple not in self.all]
        for triple in new:
            self.all.add(triple)
            self.by_subject[triple[1], triple[0]].append(triple)
            self.by_object[triple[1], triple[2]].append(triple)
            self.by_relation[triple[1]].append(triple)
        return new

    def matching(self, triple: Triple) -> Sequence[Triple]:
        subject, relation, object_ = triple
        if not subject.startswith("?"):
            return self.by_subject.get((relation, subject), [])
        if not object_.startswith("?"):
            return self.by_object.get((relation, object_), [])
        return self.by_relation.get(relation, [])


def _join(
    conditions: Sequence[Triple], binding: Mapping[str, str], facts: _Facts
) -> Iterator[tuple[Mapping[str, str], tuple[Triple, ...]]]:
    if not conditions:
        yield binding, ()
        return
    first, *rest = conditions
    for fact in facts.matching(_apply(first, binding)):
        bound = _match(first, fact, binding)
        if bound is not None:
            for whole, premises in _join(rest, bound, facts):
                yield whole, (fact, *premises)


def _match(condition: Triple, fact: Triple, binding: Mapping[str, str]) -> dict[str, str] | None:
    if condition[1] != fact[1]:
        return None
    bound = dict(binding)
    for term, value in ((condition[0], fact[0]), (condition[2], fact[2])):
        if not term.startswith("?"):
            if term != value:
                return None
        elif bound.setdefault(term, value) != value:
            return None
    return bound


def _apply(triple: Triple, binding: Mapping[str, str]) -> Triple:
    return binding.get(triple[0], triple[0]), triple[1], binding.get(triple[2], triple[2])


def _triple(name: str, text: str) -> Triple:
    match = _TRIPLE.match(text)
    if match is None:
        raise ValueError(
            f"rule {name!r} has the part {text.strip()!r}: write '?variable relation ?variable', "
            "a fixed concept in double quotes"
        )
    subject, relation, object_ = match.groups()
    ends = [end if end.startswith("?") else concept_key(end.strip('"')) for end in (subject, object_)]
    return ends[0], relation, ends[1]
