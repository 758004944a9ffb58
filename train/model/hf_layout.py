"""Hugging Face's layouts: which family a MoEConfig is, its config.json, and the names of its tensors in files.

A configuration is written as the first family of LAYOUTS that computes the same function: Llama, Mixtral, Qwen3-MoE,
OLMoE, GLM-4.5-MoE. What none of them can express (sinks, softmax with shared experts, ...) is written in our own
layout, which only this package reads. Files hold one tensor per expert; in memory the experts of a layer are stacked.
What config.json of a family has no key for (balancing, capacity, ...) stands in its section SECTION; where both speak,
the family's keys win, so that a person may edit them. hf_families.py holds the families.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from train.model.config import MoEConfig
from train.model.hf_families import LAYOUTS, OWN_LAYOUT, Layout, read_count

SECTION = "autonomous"
"""Key of config.json under which our whole configuration stands."""
FORMAT = 1

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
            read_count(written, key)
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
