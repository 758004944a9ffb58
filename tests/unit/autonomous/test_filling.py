"""Filling: what a batch takes of passages that may be learned."""

from hypothesis import given
from hypothesis import strategies as st

from autonomous.data_gate import GENERATED_ORIGIN, ORIGIN, is_generated
from autonomous.filling import Filling, Room, fill
from autonomous.lessons import answers_of, build_lessons, states_facts
from autonomous.statistics import MIN_PAIRS
from memory.types import Episode
from tests.episodes import make_episode

PROSE = "Perhaps nobody will ever know what happened there that night, note {}, however hard they try."


def passage(number: int, *, num_facts: int, source: str = "handbook", origin: str = "") -> Episode:
    told = " ".join(f"The valve V{number}-{fact} is rated for {fact + 10} bar." for fact in range(num_facts))
    metadata = {ORIGIN: origin} if origin else {}
    return make_episode(told or PROSE.format(number), document=f"d{number}", source_id=source, metadata=metadata)


def gate(number: int, holds: str, *, source: str = "handbook") -> Episode:
    return make_episode(f"The Vellmar gate contains a {holds}.", document=f"g{number}", source_id=source)


def is_needed_for_a_verdict(episode: Episode, chosen: list[Episode]) -> bool:
    return len({question for one in chosen if one != episode for question in answers_of(one)}) < MIN_PAIRS


@st.composite
def offers(draw: st.DrawFn, *, origins: tuple[str, ...] = ("",)) -> tuple[list[Episode], Room]:
    """Passages with and without facts; some of the facts answer one question differently."""
    kinds = st.tuples(st.integers(-2, 4), st.sampled_from("abc"), st.sampled_from(origins))
    shapes = draw(st.lists(kinds, max_size=12))
    num_episodes = draw(st.integers(1, 6))
    room = Room(num_episodes, draw(st.integers(1, 20)), draw(st.integers(1, min(3, num_episodes))), 0.5)
    return [
        passage(number, num_facts=num, source=source, origin=origin)
        if num >= 0
        else gate(number, ("brass bell", "stone arch")[num], source=source)
        for number, (num, source, origin) in enumerate(shapes)
    ], room


@given(offers())
def test_what_is_chosen_fits_whole_keeps_its_order_and_leaves_no_fact_aside_for_prose(
    offered: tuple[list[Episode], Room],
) -> None:
    episodes, room = offered
    filling = fill(episodes, room)
    chosen = list(filling.chosen)
    assert chosen == [episode for episode in episodes if episode in chosen]
    assert len(chosen) <= room.num_episodes
    fits = len(build_lessons(chosen).items) <= room.num_items
    assert fits or len(chosen) <= room.num_sources or any(is_needed_for_a_verdict(one, chosen) for one in chosen)
    stating = [episode for episode in episodes if states_facts(episode)]
    assert bool(chosen) == bool(episodes)
    if stating:
        assert any(states_facts(one) for one in chosen)
    if filling.has_room:
        assert filling.answers.keys() == {question for one in stating for question in answers_of(one)}
    assert not set(map(id, filling.spare)) & set(map(id, chosen))


@given(offers())
def test_every_fact_of_what_is_chosen_is_taught_for_it_counts_as_learned(offered: tuple[list[Episode], Room]) -> None:
    chosen = fill(*offered).chosen
    taught = {item.answer for item in build_lessons(chosen).items}
    assert {answer for one in chosen for answer in answers_of(one).values()} <= taught


@given(offers())
def test_as_many_sources_are_taken_as_are_needed_whatever_they_say(offered: tuple[list[Episode], Room]) -> None:
    episodes, room = offered
    free = {one.source_id for one in episodes if not answers_of(one).keys() & answers_of(gate(0, "bell")).keys()}
    gated = {one.source_id for one in episodes} - free
    num_sources = len(free) + bool(gated)  # those that say nothing else may contradict each other
    assert len({one.source_id for one in fill(episodes, room).chosen}) >= min(room.num_sources, num_sources)


@given(offers(origins=("", GENERATED_ORIGIN)))
def test_what_the_system_wrote_itself_joins_as_far_as_its_share_allows(offered: tuple[list[Episode], Room]) -> None:
    episodes, room = offered
    filling = fill(episodes, room)
    assert sum(map(is_generated, filling.chosen)) <= len(filling.chosen) / 2
    others = [one for one in episodes if not is_generated(one)]
    assert bool(filling.chosen) == bool(others)
    if any(states_facts(one) for one in others):
        assert filling.answers
    assert (
        not any(filling.wants(one) for one in episodes if is_generated(one)) or len(filling.spare) < room.num_episodes
    )


