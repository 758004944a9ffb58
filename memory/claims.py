"""What an episode claims: facts that it states, and facts that it says are no longer so.

By the same sentence patterns (facts.py): a denial is a fact once "no longer" is taken out of its sentence.
"""

import re

from memory.facts import extract_facts, facts_of
from memory.types import Claim, Episode, Fact

_DENIAL = re.compile(r"(?<=\bis)\s+no longer\s|(?<=\bare)\s+no longer\s|\s+no longer(?=\s+[a-z]+s\b)")
_OWNED = re.compile(r"(?:The|the) \S[^,]*? of \S.*|\S.*['’]s? \S+(?: \S+)?")
_ONE_AT_A_TIME = {
    "costs", "weighs", "lasts", "is located in", "is located at", "was founded in", "was founded by", "is licensed under",
    "is kept in", "is stored in", "was published in", "was released in", "defaults to", "must be",
}  # fmt: skip


def claims_of(episode: Episode) -> list[Claim]:
    """What one episode says, and what it says is no longer so."""
    told = facts_of(episode)
    said = {fact.id for fact in told}
    ended: list[Fact] = []
    if _DENIAL.search(episode.text):
        told_or_ended = extract_facts(_DENIAL.sub(" ", episode.text), title=episode.title, episode_id=episode.id)
        ended = [fact for fact in told_or_ended if fact.id not in said]
    return [
        Claim(fact, episode.source_id, episode.trust, episode.happened_at, is_denial=fact.id not in said)
        for fact in (*told, *ended)
    ]


def is_functional(fact: Fact) -> bool:
    """Whether a subject has one such object at a time, so that another object contradicts it.

    "The price of the valve is", "the valve costs", "the office is located in"; not "the valve is" (a part, a product).
    """
    if fact.relation in _ONE_AT_A_TIME:
        return True
    return fact.relation in {"is", "was"} and _OWNED.fullmatch(fact.subject) is not None
