"""One and two ranks learn the same, whatever the method: Fisher information, paths, buffers and masks agree."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.continual import adamw, domains, writer
from tests.ranks import run_ranks
from train.continual.domain import DomainAdaptive, DomainConfig
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.finetune import ContinualFineTuning, FineTuningConfig
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.packnet import PackNet
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
