"""Fisher information and the penalty of EWC: closed forms, brute force, what the pass may not change."""

import copy
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.continual import FIRST, SECOND, labelled_batch, mlp, writer, written_batch
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.fisher import fisher_diagonal
from train.continual.method import Learner
from train.continual.quadratic import Quadratic
from train.continual.rows import Batch


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
    model, batch = mlp(), labelled_batch(seed=1)
    allowed = torch.zeros(8, 6, dtype=torch.bool).index_fill(1, torch.tensor([1, 4]), True) if is_masked else None
    given = batch if allowed is None else batch | {"allowed": allowed, "y": torch.ones_like(batch["y"])}
    found = fisher_diagonal(Learner(model, "classifier"), lambda: [given], kind="exact")
    for ours, expected in zip(found.values(), _brute_force(model, batch, allowed=allowed), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_fisher_of_logistic_regression_is_its_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(5, 2, bias=False)
    batch = labelled_batch(seed=2, inputs=5, classes=(0, 1))
    (found,) = fisher_diagonal(Learner(model, "classifier"), lambda: [batch], kind="exact").values()
    p = model(batch["x"]).softmax(1)[:, 0].detach()
    expected = ((p * (1 - p)).unsqueeze(1) * batch["x"].square()).mean(0)
    torch.testing.assert_close(found, expected.expand(2, 5))


@pytest.mark.slow
def test_drawn_classes_have_the_exact_fisher_as_their_mean():
    model, batch = mlp(), labelled_batch(seed=3)
    learner = Learner(model, "classifier")
    exact = fisher_diagonal(learner, lambda: [batch], kind="exact")
    copies = [batch | {"id": 8 * copy + torch.arange(8)} for copy in range(3000)]  # each sample draws by its own id
    drawn = fisher_diagonal(learner, lambda: copies, kind="sampled")
    for name, one in exact.items():
        assert float(drawn[name].sum()) == pytest.approx(float(one.sum()), rel=0.05)


@pytest.mark.parametrize("kind", ["classifier", "causal"])
def test_what_is_drawn_does_not_depend_on_order_or_batches(kind: Literal["classifier", "causal"]):
    model = mlp() if kind == "classifier" else writer()
    whole = labelled_batch(seed=3, size=12) if kind == "classifier" else written_batch(seed=3, size=12)
    learner = Learner(model, kind)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    cut = [{name: value[part] for name, value in whole.items()} for part in order.split(5)]
    for max_samples in (None, 7):
        expected, found = (
            fisher_diagonal(learner, lambda batches=batches: batches, kind="sampled", max_samples=max_samples, seed=1)
            for batches in ([whole], cut)
        )
        for name, one in expected.items():
            torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-6)
    other = fisher_diagonal(learner, lambda: [whole], kind="sampled", max_samples=7, seed=2)
    assert not torch.allclose(other[name], one)


