from pathlib import Path
from typing import Any

import pytest

from memory.claims import claims_of
from memory.facts import extract_facts
from memory.rules import Rule, RuleExplosion
from memory.semantic import SemanticMemory
from memory.types import Belief, Claim, Episode, Trust
from memory.words import concept_key
from tests.episodes import make_episode, open_semantic

TEXT = (
    "Dr. Imra Solen leads the Helix project. The Helix project uses the Vostrek valve. The Vostrek valve costs 9 euros."
)


def _episode(text: str, *, source: str = "wiki", trust: Trust = Trust.STANDARD, at: float = 100.0) -> Episode:
    document = f"{source} {text} {at}"
    return make_episode(text, document=document, source_id=source, title="notes", happened_at=at, trust=trust)


ONE = _episode(TEXT)


def _tell(memory: SemanticMemory, *episodes: Episode) -> int:
    return memory.add([claim for episode in episodes for claim in claims_of(episode)])


def _open(folder: Path, **fields: Any) -> SemanticMemory:
    times = iter(range(1000, 9000))
    return open_semantic(folder, clock=lambda: float(next(times)), **fields)


def _objects(beliefs: list[Belief]) -> list[str]:
    return [one.fact.object for one in beliefs]


@pytest.fixture
def memory(tmp_path: Path) -> SemanticMemory:
    memory = _open(tmp_path)
    assert memory.add(claims_of(ONE), places={0: 4}) == 3
    return memory


def test_facts_places_and_graph_survive_reopening(memory: SemanticMemory, tmp_path: Path) -> None:
    memory.add([], places={1: 9})
    before = (memory.places(), memory.about("Helix project"), memory.health()["num_concepts"])
    memory.close()
    reopened = _open(tmp_path)

    assert before == ({0: 4, 1: 9}, reopened.about("the helix PROJECT"), 4)
    assert reopened.health()["num_facts"] == 3


def test_a_belief_names_its_sentence_its_episode_and_since_when(memory: SemanticMemory) -> None:
    (belief,) = memory.about("9 euros")

    assert (belief.fact.sentence, belief.fact.episode_id) == ("The Vostrek valve costs 9 euros.", ONE.id)
    assert (belief.trust, belief.valid_from, belief.valid_to, belief.recorded_at) == (
        Trust.STANDARD,
        100.0,
        None,
        1000.0,
    )


def test_the_same_fact_of_two_episodes_keeps_both_and_outlives_one_of_them(memory: SemanticMemory) -> None:
    two = _episode("The Vostrek valve costs 9 euros.", source="mail", at=50.0)
    assert _tell(memory, two) == 0
    (belief,) = memory.about("9 euros")
    assert [claim.episode_id for claim in memory.claims_of(belief.fact.id)] == [ONE.id, two.id]
    assert belief.valid_from == 50.0

    assert memory.forget_episodes([ONE.id]) == 2
    assert [(kept.fact.object, kept.fact.episode_id) for kept in memory.about("Vostrek valve")] == [("9 euros", two.id)]
    assert memory.neighbours("Helix project") == []


def test_a_forgotten_sentence_is_in_no_file(memory: SemanticMemory, tmp_path: Path) -> None:
    _tell(memory, _episode("The Vostrek valve costs 11 euros.", source="mail"))
    memory.forget_episodes([ONE.id])
    memory.forget_episodes([_episode("The Vostrek valve costs 11 euros.", source="mail").id])

    sizes = memory.health()
    assert (sizes["num_facts"], sizes["num_concepts"], sizes["num_contradictions"]) == (0, 0, 0)
    assert all(b"Vostrek" not in file.read_bytes() for file in tmp_path.iterdir())


def test_neighbours_are_found_in_both_directions_nearest_first(memory: SemanticMemory) -> None:
    assert memory.neighbours("Vostrek valve") == ["9 euros", "Helix project"]
    assert memory.neighbours("vostrek valve", hops=2) == ["9 euros", "Helix project", "Dr. Imra Solen"]
    assert memory.neighbours("unknown") == []


def test_about_finds_concepts_that_hold_the_words_of_the_question(memory: SemanticMemory) -> None:
    _tell(memory, _episode("The access code of the Kestrel vault is KX-4471.", source="two"))

    assert _objects(memory.about("Kestrel vault")) == ["KX-4471"]
    assert memory.about("!?") == []
    assert len(memory.about("Vostrek valve", limit=1)) == 1


