"""The optimizers are torch's on whole parameters; of parts and of experts they make what torch's make of the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from train.pretrain.optimizer import (
    OptimizerConfig,
    ParameterShard,
    build_optimizer,
    optimizer_step_count,
    optimizer_tensors,
    set_optimizer_step_count,
)

STEPS, RATE = 5, 0.02
MUON = OptimizerConfig(kind="muon", orthogonal_dtype="bfloat16")


def _start(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _grad(step: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + step))


def _train(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE / (1 + step)
        for parameter in parameters:
            parameter.grad = _grad(step, parameter.shape)
        optimizer.step()


def test_adamw_is_torchs_and_leaves_norms_and_embeddings_without_decay():
    names = {
        "model.layers.0.self_attn.q_proj.weight": (4, 3),
        "model.norm.weight": (5,),
        "model.embed_tokens.weight": (6, 2),
    }
    ours = {name: _start(*shape) for name, shape in names.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in ours.items()}
    optimizer = build_optimizer(
        [ParameterShard(name, value, value.dim()) for name, value in ours.items()], OptimizerConfig()
    )
    groups: list[dict[str, Any]] = [
        {"params": [value], "weight_decay": 0.1 if "q_proj" in name else 0.0} for name, value in theirs.items()
    ]
    _train(optimizer, list(ours.values()))
    _train(torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8), list(theirs.values()))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_muon_of_a_matrix_is_torchs(shape: tuple[int, int]):
    ours = _start(*shape)
    theirs = ours.clone().requires_grad_()
    _train(build_optimizer([ParameterShard("model.layers.0.mlp.up_proj.weight", ours, 2)], MUON), [ours])
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    _train(reference, [theirs])
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


def test_muon_of_stacked_experts_is_that_of_each_and_of_a_part_that_of_the_whole():
    config = OptimizerConfig(kind="muon", orthogonal_dtype="float32")
    whole, name = _start(3, 8, 5), "model.layers.0.mlp.experts.w1"
    stack = whole.clone()
    _train(build_optimizer([ParameterShard(name, stack, 3)], config), [stack])
    for expert in range(3):
        alone = whole[expert].clone()
        optimizer = build_optimizer([ParameterShard("model.layers.0.mlp.up_proj.weight", alone, 2)], config)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE / (1 + step)
            alone.grad = _grad(step, whole.shape)[expert]
            optimizer.step()
        torch.testing.assert_close(stack[expert], alone, rtol=1e-4, atol=1e-5)
    rows = whole[0, 2:6].clone()
    other = {"grad": torch.zeros(8, 5)}

    def gather(part: Tensor) -> Tensor:
        full = other["grad"].clone()
        full[2:6] = part
        return full

    half = build_optimizer(
        [ParameterShard("model.layers.0.mlp.up_proj.weight", rows, 2, gather, lambda full: full[2:6])], config
    )
    reference = whole[0].clone()
    optimizer = build_optimizer([ParameterShard("model.layers.0.mlp.up_proj.weight", reference, 2)], config)
    for step in range(STEPS):
        grad = torch.zeros(8, 5)
        grad[2:6] = _grad(step, torch.Size((4, 5)))
        for one, parameter, value in ((half, rows, grad[2:6].clone()), (optimizer, reference, grad)):
            one.param_groups[0]["lr"] = RATE
            parameter.grad = value
            one.step()
    torch.testing.assert_close(rows, reference[2:6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_is_whole_before_the_first_step_and_a_copy_of_it_continues_bit_for_bit(kind: Any):
    config = OptimizerConfig(kind=kind, orthogonal_dtype="float32")
    names = {"model.layers.0.self_attn.o_proj.weight": (6, 4), "model.norm.weight": (5,)}
    first = {name: _start(*shape) for name, shape in names.items()}
    shards = [ParameterShard(name, value, value.dim()) for name, value in first.items()]
    optimizer = build_optimizer(shards, config)
    assert optimizer_step_count(optimizer) == 0
    assert not any(bool(t.any()) for kinds in optimizer_tensors(optimizer).values() for t in kinds.values())
    _train(optimizer, list(first.values()))
    second = {name: value.clone() for name, value in first.items()}
    resumed = build_optimizer([ParameterShard(n, v, v.dim()) for n, v in second.items()], config)
    for name, kinds in optimizer_tensors(resumed).items():
        for kind_, tensor in kinds.items():
            tensor.copy_(optimizer_tensors(optimizer)[name][kind_])
    set_optimizer_step_count(resumed, optimizer_step_count(optimizer))
    _train(optimizer, list(first.values()))
    _train(resumed, list(second.values()))
    assert optimizer_step_count(resumed) == 2 * STEPS
    assert all(torch.equal(first[name], second[name]) for name in names)


def test_weights_that_are_no_float32_leaf_are_refused_by_name():
    with pytest.raises(ValueError, match=r"model.norm.weight.*bfloat16"):
        build_optimizer([ParameterShard("model.norm.weight", torch.zeros(3, dtype=torch.bfloat16), 1)], MUON)
