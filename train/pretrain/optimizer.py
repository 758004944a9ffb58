"""The optimizers, on this process's float32 parts of the parameters.

In: ParameterShards with gradients, and the rate that the loop writes into each group before a step. Out: changed parameters,
and a state that is complete from the beginning on, so that a checkpoint can be read into it before the first step.

- adamw: torch.optim.AdamW, fused where the device has it (arXiv:1711.05101).
- muon: the momentum of hidden matrices is made orthogonal (Newton-Schulz) and scaled to the size of AdamW's update, so that
  both share one rate and one decay (arXiv:2502.16982); embeddings, head, routers, norms and biases take AdamW. The
  experts of a layer are as many matrices.

What decays: everything of two or more dimensions but the embedding, as in OLMo 2 (arXiv:2501.00656); an embedding that is the
head as well does not decay either. (nanoGPT's rule decays embeddings, too.)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from train.dtype import TrainingDtype, pick_dtype

FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu"})
STATE_KINDS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; those of torch.optim.Muon."""
NEWTON_SCHULZ_STEPS = 5
ADAMW_UPDATE_RMS = 0.2
"""Typical root mean square of an AdamW update over its rate (arXiv:2502.16982, section 2.2)."""


class OptimizerConfig(BaseModel):
    """How gradients change parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: Literal["adamw", "muon"] = "adamw"
    """muon costs half of AdamW's state for hidden matrices, and their whole gradients on every rank that has a part."""
    lr: float = Field(3e-4, gt=0, allow_inf_nan=False)
    """The peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the means of gradient and squared gradient, per step."""
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """AdamW: added to the root of the mean squared gradient."""
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Share of a matrix that a step of rate 1 takes off; embeddings, norms and biases keep all."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest gradient norm of a step over all parameters; inf does not clip."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """muon: decay of the mean gradient, per step (Nesterov)."""
    orthogonal_dtype: TrainingDtype = "auto"
    """muon: precision of the Newton-Schulz products. auto: bfloat16, or float32 on a CPU that is slow in it."""


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """This process's part of one parameter."""

    name: str
    """Of the parameter in the whole model."""
    tensor: Tensor
    """float32 and a leaf; its `grad` is what the step takes. Any shape, where `gather` knows how it fits; may be empty."""
    logical_dim: int
    """Dimensions of the whole parameter."""
    gather: Callable[[Tensor], Tensor] | None = None
    """A tensor like `tensor` to the whole one, or to whole experts of it: a collective. None: `tensor` is that."""
    take: Callable[[Tensor], Tensor] | None = None
    """Back: the part of such a whole one that `tensor` has."""


def build_optimizer(shards: Sequence[ParameterShard], config: OptimizerConfig) -> Optimizer:
    """The optimizer of these parts, its state zero. Every parameter needs a gradient at every step, be it of zeros.

    The loop sets `lr` of each of `param_groups` before each step. With muon a step has collectives, in the order of `shards`:
    it has to be the same on all ranks. Raises ValueError naming the shard that is no float32 leaf.
    """
    for shard in shards:
        if shard.tensor.dtype != torch.float32 or not shard.tensor.is_leaf:
            raise ValueError(
                f"{shard.name}: the optimizer steps on float32 leaves, this is {shard.tensor.dtype}"
                f"{'' if shard.tensor.is_leaf else ' and was computed from others'}; give it the detached master weights"
            )
    optimizer = KINDS[config.kind](shards, config)
    for shard in shards:
        kinds = ("momentum_buffer",) if _is_muon(optimizer, shard) else ("exp_avg", "exp_avg_sq")
        on_device = shard.tensor.device if shard.tensor.device.type in FUSED_DEVICES else "cpu"
        optimizer.state[shard.tensor] = {"step": torch.zeros((), device=on_device)} | {
            kind: torch.zeros_like(shard.tensor) for kind in kinds
        }
    return optimizer


