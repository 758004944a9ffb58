"""KVCache: keys and values of what a batch has seen, so that the next tokens cost no second pass.

Each kept key knows its position in its row's document, counted without padding; padded slots have -1. So sinks, windows
and selected blocks are the same as in one whole pass, for rows of any lengths. Sliding layers keep sinks and window only;
sparse layers also keep the sums of each block's queries and keys, which is what selection looks at.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.model.attention_kernels import choose_blocks, is_visible
from train.model.config import MoEConfig


@dataclass(slots=True)
class LayerCache:
    """One layer's kept keys. Buffers are larger than what they hold; `size` columns are in use."""

    keys: Float[Tensor, "batch kv slots dim"]
    values: Float[Tensor, "batch kv slots dim"]
    positions: Int[Tensor, "batch slots"]
    size: int = 0
    sums_q: Float[Tensor, "batch kv blocks dim"] | None = None
    sums_k: Float[Tensor, "batch kv blocks dim"] | None = None


@dataclass(slots=True)
class KVCache:
    """Cache of a batch. The model calls `open` before its layers and `close` after them; each layer calls `append`."""

    config: MoEConfig
    batch: int
    device: torch.device | str
    lengths: Int[Tensor, " batch"] = field(init=False)
    """Tokens that each row has seen, padding left out."""
    max_length: int = field(init=False, default=0)
    """Tokens of the longest row."""
    places: Int[Tensor, "batch new"] = field(init=False)
    """Positions of the tokens of the pass that is running; -1 at padding."""
    _layers: dict[int, LayerCache] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = torch.zeros(self.batch, dtype=torch.long, device=self.device)
        self.places = torch.zeros(self.batch, 0, dtype=torch.long, device=self.device)

    @property
    def is_empty(self) -> bool:
        """Whether no pass has ended yet."""
        return self.max_length == 0

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        tensors = (t for layer in self._layers.values() for t in (layer.keys, layer.values, layer.sums_q, layer.sums_k))
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def open(self, num_slots: int, token_mask: Bool[Tensor, "batch new"] | None) -> None:
        """Begin a pass over `num_slots` new slots per row. Raises ValueError for padding after the first pass."""
        if token_mask is None:
            steps = torch.arange(num_slots, device=self.lengths.device)
            self.places = self.lengths.unsqueeze(1) + steps
            return
        if not self.is_empty:
            raise ValueError("attention_mask with zeros in a pass that continues a cache: pad the first pass only")
        mask = token_mask.to(self.lengths.device)
        self.places = torch.where(mask, mask.cumsum(1) - 1, -1)

    def close(self) -> None:
        """End the pass: its tokens count as seen."""
        self.lengths = self.lengths + (self.places >= 0).sum(1)
        self.max_length = int(self.lengths.max())

    def append(self, layer: int, q_BHSd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor) -> LayerCache:
        """Add this pass's keys and values to a layer's; returns all that this layer may look at."""
        config, count = self.config, k_BKSd.shape[2]
        kept = self._layers.get(layer)
        if kept is None:
            kept = self._layers[layer] = LayerCache(k_BKSd[:, :, :0], v_BKSd[:, :, :0], self.places[:, :0])
        kind = config.attention_kind(layer)
        if kind == "sliding" and kept.size >= 2 * (config.attention.window + config.attention.num_sinks):
            self._drop_invisible(kept)
        if kept.size + count > kept.positions.shape[1]:
            _grow(kept, k_BKSd, slots=max(kept.size + count, 2 * kept.size))
        new = slice(kept.size, kept.size + count)
        kept.keys[:, :, new], kept.values[:, :, new], kept.positions[:, new] = k_BKSd, v_BKSd, self.places
        kept.size += count
        if kind == "sparse":
            self._add_to_blocks(kept, q_BHSd, k_BKSd)
        return kept

    def visible(self, layer: int, kept: LayerCache, new: slice) -> Bool[Tensor, "batch heads new slots"]:
        """Which kept keys the new tokens `new` of this pass see. One head where all heads see the same."""
        config, kind = self.config.attention, self.config.attention_kind(layer)
        places = self.places[:, new]
        i, j = places.unsqueeze(2), kept.positions[:, : kept.size].unsqueeze(1)
        seen = (j <= i) if kind == "full" else is_visible(i, j, config)
        seen = (seen & (j >= 0)).unsqueeze(1)
        if kind != "sparse":
            return seen
        assert kept.sums_q is not None
        assert kept.sums_k is not None
        rows = zip(places, kept.positions[:, : kept.size], kept.sums_q, kept.sums_k, strict=True)
        selected = torch.stack([self._selected(*row) for row in rows]) & (j >= 0).unsqueeze(1)
        return (seen | selected).repeat_interleave(self.config.num_key_value_groups, 1)

    def _selected(self, places: Tensor, positions: Tensor, sums_q: Tensor, sums_k: Tensor) -> Tensor:
        """[kv, new, slots] of one row: whether a key lies in a block that the token's block has selected."""
        size = self.config.attention.block_size
        blocks = places.clamp(min=0) // size
        means_q, means_k = sums_q.unsqueeze(0) / size, sums_k.unsqueeze(0) / size
        chosen, is_chosen = choose_blocks(
            means_q[:, :, (blocks - 1).clamp(min=0)], means_k, blocks, self.config.attention
        )
        table = torch.zeros(means_k.shape[1], len(blocks), means_k.shape[2], dtype=torch.bool, device=chosen.device)
        table.scatter_(2, chosen[0], is_chosen.expand(means_k.shape[1], -1, -1))
        return table[:, :, positions.clamp(min=0) // size]

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these rows, in this order."""
        self.lengths, self.places, self.batch = self.lengths[rows], self.places[rows], len(rows)
        for kept in self._layers.values():
            kept.keys, kept.values, kept.positions = kept.keys[rows], kept.values[rows], kept.positions[rows]
            if kept.sums_q is not None and kept.sums_k is not None:
                kept.sums_q, kept.sums_k = kept.sums_q[rows], kept.sums_k[rows]

    def _drop_invisible(self, kept: LayerCache) -> None:
        """Forget what no later token can see; the columns of a row that has less to keep are filled with padding."""
        config = self.config.attention
        positions = kept.positions[:, : kept.size]
        next_position = self.lengths.unsqueeze(1)
        stays = (positions >= 0) & ((positions < config.num_sinks) | (positions > next_position - config.window))
        order = (~stays).to(torch.int8).argsort(dim=1, stable=True)[:, : int(stays.sum(1).max())]
        index = order[:, None, :, None].expand(-1, kept.keys.shape[1], -1, kept.keys.shape[3])
        kept.keys, kept.values = kept.keys.gather(2, index), kept.values.gather(2, index)
        kept.positions = torch.where(stays.gather(1, order), positions.gather(1, order), -1)
        kept.size = order.shape[1]

    def _add_to_blocks(self, kept: LayerCache, q_BHSd: Tensor, k_BKSd: Tensor) -> None:
        size = self.config.attention.block_size
        group_q = q_BHSd.unflatten(1, (k_BKSd.shape[1], -1)).float().mean(2)
        num_blocks = max(int(self.places.max()) // size + 1, 0 if kept.sums_k is None else kept.sums_k.shape[2])
        kept.sums_q = self._summed(kept.sums_q, group_q, num_blocks=num_blocks)
        kept.sums_k = self._summed(kept.sums_k, k_BKSd.float(), num_blocks=num_blocks)

    def _summed(self, sums: Tensor | None, new: Tensor, *, num_blocks: int) -> Tensor:
        batch, kv, _, dim = new.shape
        grown = torch.zeros(batch, kv, num_blocks, dim, device=new.device)
        if sums is not None:
            grown[:, :, : sums.shape[2]] = sums
        blocks = (self.places.clamp(min=0) // self.config.attention.block_size)[:, None, :, None].expand_as(new)
        return grown.scatter_add_(2, blocks, new * (self.places >= 0)[:, None, :, None])


def _grow(kept: LayerCache, like: Tensor, *, slots: int) -> None:
    batch, kv, _, dim = like.shape
    keys, values = (torch.empty(batch, kv, slots, dim, dtype=like.dtype, device=like.device) for _ in range(2))
    positions = torch.full((batch, slots), -1, dtype=torch.long, device=like.device)
    used = slice(0, kept.size)
    keys[:, :, used], values[:, :, used] = kept.keys[:, :, used], kept.values[:, :, used]
    positions[:, used] = kept.positions[:, used]
    kept.keys, kept.values, kept.positions = keys, values, positions


def check_context(config: MoEConfig, length: int) -> None:
    """Raise ValueError if `length` positions are beyond the model's range. `dynamic` rotations have none."""
    if length > config.max_position_embeddings and config.rope.kind != "dynamic":
        raise ValueError(
            f"{length} positions are beyond max_position_embeddings = {config.max_position_embeddings}; shorten the input, or "
            "raise it with a rope.kind that scales (yarn, llama3, longrope, dynamic)"
        )
