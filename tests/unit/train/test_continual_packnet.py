"""PackNet: outputs that are the same bytes after every later task, capacity, masks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.continual import FIRST, SECOND, THIRD, adamw, labelled_batch, learn, mlp, sgd
from train.continual.method import Learner
from train.continual.packnet import PackNet, PackNetConfig
from train.continual.si import SynapticIntelligence
from train.continual.trainer import ContinualTrainer


def _momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("optimizer", [adamw, _momentum])
def test_a_tasks_outputs_are_the_same_bytes_after_every_later_task(optimizer: Any):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 6))
    packnet, probe = PackNet(), labelled_batch(seed=16)["x"]
    trainer = ContinualTrainer(model, "classifier", methods=[packnet], optimizer=optimizer)
    outputs: list[Tensor] = []
    for task in (FIRST, SECOND, THIRD):
        learn(trainer, task)
        with packnet.serving(task.index), torch.no_grad():
            outputs.append(model.eval()(probe))
        assert packnet.free_share == pytest.approx(0.5 ** (task.index + 1), abs=0.01)
        for index, expected in enumerate(outputs):
            with packnet.serving(index), torch.no_grad():
                assert torch.equal(model.eval()(probe), expected)
    assert not torch.equal(outputs[0], outputs[1])


def test_a_later_task_is_served_as_it_was_trained_where_norms_have_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6))
    packnet = PackNet()
    trainer = ContinualTrainer(model, "classifier", methods=[packnet], optimizer=adamw)
    learn(trainer, FIRST, steps=20)
    shifted = labelled_batch(seed=3, size=64, classes=(2, 3))
    shifted["x"] += 4.0
    losses: list[float] = []
    trainer.learn(
        SECOND, lambda _: shifted, num_steps=100, samples=lambda: [shifted],
        on_step=lambda _, record: losses.append(record.loss),
    )  # fmt: skip
    with trainer.serving(1), torch.no_grad():
        served = float(nn.functional.cross_entropy(model(shifted["x"]), shifted["y"]))
    assert losses[-1] < 0.5 * losses[0]
    assert served == pytest.approx(losses[-1], rel=0.05)


class _Scaled(nn.Module):
    """A buffer at the root of what else has dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("scale", torch.ones(6))
        self.first, self.drop, self.last = nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 6)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.drop.training)
        out: Tensor = self.last(self.drop(self.first(x * self.scale)))
        return out


def test_other_layers_of_a_later_task_stay_in_training_mode():
    model = _Scaled()
    trainer = ContinualTrainer(model, "classifier", methods=[PackNet()], optimizer=sgd)
    learn(trainer, FIRST)
    learn(trainer, SECOND)
    assert all(model.modes)


def test_masks_that_were_loaded_between_two_tasks_serve_the_first():
    first, second = mlp(), mlp(seed=1)
    trainer, other = (
        ContinualTrainer(model, "classifier", methods=[PackNet()], optimizer=adamw) for model in (first, second)
    )
    learn(trainer, FIRST)
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    probe = labelled_batch(seed=16)["x"]
    with trainer.serving(0), other.serving(0), torch.no_grad():
        assert torch.equal(first(probe), second(probe))


def test_a_path_counts_what_weights_did_not_what_was_put_back():
    si, packnet = SynapticIntelligence(), PackNet()
    trainer = ContinualTrainer(mlp(), "classifier", methods=[si, packnet], optimizer=adamw)
    learn(trainer, FIRST)
    learn(trainer, SECOND)
    frozen = {name: owner == 1 for name, owner in packnet.owner.items()}
    assert all(not si.path[name][is_frozen].any() for name, is_frozen in frozen.items())
    assert any(si.path[name].any() for name in frozen)


def test_a_task_for_which_there_are_no_weights_is_refused_with_the_capacity():
    model = mlp()
    packnet = PackNet(PackNetConfig(prune=0.05))
    trainer = ContinualTrainer(model, "classifier", methods=[packnet], optimizer=sgd)
    learn(trainer, FIRST)
    learn(trainer, SECOND)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"task 'third': 0\.\d+% of the weights are free after 2 tasks"):
        learn(trainer, THIRD)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masks_of_another_model_and_the_wrong_order_are_refused():
    packnet = PackNet()
    learn(ContinualTrainer(mlp(), "classifier", methods=[packnet], optimizer=sgd), FIRST)
    other = PackNet()
    other.attach(Learner(mlp(inputs=5), "classifier"))
    with pytest.raises(
        ValueError, match=r"masks are of another model: 0\.weight has shape \(16, 6\) there and \(16, 5\) here"
    ):
        other.load_state_dict(packnet.state_dict())
    assert not other.num_tasks
    with pytest.raises(RuntimeError, match="PackNet is idle, not training"):
        packnet.before_retraining()
    with pytest.raises(ValueError, match="task 1 was not learned: there are 1"), packnet.serving(1):
        pass
