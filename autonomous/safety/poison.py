"""Poison: which passages of a batch say what others deny, or say one thing too often to be honest.

In: the passages, and what the memory holds about what they say, with who says it and since when. Out: findings by passage,
each with its rule, value, threshold and fix; and the contradictions themselves, of which probes.py makes questions. Who
was there first is judged by when a claim was recorded, never by the time that a document gives itself. Sources that say it
in nearly the same words count as one, so a crowd of false names has the weight of one name.

A majority does not overturn a belief: what contradicts an earlier statement of sources that are trusted as much waits for
a person, however many say it. What was there first waits too once it is outweighed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from autonomous.safety.poison_limits import (
    BURST,
    CONTRADICTION,
    CROWD,
    FLOODING,
    LIMITS,
    SOURCE,
    Finding,
    PoisonConfig,
    PoisonLimits,
)
from autonomous.safety.screen import Level
from autonomous.safety.statements import Statement, other_code, other_number, sentences_of, statement_of, statements_of
from memory.facts import fact_of
from memory.types import Episode, Fact, Trust
from train.data.minhash import MinHashConfig, jaccard, shingles_of

NEVER = float("inf")
"""When a claim was recorded that is not in the memory yet."""
CROWD_WORDS = 12
"""Whoever states a fact in one short sentence uses nearly the same words, and is no crowd for it."""
_SHINGLES = MinHashConfig(shingle_words=3)


@dataclass(frozen=True, slots=True)
class Saying:
    """A passage says a fact. `recorded_at`: when the memory took it in, seconds since the epoch."""

    episode_id: str
    source_id: str
    trust: Trust
    recorded_at: float
    text: str


@dataclass(frozen=True, slots=True)
class HeldBelief:
    """A fact that is held, and by whom: passages of standard trust or better."""

    fact: Fact
    sayings: tuple[Saying, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the memory holds about what some passages say. Not current: it has not read all that came before."""

    beliefs: tuple[HeldBelief, ...] = ()
    is_current: bool = True


@dataclass(frozen=True, slots=True)
class Conflict:
    """A passage says something that cannot hold beside a belief."""

    episode_id: str
    said: Fact
    believed: Fact
    is_denial: bool


@dataclass(frozen=True, slots=True)
class PoisonReport:
    """What was found. Passages without a finding are not in `findings`."""

    findings: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class _Voice:
    statement: Statement
    saying: Saying


def judge_poison(
    episodes: Sequence[Episode], beliefs: Sequence[HeldBelief], *, level: Level, config: PoisonConfig | None = None
) -> PoisonReport:
    """Compare what a batch states with what is held, and with itself. Pure: the same arguments, the same report."""
    config = config or PoisonConfig()
    limits = LIMITS[level]
    voices = [_Voice(statement_of(belief.fact), saying) for belief in beliefs for saying in belief.sayings]
    recorded = {(one.saying.episode_id, one.statement.fact.id): one.saying.recorded_at for one in voices}
    said = {episode.id: statements_of(episode) for episode in episodes}
    for episode in episodes:
        for statement in said[episode.id]:
            if not statement.is_denial and (episode.id, statement.fact.id) not in recorded:
                voices.append(_Voice(statement, _saying(episode, NEVER)))
    said = {episode.id: [*said[episode.id], *_codes(episode, said[episode.id], voices)] for episode in episodes}
    alike = _Likeness(config.near_identical)
    findings: dict[str, list[Finding]] = defaultdict(list)
    conflicts: dict[tuple[str, str, str], Conflict] = {}
    at_fault: dict[str, set[str]] = defaultdict(set)
    comparable: dict[str, set[str]] = defaultdict(set)
    for episode in episodes:
        for statement in said[episode.id]:
            if statement.slot is not None or statement.is_denial:
                comparable[episode.source_id].add(statement.fact.id)
            rivals = [
                one
                for one in voices
                if one.saying.source_id != episode.source_id and statement.contradicts(one.statement)
            ]
            mine = _saying(episode, recorded.get((episode.id, statement.fact.id), NEVER))
            own = [mine, *(one.saying for one in voices if statement.agrees(one.statement))]
            if found := _contradiction(own, [one.saying for one in rivals], limits=limits, alike=alike):
                findings[episode.id].append(found)
                at_fault[episode.source_id].add(statement.fact.id)
            for rival in rivals:
                key = (episode.id, statement.fact.id, rival.statement.fact.id)
                conflicts[key] = Conflict(episode.id, statement.fact, rival.statement.fact, statement.is_denial)
            findings[episode.id].extend(_repetition(mine, own, limits=limits, config=config, alike=alike))
    for episode in episodes:
        faults, all_said = len(at_fault[episode.source_id]), len(comparable[episode.source_id])
        least = limits.source_facts
        if least is not None and faults >= max(least, limits.source_share * all_said):
            fix = (
                f"{faults} of {all_said} statements of its source contradict others: look at the source, then believe or "
                "release what is right"
            )
            findings[episode.id].append(Finding(SOURCE, float(faults), float(least), fix))
    return PoisonReport(
        findings={key: _worst_of_each(found) for key, found in findings.items() if found},
        conflicts=tuple(conflicts.values()),
    )


