"""MoEConfig: the shape of a Mixture-of-Experts transformer, checked before anything is allocated.

Field names are those of the specification and of Hugging Face's configurations where both have a word for the thing. A
model with `num_experts = 0` is dense (Llama). Presets are in presets.py, files in checkpoint_hf.py.

Sources: Switch Transformer (arXiv:2101.03961), Mixtral (arXiv:2401.04088), Qwen3 (arXiv:2505.09388), DeepSeek-V3
(arXiv:2412.19437), StreamingLLM's attention sinks (arXiv:2309.17453), YaRN (arXiv:2309.00071).
"""

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]
AttentionKind = Literal["full", "sliding", "sparse"]
Balancing = Literal["aux_loss", "bias", "none"]

GROUPED_MM_MULTIPLE = 8
"""Widths that torch's grouped_mm takes: rows of 16 bytes, in bfloat16."""
SCALED_KINDS: tuple[RopeKind, ...] = ("linear", "yarn")
"""Kinds that reach `factor` times the context they were trained at, and no further. llama3 is none: its factor divides
frequencies only (Llama 3.1: factor 8, 8,192 trained positions, a context of 131,072)."""


class RopeConfig(BaseModel):
    """Rotary position encoding. Names and meaning are those of transformers' `rope_parameters`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: RopeKind = "default"
    """`rope_type` of transformers."""
    theta: float = Field(10_000.0, gt=1, allow_inf_nan=False)
    """Base of the wavelengths (`rope_theta`)."""
    factor: float | None = Field(None, ge=1, allow_inf_nan=False)
    """How many times longer the context is than the one that was trained. None: max_position_embeddings over the
    original ones."""
    original_max_position_embeddings: int | None = Field(None, gt=0)
    """Context of the training before scaling, tokens. None: max_position_embeddings."""
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    """Share of a head's dimensions that are rotated."""
    attention_factor: float | None = Field(None, gt=0)
    """Factor on cos and sin (yarn, longrope). None: the kind's own formula."""
    beta_fast: float = Field(32.0, gt=0)
    """yarn: rotations above which a dimension is extrapolated."""
    beta_slow: float = Field(1.0, gt=0)
    """yarn: rotations below which a dimension is interpolated."""
    mscale: float | None = Field(None, ge=0)
    """yarn: DeepSeek's numerator of the attention factor."""
    mscale_all_dim: float | None = Field(None, ge=0)
    """yarn: DeepSeek's denominator of the attention factor."""
    truncate: bool = True
    """yarn: round the correction range to whole dimensions (gpt-oss: false)."""
    low_freq_factor: float = Field(1.0, gt=0)
    """llama3: wavelengths longer than original / low_freq_factor are interpolated."""
    high_freq_factor: float = Field(4.0, gt=0)
    """llama3: wavelengths shorter than original / high_freq_factor stay."""
    short_factor: tuple[float, ...] = ()
    """longrope: divisor per dimension pair within the original context."""
    long_factor: tuple[float, ...] = ()
    """longrope: divisor per dimension pair beyond it."""

    @model_validator(mode="after")
    def _kind_has_its_fields(self) -> Self:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope.high_freq_factor = {self.high_freq_factor} must be above rope.low_freq_factor = "
                f"{self.low_freq_factor}; Llama 3 uses 4 and 1"
            )
        if self.kind in ("llama3", "longrope") and self.original_max_position_embeddings is None:
            raise ValueError(
                f"rope.original_max_position_embeddings is missing: rope.kind = '{self.kind}' needs the context, in tokens, "
                "that the weights were trained at"
            )
        if self.kind == "longrope" and not (self.short_factor and self.long_factor):
            raise ValueError(
                "rope.short_factor and rope.long_factor are missing: rope.kind = 'longrope' needs both lists"
            )
        return self


