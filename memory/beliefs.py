"""What is believed of a fact, decided from the claims about it: pure functions of claims, world time and record time.

A claim is never changed. It holds from when it was said on (`said_at`, world time) and is known from `recorded_at` to
`retracted_at` (record time). The policy: of the claims that are known and have begun to hold, those of the highest trust
decide, among them the most confident, then the newest; a denial ends a fact. So "as of (world time, record time)" is this
decision over the claims known then, and equals a replay of the log up to then.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memory.rules import Rule, Triple, derive, derived_id
from memory.types import Belief, Fact, Trust
from memory.words import concept_key

FOREVER = float("inf")
LATEST = 1e18
"""A moment behind all that was ever said or recorded, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class KnownClaim:
    """A row of the claims of one fact."""

    fact_id: str
    episode_id: str
    source_id: str
    sentence: str
    trust: Trust
    confidence: float
    is_denial: bool
    said_at: float
    recorded_at: float
    retracted_at: float = FOREVER

    def is_known(self, recorded_at: float) -> bool:
        """Whether it is in the log at this record time and not taken back."""
        return self.recorded_at <= recorded_at < self.retracted_at


@dataclass(frozen=True, slots=True)
class Verdict:
    """The claim that decides, and over which world time it decides so."""

    claim: KnownClaim
    valid_from: float
    valid_to: float | None


def decide(claims: Iterable[KnownClaim], *, valid_at: float, recorded_at: float) -> Verdict | None:
    """The verdict on one fact at a world time as known at a record time; None if nobody claims it or it is denied."""
    deciding_from: list[float] = []
    deciding: list[KnownClaim] = []  # by when they began to hold: which one decides from then on
    for claim in sorted((one for one in claims if one.is_known(recorded_at)), key=lambda one: one.said_at):
        best = max(deciding[-1], claim, key=_weight) if deciding else claim
        if deciding and deciding_from[-1] == claim.said_at:
            deciding[-1] = best
        else:
            deciding.append(best)
            deciding_from.append(claim.said_at)
    place = bisect_right(deciding_from, valid_at) - 1
    if place < 0 or deciding[place].is_denial:
        return None
    first = place
    while first > 0 and not deciding[first - 1].is_denial:
        first -= 1
    end = next((later for later in range(place + 1, len(deciding)) if deciding[later].is_denial), None)
    return Verdict(deciding[place], deciding_from[first], None if end is None else deciding_from[end])


def _weight(claim: KnownClaim) -> tuple[int, float, float, bool, float, str]:
    return claim.trust, claim.confidence, claim.said_at, not claim.is_denial, claim.recorded_at, claim.episode_id


def order_of_belief(verdict: Verdict) -> tuple[int, float, float, float, str]:
    """Among facts that contradict each other the greatest is believed: newest from the highest trust."""
    claim = verdict.claim
    return claim.trust, claim.confidence, claim.said_at, claim.recorded_at, claim.fact_id


def belief_of(triple: tuple[str, str, str], verdict: Verdict, *, fact_id: str) -> Belief:
    """A fact as its verdict has it; `triple` as it was first written."""
    claim = verdict.claim
    return Belief(
        Fact(fact_id, *triple, claim.sentence, claim.episode_id),
        trust=claim.trust,
        confidence=claim.confidence,
        valid_from=verdict.valid_from,
        valid_to=verdict.valid_to,
        recorded_at=claim.recorded_at,
    )


def derived_belief(
    triple: Triple, *, rule: str, premises: tuple[str, ...], rests_on: Sequence[Belief], names: Mapping[str, str]
) -> Belief:
    """As sure and as lasting as the weakest of what it rests on."""
    subject, object_ = (names.get(end, end) for end in (triple[0], triple[2]))
    ends = [one.valid_to for one in rests_on if one.valid_to is not None]
    sentence = f"{subject} {triple[1]} {object_}."
    return Belief(
        Fact(derived_id(triple), subject, triple[1], object_, sentence, rests_on[0].fact.episode_id),
        trust=min(one.trust for one in rests_on),
        confidence=min(one.confidence for one in rests_on),
        valid_from=max(one.valid_from for one in rests_on),
        valid_to=min(ends, default=None),
        recorded_at=max(one.recorded_at for one in rests_on),
        rule=rule,
        premises=premises,
    )


def beliefs_as_of(
    facts: Mapping[str, Triple],
    claims: Mapping[str, Sequence[KnownClaim]],
    rules: Sequence[Rule],
    *,
    valid_at: float,
    recorded_at: float,
) -> list[Belief]:
    """What is held of these facts at a world time as known at a record time, and what rules derive from it, which comes last.

    `facts` are subject, relation and object by id, oldest first, `claims` all that is claimed about them.
    """
    found: dict[str, Belief] = {}
    ids: dict[Triple, str] = {}
    for fact_id, (subject, relation, object_) in facts.items():
        verdict = decide(claims[fact_id], valid_at=valid_at, recorded_at=recorded_at)
        if verdict is not None:
            found[fact_id] = belief_of((subject, relation, object_), verdict, fact_id=fact_id)
            ids.setdefault((concept_key(subject), relation, concept_key(object_)), fact_id)
    names = {concept_key(name): name for triple in [*facts.values()][::-1] for name in (triple[0], triple[2])}
    for triple, why in derive(ids, rules).items():
        ids[triple] = derived_id(triple)
        premises = tuple(ids[one] for one in why.premises)
        rests_on = [found[one] for one in premises]
        found[ids[triple]] = derived_belief(triple, rule=why.rule, premises=premises, rests_on=rests_on, names=names)
    return list(found.values())
