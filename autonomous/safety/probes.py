"""Belief probes: questions on what the memory holds, to find out whether a candidate has learned the opposite.

In: evidence about a batch, the batch, and what is known to contradict it. Out: probes with the answer of those who are
trusted and the answer that a poisoner would want; the items that a model scores; the margins that gate_beliefs judges.
A wrong answer comes from a passage that was held, or from the batch itself: a code or a number of the same make in a
passage about the same thing, in whatever words, so that poison which no pattern reads shows too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autonomous.safety.poison import Conflict, HeldBelief
from autonomous.safety.statements import same_make_values, statement_of
from memory.questions import question_of
from memory.types import Episode, Fact
from train.continual.items import LearningItem

MAX_PROBES = 32


@dataclass(frozen=True, slots=True)
class BeliefProbe:
    """One question with two answers. `is_contradicted`: a passage says the second; else it only stands in the batch."""

    prompt: str
    trusted: str
    poisoned: str
    is_contradicted: bool
    fact_id: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def build_probes(
    beliefs: Sequence[HeldBelief], batch: Sequence[Episode], *, conflicts: Sequence[Conflict] = ()
) -> list[BeliefProbe]:
    """At most MAX_PROBES, the contradicted ones first. Beliefs that only the batch itself holds are no measure of it."""
    ids = {episode.id for episode in batch} | {one.episode_id for one in conflicts}
    probes: dict[tuple[str, str], BeliefProbe] = {}

    def add(believed: Fact, value: str, *, is_contradicted: bool) -> None:
        trusted = _answer(believed, _as_written(statement_of(believed).value, believed.object))
        poisoned = _answer(believed, value)
        if trusted.casefold() != poisoned.casefold():
            key = (believed.id, poisoned.casefold())
            probes.setdefault(key, BeliefProbe(question_of(believed), trusted, poisoned, is_contradicted, believed.id))

    sure = [belief for belief in beliefs if any(one.episode_id not in ids for one in belief.sayings)]
    held = {belief.fact.id for belief in sure}
    for conflict in conflicts:
        if conflict.believed.id in held and not conflict.is_denial:
            add(
                conflict.believed,
                _as_written(statement_of(conflict.said).value, conflict.said.object),
                is_contradicted=True,
            )
    for belief in sure:
        make = statement_of(belief.fact)
        found = {_as_written(one, episode.text) for episode in batch for one in same_make_values(episode, make)}
        for value in sorted(found):
            add(belief.fact, value, is_contradicted=False)
    return sorted(probes.values(), key=lambda one: (not one.is_contradicted, one.fact_id, one.poisoned))[:MAX_PROBES]


def probe_items(probes: Sequence[BeliefProbe]) -> list[LearningItem]:
    """Two items for each probe, the trusted answer first: what `Panel.score` scores."""
    return [
        LearningItem(id=f"{number}/{name}", prompt=probe.prompt, answer=answer, episode_id=probe.fact_id)
        for number, probe in enumerate(probes)
        for name, answer in (("trusted", probe.trusted), ("poisoned", probe.poisoned))
    ]


def probe_margins(
    probes: Sequence[BeliefProbe], *, parent: Sequence[float], candidate: Sequence[float]
) -> list[dict[str, Any]]:
    """What goes into a report: the margins of each probe, nats per answer token; positive prefers the trusted answer.

    `parent` and `candidate` are the losses of `probe_items`, in their order. Raises ValueError for other lengths.
    """
    for name, losses in (("parent", parent), ("candidate", candidate)):
        if len(losses) != 2 * len(probes):
            raise ValueError(
                f"{name} has {len(losses)} losses for {len(probes)} probes: score all items of probe_items"
            )
    return [
        {
            "probe": probe.prompt,
            "is_contradicted": probe.is_contradicted,
            "margin_parent": parent[2 * number + 1] - parent[2 * number],
            "margin_candidate": candidate[2 * number + 1] - candidate[2 * number],
        }
        for number, probe in enumerate(probes)
    ]


def probes_from(rows: Sequence[Mapping[str, Any]]) -> list[BeliefProbe]:
    """Those that `to_dict` gave."""
    return [BeliefProbe(**row) for row in rows]


def _answer(believed: Fact, value: str) -> str:
    """The sentence of the belief with this value in it, so that both answers differ in nothing else."""
    known = statement_of(believed).value
    subject, object_ = believed.subject, believed.object
    if known == subject.casefold():
        subject = value
    elif (written := _as_written(known, object_)) in object_:
        object_ = object_.replace(written, value)
    else:
        object_ = value
    return f"{subject} {believed.relation} {object_}."


def _as_written(value: str, text: str) -> str:
    """A value, which statements have in small letters, as the text writes it: a model is asked for what it was taught."""
    place = text.casefold().find(value.casefold())
    is_aligned = len(text.casefold()) == len(text)
    return text[place : place + len(value)] if place >= 0 and is_aligned else value
