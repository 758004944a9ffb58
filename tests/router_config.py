"""A small model with experts, to be given other routers."""

from typing import Any

from train.model.config import MoEConfig


def router_config(**fields: Any) -> MoEConfig:
    """Two layers of four experts, top-2; `fields` change it."""
    values = {
        "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_token": 2, "initializer_range": 0.3,
    }  # fmt: skip
    return MoEConfig.model_validate(values | fields)
