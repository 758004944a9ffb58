"""Small shapes of the families that both transformers and we compute: name -> class and configuration of transformers."""

from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 128, "initializer_range": 0.1, "pad_token_id": None, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"intermediate_size": 96}),
    "llama tied": ("Llama", {"intermediate_size": 96, "tie_word_embeddings": True}),
    "llama 3 rope": ("Llama", {"intermediate_size": 96, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "mixtral": ("Mixtral", {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral window": ("Mixtral", {
        "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}),
    "qwen3_moe": ("Qwen3Moe", {
        "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3,
        "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3_moe unnormalised": ("Qwen3Moe", {
        "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
        "norm_topk_prob": False, "decoder_sparse_step": 2, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}}),
    "olmoe": ("Olmoe", {"intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 4}),
    "glm4_moe": ("Glm4Moe", {
        "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 2, "first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True,
        "routed_scaling_factor": 2.5, "num_mtp_layers": 0}),
}  # fmt: skip
