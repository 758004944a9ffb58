"""The request log: masked, bounded, idempotent, erasable; confidence in closed form."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.requests import DAY_S, AnsweredRequest
from tests.unit.autonomous.feedback_life import NOW, FeedbackLife, asked, feedback_life


@pytest.fixture
def life(folder: Path) -> Iterator[FeedbackLife]:
    with feedback_life(folder, capacity=5, retention_days=2, max_text_chars=200) as life:
        yield life


def test_confidence_is_the_mean_log_probability_of_the_tokens() -> None:
    assert asked("q", log_prob=4 * math.log(0.5), num_output_tokens=4).confidence == pytest.approx(math.log(0.5))
    assert asked("q").confidence is None
    assert asked("q", log_prob=0.0, num_output_tokens=0).confidence is None


def test_a_request_is_kept_as_it_was_and_again_changes_nothing(life: FeedbackLife) -> None:
    request = asked(
        "Which bird?", log_prob=-2.0, num_output_tokens=4, is_retrieved=True, cosine=0.5, sources=("a", "b")
    )
    assert life.log.append([request]) == 1
    assert life.log.append([request]) == 0
    assert life.log.get(request.id) == request
    assert life.log.recent(10) == [request]


def test_personal_data_secrets_and_the_users_name_never_reach_the_disk(life: FeedbackLife) -> None:
    key = "ghp_" + "Zk3mQ8rT1vXw5yB7nC9dF2gH4jL6pS0aE8uR"
    life.log.append([asked("Is ann@example.org the owner?", answer=f"Yes, and the key is {key}", user="ann.private")])
    (kept,) = life.log.recent(1)
    assert kept.question == "Is <EMAIL> the owner?"
    life.database.checkpoint()
    on_disk = life.texts_on_disk()
    assert b"Yes, and the key is" in on_disk
    for secret in ("ann@example.org", key, "ann.private"):
        assert secret.encode() not in on_disk
    assert kept.user
    assert kept.user != "ann.private"


def test_a_secret_that_the_cut_would_halve_is_masked_before_it(life: FeedbackLife) -> None:
    life.log.append([asked("x" * 190 + " ann.smith@example.org")])
    assert "ann" not in life.log.recent(1)[0].question


def test_the_log_is_bounded_and_the_oldest_go_first(life: FeedbackLife) -> None:
    for number in range(9):
        life.log.append([asked(f"question {number}", at=NOW + number)])
    assert [one.question for one in life.log.recent(99)] == [f"question {number}" for number in (8, 7, 6, 5, 4)]


def test_a_batch_larger_than_the_log_leaves_its_newest(life: FeedbackLife) -> None:
    life.log.append([asked(f"question {number}", at=NOW + number) for number in range(50)])
    assert life.log.health()["num_requests"] == 5
    assert life.log.recent(1)[0].question == "question 49"


def test_what_is_too_old_is_neither_given_nor_kept(life: FeedbackLife) -> None:
    life.log.append([asked("old", at=NOW), asked("new", at=NOW + DAY_S)])
    life.clock.now = NOW + 2.5 * DAY_S
    assert [one.question for one in life.log.recent(9)] == ["new"]
    assert life.log.prune() == 1
    assert life.log.get(asked("old").id) is None


def test_a_request_whose_correction_is_no_document_yet_outlives_both_bounds(life: FeedbackLife) -> None:
    (key,) = life.ask("What colour is the gate?")
    life.vote(key, correction="The gate is green.")
    life.clock.now = NOW + 100 * DAY_S
    life.log.append([asked(f"question {number}", at=life.clock.now) for number in range(9)])
    assert life.log.get(key) is not None
    life.pipeline.collect()
    life.log.prune()
    assert life.log.get(key) is None


def test_tenants_that_opted_out_and_a_log_that_is_off_keep_nothing(folder: Path) -> None:
    with feedback_life(folder / "a", opted_out_tenants=("acme",)) as life:
        assert life.log.append([asked("a", tenant="acme"), asked("b", tenant="other")]) == 1
        assert [one.tenant for one in life.log.recent(9)] == ["other"]
    with feedback_life(folder / "b", is_logged=False) as life:
        assert life.log.append([asked("a")]) == 0


def test_a_request_that_the_stop_refuses_is_not_kept(life: FeedbackLife) -> None:
    def refuse() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        life.log.append([asked("a")], guard=refuse)
    assert life.log.recent(9) == []


def test_an_erased_request_leaves_no_word_on_disk_also_where_a_task_quoted_it(folder: Path) -> None:
    with feedback_life(folder) as life:
        keys = life.ask("Where does Zebulon moor?", "Where does Zebulon moor today?", "Where may Zebulon moor?")
        for key in keys:
            life.vote(key)
        life.pipeline.collect()
        assert len(life.tasks.list()) == 1
        for key in keys:
            assert life.log.forget(key)
            assert not life.log.forget(key)
        assert life.tasks.list() == []
        assert b"Zebulon" not in life.texts_on_disk()


def test_a_task_named_by_an_erased_question_goes_and_others_forget_the_question(folder: Path) -> None:
    with feedback_life(folder) as life:
        keys = life.ask("Where does Zebulon moor?", "Where does Zebulon moor today?", "Where may Zebulon moor?")
        for key in keys:
            life.vote(key)
        life.pipeline.collect()
        (task,) = life.tasks.list()
        others = [key for key, question in task.questions if question != task.question]
        life.log.forget(others[0])
        (left,) = life.tasks.list()
        assert others[0] not in dict(left.questions)
        life.log.forget(next(key for key, question in task.questions if question == task.question))
        assert life.tasks.list() == []


def test_all_requests_of_a_user_are_erased_and_no_others(life: FeedbackLife) -> None:
    life.log.append([asked("a", user="ann"), asked("b", user="ann"), asked("c", user="bob"), asked("d")])
    assert life.log.forget_user("Ann") == 2
    assert {one.question for one in life.log.recent(9)} == {"c", "d"}
    with pytest.raises(ValueError, match="user is empty"):
        life.log.forget_user("")
    for nobody in (" ", "\u200b"):  # the name of all who gave none
        with pytest.raises(ValueError, match="user is empty"):
            life.log.forget_user(nobody)
    assert len(life.log.recent(9)) == 2


def test_half_a_character_is_kept_as_a_replacement(life: FeedbackLife) -> None:
    life.log.append([AnsweredRequest("r", "half \ud800", "a", "v", NOW)])
    assert life.log.recent(1)[0].question == "half ?"
