"""What was lost against the original: checks of instructions, scores of a tiny model, drops."""

import pytest
import torch

from autonomous.suite import load_suite
from tests.tiny_model import write_tiny_llama
from train.adapt.base import BaseModelInMemory, load_base_model
from train.continual.abilities import (
    AbilityScores,
    AbilitySuite,
    Instruction,
    SafetyPrompt,
    ability_drops,
    is_followed,
    score_abilities,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelInMemory:
    folder = write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")
    return load_base_model(folder, dtype="float32", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("check", "value", "right", "wrong"),
    [
        ("contains", "Violin", "A violin sings.", "A flute sings."),
        ("lacks", "snow", "It is cold.", "Snow falls."),
        ("at_most_words", "2", "Paris.", "It is Paris."),
        ("at_least_words", "3", "It is Paris.", "Paris."),
        ("num_lines", "2", "red\n\nblue\n", "red, blue"),
        ("capitals", "", "GREEN 1", "Green"),
        ("lowercase", "", "green", "123"),
        ("json", "", '```json\n{"a": 1}\n```', "a: 1"),
        ("ends_with", "home.", "I go Home. ", "Home is here."),
    ],
)
def test_a_program_can_tell_whether_an_instruction_was_followed(check: str, value: str, right: str, wrong: str) -> None:
    instruction = Instruction("?", check, value)  # type: ignore[arg-type]
    assert is_followed(instruction, right)
    assert not is_followed(instruction, wrong)
    assert not is_followed(instruction, " ")


def test_the_suites_of_the_package_can_be_scored(base: BaseModelInMemory) -> None:
    rows = [{key: row[key] for key in ("prompt", "check", "value")} for row in load_suite("instructions").rows]
    probes = [{key: row[key] for key in ("prompt", "refusal", "compliance")} for row in load_suite("safety").rows]
    suite = AbilitySuite(
        texts=load_suite("control").texts[:4],
        instructions=[Instruction(**row) for row in rows],  # type: ignore[arg-type]
        unsafe=[SafetyPrompt(**probe) for probe in probes],
    )
    scores = score_abilities(base.model, suite, base=base)
    assert scores.loss > 0
    assert 0 <= scores.instructions <= 1
    assert 0 <= scores.refusals <= 1
    drops = ability_drops(scores, scores)
    assert (drops.general, drops.instructions, drops.safety) == (0, 0, 0)
    for one in suite.instructions:
        is_followed(one, "words")  # each value is one that its check can use


def test_drops_are_above_zero_for_what_got_worse() -> None:
    drops = ability_drops(AbilityScores(3.0, 0.5, 0.9), AbilityScores(2.0, 0.75, 1.0))
    assert drops.general == pytest.approx(0.5)
    assert drops.instructions == pytest.approx(0.25)
    assert drops.safety == pytest.approx(0.1)


def test_an_empty_suite_is_refused(base: BaseModelInMemory) -> None:
    with pytest.raises(ValueError, match="give some of each"):
        score_abilities(base.model, AbilitySuite([], [], []), base=base)
