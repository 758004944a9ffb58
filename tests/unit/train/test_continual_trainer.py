"""The loop over tasks: a plain one without methods, exact after a cut, with methods together."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
    tiny_moe,
    writer,
    written_batch,
)  # fmt: skip
from train.adapt.lora import LoRAConfig, attach_adapter
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.mixing import BatchReplay
from train.continual.rows import Batch, trainable
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


@pytest.mark.parametrize("cut", [3, 6, 8])
def test_a_run_that_is_cut_off_in_the_midst_of_a_task_goes_on_bit_for_bit(tmp_path: Any, cut: int):
    class Cut(Exception):
        pass

    def trainer() -> ContinualTrainer:
        return ContinualTrainer(mlp(), "classifier", methods=all_methods(), optimizer=adamw)

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
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    learn(resumed, SECOND)
    learn(whole, THIRD)
    learn(resumed, THIRD)
    for ours, theirs in zip(resumed.learner.model.parameters(), whole.learner.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


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


def test_a_run_with_random_layers_goes_on_exactly_whatever_was_drawn_since() -> None:
    def build() -> ContinualTrainer:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 6))
        return ContinualTrainer(model, "classifier", methods=[], optimizer=adamw)

    whole, first = build(), build()
    state: dict[str, Any] = {}

    def save(step: int, _: Any) -> None:
        if step == 3:
            state.update(copy.deepcopy(first.state_dict()))

    def source(step: int) -> Batch:
        return labelled_batch(seed=step, classes=(0, 1))

    torch.manual_seed(1)
    learn(whole, FIRST)
    torch.manual_seed(1)
    first.learn(FIRST, source, num_steps=6, samples=lambda: [source(0)], on_step=save)
    resumed = build()
    torch.rand(17)
    resumed.load_state_dict(state)
    learn(resumed, FIRST)
    for name, value in whole.learner.model.state_dict().items():
        assert torch.equal(resumed.learner.model.state_dict()[name], value)


def test_a_single_adapter_is_held_by_every_method_that_holds_weights() -> None:
    """EWC + replay + LoRA, as the specification has them together."""

    def run(strength: float) -> tuple[list[float], float]:
        """Penalties, and how far the second task moved the adapter."""
        model = attach_adapter(writer(), LoRAConfig(), is_float32=True)
        methods: list[ContinualMethod] = [EWCRegularizer(EWCConfig(strength=strength)), BatchReplay()]
        trainer = ContinualTrainer(model, "causal", methods=methods, optimizer=adamw)
        penalties: list[float] = []
        start: dict[str, torch.Tensor] = {}
        for task in TEXTS[:2]:
            start = {name: one.detach().clone() for name, one in trainable(model).items()}
            trainer.learn(
                task, lambda step, one=task: written_batch(seed=100 * one.index + step, begin=10 * one.index), num_steps=10,
                samples=lambda one=task: [written_batch(seed=100 * one.index, begin=10 * one.index)],
                on_step=lambda _, record: penalties.append(record.penalty),
            )  # fmt: skip
        return penalties, sum(
            float((one.detach() - start[name]).square().sum()) for name, one in trainable(model).items()
        )

    free, held = run(0.0), run(1e5)
    assert not any(free[0])
    assert not any(held[0][:11])
    assert all(held[0][11:])
    assert held[1] < 0.5 * free[1]


@pytest.mark.slow
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
    losses = learn_words(whole, TEXTS[0])
    assert losses[-1] < losses[0] - 0.5
    learn_words(whole, TEXTS[1])
    learn_words(first, TEXTS[0])
    resumed = trainer()
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    learn_words(resumed, TEXTS[1])
    ours, theirs = resumed.learner.model.state_dict(), whole.learner.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
