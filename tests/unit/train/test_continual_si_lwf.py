"""Paths of synaptic intelligence, and the distillation of learning without forgetting, against their formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.continual import FIRST, SECOND, labelled_batch, mlp, sgd
from train.continual.lwf import LearningWithoutForgetting, LwFConfig
from train.continual.method import ContinualMethod, Learner, Task
from train.continual.rows import Batch, Rows, classify
from train.continual.si import SIConfig, SynapticIntelligence
from train.continual.trainer import ContinualTrainer


def test_under_small_plain_steps_the_paths_add_up_to_the_fall_of_the_loss():
    model, batch = mlp(), labelled_batch(seed=10)
    si = SynapticIntelligence()
    start = float(F.cross_entropy(model(batch["x"]), batch["y"]).detach())
    trainer = ContinualTrainer(
        model, "classifier", methods=[si], optimizer=lambda weights: torch.optim.SGD(weights, lr=1e-3)
    )
    trainer.learn(Task("all", 0), lambda _: batch, num_steps=300, samples=lambda: [batch])
    end = float(F.cross_entropy(model(batch["x"]), batch["y"]).detach())
    assert start - end > 0.05
    assert sum(float(path.sum()) for path in si.path.values()) == pytest.approx(start - end, rel=0.01)


def test_importance_is_path_over_distance_and_the_penalty_has_no_half():
    model, batch = mlp(), labelled_batch(seed=11)
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    si = SynapticIntelligence(SIConfig(strength=2.0, damping=0.01))
    trainer = ContinualTrainer(model, "classifier", methods=[si], optimizer=sgd)
    trainer.learn(Task("all", 0), lambda _: batch, num_steps=4, samples=lambda: [batch])
    end = {name: one.detach().clone() for name, one in model.named_parameters()}
    for name, one in si.held.curvature.items():
        expected = si.path[name].clamp(min=0) / ((end[name] - start[name]).square() + 0.01)
        torch.testing.assert_close(one, expected)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    penalty = si.weights_penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(2.0 * float((si.held.curvature["0.weight"] * 0.25).sum()), rel=1e-5)


class _Pull(ContinualMethod):
    """A penalty as large as the task's loss."""

    def weights_penalty(self) -> Tensor:
        return torch.stack([one.square().sum() for one in self.learner.model.parameters()]).sum()

    def rows_penalty(self, batch: Batch, rows: Rows) -> Tensor:
        return rows.logits.square().sum()


def test_the_path_takes_the_gradient_of_the_tasks_loss_alone():
    seen: list[dict[str, Tensor]] = []

    class Watch(SynapticIntelligence):
        def see_gradients(self, gradients: Any) -> None:
            seen.append({name: one.clone() for name, one in gradients.items()})
            super().see_gradients(gradients)

    model, batch = mlp(), labelled_batch(seed=12)
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    ContinualTrainer(model, "classifier", methods=[Watch(), _Pull()], optimizer=sgd).learn(
        Task("all", 0), lambda _: batch, num_steps=1, samples=lambda: [batch]
    )
    for ours, gradient in zip(seen[0].values(), expected, strict=True):
        torch.testing.assert_close(ours, gradient)


def _penalty(method: LearningWithoutForgetting, model: nn.Module, batch: Batch) -> Tensor:
    found = method.rows_penalty(batch, classify(model, batch))
    assert found is not None
    return found


def _after_first(model: nn.Module, config: LwFConfig) -> LearningWithoutForgetting:
    lwf = LearningWithoutForgetting(config)
    assert lwf.loss_weight == 1
    lwf.attach(Learner(model, "classifier"))
    lwf.before_task(FIRST)
    assert lwf.rows_penalty({}, Rows(torch.zeros(1, 2), torch.zeros(1))) is None
    lwf.after_task(list)
    lwf.attach(Learner(model, "classifier"))
    lwf.before_task(SECOND)
    return lwf


def test_a_model_that_is_its_own_teacher_has_no_penalty_and_no_gradient():
    model, batch = mlp(), labelled_batch(seed=13)
    lwf = _after_first(model, LwFConfig())
    assert lwf.loss_weight == 0.5
    penalty = _penalty(lwf, model, batch)
    assert float(penalty.detach()) == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(penalty, list(model.parameters())):
        assert float(gradient.abs().max()) < 1e-6


def test_the_penalty_is_hintons_over_the_old_classes_and_gets_to_matching_logits_as_it_grows_hot():
    model, batch = mlp(), labelled_batch(seed=14)
    before = model(batch["x"]).detach()[:, :2]
    lwf = _after_first(model, LwFConfig(temperature=3.0, alpha=0.25))
    with torch.no_grad():
        model[2].bias.add_(torch.randn(6))
        model[2].weight.mul_(1.5)
    now = model(batch["x"]).detach()[:, :2]
    wanted, found = (before / 3).softmax(1), (now / 3).log_softmax(1)
    expected = 0.25 * 9 * (wanted * (wanted.log() - found)).sum()
    assert float(_penalty(lwf, model, batch).detach()) == pytest.approx(float(expected), rel=1e-5)
    lwf.config = LwFConfig(temperature=1000.0, alpha=1.0)
    centred = (now - now.mean(1, keepdim=True)) - (before - before.mean(1, keepdim=True))
    assert float(_penalty(lwf, model, batch).detach()) == pytest.approx(float(centred.square().sum() / 4), rel=0.05)


def test_tasks_may_have_a_distribution_each():
    model, batch = mlp(), labelled_batch(seed=15)
    lwf = _after_first(model, LwFConfig(splits_tasks=True, alpha=1.0, temperature=1.0))
    lwf.after_task(list)
    before = model(batch["x"]).detach()
    with torch.no_grad():
        model[2].bias.add_(torch.randn(6))
    now = model(batch["x"]).detach()
    expected = sum(
        F.kl_div(now[:, part].log_softmax(1), before[:, part].log_softmax(1), reduction="sum", log_target=True)
        for part in ([0, 1], [2, 3])
    )
    assert float(_penalty(lwf, model, batch).detach()) == pytest.approx(float(expected), rel=1e-5)
