"""Hugging Face's layouts: which family a MoEConfig is, its config.json, and the names of its tensors in files.

A configuration is written as the first family of LAYOUTS that computes the same function: Llama, Mixtral, Qwen3-MoE,
OLMoE, GLM-4.5-MoE. What none of them can express (sinks, softmax with shared experts, ...) is written in our own
layout, which only this package reads. Files hold one tensor per expert; in memory the experts of a layer are stacked.
What config.json of a family has no key for (balancing, capacity, ...) stands in its section SECTION; where both speak,
the family's keys win, so that a person may edit them. Source: transformers 5.19, models/*/configuration_*.py and
conversion_mapping.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from train.model.config import MoEConfig

SECTION = "autonomous"
"""Key of config.json under which our whole configuration stands."""
FORMAT = 1
OWN_LAYOUT = "autonomous_moe"

_COMMON = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Fields that every family calls as we do."""
_ROPE_KEYS = (
    "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "partial_rotary_factor",
)  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "mlp_bias": (False, None), "clip_qkv": (None,), "n_group": (1, None),
    "topk_group": (1, None), "attention_dropout": (0, 0.0, None), "router_jitter_noise": (0, 0.0, None),
    "quantization_config": (None,), "pretraining_tp": (1, None),
}  # fmt: skip
"""Keys that must have one of these values: the model computes nothing else."""


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


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the files: its name there, the parameter it belongs to, and its expert if it is one of a stack."""

    name: str
    parameter: str
    expert: int | None = None


def choose_layout(config: MoEConfig) -> str:
    """`model_type` under which `config` is written: the first family that computes its function, else our own."""
    return next((name for name, layout in LAYOUTS.items() if layout.why_not(config) is None), OWN_LAYOUT)


def explain_layout(config: MoEConfig) -> dict[str, str]:
    """Why `config` is not of each family: family -> the field that keeps it out. Empty for a family that fits."""
    return {name: reason for name, layout in LAYOUTS.items() if (reason := layout.why_not(config)) is not None}


def to_hf_config(config: MoEConfig, *, dtype: str) -> dict[str, Any]:
    """The contents of config.json. `dtype` is torch's name without prefix ("bfloat16")."""
    name = choose_layout(config)
    written: dict[str, Any] = {"model_type": name, "architectures": [LAYOUTS[name].architecture], "dtype": dtype}
    if name != OWN_LAYOUT:
        eos = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id
        written |= {key: getattr(config, key) for key in _COMMON} | {"eos_token_id": eos, "hidden_act": "silu"}
        written |= {"rope_parameters": _write_rope(config), "use_cache": True} | LAYOUTS[name].write(config)
    return written | {SECTION: {"format": FORMAT, "config": config.model_dump(mode="json")}}


def from_hf_config(written: Mapping[str, Any]) -> MoEConfig:
    """The configuration that a config.json describes. Nothing in it is executed (`auto_map` is not read).

    Raises ValueError naming the key, its value and what is supported.
    """
    name = written.get("model_type")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise ValueError(
            f"config.json: model_type = {name!r} is not supported; use one of {', '.join(sorted(LAYOUTS))}"
        )
    section = _object(written, SECTION)
    if section and section.get("format") != FORMAT:
        raise ValueError(
            f"config.json: {SECTION}.format = {section.get('format')!r} is unknown here (known: {FORMAT}); install the "
            "version of this package that wrote the folder, or remove the section to lose what only it says"
        )
    values: dict[str, Any] = dict(_object(section, "config"))
    if name != OWN_LAYOUT:
        try:
            values = _read_family(written, LAYOUTS[name], values)
        except KeyError as error:
            raise ValueError(
                f"config.json lacks {error.args[0]}, which model_type = {name!r} needs; copy config.json of these weights"
            ) from error
    try:
        return MoEConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"config.json: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    """The first problem in words; those of MoEConfig's own checks name their fix already."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    return f"{where} = {first['input']!r} is not valid ({first['msg']}); copy config.json of these weights"


def _count(written: Mapping[str, Any], key: str) -> int:
    """A count that is computed with. Raises KeyError without one."""
    value = written[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"config.json: {key} = {value!r} is no count; copy config.json of these weights")
    return value


def _flag(written: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = written.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"config.json: {key} = {value!r} is neither true nor false; copy config.json of these weights")
    return default if value is None else value