class AttentionConfig(BaseModel):
    """Which positions a layer sees. `sliding` costs O(N) time and memory, `full` O(N) memory only; `sparse` costs O(N) but for
    its selection, (N / block_size)^2 products of block means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: tuple[AttentionKind, ...] = ("full",)
    """Kinds of the layers, repeated from the first layer on: ("sliding", "full") alternates."""
    window: int = Field(1024, gt=0)
    """Positions that a token sees, itself included (sliding, sparse): it sees j with i - window < j <= i."""
    num_sinks: int = Field(64, ge=0)
    """First positions of a document that every later token of it sees besides (sliding, sparse)."""
    block_size: int = Field(64, gt=0)
    """Tokens of a block that is selected as a whole (sparse)."""
    num_selected_blocks: int = Field(16, gt=0)
    """Blocks before the window that a block of queries selects by score (sparse)."""

    @model_validator(mode="after")
    def _window_is_whole_blocks(self) -> Self:
        if not self.pattern:
            raise ValueError("attention.pattern is empty: name at least one of 'full', 'sliding', 'sparse'")
        if "sparse" in self.pattern and self.window % self.block_size:
            raise ValueError(
                f"attention.window = {self.window} is not a multiple of attention.block_size = {self.block_size}: sparse "
                "layers select whole blocks, so make it one"
            )
        return self


class RouterConfig(BaseModel):
    """How tokens choose experts, and how the load is kept even."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["softmax", "sigmoid"] = "softmax"
    """Scores of the experts from the logits, in float32. DeepSeek-V3 and GLM-4.5 use sigmoid."""
    renormalise: bool = True
    """Divide the chosen scores by their sum (`norm_topk_prob`). With top-1 the weight is then 1 and trains no router."""
    scaling_factor: float = Field(1.0, gt=0)
    """Factor on the weights after renormalisation (`routed_scaling_factor`)."""
    balancing: Balancing = "aux_loss"
    """aux_loss: a loss term; bias: an offset of the scores, for selection only, moved once per step; none: neither."""
    aux_loss_coefficient: float = Field(1e-3, ge=0)
    """Weight of the balance term, under `aux_loss` and `bias` alike. The term is top_k for an even load, as in
    transformers (Megatron's: 1)."""
    aux_loss_scope: Literal["micro_batch", "sequence", "global_batch"] = "global_batch"
    """Tokens over which the load is even: of this micro-batch, of each sequence, of the whole optimizer step."""
    bias_update_rate: float = Field(1e-3, gt=0)
    """Step of the selection bias (`balancing = "bias"`)."""
    z_loss_coefficient: float = Field(0.0, ge=0)
    """Weight of mean(logsumexp(logits)^2) (ST-MoE, arXiv:2202.08906; 1e-3 is typical)."""
    capacity_factor: float | None = Field(None, gt=0)
    """None: no token is dropped. Otherwise, in training mode alone, an expert takes at most
    ceil(factor * tokens * top_k / experts) rows."""


