"""What a model costs: parameters, FLOPs and kept activations of each layer, counted on a model without memory.

`count_costs` builds the MoETransformer on the meta device, so parameters are those of the code and not of a formula; the
other numbers are closed forms of the configuration (docs/planning.md lists them with their sources). A published model that
this package cannot build is described by its `LayerCosts` directly (published.py).
Units: per token unless said; bytes are of bf16 activations, 2 each.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from torch import nn

from train.model.config import AttentionConfig, AttentionKind, MoEConfig
from train.model.layers import RMSNorm
from train.model.loss import CHUNK_LOGITS
from train.model.moe import FeedForward, MoELayer
from train.model.transformer import DecoderLayer, MoETransformer

BF16 = 2
FP32 = 4
INDEX = 8


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """One decoder layer: parameters, widths of its attention scores, and bytes per token that the backward pass needs."""

    attention_params: int
    """Projections and norms of queries and keys."""
    norm_params: int
    feed_forward_params: int
    """Dense part or shared experts: every token passes them."""
    router_params: int
    expert_params: int
    """All routed experts."""
    num_experts: int
    top_k: int
    score_width: int
    """Query heads times (dimensions of the product q k + dimensions of v)."""
    kv_width: int
    """Elements of a token's keys and values together: what context parallelism moves."""
    visible_keys: float
    """Keys that a token sees, on average over the context."""
    reach: int
    """Tokens whose keys a part of a sequence needs from other parts at most: of a windowed layer, window and sinks."""
    input_bytes: int
    """The layer's input: all that full recomputation keeps."""
    projection_bytes: int
    """Norms, projections and rotations: what selective recomputation computes again."""
    core_bytes: int
    """Output and log-sum-exp of the attention core."""
    feed_forward_bytes: int
    """Dense part, shared experts, router."""
    expert_bytes: int
    """Rows of the routed experts, top_k per token."""

    @property
    def params(self) -> int:
        """All parameters of the layer."""
        return self.shared_params + self.expert_params

    @property
    def shared_params(self) -> int:
        """Parameters that expert parallelism does not split."""
        return self.attention_params + self.norm_params + self.feed_forward_params + self.router_params

    @property
    def active_expert_params(self) -> int:
        """Parameters of the experts that one token passes."""
        return self.expert_params * self.top_k // self.num_experts if self.num_experts else 0

    @property
    def linear_flops(self) -> int:
        """Forward FLOPs of the matmuls that every token passes: 2 per parameter. Norms are left out, as usual."""
        return 2 * (self.attention_params + self.feed_forward_params + self.router_params)

    @property
    def expert_flops(self) -> int:
        """Forward FLOPs of the routed experts."""
        return 2 * self.active_expert_params

    @property
    def core_flops(self) -> float:
        """Forward FLOPs of the attention core: q k and scores v over the visible keys alone."""
        return 2 * self.score_width * self.visible_keys

    @property
    def kept_bytes(self) -> int:
        """Bytes kept without recomputation."""
        return self.input_bytes + self.projection_bytes + self.core_bytes + self.feed_forward_bytes + self.expert_bytes


@dataclass(frozen=True, eq=False)
class ModelCosts:
    """A model's layers and its two ends."""

    name: str
    context: int
    hidden_size: int
    vocab_size: int
    embedding_params: int
    head_params: int
    """0 where the head shares the embedding."""
    norm_params: int
    """The last norm."""
    layers: tuple[LayerCosts, ...]
    num_heads: int
    num_kv_heads: int
    selects_blocks: bool = False
    """Whether there are sparse layers."""

    @property
    def total_params(self) -> int:
        """All parameters."""
        return self.embedding_params + self.head_params + self.norm_params + sum(layer.params for layer in self.layers)

    @property
    def active_params(self) -> int:
        """Parameters that one token passes, embedding and head included."""
        return self.total_params - sum(layer.expert_params - layer.active_expert_params for layer in self.layers)

    @cached_property
    def num_experts(self) -> int:
        """Routed experts of a layer that has some; 0 for a dense model."""
        return max(layer.num_experts for layer in self.layers)

    @property
    def head_flops(self) -> int:
        """Forward FLOPs of the head; the embedding is a look-up."""
        return 2 * self.vocab_size * self.hidden_size

    @cached_property
    def flops_per_token(self) -> float:
        """Forward and backward (3 times the forward) without recomputation: what MFU counts."""
        forward = sum(layer.linear_flops + layer.expert_flops + layer.core_flops for layer in self.layers)
        return 3 * (forward + self.head_flops)

    @property
    def loss_bytes(self) -> int:
        """Buffers of the chunked loss besides hidden states: one chunk of logits thrice, the head's gradient in fp32."""
        return CHUNK_LOGITS * (BF16 + FP32 + BF16) + self.vocab_size * self.hidden_size * FP32


