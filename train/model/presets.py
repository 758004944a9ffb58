"""Named shapes: `tiny` and `small` to train here, published models to compare with, 500B and 1T to plan for.

Sources: Mixtral 8x7B (arXiv:2401.04088), Qwen3-30B-A3B (arXiv:2505.09388), Llama 3 (arXiv:2407.21783) and their published
config.json. 500b and 1t are ours: 128 experts, top-2, as the specification asks.
"""

from pathlib import Path

from train.model.config import AttentionConfig, MoEConfig, RopeConfig, RouterConfig
from train.model.embedded import read_json_object
from train.model.hf_layout import from_hf_config

_LONG = RopeConfig(kind="yarn", theta=1e6, factor=4.0, original_max_position_embeddings=32_768)
"""Trained at 32K, reaching 128K."""
_LARGE_ROUTER = RouterConfig(
    score="sigmoid", balancing="bias", scaling_factor=2.5, aux_loss_scope="sequence", aux_loss_coefficient=1e-4
)

PRESETS: dict[str, MoEConfig] = {
    "tiny": MoEConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=192, moe_intermediate_size=64, num_experts=8, max_position_embeddings=2048, qk_norm="head",
        tie_word_embeddings=True,
    ),
    "small": MoEConfig(
        vocab_size=16_384, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=1536, moe_intermediate_size=512, num_experts=8, max_position_embeddings=8192, qk_norm="head",
        tie_word_embeddings=True, rms_norm_eps=1e-6,
    ),
    "mixtral-8x7b": MoEConfig(
        vocab_size=32_000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14_336, moe_intermediate_size=14_336, num_experts=8, max_position_embeddings=32_768,
        rope=RopeConfig(theta=1e6), router=RouterConfig(aux_loss_coefficient=0.02), bos_token_id=1, eos_token_id=2,
    ),
    "qwen3-30b-a3b": MoEConfig(
        vocab_size=151_936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        head_dim=128, intermediate_size=6144, moe_intermediate_size=768, num_experts=128, num_experts_per_token=8,
        max_position_embeddings=40_960, rms_norm_eps=1e-6, qk_norm="head", rope=RopeConfig(theta=1e6),
        bos_token_id=151_643, eos_token_id=151_645,
    ),
    "llama-3-8b": MoEConfig(
        vocab_size=128_256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14_336, num_experts=0, num_experts_per_token=0, max_position_embeddings=8192,
        rope=RopeConfig(theta=5e5), bos_token_id=128_000, eos_token_id=128_001,
    ),
    "llama-3.1-405b": MoEConfig(
        vocab_size=128_256, hidden_size=16_384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8,
        intermediate_size=53_248, num_experts=0, num_experts_per_token=0, max_position_embeddings=131_072,
        rope=RopeConfig(kind="llama3", theta=5e5, factor=8.0, original_max_position_embeddings=8192),
        bos_token_id=128_000, eos_token_id=128_001,
    ),
    "500b": MoEConfig(
        vocab_size=128_256, hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, num_key_value_heads=8,
        head_dim=128, intermediate_size=16_384, moe_intermediate_size=4480, num_experts=128, num_shared_experts=1,
        max_position_embeddings=131_072, qk_norm="head", rope=_LONG, router=_LARGE_ROUTER,
    ),
    "1t": MoEConfig(
        vocab_size=128_256, hidden_size=7168, num_hidden_layers=64, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, intermediate_size=18_432, moe_intermediate_size=5632, num_experts=128, num_shared_experts=1,
        max_position_embeddings=131_072, qk_norm="head", rope=_LONG, router=_LARGE_ROUTER,
    ),
    "1t-sparse": MoEConfig(
        vocab_size=128_256, hidden_size=7168, num_hidden_layers=64, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, intermediate_size=18_432, moe_intermediate_size=5632, num_experts=128, num_shared_experts=1,
        max_position_embeddings=1_048_576, qk_norm="head", router=_LARGE_ROUTER,
        rope=RopeConfig(kind="yarn", theta=1e6, factor=32.0, original_max_position_embeddings=32_768),
        attention=AttentionConfig(pattern=("sliding", "sliding", "sliding", "sparse"), window=4096, num_sinks=64),
    ),
}  # fmt: skip
"""Name -> configuration. `small` is about 51M parameters, 22M of them active per token."""


def config_of(model: str) -> MoEConfig:
    """The configuration of a preset, or of a Hugging Face folder. Raises ValueError for what is neither."""
    if model in PRESETS or not Path(model).exists():
        return preset(model)
    return from_hf_config(read_json_object(Path(model) / "config.json"))


def preset(name: str) -> MoEConfig:
    """The configuration of that name. Raises ValueError listing the names."""
    if name not in PRESETS:
        raise ValueError(f"model = {name!r} is no preset and no folder; there are {', '.join(PRESETS)}")
    return PRESETS[name]
