from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory import rules as rules_module
from memory.rules import Closure, Rule, RuleExplosion, Triple, derive

TRANSITIVE = Rule.parse("is-a", "?a is ?b & ?b is ?c => ?a is ?c")
LOCATED = Rule.parse("located", "?a is part of ?b & ?b is located in ?c => ?a is located in ?c")
INVERSE = Rule.parse("has", "?a is part of ?b => ?b has ?a")
FIXED = Rule.parse("mortal", '?a is "human" => ?a is "mortal"')


def test_a_conclusion_names_its_rule_and_the_facts_it_follows_from() -> None:
    known = [("valve", "is part of", "pump"), ("pump", "is located in", "hall"), ("socrates", "is", "human")]
    derived = derive(known, [LOCATED, INVERSE, FIXED])

    assert derived.keys() == {
        ("valve", "is located in", "hall"),
        ("pump", "has", "valve"),
        ("socrates", "is", "mortal"),
    }
    found = derived["valve", "is located in", "hall"]
    assert (found.rule, set(found.premises)) == ("located", set(known[:2]))


triples = st.sets(st.tuples(st.sampled_from("abcd"), st.sampled_from(["is", "is part of"]), st.sampled_from("abcd")))


def _naive(known: set[Triple], rules: list[Rule]) -> set[Triple]:
    """Every rule with every assignment of concepts to its variables, until nothing changes."""
    facts = set(known)
    while True:
        found = set()
        for rule in rules:
            names = sorted({term for triple in rule.conditions for term in triple[::2] if term[0] == "?"})
            for values in product("abcd", repeat=len(names)):
                bound = dict(zip(names, values, strict=True))
                of = lambda triple, bound=bound: (  # noqa: E731
                    bound.get(triple[0], triple[0]), triple[1], bound.get(triple[2], triple[2])
                )  # fmt: skip
                if all(of(condition) in facts for condition in rule.conditions):
                    found.add(of(rule.conclusion))
        if found <= facts:
            return facts
        facts |= found


@given(triples, triples)
def test_it_equals_trying_every_assignment_and_may_go_on_from_what_was_derived(
    known: set[Triple], later: set[Triple]
) -> None:
    rules = [TRANSITIVE, INVERSE, Rule.parse("part", "?a is part of ?b & ?b is part of ?c => ?a is part of ?c")]
    closure = Closure(rules)
    derived = closure.add(known)
    assert known | derived.keys() == _naive(known, rules)
    assert not known & derived.keys()

    more = closure.add(later)
    assert known | derived.keys() | later | more.keys() == _naive(known | later, rules)
    assert not more.keys() & (known | later | derived.keys())


def test_two_variables_that_are_one_have_to_be_equal() -> None:
    itself = Rule.parse("itself", "?a is ?a => ?a has ?a")
    assert derive([("a", "is", "b"), ("b", "is", "b")], [itself]).keys() == {("b", "has", "b")}


@pytest.mark.parametrize("text", ["?a is ?b", "?a is => ?a is ?b", "?a is ?b => ?a is ?c", "valve is ?b => ?b is ?b"])
def test_a_rule_of_another_form_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="rule 'bad'"):
        Rule.parse("bad", text)


@pytest.mark.parametrize("rule", [TRANSITIVE, LOCATED, FIXED])
def test_a_rule_reads_back_from_its_own_text(rule: Rule) -> None:
    assert Rule.parse(rule.name, str(rule)) == rule


def test_rules_that_derive_without_bound_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "MAX_DERIVED", 50)
    chain = [(f"n{i}", "is", f"n{i + 1}") for i in range(20)]
    with pytest.raises(RuleExplosion, match="is-a"):
        derive(chain, [TRANSITIVE])