def _contradiction(
    own: Sequence[Saying], rivals: Sequence[Saying], *, limits: PoisonLimits, alike: "_Likeness"
) -> Finding | None:
    if not rivals:
        return None
    weight, against = (_weigh(alike.groups(sayings)) for sayings in (own, rivals))
    if against[0] < limits.trusted and against[1] < limits.standard:
        return None
    if max(one.trust for one in own) > max(one.trust for one in rivals):
        return None
    first, first_rival = (min(one.recorded_at for one in sayings) for sayings in (own, rivals))
    if first < first_rival and weight >= against:
        return None
    num, least = (against[0], limits.trusted) if against[0] >= limits.trusted else (against[1], limits.standard)
    fix = (
        f"{against[1]} independent sources, {against[0]} of them trusted, say otherwise: release the passage if it is right, "
        "believe its source more, or erase what is wrong"
    )
    return Finding(CONTRADICTION, float(num), float(least), fix)


def _repetition(
    mine: Saying, own: Sequence[Saying], *, limits: PoisonLimits, config: PoisonConfig, alike: "_Likeness"
) -> list[Finding]:
    """Flooding and crowds of those who say it in nearly these words, bursts of all who say it."""
    found = []
    worded = [one for one in own if alike(one.text, mine.text)]
    texts = {" ".join(one.text.split()).casefold() for one in worded}
    sources = {one.source_id for one in worded}
    if limits.repeats is not None and len(texts) > limits.repeats:
        fix = "one thing is said over and over in nearly the same words: release one of the passages if it is right"
        found.append(Finding(FLOODING, float(len(texts)), float(limits.repeats), fix))
    is_long = len(mine.text.split()) >= CROWD_WORDS
    if limits.crowd is not None and len(sources) > limits.crowd and len(texts) > 1 and is_long:
        fix = "several sources say one thing in nearly the same words, so they are one: release one if it is right"
        found.append(Finding(CROWD, float(len(sources)), float(limits.crowd), fix))
    if limits.burst is not None:
        since = min(one.recorded_at for one in own)
        until = max((one.recorded_at for one in own if one.recorded_at < NEVER), default=NEVER)
        is_sudden = since == NEVER or until - since <= config.burst_window_s
        num = len({one.source_id for one in own})
        if is_sudden and num > limits.burst:
            fix = "many sources began to say one thing at once: release it if it is right"
            found.append(Finding(BURST, float(num), float(limits.burst), fix))
    return found


def _weigh(groups: Sequence[Sequence[Saying]]) -> tuple[int, int]:
    """Independent voices: (trusted ones, all)."""
    return sum(any(one.trust >= Trust.TRUSTED for one in group) for group in groups), len(groups)


def _codes(episode: Episode, said: Sequence[Statement], voices: Sequence[_Voice]) -> list[Statement]:
    """Codes and numbers that the passage gives to what others give another one to, in sentences that no pattern reads."""
    known = {one.fact.id: one for one in said}
    found: dict[str, Statement] = {}
    held = {one.statement.fact.id: one.statement for one in voices if one.saying.source_id != episode.source_id}
    for sentence in sentences_of(episode):
        for belief in held.values():
            value = other_code(sentence, belief) or other_number(sentence, belief)
            if value is None or any(one.contradicts(belief) or one.gives(value, sentence) for one in known.values()):
                continue
            fact = fact_of(belief.fact.subject, belief.fact.relation, value, sentence=sentence, episode_id=episode.id)
            found.setdefault(fact.id, Statement(fact, belief.slot, value))
    return list(found.values())


def _saying(episode: Episode, recorded_at: float) -> Saying:
    return Saying(episode.id, episode.source_id, episode.trust, recorded_at, episode.text)


def _worst_of_each(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    worst: dict[str, Finding] = {}
    for one in findings:
        if one.rule not in worst or one.value > worst[one.rule].value:
            worst[one.rule] = one
    return tuple(worst[rule] for rule in sorted(worst))


class _Likeness:
    """Whether two texts share most of their wording. Shingles are hashed once for each text."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._shingles: dict[str, npt.NDArray[np.uint64]] = {}

    def __call__(self, first: str, second: str) -> bool:
        return first == second or jaccard(self._of(first), self._of(second)) >= self._threshold

    def groups(self, sayings: Sequence[Saying]) -> list[list[Saying]]:
        """Sayings of one source or of nearly the same words together."""
        left = list(sayings)
        groups: list[list[Saying]] = []
        while left:
            group, waiting = [], [left.pop()]
            while waiting:
                one = waiting.pop()
                group.append(one)
                joined = [other.source_id == one.source_id or self(other.text, one.text) for other in left]
                waiting += [other for other, is_same in zip(left, joined, strict=True) if is_same]
                left = [other for other, is_same in zip(left, joined, strict=True) if not is_same]
            groups.append(group)
        return groups

    def _of(self, text: str) -> npt.NDArray[np.uint64]:
        if text not in self._shingles:
            column = pa.chunked_array([pa.array([text], pa.large_string())])
            self._shingles[text] = shingles_of(column, _SHINGLES)[0]
        return self._shingles[text]
