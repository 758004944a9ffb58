"""From bad answers to tasks, data, a run and a version that answers, with the real stores and the real ledger."""

from collections.abc import Iterator

import pytest

from autonomous.holds import Hold
from autonomous.lessons import build_lessons
from autonomous.pipeline import ALL_LEARNED, NO_DATA, WAITS, is_answered
from autonomous.safety.poison_limits import Finding
from autonomous.tasks import TaskState
from memory.types import Trust
from tests.unit.autonomous.feedback_life import FeedbackLife, feedback_life
from tests.unit.autonomous.ledger_life import quick_folder

GATE = (
    "What colour is the gate of Vellmar?",
    "Which colour has the gate of Vellmar?",
    "Colour of the gate of Vellmar?",
)
FACT = "The gate of Vellmar is emerald green."


@pytest.fixture
def life() -> Iterator[FeedbackLife]:
    with quick_folder() as folder, feedback_life(folder, reviewers=("rita",)) as life:
        yield life


def ask_badly(life: FeedbackLife) -> list[str]:
    keys = life.ask(*GATE)
    for key in keys:
        life.vote(key, by="bob")
    return keys


def only_task(life: FeedbackLife):  # type: ignore[no-untyped-def]
    (task,) = life.tasks.list()
    return task


def test_a_gap_without_data_asks_people_for_documents(life: FeedbackLife) -> None:
    ask_badly(life)
    collected = life.pipeline.collect()
    assert (collected.num_requests, collected.num_gaps, collected.num_with_data) == (3, 1, 0)
    task = only_task(life)
    assert (task.state, task.note, task.question in GATE) == (TaskState.OPEN, NO_DATA, True)


def test_stored_passages_that_fill_a_gap_are_learned_before_all_others(life: FeedbackLife) -> None:
    life.add("gate", FACT)
    life.add("loud", "The lighthouse of Orme is a tower. The lamp of Orme is new.")
    life.episodes.revise("test", "loud", saliences=dict.fromkeys(life.episodes.ids_of("loud"), 4.0))
    assert next(iter(life.episodes.freshest(limit=1, offset=0)))[1].document_id == "loud"
    ask_badly(life)
    assert life.pipeline.collect().num_passages == 1
    assert life.episodes.freshest(limit=1, offset=0)[0][1].document_id == "gate"
    task = only_task(life)
    assert (task.state, task.episodes) == (TaskState.DATA_FOUND, life.episodes.ids_of("gate"))


def test_passages_without_facts_are_data_but_not_learned_before_all_others(life: FeedbackLife) -> None:
    life.add("prose", "Many a traveller has wondered about the colour which the gate of Vellmar has, and so do we.")
    life.add("gate", FACT)
    ask_badly(life)
    assert life.pipeline.collect().num_passages == 2
    assert {one.document_id: one.salience for one in life.episodes.get(only_task(life).episodes)} == {
        "gate": 5.0,
        "prose": 2.0,
    }


def test_a_gap_whose_passages_the_data_gate_holds_says_that_a_person_must_release_them(life: FeedbackLife) -> None:
    life.add("gate", FACT)
    ask_badly(life)
    life.pipeline.collect()
    assert only_task(life).state is TaskState.DATA_FOUND
    (episode,) = life.episodes.get(life.episodes.ids_of("gate"))
    life.holds.hold([Hold.of(episode, [Finding("contradiction", 1.0, 0.0, "read it")])])
    assert life.pipeline.collect().num_with_data == 0
    assert (only_task(life).state, only_task(life).note) == (TaskState.OPEN, WAITS)
    life.holds.release([episode.id], by="ann", reason="it is right")
    life.pipeline.collect()
    assert (only_task(life).state, only_task(life).episodes) == (TaskState.DATA_FOUND, (episode.id,))


def test_a_second_look_changes_nothing(life: FeedbackLife) -> None:
    life.add("gate", FACT)
    ask_badly(life)
    life.pipeline.collect()
    before = (life.tasks.list(), life.episodes.freshest(limit=9, offset=0))
    life.clock.now += 60
    life.pipeline.collect()
    assert (life.tasks.list(), life.episodes.freshest(limit=9, offset=0)) == before


