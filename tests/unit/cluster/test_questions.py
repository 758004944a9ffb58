"""The sets of questions that recall is measured by: generated ones, and the files that others made."""

import json
from pathlib import Path

import pytest

from cluster.bench_questions import (
    DEVELOPMENT_SEED,
    LOCOMO_VARIABLE,
    TEST_SEED,
    generate_conversations,
    load_given,
    load_locomo,
    load_longmemeval,
)

LOCOMO = [
    {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ada", "speaker_b": "Ben",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ada", "dia_id": "D1:1", "text": "I adopted a cat!"},
                {"speaker": "Ben", "dia_id": "D1:2", "text": "Look at this.", "blip_caption": "a red car"},
            ],
            "session_2_date_time": "2 June, 2023",
            "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "I moved to Porto."}],
        },
        "qa": [
            {"question": "What did Ada adopt?", "answer": "a cat", "evidence": ["D1:1"], "category": 4},
            {"question": "Who moved?", "answer": "Ben", "evidence": ["D1:2; D2:1"], "category": 1},
            {"question": "Adversarial?", "answer": "no", "evidence": ["D1:1"], "category": 5},
            {"question": "No evidence?", "answer": "no", "evidence": [], "category": 2},
        ],
    }
]  # fmt: skip
LONGMEMEVAL = [
    {
        "question_id": "q1", "question_type": "single-session-user", "question": "What is my cat called?",
        "haystack_session_ids": ["a", "b"], "haystack_dates": ["2023/05/01", "2023/05/02"],
        "haystack_sessions": [
            [{"role": "user", "content": "My cat is called Pixel."}], [{"role": "user", "content": "Nice weather."}],
        ],
        "answer_session_ids": ["a"],
    }
]  # fmt: skip


def test_locomo_is_a_turn_per_episode_and_the_evidence_of_four_categories(tmp_path: Path) -> None:
    path = tmp_path / "locomo10.json"
    path.write_text(json.dumps(LOCOMO), encoding="utf-8")
    (found,) = load_locomo(path)

    assert [episode.text for episode in found.episodes] == [
        "[1:56 pm on 8 May, 2023] Ada: I adopted a cat!",
        "[1:56 pm on 8 May, 2023] Ben: Look at this. [image: a red car]",
        "[2 June, 2023] Ben: I moved to Porto.",
    ]
    ids = [episode.id for episode in found.episodes]
    assert [(one.text, one.category, one.evidence) for one in found.questions] == [
        ("What did Ada adopt?", "locomo 4", {ids[0]}), ("Who moved?", "locomo 1", {ids[1], ids[2]}),
    ]  # fmt: skip


def test_longmemeval_is_a_session_per_episode(tmp_path: Path) -> None:
    path = tmp_path / "longmemeval.json"
    path.write_text(json.dumps(LONGMEMEVAL), encoding="utf-8")
    (found,) = load_longmemeval(path)
    assert found.questions[0].evidence == {found.episodes[0].id}
    assert found.episodes[0].text == "[2023/05/01]\nuser: My cat is called Pixel."


def test_sets_are_given_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCOMO_VARIABLE, raising=False)
    assert load_given() == []
    path = tmp_path / "locomo10.json"
    path.write_text(json.dumps(LOCOMO), encoding="utf-8")
    monkeypatch.setenv(LOCOMO_VARIABLE, str(path))
    assert [one.name for one in load_given()] == ["locomo conv-1"]


def test_conversations_derive_from_their_seed_and_their_evidence_stands_in_them() -> None:
    first, again = (generate_conversations(DEVELOPMENT_SEED, num=2) for _ in range(2))
    assert first == again
    assert first != generate_conversations(TEST_SEED, num=2)
    for talk in first:
        ids = {episode.id for episode in talk.episodes}
        assert len(ids) == len(talk.episodes) > 250
        assert {one.category for one in talk.questions} == {"change", "date", "list", "reworded", "single"}
        assert all(one.evidence and one.evidence <= ids for one in talk.questions)
        times = [episode.happened_at for episode in talk.episodes]
        assert times == sorted(times)
