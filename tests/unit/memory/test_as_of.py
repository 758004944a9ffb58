"""What was held at a moment of the world, as known at a moment of the record, equals a replay of the log."""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.facts import fact_of
from memory.rules import Rule
from memory.types import Claim, Trust
from tests.episodes import open_semantic

FACTS = [("pump", "costs", "9"), ("pump", "costs", "11"), ("seal", "is", "blue")]
RULE = Rule.parse("priced", '?a costs ?b => ?a is "priced"')
PRICED = ("pump", "is", "priced")
EPISODES = ["e0", "e1", "e2", "e3"]


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    action: str
    episode: str
    fact: tuple[str, str, str] = FACTS[0]
    is_denial: bool = False
    trust: Trust = Trust.STANDARD
    said_at: float = 0.0


events = st.one_of(
    st.builds(
        Event, st.just("tell"), st.sampled_from(EPISODES), st.sampled_from(FACTS), st.booleans(),
        st.sampled_from([Trust.STANDARD, Trust.TRUSTED]), st.integers(0, 4).map(float),
    ),
    st.builds(Event, st.just("withdraw"), st.sampled_from(EPISODES)),
    st.builds(Event, st.just("forget"), st.sampled_from(EPISODES)),
    st.builds(Event, st.sampled_from(["add rule", "remove rule"]), st.just("")),
)  # fmt: skip


def _replay(log: list[Event], *, until: int, valid_at: float) -> set[tuple[str, str, str]]:
    """The log up to an event, but without what was erased at any time, read by a person."""
    said: dict[tuple[str, tuple[str, str, str], bool], tuple[int, Event]] = {}
    for number, event in enumerate(log):
        if event.action == "forget":
            said = {key: value for key, value in said.items() if key[0] != event.episode}
        elif number <= until:
            if event.action == "tell":
                key = (event.episode, event.fact, event.is_denial)
                if key not in said or (said[key][1].trust, said[key][1].said_at) != (event.trust, event.said_at):
                    said[key] = (number, event)
            elif event.action == "withdraw":
                said = {key: value for key, value in said.items() if key[0] != event.episode}
    held = set()
    for fact in FACTS:
        claims = [(number, one) for number, one in said.values() if one.fact == fact and one.said_at <= valid_at]
        highest = max((one.trust for _, one in claims), default=None)
        claims = [(number, one) for number, one in claims if one.trust == highest]
        newest = max((one.said_at for _, one in claims), default=None)
        if any(one.said_at == newest and not one.is_denial for _, one in claims):
            held.add(fact)
    rules = [event.action for event in log[: until + 1] if event.action.endswith("rule")]
    if rules[-1:] == ["add rule"] and any(relation == "costs" for _, relation, _ in held):
        held.add(PRICED)
    return held


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(events, min_size=1, max_size=12))
def test_every_moment_of_the_record_and_the_world_equals_a_replay_of_the_log(log: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ticks = itertools.count(1000)
        memory = open_semantic(Path(folder), clock=lambda: float(next(ticks)))
        times = []
        for event in log:
            if event.action == "tell":
                fact = fact_of(*event.fact, sentence="x", episode_id=event.episode)
                source = f"s {event.episode}"
                memory.add([Claim(fact, source, event.trust, event.said_at, is_denial=event.is_denial)])
            elif event.action == "withdraw":
                memory.withdraw_episodes([event.episode])
            elif event.action == "forget":
                memory.forget_episodes([event.episode])
            elif event.action == "add rule":
                memory.add_rule(RULE)
            else:
                memory.remove_rule("priced")
            times.append(float(next(ticks)))

        for (number, recorded_at), valid_at in itertools.product(enumerate(times), (-1.0, 0.0, 2.5, 4.0)):
            held = memory.snapshot(valid_at=valid_at, recorded_at=recorded_at)
            expected = _replay(log, until=number, valid_at=valid_at)
            assert {(one.fact.subject, one.fact.relation, one.fact.object) for one in held} == expected
            for one in held:
                assert one.valid_from <= valid_at < (one.valid_to or 1e9)
                again = memory.snapshot(valid_at=one.valid_from, recorded_at=recorded_at)
                assert one.fact.id in {other.fact.id for other in again}
                if one.valid_to is not None:
                    after = memory.snapshot(valid_at=one.valid_to, recorded_at=recorded_at)
                    assert one.fact.id not in {other.fact.id for other in after}
            for concept in ("pump", "seal"):
                part = memory.about(concept, valid_at=valid_at, recorded_at=recorded_at)
                assert part == [one for one in held if concept in (one.fact.subject, one.fact.object)]
        now = {(one.fact.subject, one.fact.relation, one.fact.object) for one in memory.snapshot()}
        assert now == _replay(log, until=len(log), valid_at=1e9)
        found = {
            (one.fact.subject, one.fact.relation, one.fact.object)
            for concept in ("pump", "seal")
            for one in memory.about(concept)
        }
        assert found == now
        memory.close()
        reopened = open_semantic(Path(folder))
        assert len(reopened.about("pump")) + len(reopened.about("seal")) == len(now)
        reopened.close()
