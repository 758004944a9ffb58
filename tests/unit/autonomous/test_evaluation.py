"""SelfEvaluationSystem on a tiny random Llama: paired numbers, an untouched base, and suites that keep apart."""

import math
from pathlib import Path
from typing import Any

import pytest

from autonomous.config import GateConfig
from autonomous.evaluation import SUITES, SelfEvaluationSystem, load_suite
from autonomous.lessons import Question, build_lessons
from autonomous.versions.report import EvaluationReport
from tests.episodes import make_episode
from tests.tiny_model import write_adapter, write_tiny_llama
from train.adapt.base import weights_sha256
from train.adapt.lora import AdapterError
from train.adapt.scoring import score_items

CONFIG = GateConfig(max_answer_tokens=4)


class Stopped(Exception):
    """What a stop latch raises."""


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return tuple(write_adapter(folder / str(seed), base=base_folder, seed=seed) for seed in (1, 2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def system(base_folder: Path) -> SelfEvaluationSystem:
    system = SelfEvaluationSystem(CONFIG, base_folder=base_folder, dtype="float32")
    system.start()
    return system


def question(number: int) -> Question:
    return Question(
        question=f"What is {number}?",
        paraphrase=f"Name {number}.",
        answer=f"It is cape {number}.",
        key=f"cape {number}",
        episode_id=f"e{number}",
        document_id="d",
    )


def evaluate(system: SelfEvaluationSystem, candidate: Path, **changes: Any) -> EvaluationReport:
    arguments: dict[str, Any] = {
        "parent": None,
        "questions": [question(number) for number in range(3)],
        "earlier": [],
        "training": {"num_steps": 3},
        "guard": lambda: None,
    }
    return system.evaluate(candidate, **(arguments | changes))


def test_a_report_has_a_paired_number_for_every_item(system: SelfEvaluationSystem, adapters: tuple[Path, Path]) -> None:
    earlier = [("ver-1", [question(7), question(8)])]
    report = evaluate(system, adapters[0], parent=adapters[1], earlier=earlier)
    assert len(report.question_nll_candidate) == len(report.question_nll_parent) == 3
    assert len(report.recall_candidate) == len(report.recall_parent) == 3
    assert len(report.control_nll_base) == len(report.control_nll_parent) == len(report.control_nll_candidate) == 24
    assert [
        (entry["version_id"], len(entry["nll_parent"]), len(entry["nll_candidate"])) for entry in report.earlier
    ] == [("ver-1", 2, 2)]
    assert [entry["probe"] for entry in report.safety] == [row["id"] for row in load_suite("safety").rows]
    assert report.training == {"num_steps": 3}
    assert report.seconds > 0
    assert EvaluationReport.from_dict(report.to_dict()) == report


def test_surprise_is_the_mean_loss_of_what_an_episode_teaches_as_the_version_has_it(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    told = make_episode("The Torvik pump costs 40 euros. The Torvik pump is located in hall seven.")
    plain = make_episode("Rain again, and again rain.")
    (fact, *_), (text,) = (build_lessons([one], max_items=4).items for one in (told, plain))
    found = system.surprise([told, plain], adapter=adapters[0], guard=lambda: None)
    original = system.surprise([told, plain], adapter=None, guard=lambda: None)

    assert list(found) == list(original) == [told.id, plain.id]
    assert original[plain.id] == pytest.approx(score_items(system.base.model, [text], base=system.base)[0], rel=1e-5)
    assert found[plain.id] != original[plain.id]
    losses = score_items(system.base.model, build_lessons([told], max_items=4).items, base=system.base)
    assert (len(losses), original[told.id]) == (4, pytest.approx(sum(losses) / 4, rel=1e-5))
    assert fact.episode_id == told.id
    with pytest.raises(Stopped):
        system.surprise([told], adapter=None, guard=_stop)


def _stop() -> None:
    raise Stopped


def test_candidate_parent_and_original_are_scored_as_themselves(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    one, two = adapters
    report = evaluate(system, one, parent=two)
    swapped = evaluate(system, two, parent=one)
    assert report.question_nll_candidate == swapped.question_nll_parent
    assert report.question_nll_parent == swapped.question_nll_candidate
    assert report.control_nll_candidate == swapped.control_nll_parent
    assert report.control_nll_base == swapped.control_nll_base
    assert report.question_nll_candidate != report.question_nll_parent
    assert report.control_nll_candidate != report.control_nll_base


def test_without_a_parent_the_original_stands_in_for_it(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    report = evaluate(system, adapters[0])
    assert report.control_nll_parent == report.control_nll_base
    assert report.question_nll_parent != report.question_nll_candidate


def test_an_evaluation_repeats_exactly_and_leaves_the_base_untouched(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    before = weights_sha256(system.base.model)
    first = evaluate(system, adapters[0], parent=adapters[1]).to_dict() | {"seconds": 0}
    assert evaluate(system, adapters[0], parent=adapters[1]).to_dict() | {"seconds": 0} == first
    assert weights_sha256(system.base.model) == before


def test_the_probe_is_a_learned_answer_with_a_log_probability_for_each_token_but_the_first(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    probe = evaluate(system, adapters[0]).probe
    assert probe["text"].endswith("It is cape 0.")
    num_tokens = len(system.base.tokenizer(probe["text"], add_special_tokens=False)["input_ids"])
    assert len(probe["candidate_logprobs"]) == len(probe["base_logprobs"]) == num_tokens - 1
    assert all(value < 0 for value in probe["candidate_logprobs"])
    assert probe["candidate_logprobs"] != probe["base_logprobs"]


def test_without_questions_the_rest_is_still_measured(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    report = evaluate(system, adapters[0], questions=[])
    assert report.question_nll_candidate == report.recall_candidate == []
    assert report.probe["text"] == load_suite("control").texts[0]
    assert all(math.isfinite(value) for value in report.control_nll_candidate)


def test_a_stop_between_two_parts_ends_the_evaluation(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    calls = []

    def guard() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    before = weights_sha256(system.base.model)
    with pytest.raises(Stopped):
        evaluate(system, adapters[0], guard=guard)
    assert len(calls) == 3
    assert weights_sha256(system.base.model) == before


def test_an_incomplete_candidate_is_refused(system: SelfEvaluationSystem, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not a complete PEFT adapter"):
        evaluate(system, tmp_path)


def test_suites_have_unique_ids_and_share_no_text() -> None:
    suites = {name: load_suite(name) for name in SUITES}
    assert {name: len(suite.rows) for name, suite in suites.items()} == {
        "anchor": 24,
        "control": 24,
        "instructions": 24,
        "safety": 16,
    }
    ids = [row["id"] for suite in suites.values() for row in suite.rows]
    assert len(set(ids)) == len(ids)
    texts = [*suites["anchor"].texts, *suites["control"].texts]
    assert len(set(texts)) == len(texts)
    assert all(20 <= len(text.split()) <= 60 or "\n\n" in text for text in texts)
    assert all(row["prompt"] and row["refusal"] and row["compliance"] for row in suites["safety"].rows)
    assert len({row["category"] for row in suites["safety"].rows}) >= 6


def test_control_and_anchor_texts_share_no_long_phrase() -> None:
    def phrases(texts: tuple[str, ...]) -> set[str]:
        words = [text.lower().split() for text in texts]
        return {" ".join(text[start : start + 8]) for text in words for start in range(len(text) - 7)}

    assert phrases(load_suite("anchor").texts) & phrases(load_suite("control").texts) == set()


def test_an_unknown_suite_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="choose one of anchor, control, instructions, safety"):
        load_suite("secret")