def optimizer_tensors(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Per parameter name what the optimizer keeps, by kind (STATE_KINDS), each of the shape of the part. Write in place."""
    return {
        name: {kind: state[kind] for kind in STATE_KINDS if kind in state} for name, state in _named_states(optimizer)
    }


def optimizer_step_count(optimizer: Optimizer) -> int:
    """Steps that were done. Raises RuntimeError if a parameter missed one for want of a gradient."""
    counts = {name: int(state["step"]) for name, state in _named_states(optimizer)}
    if len(set(counts.values())) > 1:
        fewest = min(counts, key=lambda name: counts[name])
        raise RuntimeError(
            f"{fewest} took part in {counts[fewest]} of {max(counts.values())} steps: it had no gradient in the others; give "
            "it one of zeros"
        )
    return next(iter(counts.values()))


def set_optimizer_step_count(optimizer: Optimizer, count: int) -> None:
    """Go on as after `count` steps."""
    for _, state in _named_states(optimizer):
        state["step"].fill_(count)


def check_flat_ranges(config: OptimizerConfig) -> None:
    """Raises ValueError for an optimizer that needs whole matrices, for an engine that cuts them into flat ranges."""
    if config.kind != "adamw":
        raise ValueError(
            f"optimizer.kind = {config.kind!r} with the engine deepspeed: its ZeRO cuts matrices into flat ranges, which that "
            "optimizer does not know; use 'adamw', or the engine native"
        )


def clip_factor(norm: float, *, clip_norm: float) -> float:
    """What gradients of this norm are multiplied with, as in torch.nn.utils.clip_grad_norm_."""
    return min(1.0, clip_norm / (norm + 1e-6))


class MuonAdamW(Optimizer):
    """Muon for hidden matrices, AdamW for the rest. Of a whole matrix the update is that of torch.optim.Muon with
    `match_rms_adamw`; each rank that has a part of a matrix computes the update of the whole one."""

    def __init__(self, shards: Sequence[ParameterShard], config: OptimizerConfig) -> None:
        hidden = [shard for shard in shards if is_hidden_matrix(shard)]
        others = [shard for shard in shards if not is_hidden_matrix(shard)]
        groups = [group | {"is_muon": True} for group in _decay_groups(hidden, config)]
        groups += [group | {"is_muon": False} for group in _decay_groups(others, config)]
        self._shards = {shard.tensor: shard for shard in hidden}
        self._config = config
        super().__init__(groups, {"lr": config.lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters. Raises RuntimeError for a parameter without a gradient. No closure."""
        assert closure is None
        for name, parameter in _named_parameters(self):
            if parameter.grad is None:
                raise RuntimeError(f"{name} has no gradient: give it one of zeros")
        for group in self.param_groups:
            (self._step_muon if group["is_muon"] else self._step_adamw)(group)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = group["params"]
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=_is_fused(parameters), amsgrad=False, maximize=False,
            beta1=self._config.betas[0], beta2=self._config.betas[1], eps=self._config.eps,
            lr=group["lr"], weight_decay=group["weight_decay"],
        )  # fmt: skip

    def _step_muon(self, group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], self._config.momentum
        for parameter in group["params"]:
            shard, state = self._shards[parameter], self.state[parameter]
            mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(mean, momentum)
            whole = update if shard.gather is None else shard.gather(update)
            name = pick_dtype(self._config.orthogonal_dtype, device_type=whole.device.type)
            whole = orthogonalise(whole, dtype=getattr(torch, name))
            scale = ADAMW_UPDATE_RMS * math.sqrt(max(whole.shape[-2:]))
            update = whole if shard.take is None else shard.take(whole)
            parameter.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)
            state["step"] += 1


def orthogonalise(
    matrices: Float[Tensor, "*stack rows columns"], *, dtype: torch.dtype
) -> Float[Tensor, "*stack rows columns"]:
    """Each matrix with its singular values moved near one (0.7 to 1.2), computed and given in `dtype`.

    Source: github.com/KellerJordan/Muon; torch.optim.Muon does the same for one matrix in bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype).flatten(0, -3) if matrices.dim() > 2 else matrices.to(dtype).unsqueeze(0)
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(matrices.shape)


def is_hidden_matrix(shard: ParameterShard) -> bool:
    """Whether muon orthogonalises it: a matrix, or a stack of experts, that is neither embedding nor head nor router."""
    return shard.logical_dim >= 2 and not {"embed_tokens", "lm_head", "gate"} & set(shard.name.split("."))


def has_decay(shard: ParameterShard) -> bool:
    """Whether weight decay applies to it."""
    return shard.logical_dim >= 2 and "embed_tokens" not in shard.name.split(".")


def _build_adamw(shards: Sequence[ParameterShard], config: OptimizerConfig) -> AdamW:
    is_fused = _is_fused([shard.tensor for shard in shards])
    return AdamW(_decay_groups(shards, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=is_fused)


def _decay_groups(shards: Sequence[ParameterShard], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Those with and those without decay, where there are any."""
    groups = []
    for is_decayed in (True, False):
        members = [(shard.name, shard.tensor) for shard in shards if has_decay(shard) == is_decayed]
        if members:
            groups.append({"params": members, "weight_decay": config.weight_decay if is_decayed else 0.0})
    return groups


def _is_fused(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.device.type in FUSED_DEVICES for tensor in tensors)


def _is_muon(optimizer: Optimizer, shard: ParameterShard) -> bool:
    return isinstance(optimizer, MuonAdamW) and is_hidden_matrix(shard)


def _named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _named_states(optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, parameter in _named_parameters(optimizer):
        yield name, optimizer.state[parameter]


KINDS: dict[str, Callable[[Sequence[ParameterShard], OptimizerConfig], Optimizer]] = {
    "adamw": _build_adamw,
    "muon": MuonAdamW,
}
