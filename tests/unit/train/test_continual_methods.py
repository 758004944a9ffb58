"""Each method against what can be worked out: closed forms, brute force, bytes that must not change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.continual.ewc import EWCConfig, EWCRegularizer, fisher_diagonal
from train.continual.lwf import LearningWithoutForgetting, LwFConfig
from train.continual.method import ContinualMethod, Learner, Task
from train.continual.packnet import PackNet, PackNetConfig
from train.continual.rows import Batch, Rows, classify, write
from train.continual.si import SIConfig, SynapticIntelligence
from train.continual.trainer import ContinualTrainer

FIRST, SECOND, THIRD = (
    Task("first", 0, classes=(0, 1)),
    Task("second", 1, classes=(2, 3)),
    Task("third", 2, classes=(4, 5)),
)


def _mlp(*, seed: int = 0, inputs: int = 6, classes: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, classes))


def _batch(*, seed: int, size: int = 8, inputs: int = 6, classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (size,), generator=generator)]
    return {"x": torch.randn(size, inputs, generator=generator), "y": labels}


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def _learn(
    trainer: ContinualTrainer, task: Task, *, steps: int = 6, source: Callable[[int], Batch] | None = None
) -> None:
    def batch_of(step: int) -> Batch:
        return _batch(seed=100 * task.index + step, classes=task.classes or (0, 1))

    source = source or batch_of
    trainer.learn(task, source, num_steps=steps, samples=lambda: [source(step) for step in range(3)])


# The loop.


def test_without_methods_the_loop_is_a_plain_one():
    model, plain = _mlp(), _mlp()
    _learn(ContinualTrainer(model, classify, methods=[], optimizer=_adamw), FIRST)
    optimizer = _adamw(list(plain.parameters()))
    for step in range(6):
        batch = _batch(seed=step, classes=(0, 1))
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
        return ContinualTrainer(_mlp(), classify, methods=_all_methods(), optimizer=_adamw)

    whole, first = trainer(), trainer()
    _learn(whole, FIRST)
    _learn(whole, SECOND)
    _learn(first, FIRST)

    def stop(step: int, _: Any) -> None:
        if step == cut:
            torch.save(first.state_dict(), tmp_path / "state")
            raise Cut

    def source(step: int) -> Batch:
        return _batch(seed=100 + step, classes=(2, 3))

    with pytest.raises(Cut):
        first.learn(SECOND, source, num_steps=6, samples=lambda: [source(step) for step in range(3)], on_step=stop)
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state"), task=SECOND)
    _learn(resumed, SECOND)
    _learn(whole, THIRD)
    _learn(resumed, THIRD)
    for ours, theirs in zip(resumed.learner.model.parameters(), whole.learner.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_task_without_data_is_refused_and_changes_nothing():
    model = _mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="task 'first' has 0 steps: give it data"):
        _learn(ContinualTrainer(model, classify, methods=_all_methods(), optimizer=_sgd), FIRST, steps=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# EWC.


def _brute_force(model: nn.Module, batch: Batch, *, allowed: Tensor | None = None) -> list[Tensor]:
    """sum over samples and classes of p(y|x) (d log p(y|x) / dw)^2, one at a time, divided by the samples."""
    total = [torch.zeros_like(one) for one in model.parameters()]
    for row, x in enumerate(batch["x"]):
        logits = model(x.unsqueeze(0))
        if allowed is not None:
            logits = logits.masked_fill(~allowed[row], -torch.inf)
        log_p = logits.log_softmax(1)[0]
        for index in torch.isfinite(log_p).nonzero().flatten().tolist():
            gradients = torch.autograd.grad(log_p[index], list(model.parameters()), retain_graph=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(log_p[index].exp().detach() * gradient.square())
    return [one / len(batch["x"]) for one in total]


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_exact_fisher_is_that_of_every_class_of_every_sample(is_masked: bool):
    model, batch = _mlp(), _batch(seed=1)
    allowed = torch.zeros(8, 6, dtype=torch.bool).index_fill(1, torch.tensor([1, 4]), True) if is_masked else None
    given = batch if allowed is None else batch | {"allowed": allowed, "y": torch.ones_like(batch["y"])}
    found = fisher_diagonal(Learner(model, classify), lambda: [given], kind="exact")
    for ours, expected in zip(found.values(), _brute_force(model, batch, allowed=allowed), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_fisher_of_logistic_regression_is_its_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(5, 2, bias=False)
    batch = _batch(seed=2, inputs=5, classes=(0, 1))
    (found,) = fisher_diagonal(Learner(model, classify), lambda: [batch], kind="exact").values()
    p = model(batch["x"]).softmax(1)[:, 0].detach()
    expected = ((p * (1 - p)).unsqueeze(1) * batch["x"].square()).mean(0)
    torch.testing.assert_close(found, expected.expand(2, 5))


def test_drawn_classes_have_the_exact_fisher_as_their_mean():
    model, batch = _mlp(), _batch(seed=3)
    learner = Learner(model, classify)
    exact = fisher_diagonal(learner, lambda: [batch], kind="exact")
    drawn = fisher_diagonal(learner, lambda: [batch] * 3000, kind="sampled")
    for name, one in exact.items():
        assert float(drawn[name].sum()) == pytest.approx(float(one.sum()), rel=0.05)


def test_the_penalty_is_zero_at_the_anchor_and_has_the_gradient_of_its_formula_away_from_it():
    model = _mlp()
    ewc = EWCRegularizer(EWCConfig(strength=3.0))
    ewc.before_task(FIRST, Learner(model, classify))
    ewc.after_task(lambda: [_batch(seed=4)])
    penalty = ewc.weights_penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 0
    assert all(not one.any() for one in torch.autograd.grad(penalty, list(model.parameters())))
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one))
    penalty = ewc.weights_penalty()
    assert penalty is not None
    ((fisher, anchor),) = ewc.terms
    for (name, weight), gradient in zip(
        model.named_parameters(), torch.autograd.grad(penalty, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(gradient, 3.0 * fisher[name] * (weight.detach() - anchor[name]))
    expected = sum(float((fisher[n] * (w - anchor[n]).square()).sum()) for n, w in model.named_parameters())
    assert float(penalty.detach()) == pytest.approx(1.5 * expected)


def test_two_quadratic_tasks_meet_at_the_mean_of_their_optima_weighted_by_precision():
    """Of a linear model with noise sigma the Fisher information is X^T X / sigma^2 per sample."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    a, b = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    model = nn.Linear(4, 1, bias=False).double()
    ewc = EWCRegularizer(EWCConfig(strength=1.0))
    ewc.before_task(SECOND, Learner(model, classify))
    ewc.terms = [({"weight": first.view(1, 4)}, {"weight": a.view(1, 4)})]
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = ewc.weights_penalty()
        assert penalty is not None
        loss = 0.5 * (second * (model.weight[0] - b).square()).sum() + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(model.weight[0].detach(), (first * a + second * b) / (first + second), rtol=0, atol=1e-6)


