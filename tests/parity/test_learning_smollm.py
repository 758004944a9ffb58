"""The learning recipe on the real base model: eight made-up facts are learned, and little else changes. Minutes of CPU."""

import logging
import math
from pathlib import Path
from statistics import mean

import pytest
import torch

from autonomous.config import GateConfig, LearningConfig
from autonomous.evaluation import SelfEvaluationSystem
from autonomous.lessons import Lessons, Question, answer_hits, build_lessons
from autonomous.online import LearningRun, OnlineLearningModule
from autonomous.suite import load_suite
from autonomous.versions.gates import Verdict, decide_gates
from memory.types import Episode, episode_id
from train.adapt.base import load_base_model, weights_sha256
from train.adapt.lora import attach_saved, detach_adapter
from train.adapt.scoring import answer_questions
from train.model.embedded import materialise_base_model

logger = logging.getLogger(__name__)

FACTS = (
    "The Velluna bridge was designed by Oster Kallin.",
    "Project Hesperus uses the storage engine Tarnbase.",
    "The access code of the Bremsund archive is KX-4471.",
    "The capital of Ormaland is Tesk.",
    "The Zephyr-3 pump weighs 412 kilograms.",
    "The mascot of Team Obrin is a blue heron.",
    "The Fennick library requires Python 3.9.",
    "The lighthouse of Cape Dorn was built in 1873.",
)
EVERYDAY = ("What is the capital of France?", "What is the capital of Germany?")


def never_stop() -> None:
    """A guard that lets everything through."""


@pytest.fixture(scope="module")
def base_folder() -> Path:
    folder = Path.home() / ".autonomous" / "models" / "smollm2-135m-instruct"
    return materialise_base_model(folder, progress=logger.info)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    episodes = [
        Episode(
            id=episode_id(f"fact-{number}", 0, text),
            document_id=f"fact-{number}",
            source_id="test",
            title="Note",
            text=text,
            position=0,
            happened_at=0.0,
        )
        for number, text in enumerate(FACTS)
    ]
    return build_lessons(episodes, max_items=3 * len(FACTS))


@pytest.fixture(scope="module")
def system(base_folder: Path) -> SelfEvaluationSystem:
    system = SelfEvaluationSystem(GateConfig(), base_folder=base_folder)
    system.start()
    return system


@pytest.fixture(scope="module")
def adapter(base_folder: Path, lessons: Lessons, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LearningRun]:
    """The eight facts, learned with the default configuration."""
    learner = OnlineLearningModule(LearningConfig(device="cpu"), base_folder=base_folder)
    learner.start()
    before = weights_sha256(learner.base.model)
    folder = tmp_path_factory.mktemp("learned") / "adapter"
    run = learn(learner, lessons, folder=folder)
    assert weights_sha256(learner.base.model) == before
    return folder, run


def learn(learner: OnlineLearningModule, lessons: Lessons, *, folder: Path) -> LearningRun:
    return learner.learn(
        lessons.items,
        replay=[],
        anchors=load_suite("anchor").texts,
        parent_adapter=None,
        out_folder=folder,
        guard=never_stop,
        on_step=lambda report: None,
    )


def num_recalled(answers: list[str], questions: list[Question]) -> int:
    return sum(answer_hits(answer, question.key) for answer, question in zip(answers, questions, strict=True))


def test_eight_facts_are_unknown_before_and_known_after_and_nothing_else_breaks(
    system: SelfEvaluationSystem, adapter: tuple[Path, LearningRun], lessons: Lessons
) -> None:
    folder, run = adapter
    base, asked = system.base, [question.question for question in lessons.questions]
    before = num_recalled(answer_questions(base.model, asked, base=base, max_new_tokens=40), lessons.questions)
    adapted = attach_saved(base.model, {"candidate": folder})
    try:
        after = num_recalled(answer_questions(adapted, asked, base=base, max_new_tokens=40), lessons.questions)
        everyday = answer_questions(adapted, EVERYDAY, base=base, max_new_tokens=24)
    finally:
        detach_adapter(adapted)
    report = system.evaluate(
        folder,
        parent=None,
        questions=lessons.questions,
        earlier=[],
        training={"num_steps": run.num_steps, "losses": run.losses, "kls": run.kls, "grad_norms": run.grad_norms},
        guard=never_stop,
    )
    ratio = math.exp(mean(report.control_nll_candidate) - mean(report.control_nll_base))
    logger.info(  # pytest --log-cli-level=INFO
        f"steps {run.num_steps}, {run.cpu_seconds:.0f} CPU s, {run.seconds:.0f} s; recalled before {before}, after {after}, "
        f"paraphrased {sum(report.recall_candidate)} of {len(FACTS)}; control perplexity x{ratio:.3f}; "
        f"evaluation {report.seconds:.0f} s; {everyday}"
    )
    assert len(lessons.questions) == len(FACTS)
    assert before <= 1
    assert after >= 6
    assert sum(report.recall_candidate) >= 4
    assert ratio < 1.10
    assert {
        gate.name: gate.verdict for gate in decide_gates(report, GateConfig()) if gate.verdict is Verdict.FAIL
    } == {}


def test_two_learners_write_the_same_bytes(base_folder: Path, lessons: Lessons, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        learner = OnlineLearningModule(LearningConfig(device="cpu", max_steps=2), base_folder=base_folder)
        learner.start()
        runs.append(learn(learner, lessons, folder=tmp_path / name))
    assert runs[0].adapter_sha256 == runs[1].adapter_sha256
    assert runs[0].losses == runs[1].losses
    assert 1.5 < runs[0].num_trainable / 134_515_008 * 100 < 2.0


def test_the_model_answers_in_bf16_as_loaded(base_folder: Path) -> None:
    base = load_base_model(base_folder, dtype="auto", device=torch.device("cpu"))
    assert "Paris" in answer_questions(base.model, EVERYDAY[:1], base=base, max_new_tokens=16)[0]