def count_costs(config: MoEConfig, *, name: str, context: int | None = None) -> ModelCosts:
    """The costs of `config` at `context` tokens; None: its longest. Raises ValueError beyond its range."""
    context = context or config.max_position_embeddings
    if not 1 <= context <= config.max_position_embeddings:
        raise ValueError(
            f"context = {context} is beyond max_position_embeddings = {config.max_position_embeddings} of {name}; lower it, "
            "or raise the model's range with a rope.kind that scales"
        )
    model = MoETransformer(config, device="meta")
    layers = tuple(_count_layer(config, index, layer, context) for index, layer in enumerate(model.layers))
    embedding = _count(model.model.embed_tokens)
    return ModelCosts(
        name, context, config.hidden_size, config.vocab_size, embedding,
        head_params=0 if config.tie_word_embeddings else _count(model.lm_head), norm_params=_count(model.model.norm),
        layers=layers, num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
        selects_blocks="sparse" in config.attention.pattern,
    )  # fmt: skip


def visible_keys(kind: AttentionKind, context: int, config: AttentionConfig) -> float:
    """Keys that a token sees, averaged over a document of `context` tokens."""
    if kind == "full":
        return (context + 1) / 2
    window, sinks = min(config.window, context), config.num_sinks
    in_window = window - window * (window - 1) / (2 * context)
    visible = in_window + sinks * max(0, context - window) / context
    if kind == "sliding":
        return min(visible, (context + 1) / 2)
    selected = config.num_selected_blocks * config.block_size * max(0, context - window) / context
    return min(visible + selected, (context + 1) / 2)


Stage = Mapping[LayerCosts, int]
"""Kinds of layers of a pipeline stage, and how many of each."""


@lru_cache(maxsize=256)
def split_stages(costs: ModelCosts, stages: int) -> tuple[Stage, ...]:
    """Kinds of layers of each pipeline stage."""
    return tuple(Counter(costs.layers[one.start : one.stop]) for one in stage_ranges(len(costs.layers), stages))


def stage_ranges(num_layers: int, stages: int) -> tuple[range, ...]:
    """Consecutive layers of each pipeline stage; stages differ by one layer, the first and last have the fewest."""
    count, extra = divmod(num_layers, stages)
    fewest_first = sorted(range(stages), key=lambda stage: (stage in (0, stages - 1), stage))
    sizes = [count + (stage in fewest_first[:extra]) for stage in range(stages)]
    ends = [sum(sizes[:stage]) for stage in range(stages + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(ends))


@lru_cache(maxsize=256)
def distinct_stages(costs: ModelCosts, stages: int) -> tuple[int, ...]:
    """The first stage of each make-up, and both ends: every other one equals one of them and holds no more."""
    first = {frozenset(stage.items()): index for index, stage in reversed(list(enumerate(split_stages(costs, stages))))}
    return tuple(sorted({0, stages - 1, *first.values()}))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count_layer(config: MoEConfig, index: int, layer: DecoderLayer, context: int) -> LayerCosts:
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys, kind = config.num_key_value_heads * config.head_dim, config.attention_kind(index)
    experts = router = 0
    shared: FeedForward | None = None
    if isinstance(layer.mlp, MoELayer):
        experts, router, shared = _count(layer.mlp.experts), _count(layer.mlp.gate), layer.mlp.shared_experts
    else:
        shared = layer.mlp
    shared_params = 0 if shared is None else _count(shared)
    query_norms = sum(_count(part) for part in layer.self_attn.modules() if isinstance(part, RMSNorm))
    return LayerCosts(
        attention_params=_count(layer.self_attn) - query_norms,
        norm_params=query_norms + _count(layer.input_layernorm) + _count(layer.post_attention_layernorm),
        feed_forward_params=shared_params,
        router_params=router,
        expert_params=experts,
        num_experts=config.num_experts if experts else 0,
        top_k=config.num_experts_per_token if experts else 0,
        score_width=2 * heads,
        kv_width=2 * keys,
        visible_keys=visible_keys(kind, context, config.attention),
        reach=min(context, config.attention.window + config.attention.num_sinks) if kind == "sliding" else context,
        input_bytes=BF16 * width,
        projection_bytes=_projection_bytes(config),
        core_bytes=BF16 * heads + FP32 * config.num_attention_heads,
        feed_forward_bytes=_feed_forward_bytes(width, shared_params) + _router_bytes(config, router),
        expert_bytes=_expert_bytes(config) if experts else 0,
    )


def _projection_bytes(config: MoEConfig) -> int:
    """Normed input; queries and keys before their norms; rotated queries, keys, values; the sum before the second norm."""
    heads, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    before_norms = 0 if config.qk_norm == "none" else heads + keys
    return BF16 * (2 * config.hidden_size + before_norms + heads + 2 * keys)


def _feed_forward_bytes(width: int, params: int) -> int:
    """The input, gate, up, the activation, their product; nothing where there are routed experts only."""
    return BF16 * width + 4 * BF16 * (params // (3 * width)) if params else 0


def _router_bytes(config: MoEConfig, router_params: int) -> int:
    """The input in float32; logits and scores; ids."""
    if not router_params:
        return 0
    return FP32 * config.hidden_size + 3 * FP32 * config.num_experts + INDEX * config.num_experts_per_token


def _expert_bytes(config: MoEConfig) -> int:
    """Sorted rows and their outputs; gate and up before the activation; where each row comes from and goes to."""
    per_row = BF16 * 2 * (config.hidden_size + config.moe_intermediate_size) + 3 * INDEX + FP32
    return config.num_experts_per_token * per_row
