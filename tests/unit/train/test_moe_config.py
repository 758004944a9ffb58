"""MoEConfig: what fits together is accepted, what does not is refused with the field, its value and the fix."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from train.model.config import AttentionConfig, MoEConfig, RopeConfig


def test_the_users_three_fields_are_enough():
    config = MoEConfig(num_experts=128, num_experts_per_token=2, max_position_embeddings=131072)
    assert config.head_dim == 64
    assert config.moe_layers == tuple(range(8))


def test_a_configuration_survives_json():
    config = MoEConfig(
        dense_layers=(0, 2),
        eos_token_id=(1, 2),
        rope=RopeConfig(kind="yarn", factor=4, original_max_position_embeddings=32768),
    )
    assert MoEConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 600},
            ["num_key_value_heads = 4", "1, 2, 3, 6"],
        ),
        ({"hidden_size": 500}, ["hidden_size = 500", "num_attention_heads = 8", "set head_dim"]),
        ({"num_experts": 8, "num_experts_per_token": 9}, ["num_experts_per_token = 9", "num_experts = 8", "lower it"]),
        ({"num_experts": 0}, ["num_experts = 0", "num_experts_per_token = 2", "set both to 0"]),
        ({"dense_layers": (8,)}, ["dense_layers names layer 8", "0 to 7"]),
        ({"dense_layers": (1, 1)}, ["twice"]),
        ({"head_dim": 7}, ["head_dim = 7", "even"]),
        (
            {"rope": {"kind": "yarn", "factor": 4, "original_max_position_embeddings": 4096}},
            ["max_position_embeddings = 131072", "4096 trained positions x factor 4 = 16384", "rope.factor to 32"],
        ),
        ({"rope": {"kind": "llama3", "factor": 8}}, ["original_max_position_embeddings is missing"]),
        ({"rope": {"kind": "longrope", "original_max_position_embeddings": 4096}}, ["short_factor", "both lists"]),
        (
            {
                "rope": {
                    "kind": "longrope",
                    "original_max_position_embeddings": 4096,
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                }
            },
            ["rope.short_factor has 1 values", "32"],
        ),
        (
            {
                "rope": {
                    "kind": "llama3",
                    "factor": 40,
                    "original_max_position_embeddings": 8192,
                    "high_freq_factor": 0.5,
                }
            },
            ["rope.high_freq_factor = 0.5", "above"],
        ),
        (
            {"attention": {"pattern": ["sparse"], "window": 100}},
            ["attention.window = 100", "attention.block_size = 64"],
        ),
        ({"attention": {"pattern": []}}, ["attention.pattern is empty"]),
        ({"num_expert": 8}, ["num_expert"]),
        ({"head_dim": 2, "rope": {"kind": "dynamic", "factor": 2}}, ["head_dim = 2 leaves 1 pair", "dynamic"]),
        (
            {"moe_intermediate_size": 100, "expert_kernel": "grouped_mm"},
            ["moe_intermediate_size = 100 is not a multiple of 8", "use 'auto'"],
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_fix(fields: dict[str, object], words: list[str]):
    with pytest.raises(ValidationError) as error:
        MoEConfig.model_validate(fields)
    for word in words:
        assert word in str(error.value)


def test_a_dense_model_has_no_experts():
    assert MoEConfig(num_experts=0, num_experts_per_token=0).moe_layers == ()


def test_the_attention_pattern_repeats_from_the_first_layer():
    config = MoEConfig(num_hidden_layers=5, attention=AttentionConfig(pattern=("sliding", "sliding", "full")))
    assert [config.attention_kind(layer) for layer in range(5)] == ["sliding", "sliding", "full", "sliding", "sliding"]


@given(
    heads=st.integers(1, 64),
    groups=st.integers(1, 64),
    width=st.integers(1, 2048),
    experts=st.integers(0, 64),
    k=st.integers(0, 64),
)
def test_a_configuration_is_accepted_exactly_if_it_divides(heads: int, groups: int, width: int, experts: int, k: int):
    head_dim = width // heads
    fits = heads % groups == 0 and width % heads == 0 and head_dim % 2 == 0 and head_dim >= 2
    fits = fits and (1 <= k <= experts if experts else k == 0)
    values = {
        "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": groups,
        "num_experts": experts, "num_experts_per_token": k,
    }  # fmt: skip
    if not fits:
        with pytest.raises(ValidationError):
            MoEConfig.model_validate(values)
        return
    config = MoEConfig.model_validate(values)
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert config.num_key_value_groups * config.num_key_value_heads == config.num_attention_heads


def test_the_replaced_configuration_is_checked_as_a_whole():
    config = MoEConfig()
    assert config.replace(num_experts=4).num_experts == 4
    with pytest.raises(ValidationError, match="num_experts_per_token = 2"):
        config.replace(num_experts=1)
    assert math.isclose(config.replace(rope=RopeConfig(theta=5e5)).rope.theta, 5e5)