def test_the_fisher_pass_leaves_modes_and_statistics_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6)).train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    fisher_diagonal(Learner(model, classify), lambda: [_batch(seed=5)], kind="exact")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True]


def test_a_weight_that_is_in_two_places_counts_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    found = fisher_diagonal(Learner(model, classify), lambda: [_batch(seed=6)], kind="exact")
    assert list(found) == ["0.weight"]
    torch.testing.assert_close(found["0.weight"], _brute_force(model, _batch(seed=6))[0])


def test_online_keeps_one_term_and_fades_the_earlier_ones():
    model = _mlp()
    learner = Learner(model, classify)
    ewc = EWCRegularizer(EWCConfig(is_online=True, gamma=0.5))
    batches = [_batch(seed=7), _batch(seed=8)]
    alone = [fisher_diagonal(learner, lambda one=one: [one], kind="exact") for one in batches]
    for task, batch in zip((FIRST, SECOND), batches, strict=True):
        ewc.before_task(task, learner)
        ewc.after_task(lambda one=batch: [one])
    ((fisher, _),) = ewc.terms
    for name, one in fisher.items():
        torch.testing.assert_close(one, alone[1][name] + 0.5 * alone[0][name])


def test_vanished_information_is_told(caplog: pytest.LogCaptureFixture):
    """A model that is always right has no gradients of the true classes."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    batch = _batch(seed=9, classes=(0, 1))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([40.0, -40.0]))
    batch["y"].zero_()
    ewc = EWCRegularizer(EWCConfig(fisher="empirical"))
    ewc.before_task(FIRST, Learner(model, classify))
    ewc.after_task(lambda: [batch])
    assert "EWC holds next to nothing of task 0" in caplog.text


class _Writer(nn.Module):
    """A language model as transformers has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, input_ids: Tensor) -> Any:
        return type("Output", (), {"logits": self.head(self.embed(input_ids))})