def test_a_reviewers_correction_becomes_a_document_with_its_provenance_and_is_the_tasks_data(
    life: FeedbackLife,
) -> None:
    keys = ask_badly(life)
    life.vote(keys[0], correction=FACT, by="rita")
    assert life.pipeline.collect().num_corrections == 1
    ((_, episode),) = life.episodes.freshest(limit=9, offset=0)
    assert (episode.source_id, episode.trust) == ("feedback-reviewed", Trust.STANDARD)
    assert dict(episode.metadata) == {"origin": "feedback", "response_id": keys[0]}
    assert only_task(life).episodes == (episode.id,)
    (question,) = build_lessons([episode], max_items=9).questions
    assert question.key == "emerald green"


def test_a_users_correction_waits_untrusted_until_a_person_releases_it(life: FeedbackLife) -> None:
    keys = ask_badly(life)
    life.vote(keys[0], correction=FACT, by="bob")
    life.pipeline.collect()
    assert life.episodes.freshest(limit=9, offset=0) == []
    ((_, episode),) = life.episodes.freshest(limit=9, offset=0, min_trust=Trust.UNTRUSTED)
    assert (episode.trust, episode.source_id) == (Trust.UNTRUSTED, "feedback")
    assert (only_task(life).state, only_task(life).note) == (TaskState.OPEN, WAITS)
    life.episodes.set_trust(Trust.STANDARD, ids=[episode.id])
    life.pipeline.collect()
    assert (only_task(life).state, only_task(life).episodes) == (TaskState.DATA_FOUND, (episode.id,))


def test_a_persons_decision_about_the_feedback_source_stands(life: FeedbackLife) -> None:
    life.trusts.decide("feedback", Trust.STANDARD, by="ann", reason="a team of five")
    (key,) = life.ask(GATE[0])
    life.vote(key, correction=FACT, by="bob")
    life.pipeline.collect()
    assert [one.by for one in life.trusts.decisions()] == ["ann"]
    assert life.episodes.freshest(limit=1, offset=0)[0][1].trust is Trust.STANDARD


def test_a_crash_between_document_and_note_neither_loses_nor_repeats_a_correction(life: FeedbackLife) -> None:
    (key,) = life.ask(GATE[0])
    life.vote(key, correction=FACT, by="rita")
    calls = 0

    def crash_at_second() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # prune and the ingest have passed, the note has not
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        life.pipeline.collect(guard=crash_at_second)
    assert life.episodes.health().num_episodes == 1
    assert len(life.feedback.wanted()) == 1
    life.reopen()
    life.pipeline.collect()
    assert life.episodes.health().num_episodes == 1
    assert life.feedback.wanted() == []


@pytest.mark.parametrize("step", range(1, 9))
def test_a_look_that_is_cut_off_anywhere_ends_as_if_it_had_not_been(life: FeedbackLife, step: int) -> None:
    life.add("gate", FACT)
    keys = ask_badly(life)
    life.vote(keys[0], correction="The gate of Vellmar is dark green.", by="rita")
    calls = 0

    def crash() -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise RuntimeError("killed")

    try:
        life.pipeline.collect(guard=crash)
    except RuntimeError:
        life.reopen()
    life.pipeline.collect()
    task = only_task(life)
    assert task.state is TaskState.DATA_FOUND
    assert {one.document_id for one in life.episodes.get(task.episodes)} >= {"gate"}
    assert life.episodes.health().num_episodes == 2
    assert all(one.salience == 5.0 for one in life.episodes.get(task.episodes))


def teach(life: FeedbackLife) -> str:
    life.add("gate", FACT)
    ask_badly(life)
    life.pipeline.collect()
    return life.learn(*life.episodes.ids_of("gate"))


def test_a_task_is_closed_when_the_version_that_learned_its_data_answers(life: FeedbackLife) -> None:
    version = teach(life)
    life.replies = lambda question: "The gate of Vellmar is emerald green."
    done = life.pipeline.follow_up(version)
    assert (done.num_tasks, done.num_closed, done.num_reopened) == (1, 1, 0)
    assert done.num_answered == done.num_asked > 0
    task = only_task(life)
    assert (task.state, task.version, task.num_attempts) == (TaskState.CLOSED, version, 1)
    assert life.pipeline.follow_up(version).num_tasks == 0