def test_search_prefers_the_rarest_words_of_a_question(memory: SemanticMemory) -> None:
    _tell(memory, *(_episode(f"The Vostrek pump {n} costs {n} euros.", source="list") for n in range(8)))

    assert _objects(memory.search("Who leads the Helix project?", limit=2))[0] == "the Helix project"
    assert _objects(memory.search("what does the Vostrek valve cost", limit=1)) == ["9 euros"]
    assert memory.search("zeppelin", limit=3) == []


def test_a_refused_commit_stores_neither_facts_nor_places(memory: SemanticMemory) -> None:
    def refuse() -> None:
        raise PermissionError("stopped")

    station = _episode("The Marlow station has three airlocks.", source="two")
    with pytest.raises(PermissionError):
        memory.add(claims_of(station), places={0: 9}, guard=refuse)
    for forget in (memory.forget_episodes, memory.withdraw_episodes):
        with pytest.raises(PermissionError):
            forget([ONE.id], guard=refuse)

    assert (memory.places(), memory.health()["num_facts"], memory.about("Marlow station")) == ({0: 4}, 3, [])


def test_a_repeated_batch_changes_nothing_and_a_place_never_goes_back(memory: SemanticMemory) -> None:
    assert memory.add(claims_of(ONE), places={0: 2}) == 0

    assert (memory.places(), memory.health()["num_facts"]) == ({0: 4}, 3)
    assert len(memory.claims_of(memory.about("9 euros")[0].fact.id)) == 1


def test_a_concept_is_the_same_with_another_case_article_or_spacing() -> None:
    assert concept_key("The  Helix\nProject") == concept_key("helix project") == "helix project"


# -- contradictions


def test_contradictions_stand_side_by_side_and_the_newest_of_the_highest_trust_is_believed(
    memory: SemanticMemory,
) -> None:
    _tell(memory, _episode("The Vostrek valve costs 11 euros.", source="mail", at=200.0))
    assert _objects(memory.resolve("Vostrek valve", "costs")) == ["11 euros", "9 euros"]
    _tell(memory, _episode("The Vostrek valve costs 8 euros.", source="list", at=10.0, trust=Trust.TRUSTED))

    assert _objects(memory.resolve("the Vostrek valve", "costs")) == ["8 euros", "11 euros", "9 euros"]
    (group,) = memory.contradictions()
    assert _objects(list(group.beliefs)) == ["8 euros", "11 euros", "9 euros"]
    assert _objects(memory.resolve("Vostrek valve", "costs", valid_at=150.0)) == ["8 euros", "9 euros"]
    _tell(memory, _episode("The Helix project uses the Torvik pump.", source="mail"))
    assert len(memory.contradictions()) == 1  # a project may use several things


def test_a_denial_ends_a_fact_and_a_later_claim_begins_it_anew(memory: SemanticMemory) -> None:
    for at, said in ((100.0, "is"), (200.0, "is no longer"), (300.0, "is")):
        _tell(memory, _episode(f"Ada Brandt {said} the head of the Helix project.", at=at))

    def held(at: float) -> list[tuple[float, float | None]]:
        return [(one.valid_from, one.valid_to) for one in memory.about("Ada Brandt", valid_at=at)]

    assert [held(at) for at in (99.0, 100.0, 199.0, 200.0, 299.0, 300.0)] == [
        [], [(100.0, 200.0)], [(100.0, 200.0)], [], [], [(300.0, None)],
    ]  # fmt: skip
    assert [one.valid_from for one in memory.about("Ada Brandt")] == [300.0]


def test_a_doubtful_denial_does_not_end_what_a_trusted_source_says(memory: SemanticMemory) -> None:
    _tell(memory, _episode("Ada Brandt is the head of the Helix project.", trust=Trust.TRUSTED))
    _tell(memory, _episode("Ada Brandt is no longer the head of the Helix project.", source="forum", at=500.0))
    assert len(memory.about("Ada Brandt")) == 1


