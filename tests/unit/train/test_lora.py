"""LoRALayer against PEFT, and adapter folders: complete or absent, the same bytes for the same weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.tiny_model import write_tiny_llama
from train.adapt.base import BaseModelInMemory, load_base_model, weights_sha256
from train.adapt.lora import (
    AdapterError,
    LoRAConfig,
    LoRALayer,
    adapter_sha256,
    attach_adapter,
    attach_saved,
    detach_adapter,
    save_adapter,
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseModelInMemory:
    return load_base_model(base_folder, dtype="float32", device=torch.device("cpu"))


@pytest.fixture
def layer() -> LoRALayer:
    torch.manual_seed(1)
    layer = LoRALayer(nn.Linear(24, 40), r=8, alpha=32, seed=2)
    with torch.no_grad():
        layer.lora_b.normal_(0, 0.1)
    return layer


def peft_twin(layer: LoRALayer) -> PeftModel:
    """PEFT's adapter with the same base weight, A and B."""
    model = nn.Sequential(copy.deepcopy(layer.base))
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules=["0"]))
    module: Any = adapted.base_model.model[0]
    with torch.no_grad():
        module.lora_A["default"].weight.copy_(layer.lora_a)
        module.lora_B["default"].weight.copy_(layer.lora_b)
    return adapted


