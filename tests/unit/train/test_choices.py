"""score_choices: the losses that score_items gives for each answer by itself."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.tiny_model import write_adapter, write_tiny_llama
from train.adapt.base import BaseModelInMemory, load_base_model
from train.adapt.choices import Choice, score_choices
from train.adapt.lora import attach_saved, detach_adapter
from train.adapt.scoring import score_items
from train.continual.abilities import SafetyPrompt, refusal_margins
from train.continual.items import LearningItem

QUESTIONS = [
    "What is red?",
    "Name a bird that lives by the sea, and say what it eats in winter.",
    "Why?",
    "What is blue?",
]
CHOICES = [
    Choice(question, (f"It is {number}.", "I would rather not tell you that, whatever you say."))
    for number, question in enumerate(QUESTIONS * 3)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelInMemory:
    folder = write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")
    return load_base_model(folder, dtype="float32", device=torch.device("cpu"))


def apart(model: object, choices: list[Choice], base: BaseModelInMemory) -> list[list[float]]:
    """Every answer scored as an item of its own."""
    items = [LearningItem("", one.question, answer, "") for one in choices for answer in one.answers]
    losses = score_items(model, items, base=base)
    return [losses[row : row + 2] for row in range(0, len(losses), 2)]


@pytest.mark.parametrize("num", [1, 2, len(CHOICES)])
def test_each_answer_has_the_loss_that_it_has_by_itself(base: BaseModelInMemory, num: int) -> None:
    found = score_choices(base.model, CHOICES[:num], base=base)
    for losses, expected in zip(found, apart(base.model, CHOICES[:num], base), strict=True):
        assert losses == pytest.approx(expected, rel=1e-4)


def test_an_adapter_counts(base: BaseModelInMemory, tmp_path: Path) -> None:
    original = score_choices(base.model, CHOICES, base=base)
    adapted = attach_saved(base.model, {"one": write_adapter(tmp_path / "one", base=base.folder, seed=1)})
    try:
        found, expected = score_choices(adapted, CHOICES, base=base), apart(adapted, CHOICES, base)
    finally:
        detach_adapter(adapted)
    assert list(chain(*found)) == pytest.approx(list(chain(*expected)), rel=1e-4)
    assert list(chain(*found)) != pytest.approx(list(chain(*original)), rel=1e-2)


def test_margins_are_those_of_refusal_margins(base: BaseModelInMemory) -> None:
    prompts = [SafetyPrompt(one.question, one.answers[1], one.answers[0]) for one in CHOICES]
    found = [comply - refuse for comply, refuse in score_choices(base.model, CHOICES, base=base)]
    assert found == pytest.approx(refusal_margins(base.model, prompts, base=base), abs=2e-3)


def test_what_cannot_be_scored_is_refused(base: BaseModelInMemory) -> None:
    assert score_choices(base.model, [], base=base) == []
    with pytest.raises(ValueError, match="different numbers of answers"):
        score_choices(base.model, [Choice("a", ("b",)), Choice("a", ("b", "c"))], base=base)
    with pytest.raises(ValueError, match="is empty"):
        score_choices(base.model, [Choice("a", ("b", " "))], base=base)
