"""Model folders: round trips in our own layout too, and every damage named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.model.checkpoint_hf import load_model
from train.model.config import MoEConfig
from train.model.embedded import ModelFolderProblem
from train.model.hf_families import OWN_LAYOUT
from train.model.hf_layout import choose_layout, explain_layout
from train.model.stored_weights import WeightProblem
from train.model.transformer import MoETransformer

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 4, "max_position_embeddings": 64,
}  # fmt: skip


def _model(**fields: object) -> MoETransformer:
    torch.manual_seed(0)
    return MoETransformer(MoEConfig.model_validate(SHAPE | fields)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _model().save_pretrained(tmp_path / "model", max_shard_bytes=30_000)


def _edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _edit_tensor(folder: Path, name: str, value: torch.Tensor | None) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            if value is None:
                del tensors[name]
            else:
                tensors[name] = value
            save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True, "dense_layers": [0]},
        {"num_experts": 0, "num_experts_per_token": 0},
        {"num_shared_experts": 2, "attention": {"pattern": ["sliding", "full"], "window": 8, "num_sinks": 2}},
        {"router": {"balancing": "bias"}},
        {"router": {"score": "sigmoid", "balancing": "bias", "scaling_factor": 2.5}, "num_shared_experts": 1},
        {"router": {"capacity_factor": 1.25, "z_loss_coefficient": 0.001}, "qk_norm": "head", "expert_kernel": "loop"},
    ],
)
def test_what_is_saved_is_loaded_bit_for_bit(fields: dict[str, object], tmp_path: Path):
    model = _model(**fields)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("bias"):
                buffer.normal_()
    again = load_model(model.save_pretrained(tmp_path / "model"))
    assert again.config == model.config
    assert not again.training
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert tensor.dtype == again.state_dict()[name].dtype, name
    tokens = torch.arange(20).unsqueeze(0)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_the_dtype_of_the_files_is_kept_and_another_may_be_asked_for(tmp_path: Path):
    folder = _model().bfloat16().save_pretrained(tmp_path / "model")
    assert load_model(folder).model.embed_tokens.weight.dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float32).model.embed_tokens.weight.dtype == torch.float32


def test_what_no_family_computes_is_said_with_the_field():
    config = MoEConfig.model_validate(SHAPE | {"attention": {"pattern": ["sliding"], "window": 8, "num_sinks": 4}})
    assert choose_layout(config) == OWN_LAYOUT
    reasons = explain_layout(config)
    assert "4 sinks" in reasons["mixtral"]
    assert "qk_norm" in reasons["qwen3_moe"]


def test_a_partly_rotated_head_is_no_family_but_glms():
    """transformers reads the key for the others too, and then rotates whole heads."""
    config = MoEConfig.model_validate(SHAPE | {"rope": {"partial_rotary_factor": 0.5}})
    assert choose_layout(config) == OWN_LAYOUT
    assert "partial_rotary_factor = 0.5" in explain_layout(config)["mixtral"]


def test_further_ends_of_text_of_the_generation_config_stop_generation_too(tmp_path: Path):
    folder = _model(eos_token_id=2).save_pretrained(tmp_path / "model")
    assert load_model(folder).config.eos_token_id == 2
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert load_model(folder).config.eos_token_ids == (2, 7)


def test_edited_keys_of_the_family_win_over_our_section(folder: Path):
    _edit_config(folder, max_position_embeddings=32, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    config = load_model(folder).config
    assert config.max_position_embeddings == 32
    assert config.rope.theta == 77


def test_a_missing_shard_is_named(folder: Path):
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(ModelFolderProblem, match=r"lacks 1 of \d+ weight files: model-00001"):
        load_model(folder)


def test_a_cut_off_shard_is_named(folder: Path):
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelFolderProblem, match=r"model-00001.*bytes"):
        load_model(folder)


def test_a_missing_tensor_is_named(tmp_path: Path):
    folder = _model().save_pretrained(tmp_path / "one")
    _edit_tensor(folder, "model.layers.1.block_sparse_moe.experts.2.w3.weight", None)
    with pytest.raises(WeightProblem, match=r"lacks the tensor model.layers.1.block_sparse_moe.experts.2.w3.weight"):
        load_model(folder)


def test_another_shape_is_named(folder: Path):
    _edit_config(folder, intermediate_size=32)
    with pytest.raises(
        WeightProblem, match=r"experts.0.w1.weight.* has shape \[16, 32\], config.json asks for \[32, 32\]"
    ):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_on_loading_and_on_saving(folder: Path, tmp_path: Path, value: float):
    name = "model.layers.0.self_attn.q_proj.weight"
    broken = torch.zeros(32, 32)
    broken[3, 4] = value
    _edit_tensor(folder, name, broken)
    with pytest.raises(WeightProblem, match=f"{name}.* holds 1 values"):
        load_model(folder)
    model = _model()
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = value
    with pytest.raises(ValueError, match=f"{name} holds values that are NaN"):
        model.save_pretrained(tmp_path / "other")
    assert not list(tmp_path.glob("*other*"))


def test_tensors_of_another_model_are_named(tmp_path: Path):
    folder = _model().save_pretrained(tmp_path / "one")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"vision.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightProblem, match=r"1 tensors .* such as vision.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2' is not supported.*mixtral"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "default", "spiral": 3}}, r"rope_parameters.spiral"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide"),
        ({"autonomous": {"format": 99, "config": {}}}, "format = 99"),
    ],
)
def test_a_configuration_that_is_not_supported_is_named(folder: Path, fields: dict[str, object], words: str):
    _edit_config(folder, **fields)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_local_experts": None}, "num_local_experts|num_experts"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\] is not a JSON object"),
        ({"autonomous": [1]}, r"autonomous = \[1\] is not a JSON object"),
        ({"model_type": ["mixtral"]}, r"model_type = \['mixtral'\] is not supported"),
        ({"hidden_size": "many"}, "hidden_size = 'many' is not valid"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "rope.theta = 1.0 is not valid"),
        ({"vocab_size": 10**18}, r"vocab_size = 1000000000000000000 is not valid"),
        ({"eos_token_id": 61}, "eos_token_id = 61 is beyond the vocabulary of vocab_size = 61"),
    ],
)
def test_a_damaged_configuration_is_named(folder: Path, fields: dict[str, object], words: str):
    _edit_config(folder, **fields)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


QWEN: dict[str, object] = {"qk_norm": "head"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0 .* at least 1"),
        ({"decoder_sparse_step": "a"}, "decoder_sparse_step = 'a' is no count"),
        ({"mlp_only_layers": 3}, "mlp_only_layers = 3"),
        ({"num_hidden_layers": "x"}, "num_hidden_layers = 'x' is no count"),
        ({"norm_topk_prob": "false"}, "norm_topk_prob = 'false' is neither true nor false"),
    ],
)
def test_a_damaged_qwen_configuration_is_named(tmp_path: Path, fields: dict[str, object], words: str):
    folder = _model(**QWEN).save_pretrained(tmp_path / "model")
    _edit_config(folder, **fields)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


def test_deeply_nested_json_is_named(folder: Path):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelFolderProblem, match="is not JSON"):
        load_model(folder)


def test_a_configuration_far_larger_than_its_weights_is_refused_before_it_is_allocated(folder: Path):
    _edit_config(folder, num_hidden_layers=2000)
    with pytest.raises(WeightProblem, match=r"lacks model\.layers\.1999\., .*num_hidden_layers = 2000"):
        load_model(folder)
    _edit_config(folder, num_hidden_layers=2, vocab_size=2**27)
    with pytest.raises(WeightProblem, match=r"embed_tokens.weight .* has shape \[61, 32\]"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_floats_are_named(tmp_path: Path, name: str, dtype: torch.dtype):
    folder = _model().save_pretrained(tmp_path / "model")
    _edit_tensor(folder, name, load_file(folder / "model.safetensors")[name].to(dtype))
    with pytest.raises(WeightProblem, match=rf"{name} in .* is stored as .*only F16, BF16, F32, F64"):
        load_model(folder)


def test_a_file_without_tensors_is_named(tmp_path: Path):
    folder = _model().save_pretrained(tmp_path / "model")
    save_file({}, folder / "model.safetensors")
    with pytest.raises(WeightProblem, match=r"lacks model\.embed_tokens\.weight"):
        load_model(folder)


def test_an_unknown_stored_dtype_is_a_damaged_file(tmp_path: Path):
    folder = _model().save_pretrained(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"Q32"'))
    with pytest.raises(ModelFolderProblem, match="are damaged"):
        load_model(folder)


def test_a_window_that_is_edited_away_is_gone(tmp_path: Path):
    window = {"pattern": ["sliding"], "window": 8, "num_sinks": 0}
    folder = _model(attention=window).save_pretrained(tmp_path / "model")
    assert load_model(folder).config.attention_kind(0) == "sliding"
    _edit_config(folder, sliding_window=None)
    assert load_model(folder).config.attention_kind(0) == "full"


def test_shards_of_no_size_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="max_shard_bytes = 0"):
        _model().save_pretrained(tmp_path / "model", max_shard_bytes=0)


def test_a_key_that_the_family_needs_is_missed_by_name(folder: Path):
    path = folder / "config.json"
    written = {key: value for key, value in json.loads(path.read_text()).items() if key != "num_local_experts"}
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"config\.json lacks num_local_experts, which model_type = 'mixtral' needs"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/other/model.safetensors", 5, ["a"], "..", ""])
def test_an_index_reads_no_file_outside_its_folder(folder: Path, name: object):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ModelFolderProblem, match=r"no name of a file in the folder|lacks 1 of"):
        load_model(folder)


def test_layers_that_the_configuration_leaves_out_are_an_error(folder: Path):
    _edit_config(folder, num_hidden_layers=1)
    with pytest.raises(WeightProblem, match=r"no place for, such as model\.layers\.1"):
        load_model(folder)


def test_llama_3_1s_own_rotation_is_accepted():
    """Its published factor is 8, its context 16 times what was trained."""
    rope = {"kind": "llama3", "theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192}
    assert MoEConfig.model_validate(SHAPE | {"max_position_embeddings": 131_072, "rope": rope}).rope.factor == 8


def test_a_tensor_that_the_index_does_not_name_is_missed(folder: Path):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(WeightProblem, match=r"lacks the tensor lm_head\.weight"):
        load_model(folder)


def test_no_code_of_the_folder_is_executed(folder: Path, tmp_path: Path):
    marker = tmp_path / "executed"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    _edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, architectures=["Evil"])
    load_model(folder)
    assert not marker.exists()


def test_a_folder_of_pickles_is_refused(folder: Path):
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderProblem, match="safetensors"):
        load_model(folder)


def test_a_folder_with_files_is_never_written_over(folder: Path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="holds files already"):
        _model().save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_tokenizer_files_are_copied_or_missed(folder: Path, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        _model().save_pretrained(tmp_path / "a", tokenizer_from=source)
    (source / "tokenizer.json").write_text("{}")
    assert (_model().save_pretrained(tmp_path / "b", tokenizer_from=source) / "tokenizer.json").read_text() == "{}"
