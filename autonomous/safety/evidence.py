"""Evidence: what the memory holds about what some passages say, with who says it and since when.

In: passages, a semantic memory and a way to the texts of episodes. Out: Evidence for poison.py and probes.py. It runs where
the semantic memory is: in its actor, or in one process.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from autonomous.safety.poison import Evidence, HeldBelief, Saying
from autonomous.safety.statements import sentences_of, statements_of
from memory.beliefs import FOREVER, KnownClaim
from memory.types import Belief, Episode, Trust

SEARCHED = 30
"""Beliefs that share words with a sentence,"""
ABOUT = 200
"""and those about its subject, the oldest first: what floods a subject does not push out what was there before."""
MAX_BELIEFS = 2000
SAYINGS_OF_EACH_END = 16
"""Of one belief: the oldest and the newest."""


class Believed(Protocol):
    """What is asked of a semantic memory (memory.semantic.SemanticMemory)."""

    def search(self, question: str, *, limit: int = ...) -> list[Belief]: ...
    def about(self, concept: str, *, limit: int = ...) -> list[Belief]: ...
    def claims_of(self, fact_id: str) -> list[KnownClaim]: ...


def gather_evidence(
    memory: Believed,
    episodes: Sequence[Episode],
    *,
    read: Callable[[Sequence[str]], list[Episode]],
    is_current: bool = True,
) -> Evidence:
    """The beliefs that may say something about what the passages say. `read` gives the episodes of ids that still exist."""
    facts = {
        belief.fact.id: belief.fact
        for episode in episodes
        for belief in _touched(memory, episode)
        if belief.rule is None
    }
    claims = {fact_id: _standing(memory.claims_of(fact_id)) for fact_id in list(facts)[:MAX_BELIEFS]}
    wanted = {claim.episode_id for said in claims.values() for claim in said}
    texts = {episode.id: episode.text for episode in read(sorted(wanted))}
    return Evidence(
        beliefs=tuple(
            HeldBelief(facts[fact_id], tuple(_saying(claim, texts) for claim in said))
            for fact_id, said in claims.items()
            if said
        ),
        is_current=is_current,
    )


def _touched(memory: Believed, episode: Episode) -> Iterable[Belief]:
    for concept in dict.fromkeys(statement.fact.subject for statement in statements_of(episode)):
        yield from memory.about(concept, limit=ABOUT)
    for sentence in sentences_of(episode):
        yield from memory.search(sentence, limit=SEARCHED)


def _standing(claims: Sequence[KnownClaim]) -> list[KnownClaim]:
    """Claims that count: believed, not taken back, no denials; of many the first and the last."""
    standing = [
        claim
        for claim in claims
        if not claim.is_denial and claim.retracted_at == FOREVER and claim.trust >= Trust.STANDARD
    ]
    if len(standing) <= 2 * SAYINGS_OF_EACH_END:
        return standing
    return [*standing[:SAYINGS_OF_EACH_END], *standing[-SAYINGS_OF_EACH_END:]]


def _saying(claim: KnownClaim, texts: dict[str, str]) -> Saying:
    text = texts.get(claim.episode_id, claim.sentence)
    return Saying(claim.episode_id, claim.source_id, claim.trust, claim.recorded_at, text)
