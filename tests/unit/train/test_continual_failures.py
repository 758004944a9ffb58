"""What the loop over tasks refuses before anything changes, and tasks that fail: gone on with, or given up."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.continual import (
    FIRST,
    SECOND,
    TEXTS,
    THIRD,
    adamw,
    all_methods,
    labelled_batch,
    learn,
    mlp,
    sgd,
    writer,
    written_batch,
)  # fmt: skip
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.finetune import ContinualFineTuning, FineTuningConfig
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.packnet import PackNet
from train.continual.progressive import ProgressiveColumns, ProgressiveNetworks
from train.continual.rows import Batch, trainable
from train.continual.si import SynapticIntelligence
from train.continual.step import Diverged
from train.continual.trainer import ContinualTrainer


def test_a_task_whose_samples_are_none_is_refused_before_anything_is_trained() -> None:
    trainer = ContinualTrainer(mlp(), "classifier", methods=all_methods(), optimizer=adamw)
    with pytest.raises(ValueError, match="task 'first' has no samples with a label: give it data"):
        trainer.learn(FIRST, lambda _: labelled_batch(seed=0, classes=(0, 1)), num_steps=3, samples=list)
    learn(trainer, FIRST)


def test_a_task_without_data_is_refused_and_changes_nothing():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="task 'first' has 0 steps: give it data"):
        learn(ContinualTrainer(model, "classifier", methods=all_methods(), optimizer=sgd), FIRST, steps=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_labels_that_the_model_or_the_task_does_not_have_are_refused_and_change_nothing() -> None:
    trainer = ContinualTrainer(mlp(), "classifier", methods=[], optimizer=adamw)
    before = copy.deepcopy(trainer.learner.model.state_dict())
    beyond = labelled_batch(seed=0) | {"y": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])}
    allowed = labelled_batch(seed=0) | {"allowed": torch.tensor([True, True] + 4 * [False]).expand(8, 6)}
    everything = Task("all", 0)
    for task, batch, message in (
        (everything, beyond, "a sample has label 6, and the model tells 0 to 5"),
        (everything, allowed, "a label that its `allowed` leaves out"),
        (FIRST, labelled_batch(seed=0), r"task 'first' has the classes \[0, 1\], and a sample has label [2-5]"),
        (everything, {"x": torch.zeros(1, 6)}, "a batch for a classifier model needs a field 'y'; it has x"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.learn(task, lambda _, one=batch: one, num_steps=1, samples=lambda one=batch: [one])
    for name, value in trainer.learner.model.state_dict().items():
        assert torch.equal(value, before[name])
    learn(trainer, FIRST)  # none of them has left it in the midst of a task


def test_a_label_that_comes_late_is_refused_before_the_first_step() -> None:
    trainer = ContinualTrainer(mlp(), "classifier", methods=[], optimizer=adamw)
    before = copy.deepcopy(trainer.learner.model.state_dict())
    good, beyond = labelled_batch(seed=0), labelled_batch(seed=0) | {"y": torch.full((8,), 9)}
    with pytest.raises(ValueError, match="a sample has label 9"):
        trainer.learn(
            Task("all", 0), lambda step: beyond if step else good, num_steps=2, samples=lambda: [good, beyond]
        )
    for name, value in trainer.learner.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_word_that_a_language_model_does_not_have_is_refused() -> None:
    trainer = ContinualTrainer(writer(), "causal", methods=[], optimizer=adamw)
    batch = written_batch(seed=0)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, 0] = 99
    with pytest.raises(ValueError, match="a sample has label 99, and the model tells 0 to 39"):
        trainer.learn(Task("words", 0), lambda _: batch, num_steps=1, samples=lambda: [batch])


def test_tasks_come_in_turn() -> None:
    trainer = ContinualTrainer(mlp(), "classifier", methods=[], optimizer=adamw)
    with pytest.raises(ValueError, match="task 'second' has index 1, and 0 tasks were begun: give it index 0"):
        learn(trainer, SECOND)
    learn(trainer, FIRST)
    with pytest.raises(ValueError, match="task 'first' has index 0, and 1 tasks were begun"):
        learn(trainer, FIRST)


class _Fails(Exception):
    """Of a source, or of one of several methods."""


def _methods(names: str) -> list[ContinualMethod]:
    builds: dict[str, Callable[[], ContinualMethod]] = {
        "ewc": EWCRegularizer, "si": SynapticIntelligence, "lwf": LearningWithoutForgetting, "packnet": PackNet,
        "columns": ProgressiveColumns, "replay": lambda: BatchReplay(ReplayConfig(share=0.23)),
    }  # fmt: skip
    return [builds[name]() for name in names.split()]


class _Stumbles(nn.Module):
    """A layer that fails in the forward pass of a step, once."""

    def __init__(self) -> None:
        super().__init__()
        self.passes_left = -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes_left -= 1
        if self.passes_left == 0:
            raise _Fails
        return x


@pytest.mark.parametrize("names", ["ewc si lwf", "packnet", "si packnet", "columns", "replay", "replay columns"])
def test_a_task_that_failed_in_its_midst_goes_on_or_is_given_up_as_if_it_had_not_been(names: str) -> None:
    fail_at = 7 if "packnet" in names else 4

    def source(step: int) -> Batch:
        return labelled_batch(seed=100 + step, classes=(2, 3)) | {"id": torch.arange(8) + 100 * step + 1000}

    def fail(step: int) -> Batch:
        if step == fail_at:
            raise _Fails
        return source(step)

    def samples() -> list[Batch]:
        return [source(step) for step in range(3)]

    def build() -> tuple[ContinualTrainer, _Stumbles]:
        torch.manual_seed(5)
        stumbles = _Stumbles()
        model = ProgressiveNetworks((6, 8, 6)) if "columns" in names else nn.Sequential(mlp(), stumbles)
        trainer = ContinualTrainer(model, "classifier", methods=_methods(names), optimizer=adamw)
        learn(trainer, FIRST)
        return trainer, stumbles

    whole, _ = build()
    torch.manual_seed(6)  # of the second task's column
    learn(whole, SECOND)
    again, _ = build()
    given_up, _ = build()
    cut = [again, given_up]
    if names in ("replay", "packnet", "si packnet"):  # in a forward pass, behind the draw of old samples
        stumbled, stumbles = build()
        stumbles.passes_left = fail_at
        with pytest.raises(_Fails):
            stumbled.learn(SECOND, source, num_steps=6, samples=samples)
        cut.append(stumbled)
    before, probe = copy.deepcopy(given_up.state_dict()), labelled_batch(seed=9)["x"]
    with torch.no_grad():
        answer = given_up.learner.model.eval()(probe)
    for one in (again, given_up):
        torch.manual_seed(6)
        with pytest.raises(_Fails):
            one.learn(SECOND, fail, num_steps=6, samples=samples)
        with pytest.raises(ValueError, match=r"task 'third' is to be learned in the midst of task 'second'"):
            learn(one, THIRD)
    given_up.abandon()
    after = given_up.state_dict()
    assert after["model"].keys() == before["model"].keys()
    for name, value in before["model"].items():
        assert torch.equal(after["model"][name], value), name
    with torch.no_grad():
        assert torch.equal(given_up.learner.model.eval()(probe), answer)
    if "replay" in names:
        assert after["methods"][0]["draws"] == before["methods"][0]["draws"]
    if "packnet" in names or "columns" in names:
        with pytest.raises(ValueError, match="task 1 was not learned"), given_up.serving(1):
            pass
    for one in cut:
        learn(one, SECOND)
        for name, value in whole.learner.model.state_dict().items():
            assert torch.equal(one.learner.model.state_dict()[name], value), name
    with pytest.raises(RuntimeError, match="no task to give up"):
        again.abandon()


def test_an_adapter_of_a_task_that_is_given_up_is_gone() -> None:
    for composition in ("routed", "summed"):
        method = ContinualFineTuning(writer(), FineTuningConfig(composition=composition))  # type: ignore[arg-type]
        trainer = ContinualTrainer(method.model, "causal", methods=[method], optimizer=adamw)

        def source(step: int) -> Batch:
            if step == 5:
                raise _Fails
            return written_batch(seed=step)

        trainer.learn(TEXTS[0], source, num_steps=3, samples=lambda: [written_batch(seed=0)])
        before = copy.deepcopy(method.model.state_dict())
        trained = set(trainable(method.model))
        with pytest.raises(_Fails):
            trainer.learn(TEXTS[1], source, num_steps=8, samples=lambda: [written_batch(seed=0)])
        trainer.abandon()
        after = method.model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert set(trainable(method.model)) == trained
        with pytest.raises(ValueError, match="task 1 was not learned"), method.serving(1):
            pass
        trainer.learn(TEXTS[1], source, num_steps=3, samples=lambda: [written_batch(seed=0)])


def test_an_optimizer_that_cannot_be_built_leaves_all_as_it_was() -> None:
    rates = iter((-1.0, 0.01))
    trainer = ContinualTrainer(
        ProgressiveNetworks((6, 4, 6)), "classifier", methods=[ProgressiveColumns()],
        optimizer=lambda weights: torch.optim.SGD(weights, lr=next(rates)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="Invalid learning rate"):
        learn(trainer, FIRST)
    assert not list(trainer.learner.model.parameters())
    learn(trainer, FIRST)


def test_a_state_of_other_methods_is_refused_before_anything_is_loaded() -> None:
    saved = ContinualTrainer(mlp(seed=1), "classifier", methods=[EWCRegularizer()], optimizer=sgd)
    other = ContinualTrainer(mlp(), "classifier", methods=[SynapticIntelligence()], optimizer=sgd)
    before = copy.deepcopy(other.learner.model.state_dict())
    with pytest.raises(
        ValueError, match=r"of the methods \['EWCRegularizer'\], and these are \['SynapticIntelligence'\]"
    ):
        other.load_state_dict(saved.state_dict())
    assert all(torch.equal(before[name], value) for name, value in other.learner.model.state_dict().items())


def test_what_fails_behind_the_last_step_is_done_once_when_it_is_tried_again() -> None:
    class Stumbles(ContinualMethod):
        calls = 0

        def after_task(self, samples: Any) -> None:
            self.calls += 1
            if self.calls == 1:
                raise _Fails

    si, other = SynapticIntelligence(), SynapticIntelligence()
    trainer = ContinualTrainer(mlp(), "classifier", methods=[si, Stumbles()], optimizer=adamw)
    with pytest.raises(_Fails):
        learn(trainer, FIRST)
    with pytest.raises(RuntimeError, match="the task is trained: learn it to its end"):
        trainer.abandon()
    learn(trainer, FIRST)
    learn(ContinualTrainer(mlp(), "classifier", methods=[other], optimizer=adamw), FIRST)
    for name, value in other.held.curvature.items():
        assert torch.equal(si.held.curvature[name], value)


@pytest.mark.parametrize("strength", [5000.0, 1e9])
def test_a_penalty_that_makes_training_diverge_is_an_error_and_the_task_is_given_up(strength: float) -> None:
    ewc = EWCRegularizer(EWCConfig(strength=strength))
    trainer = ContinualTrainer(mlp(), "classifier", methods=[ewc], optimizer=sgd)
    learn(trainer, FIRST, steps=30)
    before = copy.deepcopy(trainer.learner.model.state_dict())
    with pytest.raises(Diverged, match=r"task 'second' diverged: after \d+ steps .* lower the learning rate"):
        learn(trainer, SECOND, steps=200)
    for name, value in trainer.learner.model.state_dict().items():
        assert torch.equal(value, before[name])
    ewc.config = EWCConfig(strength=1.0)
    learn(trainer, SECOND)


def test_methods_that_hold_weights_are_refused_where_each_task_trains_its_own() -> None:
    tuning = ContinualFineTuning(writer())
    with pytest.raises(ValueError, match=r"EWCRegularizer holds weights that all tasks train.*ContinualFineTuning"):
        ContinualTrainer(tuning.model, "causal", methods=[tuning, EWCRegularizer()], optimizer=adamw)
    with pytest.raises(ValueError, match=r"LearningWithoutForgetting holds weights .* ProgressiveColumns"):
        ContinualTrainer(
            ProgressiveNetworks((6, 4, 6)), "classifier", methods=[ProgressiveColumns(), LearningWithoutForgetting()],
            optimizer=adamw,
        )  # fmt: skip