def randomise(adapted: Any, *, seed: int) -> None:
    """Trained-looking B matrices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=generator)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(12)[None]).logits
    return logits


def test_the_scale_is_alpha_over_r(layer: LoRALayer) -> None:
    assert layer.scale == 4.0
    torch.testing.assert_close(layer.delta(), 4.0 * layer.lora_b @ layer.lora_a)


def test_a_fresh_layer_gives_the_very_output_of_its_base() -> None:
    linear = nn.Linear(16, 16)
    x = torch.randn(3, 5, 16)
    assert torch.equal(LoRALayer(copy.deepcopy(linear), r=4, alpha=8, seed=0)(x), linear(x))


def test_outputs_and_gradients_are_those_of_peft(layer: LoRALayer) -> None:
    twin = peft_twin(layer)
    x = torch.randn(2, 7, 24)
    ours, theirs = layer(x), twin(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    module: Any = twin.base_model.model[0]
    torch.testing.assert_close(layer.lora_a.grad, module.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layer.lora_b.grad, module.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-5)
    assert layer.base.weight.grad is None


def test_the_merged_weight_is_that_of_peft_and_gives_the_same_output(layer: LoRALayer) -> None:
    x = torch.randn(5, 24)
    before = layer(x)
    merged = peft_twin(layer).merge_and_unload()[0]
    layer.merge()
    assert layer.is_merged
    torch.testing.assert_close(layer.base.weight, merged.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_gives_the_original_bytes_back(dtype: torch.dtype) -> None:
    layer = LoRALayer(nn.Linear(24, 40).to(dtype), r=8, alpha=32, seed=2)
    with torch.no_grad():
        layer.lora_b.normal_(0, 3)
    original = layer.base.weight.clone()
    layer.merge()
    layer.merge()
    assert not torch.equal(layer.base.weight, original)
    layer.unmerge()
    layer.unmerge()
    assert not layer.is_merged
    assert torch.equal(layer.base.weight, original)


def test_a_rank_above_the_layer_is_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match="r is 9, but the layer is 8 -> 16: choose r from 1 to 8"):
        LoRALayer(nn.Linear(8, 16), r=9, alpha=8, seed=0)


def test_a_fresh_adapter_on_a_model_leaves_its_logits_identical(base: BaseModelInMemory) -> None:
    before = logits_of(base.model)
    adapted = attach_adapter(base.model, LoRAConfig(seed=3))
    try:
        assert torch.equal(logits_of(adapted), before)
    finally:
        detach_adapter(adapted)


def test_the_seed_decides_the_adapter_and_the_global_generator_is_left_alone(base: BaseModelInMemory) -> None:
    def a_matrix(seed: int) -> torch.Tensor:
        adapted = attach_adapter(base.model, LoRAConfig(seed=seed))
        weight = next(weight for name, weight in adapted.named_parameters() if "lora_A" in name).detach().clone()
        detach_adapter(adapted)
        return weight

    state = torch.random.get_rng_state()
    assert torch.equal(a_matrix(1), a_matrix(1))
    assert not torch.equal(a_matrix(1), a_matrix(2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_detaching_leaves_the_base_byte_for_byte_as_it_was(base: BaseModelInMemory) -> None:
    before, names = weights_sha256(base.model), list(base.model.state_dict())
    adapted = attach_adapter(base.model, LoRAConfig())
    randomise(adapted, seed=1)
    detach_adapter(adapted)
    assert weights_sha256(base.model) == before
    assert list(base.model.state_dict()) == names


def test_a_saved_adapter_gives_the_same_logits_through_peft_and_continues_as_a_parent(
    base: BaseModelInMemory, tmp_path: Path
) -> None:
    adapted = attach_adapter(base.model, LoRAConfig())
    randomise(adapted, seed=5)
    expected = logits_of(adapted)
    save_adapter(adapted, folder=tmp_path / "one", base_name="tiny")
    detach_adapter(adapted)
    for attach in (
        lambda: PeftModel.from_pretrained(base.model, str(tmp_path / "one")),
        lambda: attach_saved(base.model, {"candidate": tmp_path / "one"}),
        lambda: attach_adapter(base.model, LoRAConfig(), parent=tmp_path / "one"),
    ):
        again = attach()
        assert torch.equal(logits_of(again), expected)
        detach_adapter(again)


def test_the_folder_holds_two_files_whose_hash_depends_on_the_weights_alone(
    base: BaseModelInMemory, tmp_path: Path
) -> None:
    hashes = []
    for name, seed in [("one", 5), ("two", 5), ("three", 6)]:
        adapted = attach_adapter(base.model, LoRAConfig())
        randomise(adapted, seed=seed)
        hashes.append(save_adapter(adapted, folder=tmp_path / name, base_name="tiny"))
        detach_adapter(adapted)
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == adapter_sha256(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == 3 * ["adapter_config.json"] + 3 * [
        "adapter_model.safetensors"
    ]
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("tiny", 8, 32)
    assert (tmp_path / "one" / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_version_folder_is_never_overwritten(base: BaseModelInMemory, tmp_path: Path) -> None:
    adapted = attach_adapter(base.model, LoRAConfig())
    try:
        before = save_adapter(adapted, folder=tmp_path / "one", base_name="tiny")
        with pytest.raises(AdapterError, match="exists already"):
            save_adapter(adapted, folder=tmp_path / "one", base_name="tiny")
        assert adapter_sha256(tmp_path / "one") == before
    finally:
        detach_adapter(adapted)


def test_a_save_that_fails_leaves_nothing_behind(base: BaseModelInMemory, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder's parent should be")
    adapted = attach_adapter(base.model, LoRAConfig())
    try:
        with pytest.raises(NotADirectoryError):
            save_adapter(adapted, folder=tmp_path / "blocked" / "one", base_name="tiny")
    finally:
        detach_adapter(adapted)
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]


def test_an_incomplete_or_unfitting_parent_is_refused_with_the_reason(base: BaseModelInMemory, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        attach_adapter(base.model, LoRAConfig(), parent=tmp_path / "empty")
    adapted = attach_adapter(base.model, LoRAConfig(r=4, alpha=8))
    save_adapter(adapted, folder=tmp_path / "small", base_name="tiny")
    detach_adapter(adapted)
    with pytest.raises(AdapterError, match="has r=4, alpha=8, the configuration asks for r=8, alpha=32"):
        attach_adapter(base.model, LoRAConfig(), parent=tmp_path / "small")
