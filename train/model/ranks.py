"""ModelRanks and the split of parameters: how one model is divided among processes, and which box of each tensor is here.

- tensor parallel (tp): heads, widths of dense and shared feed-forward parts, and rows of the vocabulary; between those
  matrices each rank holds a part of the sequence (sequence parallelism, arXiv:2205.05198).
- context parallel (cp): each rank holds a part of every sequence; for attention, heads are exchanged for positions
  (Ulysses, arXiv:2309.14509). Where there are fewer key-value heads than ranks, they are repeated.
- expert parallel (ep): each rank holds a share of every layer's experts. Its group may run over data, context and tensor
  parallel ranks (arXiv:2504.14960).
- pipeline: a process holds some of the layers (`MoETransformer(layers=...)`).
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch.distributed import ProcessGroup

from train.model.config import MoEConfig

Axis = Literal["tp", "ep"]


@dataclass(frozen=True, slots=True)
class ModelRanks:
    """The groups among which this process shares a model; None is a group of one."""

    tp: ProcessGroup | None = None
    cp: ProcessGroup | None = None
    ep: ProcessGroup | None = None

    @property
    def tp_size(self) -> int:
        """Tensor parallel ranks."""
        return 1 if self.tp is None else self.tp.size()

    @property
    def cp_size(self) -> int:
        """Context parallel ranks."""
        return 1 if self.cp is None else self.cp.size()

    @property
    def ep_size(self) -> int:
        """Expert parallel ranks."""
        return 1 if self.ep is None else self.ep.size()

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all of each layer."""
        return self.tp_size == self.cp_size == self.ep_size == 1

    def coordinate(self, axis: Axis) -> tuple[int, int]:
        """(this process's place, ranks) of an axis along which parameters are split."""
        group = self.tp if axis == "tp" else self.ep
        return (0, 1) if group is None else (group.rank(), group.size())

    def context_part(self, length: int) -> slice:
        """The positions of a sequence that this context parallel rank holds."""
        part = length // self.cp_size
        first = 0 if self.cp is None else self.cp.rank() * part
        return slice(first, first + part)

    def token_part(self, length: int) -> slice:
        """The positions of a sequence that this rank holds between attention and feed-forward parts."""
        context = self.context_part(length)
        part = (context.stop - context.start) // self.tp_size
        first = context.start + (0 if self.tp is None else self.tp.rank() * part)
        return slice(first, first + part)


ALONE = ModelRanks()
"""A process that holds all of each layer."""


@dataclass(frozen=True, slots=True)
class Split:
    """A parameter that is cut along dimension `dim` among the ranks of `axis`."""

    axis: Axis
    dim: int


SPLITS: dict[str, Split] = {
    "embed_tokens.weight": Split("tp", 0),
    "lm_head.weight": Split("tp", 0),
    "q_proj.weight": Split("tp", 0),
    "k_proj.weight": Split("tp", 0),
    "v_proj.weight": Split("tp", 0),
    "q_proj.bias": Split("tp", 0),
    "k_proj.bias": Split("tp", 0),
    "v_proj.bias": Split("tp", 0),
    "o_proj.weight": Split("tp", 1),
    "gate_proj.weight": Split("tp", 0),
    "up_proj.weight": Split("tp", 0),
    "down_proj.weight": Split("tp", 1),
    "experts.w1": Split("ep", 0),
    "experts.w3": Split("ep", 0),
    "experts.w2": Split("ep", 0),
}
"""Last two words of a parameter's name -> how it is cut. What is not named (norms, routers) every rank holds whole."""


def split_of(name: str) -> Split | None:
    """How the parameter of that name is cut, None if it is not."""
    return SPLITS.get(".".join(name.split(".")[-2:]))


def local_box(name: str, local_shape: tuple[int, ...], ranks: ModelRanks) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape of the undivided tensor, offsets of this process's part in it)."""
    shape, offsets = list(local_shape), [0] * len(local_shape)
    if (split := split_of(name)) is not None:
        place, count = ranks.coordinate(split.axis)
        offsets[split.dim] = place * shape[split.dim]
        shape[split.dim] *= count
    return tuple(shape), tuple(offsets)


def key_head_copies(num_key_value_heads: int, *, tp: int, cp: int) -> int:
    """How often each key-value head is repeated, so that all context parallel ranks get whole ones."""
    heads = num_key_value_heads // tp
    return math.lcm(heads, cp) // heads


def heads_problem(num_heads: int, num_key_value_heads: int, *, tp: int, cp: int, selects_blocks: bool) -> str | None:
    """Why not every rank gets whole query heads with the key-value heads that they look at; None if it does.

    `selects_blocks`: there are sparse layers, in which all heads of a key-value head choose together.
    """
    splits = f"{num_heads} heads and {num_key_value_heads} key-value heads among tp x cp = {tp} x {cp} ranks"
    if num_key_value_heads % tp:
        return f"{splits}: tp does not divide the key-value heads; lower it"
    copies = key_head_copies(num_key_value_heads, tp=tp, cp=cp)
    if num_heads % (num_key_value_heads * copies):
        return f"{splits}: tp x cp does not divide the heads; lower tp or cp"
    if copies > 1 and selects_blocks:
        return f"{splits}: sparse attention chooses blocks for all heads of a key-value head at once; lower tp or cp"
    return None


def check_division(config: MoEConfig, *, tp: int, cp: int, ep: int) -> None:
    """Raises ValueError, naming field and value, for a model that cannot be divided among so many ranks."""
    if ep > 1 and config.num_experts % ep:
        raise ValueError(
            f"num_experts = {config.num_experts} is not divisible by the {ep} ranks of expert parallelism; change one of them"
        )
    if tp == 1 and cp == 1:
        return
    problem = heads_problem(
        config.num_attention_heads, config.num_key_value_heads, tp=tp, cp=cp,
        selects_blocks="sparse" in config.attention.pattern,
    )  # fmt: skip
    if problem is not None:
        raise ValueError(problem)
    if config.router.capacity_factor is not None and config.num_experts:
        raise ValueError(
            f"router.capacity_factor = {config.router.capacity_factor:g} with tp x cp = {tp} x {cp}: an expert's capacity is "
            "of one pass over whole sequences; use None, or tp = cp = 1"
        )
    if tp == 1:
        return
    if config.qk_norm == "projection":
        raise ValueError(
            f"qk_norm = 'projection' with tp = {tp}: the norm runs over the heads of all ranks; use 'head', or tp = 1"
        )
    widths = {"vocab_size": config.vocab_size}
    if len(config.moe_layers) < config.num_hidden_layers:
        widths["intermediate_size"] = config.intermediate_size
    if config.num_shared_experts:
        widths["num_shared_experts x moe_intermediate_size"] = config.num_shared_experts * config.moe_intermediate_size
    for name, width in widths.items():
        if width % tp:
            raise ValueError(f"{name} = {width} is not divisible by tp = {tp}; pad it to a multiple of {tp}")