def _object(written: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The JSON object under `key`; empty without one."""
    value = written.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json: {key} = {value!r} is not a JSON object; copy config.json of these weights")
    return value


def _read_family(written: Mapping[str, Any], layout: Layout, section: Mapping[str, Any]) -> dict[str, Any]:
    """What the keys of a public family say, over what our `section` says."""
    for key, allowed in _NEUTRAL.items():
        if key in written and written[key] not in allowed:
            raise ValueError(f"config.json: {key} = {written[key]!r} is not supported; only {allowed[0]!r} is computed")
    if not section:
        written = {**layout.defaults, **written}
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            _count(written, key)
    values = dict(section) | {key: written[key] for key in _COMMON if written.get(key) is not None}
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = tuple(values["eos_token_id"])
    values["num_key_value_heads"] = written.get("num_key_value_heads") or written["num_attention_heads"]
    if written.get("head_dim") is None:
        values.pop("head_dim", None)  # then hidden_size over heads
    values["rope"] = _read_rope(written)
    for key, value in layout.read(written).items():
        before = values.get(key)
        values[key] = before | value if isinstance(value, dict) and isinstance(before, dict) else value
    return values


def stored_tensors(config: MoEConfig, *, parameters: Iterator[str] | list[str], layout: str) -> Iterator[StoredTensor]:
    """Every tensor of the files for the model's `parameters` (names in memory, tied head left out)."""
    family = LAYOUTS[layout]
    for parameter in parameters:
        if config.tie_word_embeddings and parameter == "lm_head.weight":
            continue
        name = parameter.replace(".mlp.gate.bias", ".mlp.gate.e_score_correction_bias")
        prefix, routed, weight = parameter.partition(".mlp.experts.")
        if not routed:
            name = name.replace(".mlp.gate.", f".{family.moe_prefix}.gate.")
            yield StoredTensor(name, parameter)
            continue
        for expert in range(config.num_experts):
            stored = f"{prefix}.{family.moe_prefix}.experts.{expert}.{family.expert_names[weight]}.weight"
            yield StoredTensor(stored, parameter, expert)


def _write_rope(config: MoEConfig) -> dict[str, Any]:
    rope = config.rope
    values = {key: getattr(rope, key) for key in _ROPE_KEYS if key in rope.model_fields_set}
    if rope.kind not in ("default", "proportional"):
        values |= {"factor": config.rope_factor, "original_max_position_embeddings": config.rope_original_context}
    values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None
    }
    return {"rope_type": rope.kind, "rope_theta": rope.theta} | values


def _read_rope(written: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has `rope_parameters`; older files have `rope_theta` and `rope_scaling`."""
    found = dict(_object(written, "rope_parameters") or _object(written, "rope_scaling"))
    kind = found.pop("rope_type", found.pop("type", "default"))
    theta = found.pop("rope_theta", written.get("rope_theta"))
    if "partial_rotary_factor" in written:
        found.setdefault("partial_rotary_factor", written["partial_rotary_factor"])
    if kind == "longrope" and "original_max_position_embeddings" in written:
        found.setdefault("original_max_position_embeddings", written["original_max_position_embeddings"])
    if unknown := sorted(set(found) - set(_ROPE_KEYS)):
        raise ValueError(
            f"config.json: rope_parameters.{unknown[0]} is not supported; known are {', '.join(_ROPE_KEYS)}"
        )
    values = {key: value for key, value in found.items() if value is not None}
    return {"kind": kind} | ({} if theta is None else {"theta": theta}) | values


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
        "router": _read_router("softmax", written, renormalise=_flag(written, "norm_topk_prob", default=False)),
    }  # fmt: skip


def _dense_layers(written: Mapping[str, Any]) -> tuple[int, ...]:
    """Every layer but each `decoder_sparse_step`-th, and those that are named."""
    step, named = (
        _count({"decoder_sparse_step": 1, **written}, "decoder_sparse_step"),
        written.get("mlp_only_layers") or [],
    )
    if step == 0 or not isinstance(named, list) or not all(isinstance(index, int) for index in named):
        raise ValueError(
            f"config.json: decoder_sparse_step = {step} and mlp_only_layers = {named!r}: give a step of at least 1 and a list "
            "of layers"
        )
    between = {index for index in range(_count(written, "num_hidden_layers")) if (index + 1) % step}
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
    router = _read_router("softmax", written, renormalise=_flag(written, "norm_topk_prob", default=False))
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
        "sigmoid", written, renormalise=_flag(written, "norm_topk_prob", default=True), balancing="bias"
    )
    return _read_experts(written, count="n_routed_experts", width="moe_intermediate_size") | {
        "num_shared_experts": written["n_shared_experts"], "intermediate_size": written["intermediate_size"],
        "dense_layers": tuple(range(_count(written, "first_k_dense_replace"))),
        "attention_bias": _flag(written, "attention_bias", default=False),
        "qk_norm": "head" if _flag(written, "use_qk_norm", default=False) else "none", "router": router,
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
