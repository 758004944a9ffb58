"""The loop over tasks: a plain one without methods, exact after a cut, untouched by a task without data."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.continual import (
    FIRST,
    SECOND,
    THIRD,
    adamw,
    labelled_batch,
    learn,
    mlp,
    sgd,
    tiny_moe,
    writer,
    written_batch,
)  # fmt: skip
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.mixing import BatchReplay
from train.continual.packnet import PackNet
from train.continual.rows import Batch
from train.continual.si import SynapticIntelligence
from train.continual.trainer import ContinualTrainer


def test_without_methods_the_loop_is_a_plain_one():
    model, plain = mlp(), mlp()
    learn(ContinualTrainer(model, "classifier", methods=[], optimizer=adamw), FIRST)
    optimizer = adamw(list(plain.parameters()))
    for step in range(6):
        batch = labelled_batch(seed=step, classes=(0, 1))
        optimizer.zero_grad()
        F.cross_entropy(plain(batch["x"]), batch["y"]).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _all_methods() -> list[ContinualMethod]:
    return [EWCRegularizer(EWCConfig(strength=10.0)), SynapticIntelligence(), LearningWithoutForgetting(), PackNet()]


@pytest.mark.parametrize("cut", [3, 6, 8])
def test_a_run_that_is_cut_off_in_the_midst_of_a_task_goes_on_bit_for_bit(tmp_path: Any, cut: int):
    class Cut(Exception):
        pass

    def trainer() -> ContinualTrainer:
        return ContinualTrainer(mlp(), "classifier", methods=_all_methods(), optimizer=adamw)

    whole, first = trainer(), trainer()
    learn(whole, FIRST)
    learn(whole, SECOND)
    learn(first, FIRST)

    def stop(step: int, _: Any) -> None:
        if step == cut:
            torch.save(first.state_dict(), tmp_path / "state")
            raise Cut

    def source(step: int) -> Batch:
        return labelled_batch(seed=100 + step, classes=(2, 3))

    with pytest.raises(Cut):
        first.learn(SECOND, source, num_steps=6, samples=lambda: [source(step) for step in range(3)], on_step=stop)
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state"), task=SECOND)
    learn(resumed, SECOND)
    learn(whole, THIRD)
    learn(resumed, THIRD)
    for ours, theirs in zip(resumed.learner.model.parameters(), whole.learner.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_task_without_data_is_refused_and_changes_nothing():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="task 'first' has 0 steps: give it data"):
        learn(ContinualTrainer(model, "classifier", methods=_all_methods(), optimizer=sgd), FIRST, steps=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_task_that_is_hardly_learned_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for strength, is_told in ((1e9, True), (1.0, False)):
        caplog.clear()
        trainer = ContinualTrainer(
            mlp(), "classifier", methods=[EWCRegularizer(EWCConfig(strength=strength))], optimizer=adamw
        )
        learn(trainer, FIRST, steps=30)
        learn(trainer, SECOND, steps=30)
        assert ("Task 'second' was hardly learned" in caplog.text) == is_told
        assert "'first'" not in caplog.text


def test_labels_that_the_model_or_the_task_does_not_have_are_refused_and_change_nothing() -> None:
    trainer = ContinualTrainer(mlp(), "classifier", methods=[], optimizer=adamw)
    before = copy.deepcopy(trainer.learner.model.state_dict())
    beyond = labelled_batch(seed=0) | {"y": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])}
    with pytest.raises(ValueError, match="a batch has label 6, and the model tells 0 to 5"):
        trainer.learn(FIRST, lambda _: beyond, num_steps=1, samples=list)
    other = ContinualTrainer(mlp(), "classifier", methods=[], optimizer=adamw)
    allowed = torch.tensor([True, True, False, False, False, False]).expand(8, 6)
    with pytest.raises(ValueError, match="a label that its `allowed` leaves out"):
        other.learn(FIRST, lambda _: labelled_batch(seed=0) | {"allowed": allowed}, num_steps=1, samples=list)
    for one in (trainer, other):
        for name, value in one.learner.model.state_dict().items():
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("build", [writer, tiny_moe], ids=["transformers", "ours"])
def test_a_language_model_of_either_kind_learns_with_methods_together_and_goes_on_exactly(build: Any) -> None:
    def trainer() -> ContinualTrainer:
        methods = [EWCRegularizer(), SynapticIntelligence(), LearningWithoutForgetting(), BatchReplay()]
        return ContinualTrainer(build(), "causal", methods=methods, optimizer=adamw)

    def learn_words(one: ContinualTrainer, task: Task) -> list[float]:
        losses: list[float] = []
        one.learn(
            task, lambda step: written_batch(seed=100 * task.index + step, begin=10 * task.index), num_steps=10,
            samples=lambda: [written_batch(seed=100 * task.index, begin=10 * task.index)],
            on_step=lambda _, record: losses.append(record.loss),
        )  # fmt: skip
        return losses

    whole, first = trainer(), trainer()
    losses = learn_words(whole, FIRST)
    assert losses[-1] < losses[0] - 0.5
    learn_words(whole, SECOND)
    learn_words(first, FIRST)
    resumed = trainer()
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    learn_words(resumed, SECOND)
    ours, theirs = resumed.learner.model.state_dict(), whole.learner.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
