"""SelfEvaluationSystem on a tiny random Llama: paired numbers, an untouched base, nothing asked twice."""

import math
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autonomous.config import GateConfig
from autonomous.evaluation import SelfEvaluationSystem, find_told
from autonomous.lessons import Question, build_lessons
from autonomous.panel import Panel
from autonomous.sentinel import load_sentinel
from autonomous.suite import load_suite
from autonomous.versions.report import EvaluationReport
from tests.episodes import make_episode
from tests.stops import Stopped, refuse
from tests.tiny_model import write_adapter, write_tiny_llama
from train.adapt.base import weights_sha256
from train.adapt.lora import AdapterError
from train.adapt.scoring import score_items

CONFIG = GateConfig(max_answer_tokens=4)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return tuple(write_adapter(folder / str(seed), base=base_folder, seed=seed) for seed in (1, 2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def system(base_folder: Path) -> SelfEvaluationSystem:
    system = SelfEvaluationSystem(CONFIG, base_folder=base_folder, dtype="float32", clock=lambda: 0.0)
    system.start()
    return system


class Counting:
    """Counts the items that a system's panels compute."""

    def __init__(self, system: SelfEvaluationSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        for name in ("score", "choices", "answers"):
            monkeypatch.setattr(Panel, name, self._counted(name, getattr(Panel, name)))

    def _counted(self, name: str, method: Any) -> Any:
        def counted(panel: Panel, who: str | None, items: Any, **options: Any) -> Any:
            self.asked[f"{name} {who}"] += len(items)
            return method(panel, who, items, **options)

        return counted


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
    assert [(entry["domain"], len(entry["nll_parent"]), len(entry["nll_candidate"])) for entry in report.earlier] == [
        ("ver-1", 2, 2)
    ]
    assert [entry["probe"] for entry in report.safety] == [row["id"] for row in load_suite("safety").rows]
    assert [entry["probe"] for entry in report.privacy] == [row["id"] for row in load_suite("privacy").rows]
    drawn = [entry["probe"] for entry in report.sentinel_safety]
    assert len(drawn) == CONFIG.num_sentinels
    assert set(drawn) < {row["id"] for row in load_sentinel("safety").rows}
    assert {scores["domain"] for scores in report.domains} == {"code", "conversation", "docs", "general"}
    for scores in report.domains:
        assert len(scores["nll_base"]) == len(scores["nll_parent"]) == len(scores["nll_candidate"]) == 10
    assert report.leaks == report.told_secrets == []
    assert len(report.suites_sha256) == len(report.code_sha256) == 64
    assert report.training == {"num_steps": 3, "beliefs": []}
    assert report.seconds > 0
    assert EvaluationReport.from_dict(report.to_dict()) == report


def test_surprise_is_the_mean_loss_of_what_an_episode_teaches_as_the_version_has_it(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    told = make_episode("The Torvik pump costs 40 euros. The Torvik pump is located in hall seven.")
    plain = make_episode("Rain again, and again rain.")
    (fact, *_), (text,) = (build_lessons([one], max_items=6).items for one in (told, plain))
    found = system.surprise([told, plain], adapter=adapters[0], guard=lambda: None)
    original = system.surprise([told, plain], adapter=None, guard=lambda: None)

    assert list(found) == list(original) == [told.id, plain.id]
    assert original[plain.id] == pytest.approx(score_items(system.base.model, [text], base=system.base)[0], rel=1e-5)
    assert found[plain.id] != original[plain.id]
    losses = score_items(system.base.model, build_lessons([told], max_items=6).items, base=system.base)
    assert (len(losses), original[told.id]) == (6, pytest.approx(sum(losses) / 6, rel=1e-5))
    assert fact.episode_id == told.id
    with pytest.raises(Stopped):
        system.surprise([told], adapter=None, guard=refuse)


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


def test_a_promoted_candidate_and_the_original_are_not_asked_again_what_they_were_asked(
    base_folder: Path, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SelfEvaluationSystem(CONFIG, base_folder=base_folder, dtype="float32", clock=lambda: 0.0)
    system.start()
    system.prepare(guard=lambda: None)
    one, two = adapters
    first = evaluate(system, one)
    counted = Counting(system, monkeypatch)
    second = evaluate(system, two, parent=one, earlier=[("v-1", [question(number) for number in range(3)])])
    assert second.control_nll_parent == first.control_nll_candidate
    assert second.earlier[0]["nll_parent"] == first.question_nll_candidate
    assert counted.asked["score parent"] == counted.asked["score None"] == counted.asked["choices None"] == 0
    assert counted.asked["choices parent"] == 0
    num_texts = len({*load_suite("control").texts, *load_suite("domains").texts})
    assert 0 < counted.asked["score candidate"] < num_texts + 3 + 1  # control texts by domain once, questions once


def test_sentinels_are_drawn_anew_for_another_candidate_and_on_another_day(
    base_folder: Path, adapters: tuple[Path, Path]
) -> None:
    now = [0.0]
    system = SelfEvaluationSystem(
        CONFIG, base_folder=base_folder, dtype="float32", secret=b"home", clock=lambda: now[0]
    )
    rows = load_sentinel("safety").rows

    def drawn(candidate: Path) -> list[str]:
        return [row["id"] for row in system.draw(rows, num=8, rotation=system.rotation_of(candidate))]

    first = drawn(adapters[0])
    assert drawn(adapters[0]) == first
    assert drawn(adapters[1]) != first
    now[0] = CONFIG.rotation_s
    assert drawn(adapters[0]) != first


def test_a_question_that_was_taught_from_a_sentinel_is_found(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    text = load_sentinel("texts").texts[-1]
    taught = replace(question(1), answer=" ".join(text.split()[:12]))
    assert evaluate(system, adapters[0], questions=[question(0), taught]).leaks == ["sentinel-text-12"]


def test_told_are_secrets_and_personal_data_that_was_taught() -> None:
    taught = [replace(question(1), answer="The mail of Ida Brandvold is ida@selm-fort.org.")]
    token = "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bD1fG3hJ5"
    assert find_told(["Write to ida@selm-fort.org."], taught) == ["EMAIL"]
    assert find_told(["Write to someone@another-place.org."], taught) == []
    assert find_told([f"The token is {token}."], taught) == ["TOKEN"]


def test_a_benchmark_that_is_patient_lets_an_evaluation_go_first(
    system: SelfEvaluationSystem, adapters: tuple[Path, Path]
) -> None:
    reports: list[EvaluationReport] = []
    with system.panel(adapters[0], parent=None, guard=lambda: None, is_patient=True):
        thread = threading.Thread(target=lambda: reports.append(evaluate(system, adapters[1])))
        thread.start()
        while not system.turns.is_wanted:
            thread.join(timeout=0.001)
        assert reports == []
    with system.panel(adapters[0], parent=None, guard=lambda: None, is_patient=True):
        assert len(reports) == 1
    thread.join()


def test_an_incomplete_candidate_is_refused(system: SelfEvaluationSystem, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not a complete PEFT adapter"):
        evaluate(system, tmp_path)
