"""One and two ranks learn the same, whatever the method: Fisher information, paths, buffers and masks agree."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.continual import adamw, domains, sgd, writer, written_batch
from tests.ranks import run_ranks
from train.adapt.lora import LoRAConfig, attach_adapter
from train.continual.domain import DomainAdaptive, DomainConfig
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.finetune import ContinualFineTuning, FineTuningConfig
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.packnet import PackNet
from train.continual.progressive import ProgressiveColumns, ProgressiveNetworks
from train.continual.rows import Batch
from train.continual.si import SynapticIntelligence
from train.continual.trainer import ContinualTrainer

METHODS: dict[str, Any] = {
    "ewc": lambda: [EWCRegularizer(EWCConfig(strength=20.0))],
    "si": lambda: [SynapticIntelligence()],
    "lwf": lambda: [LearningWithoutForgetting()],
    "packnet": lambda: [PackNet()],
    "replay": lambda: [BatchReplay(ReplayConfig(capacity=20))],
    "replay with logits": lambda: [BatchReplay(ReplayConfig(capacity=20, logits_weight=0.5))],
    # with so few old samples in a batch a rank may have none of them
    "si and replay with logits": lambda: [
        SynapticIntelligence(),
        BatchReplay(ReplayConfig(capacity=20, share=0.06, logits_weight=0.5)),
    ],
    "ewc, si and replay": lambda: [EWCRegularizer(EWCConfig(strength=20.0)), SynapticIntelligence(), BatchReplay()],
}


def _rows(task: int, step: int, rank: int, world: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * task + step)
    x, y = torch.randn(16, 6, generator=generator), torch.randint(4, (16,), generator=generator)
    ids = torch.arange(16) + 16 * step + 1000 * task
    part = slice(rank * 16 // world, (rank + 1) * 16 // world)
    return {"id": ids[part], "x": x[part], "y": y[part]}


def _train(rank: int, world: int, name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    methods: list[ContinualMethod] = METHODS[name]()
    group = dist.group.WORLD if world > 1 else None
    trainer = ContinualTrainer(
        model, "classifier", methods=methods, optimizer=lambda weights: torch.optim.AdamW(weights, lr=0.01), group=group
    )
    for index in range(3):
        trainer.learn(
            Task(str(index), index), lambda step, one=index: _rows(one, step % 3, rank, world), num_steps=8,
            samples=lambda one=index: [_rows(one, step, rank, world) for step in range(3)],
        )  # fmt: skip
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_learn_what_one_learns(name: str) -> None:
    (expected,) = run_ranks(_train, 1, name)
    for found in run_ranks(_train, 2, name):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def _keep_on_disk(rank: int, world: int, folder: str) -> list[float]:
    """What each rank's buffer says of its samples."""
    replay = BatchReplay(ReplayConfig(capacity=40, folder=Path(folder)))
    trainer = ContinualTrainer(
        nn.Linear(6, 4), "classifier", methods=[replay], group=dist.group.WORLD if world > 1 else None,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.01),
    )  # fmt: skip
    trainer.learn(
        Task("0", 0), lambda step: _rows(0, step, rank, world), num_steps=1,
        samples=lambda: [_rows(0, step, rank, world) for step in range(3)],
    )  # fmt: skip
    for step in range(3):
        batch = _rows(0, step, rank, world)
        kept = [place for place, number in enumerate(batch["id"].tolist()) if number in replay.buffer]
        found = replay.buffer.take(batch["id"][kept].tolist())
        assert all(torch.equal(found[name], value[kept]) for name, value in batch.items())
    return [float(number) for number in replay.ids]


def test_ranks_keep_their_samples_on_disk_apart(tmp_path: Path) -> None:
    (expected,) = run_ranks(_keep_on_disk, 1, str(tmp_path / "one"))
    for found in run_ranks(_keep_on_disk, 2, str(tmp_path / "two")):
        assert found == expected


def _write(rank: int, world: int) -> dict[str, Tensor]:
    """A language model with one adapter, held by EWC with classes that are drawn."""
    model = attach_adapter(writer(), LoRAConfig(), is_float32=True)
    trainer = ContinualTrainer(
        model, "causal", methods=[EWCRegularizer(EWCConfig(strength=20.0, max_samples=7)), BatchReplay()], optimizer=sgd,
        group=dist.group.WORLD if world > 1 else None,
    )  # fmt: skip
    for index in range(2):

        def part(step: int, index: int = index) -> Batch:
            whole = written_batch(seed=10 * index + step, size=8, begin=10 * index)
            return {name: value[rank::world] for name, value in whole.items()}

        trainer.learn(Task(str(index), index), part, num_steps=4, samples=lambda part=part: [part(0), part(1)])
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def test_two_ranks_hold_a_language_model_as_one_does() -> None:
    (expected,) = run_ranks(_write, 1)
    for found in run_ranks(_write, 2):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