def test_of_a_language_model_whole_sequences_are_squared_and_exact_is_refused():
    model = _Writer()
    ids = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.roll(-1, 1).masked_fill(torch.tensor([False] * 4 + [True] * 2), -100)
    batch = {"input_ids": ids, "labels": labels}
    found = fisher_diagonal(Learner(model, write), lambda: [batch], kind="empirical")
    for (name, weight), ours in zip(model.named_parameters(), found.values(), strict=True):
        expected = torch.zeros_like(weight)
        for row in range(3):
            loss = F.cross_entropy(model(ids[row : row + 1]).logits[0], labels[row], reduction="sum")
            expected += torch.autograd.grad(loss, weight)[0].square() / 3
        torch.testing.assert_close(ours, expected, msg=name)
    assert fisher_diagonal(Learner(model, write), lambda: [batch], kind=None).keys() == found.keys()
    with pytest.raises(ValueError, match="take 'sampled'"):
        fisher_diagonal(Learner(model, write), lambda: [batch], kind="exact")


# Synaptic intelligence.


def test_under_small_plain_steps_the_paths_add_up_to_the_fall_of_the_loss():
    model, batch = _mlp(), _batch(seed=10)
    si = SynapticIntelligence()
    start = float(F.cross_entropy(model(batch["x"]), batch["y"]).detach())
    trainer = ContinualTrainer(
        model, classify, methods=[si], optimizer=lambda weights: torch.optim.SGD(weights, lr=1e-3)
    )
    trainer.learn(FIRST, lambda _: batch, num_steps=300, samples=list)
    end = float(F.cross_entropy(model(batch["x"]), batch["y"]).detach())
    assert start - end > 0.05
    assert sum(float(path.sum()) for path in si.path.values()) == pytest.approx(start - end, rel=0.01)


def test_importance_is_path_over_distance_and_the_penalty_has_no_half():
    model, batch = _mlp(), _batch(seed=11)
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    si = SynapticIntelligence(SIConfig(strength=2.0, damping=0.01))
    trainer = ContinualTrainer(model, classify, methods=[si], optimizer=_sgd)
    trainer.learn(FIRST, lambda _: batch, num_steps=4, samples=list)
    end = {name: one.detach().clone() for name, one in model.named_parameters()}
    for name, one in si.importance.items():
        expected = si.path[name].clamp(min=0) / ((end[name] - start[name]).square() + 0.01)
        torch.testing.assert_close(one, expected)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    penalty = si.weights_penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(2.0 * float((si.importance["0.weight"] * 0.25).sum()), rel=1e-5)


class _Pull(ContinualMethod):
    """A penalty as large as the task's loss."""

    def before_task(self, task: Task, learner: Learner) -> None:
        self.model = learner.model

    def weights_penalty(self) -> Tensor:
        return torch.stack([one.square().sum() for one in self.model.parameters()]).sum()

    def rows_penalty(self, batch: Batch, rows: Rows) -> Tensor:
        return rows.logits.square().sum()


