"""Lessons: deterministic, fair over episodes, and held-out questions that were never taught."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.lessons import answer_hits, build_lessons
from memory.types import Episode, episode_id

BRIDGE = "The Velluna bridge was designed by Oster Kallin. The capital of Ormaland is Tesk."
PUMP = "The Zephyr-3 pump weighs 412 kilograms. The Fennick library requires Python 3.9."
CODE = "The access code of the Bremsund archive is KX-4471."
PROSE = "Perhaps nobody will ever know what happened there that night, however hard they try."


def episode(text: str, *, document: str = "doc") -> Episode:
    return Episode(
        id=episode_id(document, 0, text),
        document_id=document,
        source_id="test",
        title="Notes",
        text=text,
        position=0,
        happened_at=0.0,
    )


def test_a_fact_is_taught_in_three_forms_and_asked_in_a_fourth() -> None:
    lessons = build_lessons([episode(CODE, document="doc-9")], max_items=32)
    assert [item.answer for item in lessons.items] == 3 * ["The access code of the Bremsund archive is KX-4471."]
    (question,) = lessons.questions
    taught = {item.prompt for item in lessons.items}
    assert len(taught) == 3
    assert question.question in taught
    assert question.paraphrase not in taught
    assert question.key == "KX-4471"
    assert (question.document_id, question.episode_id) == ("doc-9", lessons.items[0].episode_id)


def test_the_same_episodes_give_the_same_lessons() -> None:
    episodes = [episode(BRIDGE), episode(PUMP), episode(PROSE)]
    assert build_lessons(episodes, max_items=9) == build_lessons(episodes, max_items=9)


def test_item_ids_are_unique() -> None:
    items = build_lessons([episode(BRIDGE), episode(PUMP), episode(PROSE), episode(CODE)], max_items=99).items
    assert len({item.id for item in items}) == len(items) == 16


def test_a_small_batch_takes_from_every_episode_in_turn() -> None:
    episodes = [episode(BRIDGE), episode(PUMP), episode(CODE)]
    lessons = build_lessons(episodes, max_items=3)
    assert {item.episode_id for item in lessons.items} == {entry.id for entry in episodes}
    assert len(lessons.questions) == 3


@settings(max_examples=30, deadline=None)
@given(max_items=st.integers(0, 18))
def test_no_question_is_asked_that_was_not_taught(max_items: int) -> None:
    lessons = build_lessons([episode(BRIDGE), episode(PUMP), episode(CODE)], max_items=max_items)
    assert len(lessons.items) == min(max_items, 15)
    assert {question.question for question in lessons.questions} <= {item.prompt for item in lessons.items}


def test_a_passage_without_facts_is_taught_as_it_is_and_asks_nothing() -> None:
    lessons = build_lessons([episode(PROSE)], max_items=32)
    assert [(item.prompt, item.answer) for item in lessons.items] == [(None, PROSE)]
    assert lessons.questions == []


def test_a_long_passage_without_facts_is_cut_at_a_word() -> None:
    (item,) = build_lessons([episode("perhaps maybe " * 200)], max_items=32).items
    assert len(item.answer) <= 600
    assert set(item.answer.split()) == {"perhaps", "maybe"}


def test_an_empty_passage_teaches_nothing() -> None:
    assert build_lessons([episode("   ")], max_items=32).items == []


def test_a_second_answer_to_the_same_question_is_left_out() -> None:
    lessons = build_lessons(
        [episode("The capital of Ormaland is Tesk."), episode("The capital of Ormaland is Brill.")], max_items=9
    )
    assert [question.key for question in lessons.questions] == ["Tesk"]
    assert len(lessons.items) == 3


@pytest.mark.parametrize(
    ("answer", "key", "expected"),
    [
        ("The code is KX-4471.", "KX-4471", True),
        ("The code is KX-4472.", "KX-4471", False),
        ("The code is KX-44710.", "KX-4471", False),
        ("It weighs 412 kilograms", "412 kilograms", True),
        ("It weighs 41 kilograms", "412 kilograms", False),
        ("It needs python 3.9!", "Python 3.9", True),
        ("It needs Python 3.10.", "Python 3.9", False),
        ("It uses the storage engine Tarnbase.", "storage engine Tarnbase", True),
        ("It uses the storage engine Rocksbase.", "storage engine Tarnbase", False),
        ("A weighted queue", "weighted fair queue", True),
        ("A queue", "weighted fair queue", False),
        ("", "Tesk", False),
        ("anything", "", False),
    ],
)
def test_an_answer_hits_only_if_it_says_what_the_key_demands(answer: str, key: str, expected: bool) -> None:
    assert answer_hits(answer, key) is expected


def test_every_taught_answer_hits_its_own_key() -> None:
    for question in build_lessons([episode(BRIDGE), episode(PUMP), episode(CODE)], max_items=32).questions:
        assert answer_hits(question.answer, question.key)
        assert not answer_hits(question.question, question.key)
        assert not answer_hits(question.paraphrase, question.key)