def test_a_held_episode_is_not_believed_but_was_and_is_again_when_it_is_released(memory: SemanticMemory) -> None:
    assert memory.withdraw_episodes([ONE.id]) == 3
    now = 1002.0
    assert (memory.about("Vostrek valve"), memory.search("Vostrek valve"), memory.health()["num_facts"]) == ([], [], 0)
    assert _objects(memory.about("Vostrek valve", recorded_at=now - 0.5)) == ["9 euros", "the Vostrek valve"]
    assert memory.about("Vostrek valve", recorded_at=now) == []

    assert _tell(memory, ONE) == 0
    assert _objects(memory.about("Vostrek valve")) == ["9 euros", "the Vostrek valve"]
    assert memory.about("Vostrek valve", recorded_at=now) == []


# -- rules

LOCATED = Rule.parse("located", "?a is part of ?b & ?b is located in ?c => ?a is located in ?c")


def test_rules_derive_facts_with_their_premises_and_take_them_back(memory: SemanticMemory, tmp_path: Path) -> None:
    pump = _episode("The Torvik pump is located in hall seven.", trust=Trust.TRUSTED)
    valve = _episode("The Torvik seal is part of the Torvik pump.", at=300.0)
    assert memory.add_rule(LOCATED) == 0
    _tell(memory, pump, valve)

    (derived,) = [one for one in memory.about("Torvik seal") if one.rule]
    assert (derived.fact.subject, derived.fact.relation, derived.fact.object) == (
        "Torvik seal",
        "is located in",
        "hall seven",
    )
    assert (derived.rule, derived.trust, derived.valid_from) == ("located", Trust.STANDARD, 300.0)
    premises = {memory.claims_of(one)[0].episode_id for one in derived.premises}
    assert premises == {pump.id, valve.id}
    assert memory.neighbours("hall seven") == ["Torvik pump", "Torvik seal"]
    assert [one.rule for one in memory.about("Torvik seal", valid_at=250.0)] == []
    assert [one.rule for one in memory.about("Torvik seal", valid_at=350.0)] == [None, "located"]
    assert _open(tmp_path).about("Torvik seal") == memory.about("Torvik seal")

    memory.withdraw_episodes([pump.id])
    assert [one.rule for one in memory.about("Torvik seal")] == [None]
    _tell(memory, pump)
    assert memory.health()["num_derived"] == 1
    assert memory.remove_rule("located")
    assert not memory.remove_rule("located")
    assert (memory.health()["num_derived"], memory.rules) == (0, ())


def test_a_derived_fact_that_is_read_later_is_a_read_one(memory: SemanticMemory) -> None:
    memory.add_rule(LOCATED)
    _tell(memory, _episode("The Torvik pump is located in hall seven."))
    _tell(memory, _episode("The Torvik seal is part of the Torvik pump."))
    _tell(memory, _episode("The Torvik seal is located in hall seven.", source="two"))
    assert [one.rule for one in memory.about("Torvik seal")] == [None, None]
    assert memory.health()["num_derived"] == 0


def test_an_erased_rule_is_found_as_of_no_moment(memory: SemanticMemory) -> None:
    _tell(memory, _episode("The Torvik seal is part of the Torvik pump. The Torvik pump is located in hall seven."))
    memory.add_rule(LOCATED)
    before = memory.clock()
    assert memory.remove_rule("located")
    assert [one.rule for one in memory.snapshot(recorded_at=before)].count("located") == 1
    assert memory.remove_rule("located", is_erased=True)
    assert not memory.remove_rule("located", is_erased=True)
    assert [one.rule for one in memory.snapshot(recorded_at=before)].count("located") == 0