class _Limited(nn.Module):
    """Fails where an input is too large: on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 100:
            raise RuntimeError("no memory is left")
        out: Tensor = self.layer(x)
        return out


def _fail(rank: int, world: int, where: str) -> list[str]:
    """What the ranks say when the second one alone meets something, and when it is gone."""
    torch.manual_seed(0)
    trainer = ContinualTrainer(
        _Limited(), "classifier", methods=[BatchReplay(), EWCRegularizer()], optimizer=sgd, group=dist.group.WORLD
    )
    good, told = _rows(0, 0, rank, world), []
    bad = {name: value.clone() for name, value in good.items()}
    if where == "label":
        bad["y"] += 4
    if where == "forward":
        bad["x"] += 1000
    if where == "id":
        del bad["id"]

    def source(step: int) -> Batch:
        if where == "source" and rank and not told and step == 2:
            raise OSError("the disk is gone")
        return bad if rank and not told and step == 2 and where in ("forward", "id") else good

    def samples() -> list[Batch]:
        nonlocal looked
        looked += 1
        if where == "samples" and rank and not told and looked > 1:
            raise OSError("the disk is gone")
        return [bad if rank and not told and where == "label" else good]

    looked = 0
    for _ in range(1 if where == "nowhere" else 2):
        try:
            trainer.learn(Task("0", 0), source, num_steps=4, samples=samples)
        except Exception as error:  # whatever it is
            told.append(f"{type(error).__name__}: {error}")
    return [*told, str(float(trainer.learner.model.layer.weight.detach().sum()))]  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("where", "own", "others"),
    [
        ("label", "ValueError: a sample has label", "ValueError: a sample has label"),
        ("source", "OSError: the disk", "RuntimeError: rank 1: the disk"),
        ("id", "ValueError: a batch for replay needs a field 'id'", "TrainingFailed: rank 1: a batch for replay"),
        ("forward", "RuntimeError: no memory", "RuntimeError: rank 1: no memory"),
        ("samples", "OSError: the disk", "RuntimeError: rank 1: the disk"),
    ],
)
def test_what_one_rank_meets_all_raise_at_once_and_go_on_from_there(where: str, own: str, others: str) -> None:
    (of_first, first), (of_second, second) = run_ranks(_fail, 2, where, timeout_s=60)
    assert of_second.startswith(own)
    assert of_first.startswith(others)
    assert first == second == run_ranks(_fail, 2, "nowhere", timeout_s=60)[0][0]


def _grow(rank: int, world: int) -> list[float]:
    torch.manual_seed(rank)
    model = ProgressiveNetworks((6, 8, 4))
    trainer = ContinualTrainer(
        model, "classifier", methods=[ProgressiveColumns()], optimizer=sgd, group=dist.group.WORLD
    )
    for index in range(2):
        trainer.learn(
            Task(str(index), index), lambda step: _rows(0, step, rank, world), num_steps=3,
            samples=lambda: [_rows(0, 0, rank, world)],
        )  # fmt: skip
    return [float(value.sum()) for value in model.state_dict().values()]


def test_a_new_column_is_the_same_on_all_ranks() -> None:
    first, second = run_ranks(_grow, 2)
    assert first == second


def _normalise(rank: int, world: int) -> str:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    try:
        ContinualTrainer(model, "classifier", methods=[], optimizer=sgd, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)
    return ""


def test_norms_with_statistics_of_their_own_on_each_rank_are_refused() -> None:
    for told in run_ranks(_normalise, 2):
        assert "1 is BatchNorm1d, whose statistics would be of each rank's part" in told


def _swap(rank: int, world: int) -> str:
    """The second task has samples of the first, which the other rank keeps."""
    trainer = ContinualTrainer(
        nn.Linear(6, 4), "classifier", methods=[BatchReplay()], optimizer=sgd, group=dist.group.WORLD
    )
    for index in range(2):
        batch = _rows(0, 0, rank if not index else 1 - rank, world)
        try:
            trainer.learn(
                Task(str(index), index), lambda _, one=batch: one, num_steps=1, samples=lambda one=batch: [one]
            )
        except ValueError as error:
            return str(error)
    return ""


def test_a_sample_that_another_rank_keeps_is_refused() -> None:
    for told in run_ranks(_swap, 2):
        assert "was learned in an earlier task, and another rank keeps it" in told


def _adapt(rank: int, world: int, composition: str) -> list[list[float]]:
    """The losses of a language model's domains after each of them."""
    method = ContinualFineTuning(writer(), FineTuningConfig(composition=composition))  # type: ignore[arg-type]
    trainer = ContinualTrainer(
        method.model, "causal", methods=[method, BatchReplay(ReplayConfig(share=0.5))], optimizer=adamw,
        group=dist.group.WORLD if world > 1 else None,
    )  # fmt: skip
    config = DomainConfig(steps=6, batch_size=4, evaluate_every=3, mixture="by_drop")
    return DomainAdaptive(trainer, domains(), config).run().curves


@pytest.mark.parametrize("composition", ["routed", "summed"])
def test_two_ranks_take_a_language_model_through_domains_as_one_does(composition: str) -> None:
    (expected,) = run_ranks(_adapt, 1, composition)
    for found in run_ranks(_adapt, 2, composition):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
