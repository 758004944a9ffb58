"""MoETransformer: a decoder-only transformer whose feed-forward parts are Mixtures of Experts, dense ones, or both.

tokens (or embeddings) -> embedding -> N x (norm, attention, norm, experts) -> norm -> head -> logits or loss. The same
function as transformers' Mixtral, Qwen3-MoE, OLMoE, GLM-4.5-MoE and Llama (tests/parity/test_model_families.py); module
names are theirs. One forward returns what routing did (RouterStats); nothing is accumulated inside, so recomputation and
evaluation never count twice.

A process may hold a part of the model: some layers (`layers`), some heads, widths, experts (`ranks`). Parameters keep the
names that they have in the whole model.

Shape letters: B batch, S sequence, D width, V vocabulary, K experts per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from train.model.attention import build_attention
from train.model.cache import KVCache, check_context
from train.model.config import MoEConfig
from train.model.experts import Experts
from train.model.generate import Generated, SamplingConfig, generate
from train.model.inputs import check_inputs
from train.model.layers import RMSNorm, RoPEEmbedding, TokenEmbedding
from train.model.loss import IGNORE, LanguageHead
from train.model.moe import FeedForward, MoELayer, RouterStats
from train.model.ranks import ALONE, ModelRanks, check_division
from train.model.segments import Segments

Recomputation = Literal["none", "selective", "full"]
Rotary = tuple[Tensor, Tensor]

ATTENTION_CORES = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""What selective recomputation keeps: the part of attention whose cost grows with the square of the context."""