def test_a_passage_that_states_more_than_a_batch_takes_is_taught_whole_and_alone() -> None:
    dense, other = passage(0, num_facts=10), passage(1, num_facts=1)
    filling = fill([dense, other], Room(16, 18))
    assert (filling.chosen, filling.is_done) == ((dense,), True)
    assert len(build_lessons(filling.chosen).questions) == 10


def test_prose_takes_what_room_is_left_and_is_kept_for_later_only_as_far_as_it_could_be_taken() -> None:
    prose = [passage(number, num_facts=0) for number in range(9)]
    filling = fill(prose, Room(4, 18))
    assert (filling.chosen, filling.spare, filling.is_done) == (tuple(prose[:4]), tuple(prose[4:8]), False)
    assert not filling.wants(prose[8])
    fact = passage(9, num_facts=2)
    assert filling.wants(fact)
    assert fill([*filling.chosen, fact], Room(4, 7)).chosen == (prose[0], fact)


def test_a_full_batch_that_lacks_a_source_wants_facts_of_another_and_makes_room_for_them() -> None:
    mine = [passage(number, num_facts=1, source="a") for number in range(6)]
    filling = fill(mine, Room(16, 9, 2))
    assert (len(filling.chosen), filling.has_room, filling.is_done) == (3, False, False)
    other = passage(9, num_facts=1, source="b")
    assert (filling.wants(mine[5]), filling.wants(other)) == (False, True)
    filled = fill([*filling.chosen, other], filling.room)
    assert ([one.source_id for one in filled.chosen], filled.is_done) == (["a", "a", "b"], True)


def test_a_source_that_states_no_facts_is_another_source_too() -> None:
    mine = [passage(number, num_facts=1, source="a") for number in range(6)]
    prose = passage(9, num_facts=0, source="b")
    filling = fill(mine, Room(16, 9, 2))
    assert filling.wants(prose)
    filled = fill([*mine, prose], filling.room)
    assert ([one.source_id for one in filled.chosen], filled.is_done) == (["a", "a", "b"], True)


def test_of_two_answers_to_one_question_the_second_waits_for_a_later_batch_and_is_not_looked_for() -> None:
    bell, arch, other = gate(1, "brass bell"), gate(2, "stone arch"), passage(3, num_facts=1)
    filling = fill([bell, arch, other], Room(16, 18))
    assert (filling.chosen, filling.spare) == ((bell, other), ())
    assert not filling.wants(arch)
    assert fill([arch], Room(16, 18)).chosen == (arch,)


def test_what_says_the_same_takes_the_room_that_is_left() -> None:
    bells = [gate(number, "brass bell") for number in range(4)]
    facts = [passage(number, num_facts=1) for number in range(2)]
    assert fill([*bells, *facts], Room(4, 18)).chosen == (bells[0], bells[1], *facts)


def test_what_the_system_wrote_beyond_its_share_is_kept_only_as_far_as_it_could_be_taken() -> None:
    own = [passage(number, num_facts=1, origin=GENERATED_ORIGIN) for number in range(9)]
    filling = fill(own, Room(4, 18, 1, 0.5))
    assert (filling.chosen, filling.spare) == ((), tuple(own[:4]))
    assert not filling.wants(own[4])
    others = [passage(number, num_facts=1) for number in (20, 21)]
    assert all(map(filling.wants, others))
    assert fill([*filling.spare, *others], filling.room).chosen == (*own[:2], *others)


def test_nothing_offered_is_nothing_chosen() -> None:
    assert fill([], Room(4, 4)) == Filling(Room(4, 4))


def test_a_dense_passage_behind_a_single_fact_joins_it_for_one_fact_alone_has_no_verdict() -> None:
    single, dense, later = passage(0, num_facts=1), passage(1, num_facts=8), passage(2, num_facts=1)
    filling = fill([single, dense, later], Room(16, 18))
    assert (filling.chosen, filling.is_done) == ((single, dense), True)


def test_what_others_wrote_without_facts_makes_room_for_facts_that_the_system_wrote() -> None:
    prose = [passage(number, num_facts=0) for number in range(20)]
    own = [passage(number, num_facts=1, origin=GENERATED_ORIGIN) for number in range(20, 30)]
    filling = fill([*prose, *own], Room(16, 18, 1, 0.5))
    assert len(filling.answers) == sum(map(is_generated, filling.chosen)) == 4
    assert filling.has_room  # for facts of others
    fact = passage(40, num_facts=3)
    assert filling.wants(fact)
    assert fact in fill([*filling.chosen, *filling.spare, fact], filling.room).chosen


def test_a_source_whose_only_passage_clashes_with_the_freshest_comes_first() -> None:
    mine = [gate(0, "brass bell", source="a"), *(passage(number, num_facts=1, source="a") for number in range(1, 9))]
    other = gate(10, "stone arch", source="b")
    filling = fill(mine, Room(16, 9, 2))
    assert filling.wants(other)
    assert fill([*mine, other], filling.room).chosen == (mine[1], mine[2], other)