def test_the_penalty_is_zero_at_the_anchor_and_has_the_gradient_of_its_formula_away_from_it():
    model = mlp()
    ewc = EWCRegularizer(EWCConfig(strength=3.0))
    ewc.attach(Learner(model, "classifier"))
    ewc.before_task(FIRST)
    ewc.after_task(lambda: [labelled_batch(seed=4)])
    penalty = ewc.weights_penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 0
    assert all(not one.any() for one in torch.autograd.grad(penalty, list(model.parameters())))
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one))
    penalty = ewc.weights_penalty()
    assert penalty is not None
    fisher, anchor = ewc.held.curvature, ewc.held.centre
    for (name, weight), gradient in zip(
        model.named_parameters(), torch.autograd.grad(penalty, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(gradient, 3.0 * fisher[name] * (weight.detach() - anchor[name]))
    expected = sum(float((fisher[n] * (w.detach() - anchor[n]).square()).sum()) for n, w in model.named_parameters())
    assert float(penalty.detach()) == pytest.approx(1.5 * expected)


def test_two_quadratic_tasks_meet_at_the_mean_of_their_optima_weighted_by_precision():
    """The quadratic loss is exact for a linear model with Gaussian noise, whose Fisher information is its precision."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    a, b = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    model = nn.Linear(4, 1, bias=False).double()
    ewc = EWCRegularizer(EWCConfig(strength=1.0))
    ewc.attach(Learner(model, "classifier"))
    ewc.before_task(SECOND)
    ewc.held.add({"weight": first.view(1, 4)}, {"weight": a.view(1, 4)})
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


def test_pulls_of_several_tasks_are_kept_as_one_with_the_same_value_and_gradient():
    generator = torch.Generator().manual_seed(1)
    held, weight = Quadratic(), torch.randn(50, generator=generator, requires_grad=True)
    pulls = [
        (
            torch.rand(50, generator=generator) * (torch.rand(50, generator=generator) < 0.7),
            torch.randn(50, generator=generator),
        )
        for _ in range(4)
    ]
    for curvature, centre in pulls:
        held.add({"w": curvature}, {"w": centre})
    separate = torch.stack([(curvature * (weight - centre).square()).sum() for curvature, centre in pulls]).sum()
    value = held.value({"w": weight})
    assert value is not None
    torch.testing.assert_close(value, separate)
    for ours, theirs in zip(torch.autograd.grad(value, weight), torch.autograd.grad(separate, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert held.value({"other": weight}) is None


def test_the_fisher_pass_leaves_modes_and_statistics_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6)).train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    fisher_diagonal(Learner(model, "classifier"), lambda: [labelled_batch(seed=5)], kind="exact")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True]


def test_a_weight_that_is_in_two_places_counts_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    found = fisher_diagonal(Learner(model, "classifier"), lambda: [labelled_batch(seed=6)], kind="exact")
    assert list(found) == ["0.weight"]
    torch.testing.assert_close(found["0.weight"], _brute_force(model, labelled_batch(seed=6))[0])


class _Mixed(nn.Module):
    """Linear layers that are used in every way: once with a row per sample, twice, with several rows per sample, of as many
    rows as there are samples that are no samples, beside their call, with a frozen weight, with a made weight,
    before a change in place; and other weights between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.of_pieces, self.of_slots, self.beside, self.frozen, self.made, self.last = (
            nn.Linear(size, size) for size in (6, 6, 3, 6, 6, 6, 6, 6)
        )
        self.slots = nn.Parameter(torch.randn(8, 6))
        self.norm = nn.LayerNorm(6)
        self.frozen.weight.requires_grad_(False)
        nn.utils.parametrizations.weight_norm(self.made)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(input=x).relu_()
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.of_pieces(x.unflatten(1, (2, 3))).flatten(1)
        x = x + (x @ self.of_slots(self.slots).T).softmax(1) @ self.slots
        x = self.norm(self.beside(x) + x @ self.beside.weight.sin())
        out: Tensor = self.last(self.made(self.frozen(x)))
        return out


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_layers_that_are_used_in_unusual_ways_have_the_same_fisher(kind: Literal["exact", "empirical"]):
    model, batch = _Mixed(), labelled_batch(seed=1)
    found = fisher_diagonal(Learner(model, "classifier"), lambda: [batch], kind=kind)
    trained = [one for one in model.parameters() if one.requires_grad]
    expected = [torch.zeros_like(one) for one in trained]
    for row in range(len(batch["x"])):
        log_p = model(batch["x"][row : row + 1]).log_softmax(1)[0]
        classes = range(6) if kind == "exact" else [int(batch["y"][row])]
        for index in classes:
            chance = float(log_p[index].detach().exp()) if kind == "exact" else 1.0
            gradients = torch.autograd.grad(log_p[index], trained, retain_graph=True)
            for total, gradient in zip(expected, gradients, strict=True):
                total.add_(gradient.square(), alpha=chance / len(batch["x"]))
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_online_keeps_one_term_and_fades_the_earlier_ones():
    model = mlp()
    learner = Learner(model, "classifier")
    ewc = EWCRegularizer(EWCConfig(is_online=True, gamma=0.5))
    batches = [labelled_batch(seed=7), labelled_batch(seed=8)]
    alone = [fisher_diagonal(learner, lambda one=one: [one], kind="exact") for one in batches]
    for task, batch in zip((FIRST, SECOND), batches, strict=True):
        ewc.attach(learner)
        ewc.before_task(task)
        ewc.after_task(lambda one=batch: [one])
    for name, one in ewc.held.curvature.items():
        torch.testing.assert_close(one, alone[1][name] + 0.5 * alone[0][name])


def test_vanished_information_is_told(caplog: pytest.LogCaptureFixture):
    """A model that is always right has no gradients of the true classes."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    batch = labelled_batch(seed=9, classes=(0, 1))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([40.0, -40.0]))
    batch["y"].zero_()
    ewc = EWCRegularizer(EWCConfig(fisher="empirical"))
    ewc.attach(Learner(model, "classifier"))
    ewc.before_task(FIRST)
    ewc.after_task(lambda: [batch])
    assert "EWC holds little of task 0" in caplog.text


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
    found = fisher_diagonal(Learner(model, "causal"), lambda: [batch], kind="empirical")
    for (name, weight), ours in zip(model.named_parameters(), found.values(), strict=True):
        expected = torch.zeros_like(weight)
        for row in range(3):
            loss = F.cross_entropy(model(ids[row : row + 1]).logits[0], labels[row], reduction="sum")
            expected += torch.autograd.grad(loss, weight)[0].square() / 3
        torch.testing.assert_close(ours, expected, msg=name)
    assert fisher_diagonal(Learner(model, "causal"), lambda: [batch], kind=None).keys() == found.keys()
    with pytest.raises(ValueError, match="take 'sampled'"):
        fisher_diagonal(Learner(model, "causal"), lambda: [batch], kind="exact")