def test_a_rule_that_derives_too_much_is_refused_and_the_others_stay(
    memory: SemanticMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.add_rule(LOCATED)
    monkeypatch.setattr("memory.rules.MAX_DERIVED", 3)
    _tell(memory, *(_episode(f"The Torvik part {n} is part of the Torvik part {n + 1}.") for n in range(5)))
    with pytest.raises(RuleExplosion, match="part-of"):
        memory.add_rule(Rule.parse("part-of", "?a is part of ?b & ?b is part of ?c => ?a is part of ?c"))
    assert memory.rules == (LOCATED,)


def test_a_rule_may_conclude_a_concept_of_its_own(memory: SemanticMemory) -> None:
    memory.add_rule(Rule.parse("heavy", '?a is located in "The Hall Seven" => ?a is "Heavy equipment"'))
    pump, about_it = (
        _episode("The Torvik pump is located in hall seven."),
        _episode("Heavy equipment is a hazard class."),
    )
    _tell(memory, pump, about_it)
    assert {one.rule for one in memory.snapshot()} == {None, "heavy"}
    assert [one.rule for one in memory.about("heavy equipment")] == [None, "heavy"]
    assert memory.search("heavy equipment", limit=1)
    memory.forget_episodes([about_it.id])
    assert [one.rule for one in memory.about("heavy equipment")] == ["heavy"]


def test_a_store_whose_rules_derive_too_much_opens_so_that_the_rule_can_be_removed(
    memory: SemanticMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.add_rule(LOCATED)
    _tell(memory, *(_episode(f"The Torvik part {n} is located in hall seven.") for n in range(3)))
    _tell(memory, *(_episode(f"The Torvik bit {n} is part of the Torvik part {n}.") for n in range(3)))
    memory.close()
    monkeypatch.setattr("memory.rules.MAX_DERIVED", 2)
    reopened = _open(tmp_path)
    assert reopened.health()["num_derived"] == 0
    assert reopened.remove_rule("located")


# -- alarms


def _prices(price: int, *, source: str, trust: Trust, num: int = 6) -> list[Episode]:
    return [_episode(f"The Torvik part {n} costs {price + n} euros.", source=source, trust=trust) for n in range(num)]


@pytest.mark.parametrize("poison_first", [True, False])
def test_a_source_that_contradicts_many_trusted_facts_raises_an_alarm(tmp_path: Path, poison_first: bool) -> None:
    memory = _open(tmp_path)
    trusted = _prices(10, source="handbook", trust=Trust.TRUSTED)
    poison = _prices(90, source="forum", trust=Trust.STANDARD)
    for episodes in (poison, trusted) if poison_first else (trusted, poison):
        assert memory.alarms() == []
        _tell(memory, *episodes)

    (alarm,) = memory.alarms()
    assert (alarm.source_id, alarm.num_contradicting, alarm.num_facts) == ("forum", 6, 6)
    assert "The Torvik part 0 costs 90 euros." in alarm.examples
    assert memory.settle_alarm("forum", by="ann", reason="an old price list")
    assert not memory.settle_alarm("forum", by="ann", reason="again")
    _tell(memory, *poison)
    assert memory.alarms() == []
    for price, source, trust in ((7, "handbook", Trust.TRUSTED), (70, "forum", Trust.STANDARD)):
        _tell(memory, _episode(f"The Torvik part 7 costs {price} euros.", source=source, trust=trust))
    assert [one.source_id for one in memory.alarms()] == ["forum"]


def test_an_alarm_goes_with_what_raised_it(tmp_path: Path) -> None:
    memory = _open(tmp_path)
    poison = _prices(90, source="forum", trust=Trust.STANDARD)
    _tell(memory, *_prices(10, source="handbook", trust=Trust.TRUSTED), *poison)
    memory.forget_episodes([episode.id for episode in poison])
    assert memory.alarms() == []


def test_a_source_that_changes_its_own_mind_or_is_right_mostly_raises_none(tmp_path: Path) -> None:
    memory = _open(tmp_path)
    _tell(memory, *_prices(10, source="shop", trust=Trust.STANDARD))
    _tell(memory, *_prices(20, source="shop", trust=Trust.STANDARD))
    _tell(memory, *(_episode(f"The Kestrel part {n} costs {n} euros.", source="big") for n in range(40)))
    _tell(memory, *_prices(20, source="other", trust=Trust.STANDARD, num=4))
    _tell(memory, *_prices(30, source="big", trust=Trust.STANDARD))
    assert [one.source_id for one in memory.alarms()] == []


def test_claims_of_one_episode_are_what_it_says_and_what_it_ends() -> None:
    episode = _episode("Imra Solen is no longer the head of the Helix project. The Vostrek valve costs 9 euros.")
    told = {(claim.fact.subject, claim.is_denial) for claim in claims_of(episode)}
    assert told == {("Imra Solen", True), ("The Vostrek valve", False)}
    assert all(isinstance(claim, Claim) and claim.source_id == "wiki" for claim in claims_of(episode))
    assert extract_facts(episode.text, title="notes", episode_id="x")[0].object == "9 euros"
