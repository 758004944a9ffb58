"""What a retraining chose to be labelled: kept, shown first, until somebody has voted or it is erased."""

from collections.abc import Iterator

import pytest

from autonomous.feedback_desk import FeedbackDesk
from autonomous.label_queue import LabelQueue
from memory.store import no_guard
from tests.unit.autonomous.feedback_life import FeedbackLife, feedback_life
from tests.unit.autonomous.ledger_life import quick_folder

QUESTIONS = ("apple orchard", "violin maker", "copper kettle", "northern light", "paper boat")


@pytest.fixture
def life() -> Iterator[FeedbackLife]:
    with quick_folder() as folder, feedback_life(folder, explored_share=0.0) as life:
        yield life


def desk_of(life: FeedbackLife) -> FeedbackDesk:
    return FeedbackDesk(
        life.config,
        log=life.log,
        feedback=life.feedback,
        to_label=LabelQueue(life.database, clock=life.clock),
        pipeline=life.pipeline,
        embed=life.embedder.embed,
        guard=lambda: no_guard,
    )


def ask_all(life: FeedbackLife) -> list[str]:
    """Each less sure than the one before it."""
    return [
        life.ask(question, log_prob=-float(place + 1), num_output_tokens=1)[0]
        for place, question in enumerate(QUESTIONS)
    ]


def queue_of(life: FeedbackLife, limit: int = 9) -> list[str]:
    return [row["response_id"] for row in desk_of(life).labelling_queue(limit)]


def test_the_most_uncertain_are_chosen_shown_first_and_kept_over_a_restart(life: FeedbackLife) -> None:
    keys = ask_all(life)
    chosen = desk_of(life).choose_to_label(2)
    assert len(chosen) == 2
    assert keys[-1] in chosen
    life.clock.now += 60
    (surer,) = life.ask("silver spoon", log_prob=-9.0, num_output_tokens=1)  # less sure than all, but later
    life.reopen()
    rows = desk_of(life).labelling_queue(9)
    assert [row["response_id"] for row in rows[:2]] == chosen
    assert [row["chosen_at"] is not None for row in rows] == [True, True, *[False] * 4]
    assert rows[0]["confidence"] == -5.0
    assert {row["response_id"] for row in rows} == {*keys, surer}
    assert queue_of(life, 1) == chosen[:1]


def test_choosing_again_changes_nothing_and_fills_up_what_was_labelled(life: FeedbackLife) -> None:
    keys = ask_all(life)
    first = desk_of(life).choose_to_label(2)
    assert desk_of(life).choose_to_label(2) == first
    life.vote(first[0], by="bob")
    second = desk_of(life).choose_to_label(2)
    assert second[0] == first[1]
    assert len(second) == 2
    assert first[0] not in second
    assert first[0] not in queue_of(life)
    assert set(queue_of(life)) == {*keys} - {first[0]}
    assert desk_of(life).choose_to_label(0) == second


def test_what_is_erased_is_in_no_queue_and_leaves_no_row(life: FeedbackLife) -> None:
    ask_all(life)
    gone, kept = desk_of(life).choose_to_label(2)
    desk_of(life).forget_response(gone)
    (asked,) = life.ask("silver spoon", user="cleo", log_prob=-9.0, num_output_tokens=1)
    assert desk_of(life).choose_to_label(2) == [kept, asked]
    desk_of(life).forget_person("cleo")
    assert LabelQueue(life.database, clock=life.clock).waiting().keys() == {kept}
    with life.database.read() as connection:
        assert connection.execute("SELECT response_id FROM to_label").fetchall() == [(kept,)]


def test_an_answer_that_is_not_in_the_log_is_not_queued(life: FeedbackLife) -> None:
    queue = LabelQueue(life.database, clock=life.clock)
    queue.put(["chatcmpl-unknown"])
    assert queue.waiting() == {}


def test_a_stop_forbids_choosing(life: FeedbackLife) -> None:
    def stopped() -> None:
        raise RuntimeError("stopped")

    ask_all(life)
    with pytest.raises(RuntimeError, match="stopped"):
        LabelQueue(life.database, clock=life.clock).put(ask_all(life), guard=stopped)
    assert LabelQueue(life.database, clock=life.clock).waiting() == {}