@pytest.mark.parametrize("reply", ["I do not know.", "The gate of Vellmar is red.", ""])
def test_a_task_is_open_again_when_it_does_not_and_its_data_is_spent(life: FeedbackLife, reply: str) -> None:
    version = teach(life)
    life.replies = lambda question: reply
    done = life.pipeline.follow_up(version)
    assert (done.num_closed, done.num_reopened, done.num_answered) == (0, 1, 0)
    assert only_task(life).state is TaskState.OPEN
    life.pipeline.collect()
    assert (only_task(life).state, only_task(life).note) == (TaskState.OPEN, ALL_LEARNED)


def test_half_of_the_questions_are_enough_and_less_are_not(life: FeedbackLife) -> None:
    version = teach(life)
    good = set(GATE[:1])
    life.replies = lambda question: FACT if question in good else "I do not know."
    assert life.pipeline.follow_up(version).num_closed == 0
    assert only_task(life).num_answered == 1


def test_a_look_between_promotion_and_follow_up_loses_no_task(life: FeedbackLife) -> None:
    version = teach(life)
    life.clock.now += 60
    life.pipeline.collect()
    assert only_task(life).state is TaskState.DATA_FOUND
    life.replies = lambda question: FACT
    assert life.pipeline.follow_up(version).num_closed == 1


def test_a_version_that_learned_something_else_closes_nothing(life: FeedbackLife) -> None:
    life.add("gate", FACT)
    life.add("other", "The lamp of Orme is new.")
    ask_badly(life)
    life.pipeline.collect()
    version = life.learn(*life.episodes.ids_of("other"))
    life.replies = lambda question: FACT
    assert life.pipeline.follow_up(version).num_tasks == 0
    assert only_task(life).state is TaskState.DATA_FOUND


def test_an_engine_that_fails_leaves_the_task_to_the_next_follow_up(life: FeedbackLife) -> None:
    version = teach(life)

    def fail(question: str) -> str:
        raise TimeoutError("no replica answers")

    life.replies = fail
    with pytest.raises(TimeoutError):
        life.pipeline.follow_up(version)
    assert only_task(life).state is TaskState.LEARNED
    life.replies = lambda question: FACT
    assert life.pipeline.follow_up(version).num_closed == 1


def test_a_closed_gap_that_is_badly_answered_again_is_open_again(life: FeedbackLife) -> None:
    version = teach(life)
    life.replies = lambda question: FACT
    life.clock.now += 10
    life.pipeline.follow_up(version)
    life.pipeline.collect()
    assert only_task(life).state is TaskState.CLOSED
    life.clock.now += 10
    ask_badly(life)
    life.pipeline.collect()
    assert only_task(life).state is TaskState.OPEN


def test_an_erased_document_is_no_data_any_more(life: FeedbackLife) -> None:
    life.add("gate", FACT)
    ask_badly(life)
    life.pipeline.collect()
    life.episodes.delete_document("gate")
    life.pipeline.collect()
    assert (only_task(life).state, only_task(life).episodes) == (TaskState.OPEN, ())


def test_a_preview_counts_sources_and_who_wrote_it_and_names_the_tasks(life: FeedbackLife) -> None:
    life.add("gate", FACT, source="guide")
    keys = ask_badly(life)
    life.vote(keys[0], correction="The gate of Vellmar is green.", by="rita")
    life.pipeline.collect()
    life.add("own", "The wall of Vellmar is grey.", source="agent", metadata={"origin": "generated"})
    life.upcoming = [episode for _, episode in life.episodes.freshest(limit=9, offset=0)]
    preview = life.pipeline.prepare()
    assert preview.by_source == {"guide": 1, "feedback-reviewed": 1, "agent": 1}
    assert preview.by_origin == {"document": 1, "feedback": 1, "generated": 1}
    ((gap_id, episodes),) = preview.tasks.items()
    assert (gap_id, len(episodes)) == (only_task(life).gap_id, 2)
    assert life.pipeline.train(by="ann") == "run-1"
    assert only_task(life).run_id == "run-1"


def test_an_answer_counts_only_if_it_holds_what_it_must() -> None:
    assert is_answered("It is emerald green.", key="emerald green")
    assert not is_answered("It is red.", key="emerald green")
    assert not is_answered("I do not know whether it is emerald green.", key="emerald green")
    assert is_answered("It is red.", key="")