def _default_head_dim(data: dict[str, int]) -> int:
    return max(1, data.get("hidden_size", 1) // data.get("num_attention_heads", 1))


class MoEConfig(BaseModel):
    """Shape of a decoder-only transformer with experts. The defaults are about 0.4B parameters, 37M of them active."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    vocab_size: int = Field(32_000, gt=1, le=2**27)
    """Rows of the embedding and of the head."""
    hidden_size: int = Field(512, gt=0, le=2**20)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(8, gt=0, le=2048)
    """Decoder layers."""
    num_attention_heads: int = Field(8, gt=0, le=2**16)
    """Query heads."""
    num_key_value_heads: int = Field(2, gt=0, le=2**16)
    """Key and value heads (grouped-query attention)."""
    head_dim: int = Field(default_factory=_default_head_dim, gt=0, le=2**16)
    """Width of a head; hidden_size / num_attention_heads unless given."""
    intermediate_size: int = Field(1536, gt=0, le=2**22)
    """Width of the feed-forward part of a dense layer."""
    moe_intermediate_size: int = Field(256, gt=0, le=2**22)
    """Width of one expert. vLLM on CPU and aligned matmuls want multiples of 32."""
    num_experts: int = Field(128, ge=0, le=2**16)
    """Routed experts of a layer; 0 makes every layer dense."""
    num_experts_per_token: int = Field(2, ge=0, le=2**16)
    """Experts that a token is routed to (top-k)."""
    num_shared_experts: int = Field(0, ge=0, le=2**10)
    """Experts that every token passes, held as one feed-forward part of this many expert widths."""
    dense_layers: tuple[int, ...] = ()
    """Indices of layers that have a dense feed-forward part in place of experts."""
    max_position_embeddings: int = Field(131_072, gt=0, le=2**30)
    """Longest context, tokens."""
    rms_norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square before the root."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """RMSNorm on queries and keys: of each head (Qwen3) or of the whole projection (OLMoE)."""
    attention_bias: bool = False
    """Biases of the query, key and value projections (GLM-4.5)."""
    tie_word_embeddings: bool = False
    """The head is the transposed embedding."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the weights at the start."""
    rope: RopeConfig = RopeConfig()
    """Rotary position encoding."""
    attention: AttentionConfig = AttentionConfig()
    """Attention pattern."""
    router: RouterConfig = RouterConfig()
    """Routing and balancing."""
    expert_kernel: Literal["auto", "loop", "grouped_mm"] = "auto"
    """How experts are computed: a loop of matmuls, torch's grouped_mm, or (auto) the faster one on the device."""
    bos_token_id: int | None = None
    """Begin of text."""
    eos_token_id: int | tuple[int, ...] | None = None
    """End of text; generation stops at any of them."""
    pad_token_id: int | None = None
    """Padding."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem in (*_attention_problems(self), *_expert_problems(self), *_rope_problems(self)):
            raise ValueError(problem)
        return self

    @property
    def num_key_value_groups(self) -> int:
        """Query heads per key and value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that carry a rotation (`proportional` rotates all, some of them by zero)."""
        return (
            self.head_dim if self.rope.kind == "proportional" else int(self.head_dim * self.rope.partial_rotary_factor)
        )

    @property
    def rope_original_context(self) -> int:
        """Context that the rotations were trained at, tokens."""
        return self.rope.original_max_position_embeddings or self.max_position_embeddings

    @property
    def rope_factor(self) -> float:
        """How many times longer than that the context is."""
        return self.rope.factor or self.max_position_embeddings / self.rope_original_context

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ends of text; empty without one."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with experts."""
        if self.num_experts == 0:
            return ()
        return tuple(index for index in range(self.num_hidden_layers) if index not in self.dense_layers)

    def attention_kind(self, layer: int) -> AttentionKind:
        """What layer `layer` sees."""
        return self.attention.pattern[layer % len(self.attention.pattern)]

    def replace(self, **changes: Any) -> "MoEConfig":
        """A copy with other values, checked as a whole. Nested sections are given as their models."""
        return MoEConfig.model_validate({name: getattr(self, name) for name in type(self).model_fields} | changes)


def _attention_problems(config: MoEConfig) -> list[str]:
    problems = []
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        problems.append(
            f"num_key_value_heads = {groups} does not divide num_attention_heads = {heads}; use one of "
            f"{', '.join(map(str, divisors))}"
        )
    if "head_dim" not in config.model_fields_set and config.hidden_size % heads:
        problems.append(
            f"hidden_size = {config.hidden_size} is not divisible by num_attention_heads = {heads}; change one of them, or "
            "set head_dim"
        )
    if config.rotary_dim < 2 or config.rotary_dim % 2:
        problems.append(
            f"head_dim = {config.head_dim} with rope.partial_rotary_factor = {config.rope.partial_rotary_factor} rotates "
            f"{config.rotary_dim} dimensions; rotations need an even number of at least 2"
        )
    problems += [
        f"eos_token_id = {end} is beyond the vocabulary of vocab_size = {config.vocab_size}; use the tokenizer's own"
        for end in config.eos_token_ids
        if not 0 <= end < config.vocab_size
    ]
    return problems


def _expert_problems(config: MoEConfig) -> list[str]:
    problems = []
    top_k, experts = config.num_experts_per_token, config.num_experts
    if experts == 0 and (top_k or config.num_shared_experts):
        problems.append(
            f"num_experts = 0 makes a dense model, but num_experts_per_token = {top_k} and num_shared_experts = "
            f"{config.num_shared_experts}; set both to 0"
        )
    elif experts and not 1 <= top_k <= experts:
        problems.append(
            f"num_experts_per_token = {top_k} must be at least 1 and at most num_experts = {experts}; lower it, or add experts"
        )
    widths = {"hidden_size": config.hidden_size, "moe_intermediate_size": config.moe_intermediate_size}
    if config.expert_kernel == "grouped_mm" and experts:
        problems += [
            f"{name} = {width} is not a multiple of 8: expert_kernel = 'grouped_mm' takes rows of whole 16 bytes; round it, "
            "or use 'auto'"
            for name, width in widths.items()
            if width % GROUPED_MM_MULTIPLE
        ]
    if outside := [index for index in config.dense_layers if not 0 <= index < config.num_hidden_layers]:
        problems.append(
            f"dense_layers names layer {outside[0]}, but there are num_hidden_layers = {config.num_hidden_layers}: use "
            f"indices from 0 to {config.num_hidden_layers - 1}"
        )
    if len(set(config.dense_layers)) != len(config.dense_layers):
        problems.append(f"dense_layers = {list(config.dense_layers)} names a layer twice; name each once")
    return problems


def _rope_problems(config: MoEConfig) -> list[str]:
    rope, context = config.rope, config.max_position_embeddings
    original = rope.original_max_position_embeddings
    pairs = config.rotary_dim // 2
    problems = [
        f"rope.{name} has {len(factors)} values; one per pair of rotated dimensions makes {pairs}"
        for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor))
        if rope.kind == "longrope" and len(factors) != pairs
    ]
    if rope.kind == "dynamic" and pairs < 2:
        problems.append(
            f"head_dim = {config.head_dim} leaves {pairs} pair of rotated dimensions; rope.kind = 'dynamic' needs 2 at least"
        )
    factor = rope.factor
    if (
        original is not None
        and factor is not None
        and rope.kind in SCALED_KINDS
        and context > math.ceil(original * factor)
    ):
        problems.append(
            f"max_position_embeddings = {context} is beyond the range of rope.kind = '{rope.kind}': "
            f"{original} trained positions x factor {factor:g} = {int(original * factor)}; raise rope.factor to "
            f"{context / original:g}, or lower max_position_embeddings"
        )
    return problems
