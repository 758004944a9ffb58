"""Filling: what a batch takes of passages that may be learned."""

from hypothesis import given
from hypothesis import strategies as st

from autonomous.filling import Filling, Room, fill
from autonomous.lessons import build_lessons, states_facts
from memory.types import Episode
from tests.episodes import make_episode

PROSE = "Perhaps nobody will ever know what happened there that night, note {}, however hard they try."


def passage(number: int, *, num_facts: int, source: str = "handbook") -> Episode:
    told = " ".join(f"The valve V{number}-{fact} is rated for {fact + 10} bar." for fact in range(num_facts))
    return make_episode(told or PROSE.format(number), document=f"d{number}", source_id=source)


@st.composite
def offers(draw: st.DrawFn) -> tuple[list[Episode], Room]:
    shapes = draw(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), max_size=12))
    num_episodes = draw(st.integers(1, 6))
    room = Room(num_episodes, draw(st.integers(1, 20)), draw(st.integers(1, min(3, num_episodes))))
    return [passage(number, num_facts=num, source=source) for number, (num, source) in enumerate(shapes)], room


@given(offers())
def test_what_is_chosen_fits_whole_keeps_its_order_and_leaves_no_fact_aside_for_prose(
    offered: tuple[list[Episode], Room],
) -> None:
    episodes, room = offered
    filling = fill(episodes, room)
    chosen = list(filling.chosen)
    assert chosen == [episode for episode in episodes if episode in chosen]
    assert len(chosen) <= room.num_episodes
    assert len(chosen) <= room.num_sources or len(build_lessons(chosen).items) <= room.num_items
    stating = [episode for episode in episodes if states_facts(episode)]
    assert bool(chosen) == bool(episodes)
    if stating:
        assert any(states_facts(one) for one in chosen)
    if filling.has_room:
        assert [one for one in chosen if states_facts(one)] == stating
    assert not set(map(id, filling.spare)) & set(map(id, chosen))


@given(offers())
def test_as_many_sources_are_taken_as_are_needed_however_much_they_state(offered: tuple[list[Episode], Room]) -> None:
    episodes, room = offered
    stating = {one.source_id for one in episodes if states_facts(one)}
    assert len({one.source_id for one in fill(episodes, room).chosen}) >= min(room.num_sources, len(stating))


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
    assert not filling.wants(passage(10, num_facts=0, source="c"))
    filled = fill([*filling.chosen, other], filling.room)
    assert ([one.source_id for one in filled.chosen], filled.is_done) == (["a", "a", "b"], True)


def test_nothing_offered_is_nothing_chosen() -> None:
    assert fill([], Room(4, 4)) == Filling(Room(4, 4))
