"""What tests of continual learning share: a small classifier, a small language model, batches, optimizers, three tasks."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from train.continual.domain import Domain
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.lwf import LearningWithoutForgetting
from train.continual.method import ContinualMethod, Task
from train.continual.packnet import PackNet
from train.continual.rows import Batch
from train.continual.si import SynapticIntelligence
from train.continual.trainer import ContinualTrainer
from train.model.config import MoEConfig
from train.model.transformer import MoETransformer

FIRST, SECOND, THIRD = (
    Task("first", 0, classes=(0, 1)),
    Task("second", 1, classes=(2, 3)),
    Task("third", 2, classes=(4, 5)),
)
TEXTS = tuple(Task(task.name, task.index) for task in (FIRST, SECOND, THIRD))
"""For a language model: without classes."""


def all_methods() -> list[ContinualMethod]:
    """That hold weights, together."""
    return [EWCRegularizer(EWCConfig(strength=10.0)), SynapticIntelligence(), PackNet(), LearningWithoutForgetting()]


def mlp(*, seed: int = 0, inputs: int = 6, classes: int = 6) -> nn.Module:
    """A hidden layer of 16."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, classes))


def labelled_batch(
    *, seed: int, size: int = 8, inputs: int = 6, classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
) -> Batch:
    """Normal inputs with labels drawn from `classes`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (size,), generator=generator)]
    return {"x": torch.randn(size, inputs, generator=generator), "y": labels}


def writer(*, seed: int = 0) -> nn.Module:
    """A causal language model of transformers with 40 words and two layers."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, use_cache=False,
        )
    )  # fmt: skip


def tiny_moe(*, seed: int = 0) -> nn.Module:
    """Our transformer with as many words, and four experts in each of two layers."""
    torch.manual_seed(seed)
    return MoETransformer(
        MoEConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            moe_intermediate_size=48, num_experts=4, num_experts_per_token=2, max_position_embeddings=32,
        )
    )  # fmt: skip


def written_batch(*, seed: int, size: int = 4, length: int = 12, begin: int = 0) -> Batch:
    """Sequences in which each word is followed by the next of ten, `begin` being the first."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(10, (size, 1), generator=generator)
    ids = begin + (first + torch.arange(length + 1)) % 10
    number = torch.arange(size) + 1000 * seed
    return {"id": number, "input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def domains(count: int = 3) -> list[Domain]:
    """Sequences for a language model; each domain has ten words of its own."""
    return [
        Domain(
            f"domain {index}",
            written_batch(seed=1 + index, size=16, begin=10 * index),
            written_batch(seed=50 + index, size=4, begin=10 * index),
        )
        for index in range(count)
    ]


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(parameters, lr=0.05)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """With weight decay, which moves weights without gradients too."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def learn(trainer: ContinualTrainer, task: Task, *, steps: int = 6) -> None:
    """`steps` batches of the task's classes; its samples are the first three."""

    def source(step: int) -> Batch:
        ids = {"id": torch.arange(8) + 100 * step + 1000 * task.index}
        return labelled_batch(seed=100 * task.index + step, classes=task.classes or (0, 1)) | ids

    trainer.learn(task, source, num_steps=steps, samples=lambda: [source(step) for step in range(3)])
