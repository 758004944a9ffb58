"""The whole model against transformers' Llama, Mixtral, Qwen3-MoE, OLMoE and GLM-4.5-MoE: logits, loss, gradients, folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model_families import FAMILIES, SHAPE
from train.model.checkpoint_hf import load_model
from train.model.hf_layout import choose_layout, from_hf_config
from train.model.loss import IGNORE, next_token_labels
from train.model.stored_weights import WeightProblem
from train.model.transformer import MoETransformer


@pytest.fixture(params=FAMILIES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MoETransformer, Path]:
    """transformers' model with random weights, ours from its folder, and the folder."""
    family, fields = FAMILIES[request.param]
    torch.manual_seed(list(FAMILIES).index(request.param))
    config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
    config._experts_implementation = "eager"
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            if name.endswith(("bias", "e_score_correction_bias")):
                tensor.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("family") / "model"
    theirs.save_pretrained(folder)
    return theirs, load_model(folder), folder


def _tokens(seed: int, *, batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_logits_equal_transformers(pair: tuple[Any, MoETransformer, Path]):
    theirs, ours, _ = pair
    tokens = _tokens(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_logits_of_a_left_padded_batch_equal_transformers(pair: tuple[Any, MoETransformer, Path]):
    theirs, ours, _ = pair
    tokens, mask = _tokens(1), torch.ones(2, 24, dtype=torch.long)
    mask[0, :9] = 0
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        found = ours(tokens, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_loss_and_every_gradient_equal_transformers(pair: tuple[Any, MoETransformer, Path], tmp_path: Path):
    theirs, ours, _ = pair
    tokens = _tokens(2)
    labels = tokens.clone()
    labels[0, :5] = IGNORE
    theirs.zero_grad()
    ours.zero_grad()
    expected = theirs(tokens, labels=labels).loss
    expected.backward()
    shifted = next_token_labels(tokens)
    shifted[0, :4] = IGNORE
    loss = ours(tokens, labels=shifted).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for parameter in ours.parameters():  # written as gradients, read back in transformers' names
        assert parameter.grad is not None
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        found = parameter.grad
        prefix, routed, weight = name.partition(".mlp.experts.")
        if not routed:
            wanted = gradients[name]
        elif weight == "w2":
            wanted = gradients[f"{prefix}.mlp.experts.down_proj"]
        else:
            wanted = gradients[f"{prefix}.mlp.experts.gate_up_proj"].chunk(2, dim=1)[0 if weight == "w1" else 1]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_transformers_loads_what_we_save_and_computes_the_same(pair: tuple[Any, MoETransformer, Path], tmp_path: Path):
    theirs, ours, _ = pair
    folder = ours.save_pretrained(tmp_path / "saved", max_shard_bytes=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = _tokens(3)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_folder_keeps_its_family_and_its_configuration(pair: tuple[Any, MoETransformer, Path], tmp_path: Path):
    theirs, ours, source = pair
    folder = ours.save_pretrained(tmp_path / "saved")
    assert choose_layout(ours.config) == theirs.config.model_type
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, folder))
    left_out = {"transformers_version", "dtype"}
    if before.get("decoder_sparse_step", 1) > 1:  # written as the list of dense layers
        left_out |= {"decoder_sparse_step", "mlp_only_layers"}
    for key in set(before) - left_out:
        if before[key] is not None and key in after:
            assert after[key] == before[key], key
    again = load_model(folder)
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_fused_experts_are_read_as_well(pair: tuple[Any, MoETransformer, Path], tmp_path: Path):
    theirs, ours, _ = pair
    theirs.save_pretrained(tmp_path, save_original_format=False)
    fused = load_model(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(fused.state_dict()[name], tensor), name


REQUIRED = {"vocab_size": 60_000, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"intermediate_size": 96},
    "Mixtral": {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen3Moe": {
        "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3},
    "Olmoe": {"intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 4, "num_key_value_heads": 8},
    "Glm4Moe": {
        "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "first_k_dense_replace": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", SHAPES)
def test_keys_that_a_configuration_lacks_mean_what_they_mean_to_transformers(family: str):
    given = REQUIRED | SHAPES[family]
    whole = getattr(transformers, f"{family}Config")(**given).to_dict()
    assert from_hf_config({"model_type": whole["model_type"], **given}) == from_hf_config(whole)


@pytest.mark.parametrize("stored_experts", [4, 16])
def test_another_number_of_fused_experts_is_an_error(tmp_path: Path, stored_experts: int):
    """16 under a configuration of 8 would otherwise load the first 8."""
    theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SHAPE | FAMILIES["mixtral"][1]))
    theirs.save_pretrained(tmp_path, save_original_format=False)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[name] = torch.cat([tensors[name], tensors[name]])[:stored_experts].contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightProblem, match=rf"gate_up_proj has shape \[{stored_experts}, .* 8 experts first"):
        load_model(tmp_path)


def test_auxiliary_loss_pooled_over_layers_equals_transformers(pair: tuple[Any, MoETransformer, Path]):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    from train.model.balance import load_balancing_loss

    theirs, ours, _ = pair
    if ours.config.router.score != "softmax" or not ours.config.moe_layers:
        return  # transformers has no auxiliary loss for this family
    tokens, mask = _tokens(4), torch.ones(2, 24, dtype=torch.long)
    mask[1, :7] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = theirs(tokens, attention_mask=mask, position_ids=positions, output_router_logits=True).router_logits
    config = ours.config
    expected = load_balancing_loss_func(logits, config.num_experts, config.num_experts_per_token, mask)
    assert expected > 0
    micro_batch = config.replace(router=config.router.model_copy(update={"aux_loss_scope": "micro_batch"}))
    stats = ours(tokens, attention_mask=mask).router_stats
    torch.testing.assert_close(
        load_balancing_loss(stats, config=micro_batch, pool_layers=True), expected, atol=1e-5, rtol=1e-5
    )