@dataclass(frozen=True)  # without slots: DeepSpeed's hooks look for tensors in __dict__
class ModelOutput:
    """What one forward pass gives. Without labels `logits`, with labels `loss_sum` and `num_loss_tokens`; of a part of the
    model that does not hold the last layer, `hidden` alone."""

    logits: Float[Tensor, "batch seq vocab"] | None
    loss_sum: Float[Tensor, ""] | None
    """Nats, summed over the labelled tokens: divide by the tokens of the whole optimizer step."""
    num_loss_tokens: Int[Tensor, ""] | None
    """Labelled tokens of this batch."""
    router_stats: tuple[RouterStats, ...]
    """One per layer with experts, in order."""
    hidden: Float[Tensor, "batch part width"] | None = None
    """For the process that holds the next layer."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Mean loss of this batch in nats per labelled token; balance terms are not in it (balance.py)."""
        if self.loss_sum is None or self.num_loss_tokens is None:
            raise ValueError("loss is not known: call the model with labels")
        return self.loss_sum / self.num_loss_tokens.clamp(min=1)

    @property
    def routes(self) -> Int[Tensor, "layers batch seq top_k"]:
        """Expert ids as they were chosen: given to another forward as `replay_routes`, it takes the same ones."""
        return torch.stack([stats.expert_ids for stats in self.router_stats])


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then + feed-forward(norm(.))."""

    def __init__(self, config: MoEConfig, index: int, *, ranks: ModelRanks = ALONE) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = build_attention(config, index, ranks=ranks)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp: MoELayer | FeedForward
        if index in config.moe_layers:
            self.mlp = MoELayer(config, ranks=ranks)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size, tp=ranks.tp)
        self.recomputation: Recomputation = "none"
        self._compiled_attend: Callable[[Tensor, Rotary], tuple[Tensor, Tensor]] | None = None

    def forward(
        self,
        x_BSD: Float[Tensor, "batch seq width"],
        rotary: Rotary,
        *,
        segments: Segments | None = None,
        token_mask: Bool[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
        replay: Int[Tensor, "batch seq top_k"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq width"], RouterStats | None]:
        """The layer's output and, with experts, its routing."""
        run = partial(self._run, segments=segments, token_mask=token_mask, cache=cache, replay=replay)
        if self.recomputation == "full" and torch.is_grad_enabled() and cache is None:
            return cast(tuple[Tensor, RouterStats | None], checkpoint(run, x_BSD, rotary, use_reentrant=False))
        return run(x_BSD, rotary)

    def _run(
        self, x_BSD: Tensor, rotary: Rotary, *, segments: Segments | None, token_mask: Tensor | None,
        cache: KVCache | None, replay: Tensor | None,
    ) -> tuple[Tensor, RouterStats | None]:  # fmt: skip
        if self.recomputation == "selective" and torch.is_grad_enabled() and cache is None:
            attended, normed = checkpoint(
                partial(self._attend, segments=segments), x_BSD, rotary, use_reentrant=False,
                context_fn=partial(create_selective_checkpoint_contexts, _keep_attention_cores),
            )  # fmt: skip
        elif self._compiled_attend is not None and segments is None and cache is None:
            attended, normed = self._compiled_attend(x_BSD, rotary)
        else:
            attended, normed = self._attend(x_BSD, rotary, segments=segments, cache=cache)
        if isinstance(self.mlp, MoELayer):
            out, stats = self.mlp(normed, token_mask=token_mask, replay=replay)
            return attended + out, stats
        return attended + self.mlp(normed), None

    def _attend(
        self, x_BSD: Tensor, rotary: Rotary, *, segments: Segments | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after attention, and its norm: one region, so that a compiler can fuse it."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotary, segments=segments, cache=cache)
        return x_BSD, self.post_attention_layernorm(x_BSD)

    def compile_attend(self) -> None:
        """Compile norm + attention + norm; used where a batch has neither padding, nor packing, nor a cache."""
        self._compiled_attend = torch.compile(self._attend)


def _keep_attention_cores(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in ATTENTION_CORES else CheckpointPolicy.PREFER_RECOMPUTE


class Decoder(nn.Module):
    """Embedding, layers and last norm, or those of them that belong to the layers `layers`."""

    def __init__(self, config: MoEConfig, *, layers: range, ranks: ModelRanks) -> None:
        super().__init__()
        if layers.start == 0:
            self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, tp=ranks.tp)
        self.layers = nn.ModuleDict({str(index): DecoderLayer(config, index, ranks=ranks) for index in layers})
        if layers.stop == config.num_hidden_layers:
            self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MoETransformer(nn.Module):
    """The model. `device="meta"` describes 1T parameters without allocating one."""

    def __init__(
        self,
        config: MoEConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ranks: ModelRanks = ALONE,
        layers: range | None = None,
    ) -> None:
        """Random weights from torch's generator. `ranks`: who holds the rest of each layer; `layers`: those that are here.

        Raises ValueError for a model that cannot be divided so.
        """
        super().__init__()
        check_division(config, tp=ranks.tp_size, cp=ranks.cp_size, ep=ranks.ep_size)
        self.config, self.ranks = config, ranks
        self.layer_range = range(config.num_hidden_layers) if layers is None else layers
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype or previous)
        try:
            with torch.device(device or torch.get_default_device()):
                self.model = Decoder(config, layers=self.layer_range, ranks=ranks)
                self.rope = RoPEEmbedding(config)
                if self.is_last:
                    self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, tp=ranks.tp)
        finally:
            torch.set_default_dtype(previous)
        self.tie_head()
        self.reset_parameters()

    def tie_head(self) -> None:
        """Let head and embedding share one weight, where they do and both are here. Moving off the meta device undoes it."""
        if self.config.tie_word_embeddings and self.is_first and self.is_last:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights of `initializer_range`, norms one, biases zero."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=self.config.initializer_range)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def is_first(self) -> bool:
        """Whether the embedding is here."""
        return self.layer_range.start == 0

    @property
    def is_last(self) -> bool:
        """Whether the last layer, its norm and the head are here."""
        return self.layer_range.stop == self.config.num_hidden_layers

    @property
    def is_whole(self) -> bool:
        """Whether all of the model is here."""
        return self.is_first and self.is_last and self.ranks.is_whole

    @property
    def expert_range(self) -> tuple[int, int]:
        """First expert of this process and how many it holds, of each layer."""
        place, ranks = self.ranks.coordinate("ep")
        count = self.config.num_experts // ranks
        return place * count, count

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder layers that are here, in order."""
        return cast(list[DecoderLayer], list(self.model.layers.values()))

    @property
    def moe_layers(self) -> list[int]:
        """Indices of those with experts."""
        return [index for index in self.config.moe_layers if index in self.layer_range]

    def set_recomputation(self, kind: Recomputation) -> Self:
        """What the backward pass computes again instead of keeping it (activation checkpointing).

        `full`: whole layers; `selective`: norms, projections and rotations, but neither the attention core nor the experts.
        """
        if kind not in ("none", "selective", "full"):
            raise ValueError(f"recomputation = {kind!r} is unknown; use 'none', 'selective' or 'full'")
        for layer in self.layers:
            layer.recomputation = kind
        return self

    def compile_regions(self) -> Self:
        """Make one kernel of each norm and of what is between the matmuls of feed-forward parts, and one region of norm +
        attention + norm where nothing is exchanged there and no documents are packed; the first step then takes some 20 s
        longer. On a CPU that needs a C++ compiler."""
        for module in self.modules():
            if isinstance(module, RMSNorm | FeedForward | Experts):
                module.is_compiled = True
        if self.ranks.tp is None and self.ranks.cp is None:
            for layer in self.layers:
                layer.compile_attend()
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch seq width"] | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"] | None = None,
        document_ids: Int[Tensor, "batch seq"] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
        replay_routes: Int[Tensor, "layers batch seq top_k"] | None = None,
        logits_to_keep: int | None = None,
    ) -> ModelOutput:
        """One pass over tokens, or over embeddings that another encoder made (images, sound), or a mix of both.

        `attention_mask`: 0 at padding. `document_ids`: equal numbers belong together, nothing is seen across (packing), -1
        is padding. `position_ids`: counted per document unless given. `labels`: the token each position has to predict,
        already shifted (`next_token_labels`), -100 for none. `cache`: keys and values of what came before; this call adds
        its own. `replay_routes`: routes of an earlier `ModelOutput`. `logits_to_keep`: only the last n positions.
        A part of the model without the embedding takes the `hidden` of the part before it as `inputs_embeds`. Of split
        sequences, all other arguments are whole on every rank, and loss and counts are of this rank's positions.
        Raises ValueError naming the argument (inputs.py): both or neither of ids and embeddings, another shape than theirs,
        another dtype, a context beyond the model's range; on a CPU also ids, labels, positions and routes beyond theirs.
        """
        check_inputs(
            self.config, input_ids=input_ids, inputs_embeds=inputs_embeds,
            embedding_dtype=self.model.embed_tokens.weight.dtype if self.is_first else None, position_ids=position_ids,
            attention_mask=attention_mask, document_ids=document_ids, labels=labels, replay_routes=replay_routes,
            logits_to_keep=logits_to_keep, sequence_parts=1 if self.is_first else self.ranks.cp_size * self.ranks.tp_size,
        )  # fmt: skip
        if input_ids is not None:
            length = input_ids.shape[1]
            x_BSD = self.model.embed_tokens(input_ids[:, self.ranks.context_part(length)])
        else:
            assert inputs_embeds is not None
            x_BSD = inputs_embeds
            length = x_BSD.shape[1] * (1 if self.is_first else self.ranks.cp_size * self.ranks.tp_size)
        context_part, token_part = self.ranks.context_part(length), self.ranks.token_part(length)
        segments = _segments(attention_mask, document_ids, cache)
        new = length if segments is None else segments.longest
        check_context(self.config, (0 if cache is None else cache.max_length) + new)
        token_mask = None if segments is None else segments.token_mask(x_BSD.device)
        if cache is not None:
            cache.open(length, token_mask)
        if token_mask is not None:
            token_mask = token_mask[:, token_part]
        if position_ids is None:
            position_ids = _positions(segments, cache, length=length, device=x_BSD.device)
        rotary = self.rope(position_ids[:, context_part], dtype=x_BSD.dtype)
        replay = None if replay_routes is None else iter(replay_routes[:, :, token_part])
        stats = []
        for layer in self.layers:
            routes = next(replay, None) if replay is not None and isinstance(layer.mlp, MoELayer) else None
            x_BSD, routed = layer(x_BSD, rotary, segments=segments, token_mask=token_mask, cache=cache, replay=routes)
            stats += [] if routed is None else [routed]
        if cache is not None:
            cache.close()
        if not self.is_last:
            return ModelOutput(None, None, None, tuple(stats), hidden=x_BSD)
        x_BSD = self.model.norm(x_BSD)
        if labels is not None:
            labels = labels[:, context_part]
            return ModelOutput(None, self.lm_head(x_BSD, labels), (labels != IGNORE).sum(), tuple(stats))
        if logits_to_keep is not None:
            x_BSD = x_BSD[:, -logits_to_keep:]
        return ModelOutput(self.lm_head(x_BSD), None, None, tuple(stats))

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig | None = None) -> list[Generated]:
        """Continue each prompt (token ids, any lengths): see generate.generate. Without `sampling`: greedy, 128 tokens."""
        return generate(self, prompts, sampling or SamplingConfig())

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> "MoETransformer":
        """Load a folder in Hugging Face's layout: see checkpoint_hf.load_model."""
        from train.model.checkpoint_hf import load_model

        return load_model(Path(folder), dtype=dtype, device=device)

    def save_pretrained(
        self, folder: Path | str, *, max_shard_bytes: int = 5 * 10**9, tokenizer_from: Path | str | None = None
    ) -> Path:
        """Write a folder that transformers and vLLM load: see checkpoint_hf.save_model."""
        from train.model.checkpoint_hf import save_model

        source = None if tokenizer_from is None else Path(tokenizer_from)
        return save_model(self, Path(folder), max_shard_bytes=max_shard_bytes, tokenizer_from=source)


def _segments(attention_mask: Tensor | None, document_ids: Tensor | None, cache: KVCache | None) -> Segments | None:
    if document_ids is not None:
        if cache is not None:
            raise ValueError(
                "document_ids with a cache: packed documents cannot be continued; give one document per row"
            )
        return Segments.from_document_ids(document_ids)
    return None if attention_mask is None else Segments.from_attention_mask(attention_mask)


def _positions(segments: Segments | None, cache: KVCache | None, *, length: int, device: torch.device) -> Tensor:
    """Positions within the document: of the segments, or going on where the cache ends."""
    if cache is not None:
        return cache.places.clamp(min=0)
    if segments is not None:
        return segments.positions(device)
    return torch.arange(length, device=device).unsqueeze(0)
