"""MixedPrecisionManager: the loss scale is GradScaler's, fp8 touches what it should, and devices that cannot are told."""

import json
import random

import pytest
import torch
from torch.amp import GradScaler

from tests.pretraining import tiny_config
from train.model.transformer import MoETransformer
from train.pretrain.precision import MixedPrecisionManager, PrecisionConfig


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp8", torch.bfloat16)],
)
def test_a_kind_is_a_dtype_of_the_layers_and_only_fp16_is_scaled(kind: str, dtype: torch.dtype) -> None:
    manager = MixedPrecisionManager(PrecisionConfig.model_validate({"kind": kind}), device_type="cpu")
    assert manager.compute_dtype == dtype
    assert manager.is_scaled == (kind == "fp16")
    assert manager.scale == (2.0**16 if kind == "fp16" else 1.0)


def test_the_scale_moves_as_that_of_torchs_grad_scaler() -> None:
    config = PrecisionConfig(kind="fp16", initial_scale=1024.0, growth_interval=3)
    ours = MixedPrecisionManager(config, device_type="cpu")
    theirs = GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    draws = random.Random(0)
    for _ in range(60):
        is_finite = draws.random() < 0.75
        theirs.scale(weight.sum()).backward()
        assert weight.grad is not None
        if not is_finite:
            weight.grad.fill_(float("inf"))
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.finish_step(is_finite=is_finite)
        assert ours.scale == theirs.get_scale()


def test_the_state_goes_through_json_and_a_run_that_is_not_scaled_ignores_it() -> None:
    config = PrecisionConfig(kind="fp16", growth_interval=2)
    first, second = (MixedPrecisionManager(config, device_type="cpu") for _ in range(2))
    for is_finite in (False, True):
        first.finish_step(is_finite=is_finite)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for manager in (first, second):
        manager.finish_step(is_finite=True)
    assert first.scale == second.scale == 2.0**16
    third = MixedPrecisionManager(config, device_type="cpu")
    third.load_state_dict(MixedPrecisionManager(PrecisionConfig(kind="bf16"), device_type="cpu").state_dict())
    assert third.scale == config.initial_scale
    plain = MixedPrecisionManager(PrecisionConfig(kind="bf16"), device_type="cpu")
    plain.load_state_dict({"scale": 4.0, "num_good": 1, "is_scaled": True})
    assert plain.scale == 1.0


def test_fp8_converts_attention_and_dense_parts_and_leaves_router_experts_and_head() -> None:
    model = MoETransformer(tiny_config("sigmoid"), device="meta")
    MixedPrecisionManager(PrecisionConfig(kind="fp8"), device_type="cpu").convert(model)
    converted = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    assert {name.split(".")[-1] for name in converted} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not any("lm_head" in name or name.endswith("gate") for name in converted)


def test_a_device_without_float8_says_so() -> None:
    with pytest.raises(ValueError, match="cpu has no float8 matmuls here: leave it out to emulate them"):
        MixedPrecisionManager(PrecisionConfig(kind="fp8", is_emulated=False), device_type="cpu")