def test_the_path_takes_the_gradient_of_the_tasks_loss_alone():
    seen: list[dict[str, Tensor]] = []

    class Watch(SynapticIntelligence):
        def see_gradients(self, gradients: Any) -> None:
            seen.append({name: one.clone() for name, one in gradients.items()})
            super().see_gradients(gradients)

    model, batch = _mlp(), _batch(seed=12)
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    ContinualTrainer(model, classify, methods=[Watch(), _Pull()], optimizer=_sgd).learn(
        FIRST, lambda _: batch, num_steps=1, samples=list
    )
    for ours, gradient in zip(seen[0].values(), expected, strict=True):
        torch.testing.assert_close(ours, gradient)


# Learning without forgetting.


def _penalty(method: LearningWithoutForgetting, model: nn.Module, batch: Batch) -> Tensor:
    found = method.rows_penalty(batch, classify(model, batch))
    assert found is not None
    return found


def _after_first(model: nn.Module, config: LwFConfig) -> LearningWithoutForgetting:
    lwf = LearningWithoutForgetting(config)
    assert lwf.loss_weight == 1
    lwf.before_task(FIRST, Learner(model, classify))
    assert lwf.rows_penalty({}, Rows(torch.zeros(1, 2), torch.zeros(1))) is None
    lwf.after_task(list)
    lwf.before_task(SECOND, Learner(model, classify))
    return lwf


def test_a_model_that_is_its_own_teacher_has_no_penalty_and_no_gradient():
    model, batch = _mlp(), _batch(seed=13)
    lwf = _after_first(model, LwFConfig())
    assert lwf.loss_weight == 0.5
    penalty = _penalty(lwf, model, batch)
    assert float(penalty.detach()) == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(penalty, list(model.parameters())):
        assert float(gradient.abs().max()) < 1e-6


def test_the_penalty_is_hintons_over_the_old_classes_and_gets_to_matching_logits_as_it_grows_hot():
    model, batch = _mlp(), _batch(seed=14)
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
    model, batch = _mlp(), _batch(seed=15)
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


# PackNet.


def _momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("optimizer", [_adamw, _momentum])
def test_a_tasks_outputs_are_the_same_bytes_after_every_later_task(optimizer: Any):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 6))
    packnet, probe = PackNet(), _batch(seed=16)["x"]
    trainer = ContinualTrainer(model, classify, methods=[packnet], optimizer=optimizer)
    outputs: list[Tensor] = []
    for task in (FIRST, SECOND, THIRD):
        _learn(trainer, task)
        with packnet.serving(task.index), torch.no_grad():
            outputs.append(model.eval()(probe))
        assert packnet.free_share == pytest.approx(0.5 ** (task.index + 1), abs=0.01)
        for index, expected in enumerate(outputs):
            with packnet.serving(index), torch.no_grad():
                assert torch.equal(model.eval()(probe), expected)
    assert not torch.equal(outputs[0], outputs[1])


def test_a_task_for_which_there_are_no_weights_is_refused_with_the_capacity():
    model = _mlp()
    packnet = PackNet(PackNetConfig(prune=0.05))
    trainer = ContinualTrainer(model, classify, methods=[packnet], optimizer=_sgd)
    _learn(trainer, FIRST)
    _learn(trainer, SECOND)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"task 'third': 0\.\d+% of the weights are free after 2 tasks"):
        _learn(trainer, THIRD)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masks_of_another_model_and_the_wrong_order_are_refused():
    packnet = PackNet()
    _learn(ContinualTrainer(_mlp(), classify, methods=[packnet], optimizer=_sgd), FIRST)
    other = PackNet()
    other.load_state_dict(packnet.state_dict())
    with pytest.raises(
        ValueError, match=r"masks are of another model: 0\.weight has shape \(16, 6\) there and \(16, 5\) here"
    ):
        other.before_task(SECOND, Learner(_mlp(inputs=5), classify))
    with pytest.raises(RuntimeError, match="PackNet is idle, not training"):
        packnet.before_retraining()
    with pytest.raises(ValueError, match="task 1 was not learned: there are 1"), packnet.serving(1):
        pass
