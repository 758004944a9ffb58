"""The families of Hugging Face's models that a MoEConfig can be, and their words in config.json, one Layout each.

Llama, Mixtral, Qwen3-MoE, OLMoE, GLM-4.5-MoE, and our own layout, which takes what none of them computes.
Source: transformers 5.19, models/*/configuration_*.py and conversion_mapping.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from train.model.config import MoEConfig

OWN_LAYOUT = "autonomous_moe"


@dataclass(frozen=True, slots=True)
class Layout:
    """How one family names things. `why_not` says why a configuration is not of it, None if it is."""

    architecture: str
    why_not: Callable[[MoEConfig], str | None]
    write: Callable[[MoEConfig], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    moe_prefix: str = "mlp"
    """Name of the feed-forward part of a layer with experts."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a key means that config.json lacks: the family's defaults, where they are not MoEConfig's."""
    expert_names: Mapping[str, str] = field(
        default_factory=lambda: {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    )


def read_count(written: Mapping[str, Any], key: str) -> int:
    """A count that is computed with. Raises KeyError without one."""
    value = written[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"config.json: {key} = {value!r} is no count; copy config.json of these weights")
    return value


def read_flag(written: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """true or false, `default` without one. Raises ValueError for anything else."""
    value = written.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"config.json: {key} = {value!r} is neither true nor false; copy config.json of these weights")
    return default if value is None else value


def _not_plain(config: MoEConfig, *, qk_norm: tuple[str, ...], sliding: bool = False) -> str | None:
    """What keeps a configuration out of every family, or out of one with this norm of queries and keys."""
    attention = config.attention
    if config.qk_norm not in qk_norm:
        return f"qk_norm = {config.qk_norm!r}"
    only_window = sliding and set(attention.pattern) == {"sliding"} and attention.num_sinks == 0
    if set(attention.pattern) != {"full"} and not only_window:
        return f"attention.pattern = {list(attention.pattern)} with {attention.num_sinks} sinks"
    return None


def _not_softmax(config: MoEConfig) -> str | None:
    router = config.router
    if router.score != "softmax" or router.balancing == "bias" or router.scaling_factor != 1:
        return f"router: {router.score}, balancing {router.balancing}, scaling_factor {router.scaling_factor:g}"
    if config.num_shared_experts:
        return f"num_shared_experts = {config.num_shared_experts}"
    if config.rotary_dim != config.head_dim:  # GLM alone rotates a part of each head
        return f"rope.partial_rotary_factor = {config.rope.partial_rotary_factor:g}"
    return "attention_bias = true" if config.attention_bias else None


def _not_llama(config: MoEConfig) -> str | None:
    if config.moe_layers:
        return f"num_experts = {config.num_experts}"
    return _not_plain(config, qk_norm=("none",)) or _not_softmax(config)


def _not_mixtral(config: MoEConfig) -> str | None:
    if len(config.moe_layers) < config.num_hidden_layers:
        return f"dense_layers = {list(config.dense_layers)}, num_experts = {config.num_experts}"
    if not config.router.renormalise:
        return "router.renormalise = false"
    return _not_plain(config, qk_norm=("none",), sliding=True) or _not_softmax(config)


def _not_qwen3(config: MoEConfig) -> str | None:
    if not config.moe_layers:
        return f"num_experts = {config.num_experts}"
    return _not_plain(config, qk_norm=("head",)) or _not_softmax(config)


def _not_olmoe(config: MoEConfig) -> str | None:
    if len(config.moe_layers) < config.num_hidden_layers:
        return f"dense_layers = {list(config.dense_layers)}, num_experts = {config.num_experts}"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        return f"head_dim = {config.head_dim}"
    return _not_plain(config, qk_norm=("projection",)) or _not_softmax(config)


def _not_glm(config: MoEConfig) -> str | None:
    router = config.router
    if (
        not config.moe_layers
        or not config.num_shared_experts
        or (router.score, router.balancing) != ("sigmoid", "bias")
    ):
        return f"router: {router.score}, balancing {router.balancing}; num_shared_experts = {config.num_shared_experts}"
    if sorted(config.dense_layers) != list(range(len(config.dense_layers))):
        return f"dense_layers = {list(config.dense_layers)} are not the first ones"
    return _not_plain(config, qk_norm=("none", "head"))


def _read_router(
    score: str, written: Mapping[str, Any], *, renormalise: bool, balancing: str | None = None
) -> dict[str, Any]:
    router: dict[str, Any] = {
        "score": score, "renormalise": renormalise, "scaling_factor": written.get("routed_scaling_factor", 1.0)
    }  # fmt: skip
    if "router_aux_loss_coef" in written:
        router["aux_loss_coefficient"] = written["router_aux_loss_coef"]
    return router | ({} if balancing is None else {"balancing": balancing})


def _read_experts(written: Mapping[str, Any], *, count: str, width: str) -> dict[str, Any]:
    return {
        "num_experts": written[count], "num_experts_per_token": written["num_experts_per_tok"],
        "moe_intermediate_size": written[width],
    }  # fmt: skip


def _write_llama(config: MoEConfig) -> dict[str, Any]:
    return {"intermediate_size": config.intermediate_size}


def _read_llama(written: Mapping[str, Any]) -> dict[str, Any]:
    if written.get("attention_bias"):
        raise ValueError(
            "config.json: attention_bias = true of a Llama puts a bias on o_proj too, which is not supported"
        )
    return {"intermediate_size": written["intermediate_size"], "num_experts": 0, "num_experts_per_token": 0}


def _write_mixtral(config: MoEConfig) -> dict[str, Any]:
    return {
        "num_local_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_token,
        "intermediate_size": config.moe_intermediate_size, "router_aux_loss_coef": config.router.aux_loss_coefficient,
        "sliding_window": config.attention.window if "sliding" in config.attention.pattern else None,
    }  # fmt: skip


def _read_mixtral(written: Mapping[str, Any]) -> dict[str, Any]:
    values = _read_experts(written, count="num_local_experts", width="intermediate_size")
    if window := written.get("sliding_window"):
        values["attention"] = {"pattern": ("sliding",), "window": window, "num_sinks": 0}
    elif "sliding_window" in written:
        values["attention"] = {"pattern": ("full",)}
    return values | {"router": _read_router("softmax", written, renormalise=True)}


def _write_qwen3(config: MoEConfig) -> dict[str, Any]:
    return {
        "num_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_token, "decoder_sparse_step": 1,
        "intermediate_size": config.intermediate_size, "moe_intermediate_size": config.moe_intermediate_size,
        "mlp_only_layers": list(config.dense_layers), "norm_topk_prob": config.router.renormalise,
        "router_aux_loss_coef": config.router.aux_loss_coefficient, "attention_bias": False, "use_sliding_window": False,
    }  # fmt: skip


def _read_qwen3(written: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("attention_bias", "use_sliding_window"):
        if written.get(key):
            raise ValueError(f"config.json: {key} = true is not supported for Qwen3-MoE")
    dense = _dense_layers(written)
    count = "num_experts" if "num_experts" in written else "num_local_experts"
    return _read_experts(written, count=count, width="moe_intermediate_size") | {
        "intermediate_size": written["intermediate_size"], "dense_layers": dense, "qk_norm": "head",
        "router": _read_router("softmax", written, renormalise=read_flag(written, "norm_topk_prob", default=False)),
    }  # fmt: skip


def _dense_layers(written: Mapping[str, Any]) -> tuple[int, ...]:
    """Every layer but each `decoder_sparse_step`-th, and those that are named."""
    step, named = (
        read_count({"decoder_sparse_step": 1, **written}, "decoder_sparse_step"),
        written.get("mlp_only_layers") or [],
    )
    if step == 0 or not isinstance(named, list) or not all(isinstance(index, int) for index in named):
        raise ValueError(
            f"config.json: decoder_sparse_step = {step} and mlp_only_layers = {named!r}: give a step of at least 1 and a list "
            "of layers"
        )
    between = {index for index in range(read_count(written, "num_hidden_layers")) if (index + 1) % step}
    return tuple(sorted(between | set(named)))


def _write_olmoe(config: MoEConfig) -> dict[str, Any]:
    return {
        "num_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_token,
        "intermediate_size": config.moe_intermediate_size, "norm_topk_prob": config.router.renormalise,
        "router_aux_loss_coef": config.router.aux_loss_coefficient, "attention_bias": False,
    }  # fmt: skip


def _read_olmoe(written: Mapping[str, Any]) -> dict[str, Any]:
    if written.get("attention_bias"):
        raise ValueError("config.json: attention_bias = true is not supported for OLMoE")
    router = _read_router("softmax", written, renormalise=read_flag(written, "norm_topk_prob", default=False))
    experts = _read_experts(written, count="num_experts", width="intermediate_size")
    return experts | {"qk_norm": "projection", "router": router}


def _write_glm(config: MoEConfig) -> dict[str, Any]:
    return {
        "n_routed_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_token,
        "n_shared_experts": config.num_shared_experts, "first_k_dense_replace": len(config.dense_layers),
        "intermediate_size": config.intermediate_size, "moe_intermediate_size": config.moe_intermediate_size,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": config.router.renormalise,
        "routed_scaling_factor": config.router.scaling_factor, "use_qk_norm": config.qk_norm == "head",
        "attention_bias": config.attention_bias, "num_nextn_predict_layers": 0,
        "partial_rotary_factor": config.rope.partial_rotary_factor,
    }  # fmt: skip


def _read_glm(written: Mapping[str, Any]) -> dict[str, Any]:
    router = _read_router(
        "sigmoid", written, renormalise=read_flag(written, "norm_topk_prob", default=True), balancing="bias"
    )
    return _read_experts(written, count="n_routed_experts", width="moe_intermediate_size") | {
        "num_shared_experts": written["n_shared_experts"], "intermediate_size": written["intermediate_size"],
        "dense_layers": tuple(range(read_count(written, "first_k_dense_replace"))),
        "attention_bias": read_flag(written, "attention_bias", default=False),
        "qk_norm": "head" if read_flag(written, "use_qk_norm", default=False) else "none", "router": router,
    }  # fmt: skip


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(
        "LlamaForCausalLM", _not_llama, _write_llama, _read_llama,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "mixtral": Layout(
        "MixtralForCausalLM", _not_mixtral, _write_mixtral, _read_mixtral, moe_prefix="block_sparse_moe",
        expert_names={"w1": "w1", "w3": "w3", "w2": "w2"},
        defaults={"rope_theta": 1e6, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen3_moe": Layout(
        "Qwen3MoeForCausalLM", _not_qwen3, _write_qwen3, _read_qwen3,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "num_key_value_heads": 4},
    ),
    "olmoe": Layout(
        "OlmoeForCausalLM", _not_olmoe, _write_olmoe, _read_olmoe,
        defaults={
            "max_position_embeddings": 4096, "router_aux_loss_coef": 0.01, "eos_token_id": 50_279, "pad_token_id": 1,
        },
    ),
    "glm4_moe": Layout(
        "Glm4MoeForCausalLM", _not_glm, _write_glm, _read_glm,
        defaults={"num_key_value_heads": 8, "partial_rotary_factor": 0.5},
    ),
    OWN_LAYOUT: Layout("MoETransformer", lambda _: None, lambda _: {}, lambda _: {}),
}  # fmt: skip
"""In order of preference; the last one takes everything."""
