"""ParallelPlan: how one training step is spread over GPUs; and the GPUs, with what can be expected of them.

World = dp x cp x tp x pp. Experts are spread over `ep` consecutive ranks of one pipeline stage, folded over tensor,
context and data parallel ranks (arXiv:2504.14960), so `ep` adds no ranks. What an engine of this package cannot run,
`refusals` says in a sentence. Sources of the GPUs: NVIDIA's data sheets; speeds of one direction, dense peaks.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.model.costs import ModelCosts
from train.model.ranks import heads_problem
from train.model.transformer import Recomputation

Engine = Literal["deepspeed", "native"]
ENGINES: tuple[Engine, ...] = ("deepspeed", "native")
Precision = Literal["bf16", "fp8"]


class ParallelPlan(BaseModel):
    """One way to train. The same object is what pre-training runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dp: int = Field(1, gt=0)
    """Data parallel ranks."""
    tp: int = Field(1, gt=0)
    """Tensor parallel ranks, with sequence parallelism between them; inside one node."""
    pp: int = Field(1, gt=0)
    """Pipeline stages."""
    ep: int = Field(1, gt=0)
    """Ranks that share the experts of a layer; divides dp x cp x tp."""
    cp: int = Field(1, gt=0)
    """Context parallel ranks: each holds 1/cp of a sequence."""
    zero_stage: Literal[1, 2, 3] = 1
    """What data parallel ranks share: 1 optimizer state, 2 gradients too, 3 parameters too (FSDP2: 2 and 3)."""
    recomputation: Recomputation = "none"
    """Activations that the backward pass computes again."""
    micro_batch: int = Field(1, gt=0)
    """Sequences of one micro-batch."""
    num_micro_batches: int = Field(1, gt=0)
    """Micro-batches of one step on each data parallel rank."""
    virtual_stages: int = Field(1, gt=0)
    """Pieces of the model on each pipeline rank (interleaved 1F1B)."""

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if (self.dp * self.cp * self.tp) % self.ep:
            raise ValueError(
                f"ep = {self.ep} does not divide dp x cp x tp = {self.dp * self.cp * self.tp}: experts are spread over "
                "the ranks of one pipeline stage; use a divisor"
            )
        if self.virtual_stages > 1 and self.pp == 1:
            raise ValueError(f"virtual_stages = {self.virtual_stages} needs pp > 1; set it to 1")
        return self

    @property
    def world_size(self) -> int:
        """GPUs."""
        return self.dp * self.cp * self.tp * self.pp

    @property
    def sequences(self) -> int:
        """Sequences of one step."""
        return self.dp * self.micro_batch * self.num_micro_batches

    @property
    def model_shape(self) -> tuple[int, int, int]:
        """How the model itself is split: (tp, pp, ep)."""
        return self.tp, self.pp, self.ep

    def describe(self) -> str:
        """The five degrees in one short line."""
        return f"dp {self.dp} tp {self.tp} pp {self.pp} ep {self.ep} cp {self.cp}"


class Gpu(BaseModel):
    """One kind of GPU in nodes of `per_node`. Bandwidths are of one direction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: float
    peak_bf16: float
    """Dense FLOP/s."""
    peak_fp8: float | None
    """Dense FLOP/s; None where the GPU has none."""
    memory_bandwidth: float
    """Bytes per second of its memory."""
    node_bandwidth: float
    """Bytes per second to the other GPUs of its node (NVLink)."""
    network_bandwidth: float
    """Bytes per second to other nodes."""
    price_usd_per_hour: float
    """What an hour is assumed to cost; say your own with --price."""
    per_node: int = 8
    """GPUs of a node."""


GPUS: dict[str, Gpu] = {
    "a100-80gb": Gpu(
        memory_bytes=80e9, peak_bf16=312e12, peak_fp8=None, memory_bandwidth=2.04e12, node_bandwidth=300e9,
        network_bandwidth=25e9, price_usd_per_hour=1.5,
    ),
    "h100-80gb": Gpu(
        memory_bytes=80e9, peak_bf16=989e12, peak_fp8=1979e12, memory_bandwidth=3.35e12, node_bandwidth=450e9,
        network_bandwidth=50e9, price_usd_per_hour=2.5,
    ),
    "h100-96gb": Gpu(
        memory_bytes=96e9, peak_bf16=835e12, peak_fp8=1671e12, memory_bandwidth=2.4e12, node_bandwidth=450e9,
        network_bandwidth=50e9, price_usd_per_hour=2.5,
    ),
    "h800-80gb": Gpu(
        memory_bytes=80e9, peak_bf16=989e12, peak_fp8=1979e12, memory_bandwidth=3.35e12, node_bandwidth=200e9,
        network_bandwidth=50e9, price_usd_per_hour=2.0,
    ),
    "h200-141gb": Gpu(
        memory_bytes=141e9, peak_bf16=989e12, peak_fp8=1979e12, memory_bandwidth=4.8e12, node_bandwidth=450e9,
        network_bandwidth=50e9, price_usd_per_hour=3.0,
    ),
    "b200-192gb": Gpu(
        memory_bytes=192e9, peak_bf16=2250e12, peak_fp8=4500e12, memory_bandwidth=8e12, node_bandwidth=900e9,
        network_bandwidth=50e9, price_usd_per_hour=5.0,
    ),
}  # fmt: skip
"""Name -> GPU. Prices are round figures of 2026 for reserved capacity; h800 is that of DeepSeek-V3's report.
h100-96gb is the 500 W kind of torchtitan's report, with the peak of the NVL."""


def gpu(name: str) -> Gpu:
    """The GPU of that name. Raises ValueError listing the names."""
    if name not in GPUS:
        raise ValueError(f"gpu = {name!r} is unknown; there are {', '.join(GPUS)}")
    return GPUS[name]


class Assumptions(BaseModel):
    """What the estimate takes for granted. One set for all published runs that it is checked against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    matmul_efficiency: float = Field(0.70, gt=0, le=1)
    """Share of the bf16 peak that large matmuls reach at training clocks."""
    fp8_efficiency: float = Field(0.45, gt=0, le=1)
    """Share of the fp8 peak that they reach, quantization of their inputs included."""
    attention_efficiency: float = Field(0.35, gt=0, le=1)
    """Share of the bf16 peak of the attention core, forward and backward together (FlashAttention-2 on Hopper; its
    successor is faster)."""
    traffic_per_kept_byte: float = Field(6.0, gt=0)
    """Memory traffic of norms, rotations, activations and permutations, per byte kept for the backward pass."""
    bandwidth_efficiency: float = Field(0.80, gt=0, le=1)
    """Share of the named bandwidths that is reached."""
    tp_overlap: float = Field(0.0, ge=0, le=1)
    """Share of tensor parallel traffic hidden behind matmuls."""
    ep_overlap: float = Field(0.0, ge=0, le=1)
    """Share of the experts' all-to-all hidden behind compute (DualPipe: all of it)."""
    context_exchange: Literal["heads", "ring"] = "heads"
    """What context parallel ranks send: heads for positions, as both engines here do, or keys and values around a ring, as
    the published runs did."""
    dispatch_bytes: int = Field(2, gt=0)
    """Bytes of an element on its way to an expert (fp8 dispatch: 1)."""
    gradient_bytes: int = Field(4, gt=0)
    """Gradients are accumulated in float32."""
    optimizer_bytes: int = Field(12, gt=0)
    """Float32 master weight and two moments."""
    is_loss_chunked: bool = True
    """The loss never holds all logits (loss.py). Published runs do: theirs in bf16, and in fp32 with the gradient."""
    fragmentation: float = Field(1.10, ge=1)
    """What the allocator holds for activations and working memory, over what is asked for."""
    reserve_bytes: float = Field(6e9, ge=0)
    """CUDA context and communication buffers."""


def refusals(plan: ParallelPlan, costs: ModelCosts) -> dict[Engine, str]:
    """Why an engine cannot run `plan` (design rule 9): engine -> the first reason; an engine that can is not in it."""
    shared = _refuses_heads(plan, costs)
    reasons: dict[Engine, list[str]] = {
        "deepspeed": deepspeed_refusals(plan) + shared,
        "native": native_refusals(plan) + shared,
    }
    return {engine: found[0] for engine, found in reasons.items() if found}


def shape_problems(plan: ParallelPlan, costs: ModelCosts, *, per_node: int = 8) -> list[str]:
    """Why no engine could: what does not divide."""
    problems = []
    if plan.tp > per_node:
        problems.append(f"tp = {plan.tp} leaves the node of {per_node} GPUs")
    if costs.num_heads % plan.tp or costs.num_kv_heads % plan.tp:
        heads = f"{costs.num_heads} heads and {costs.num_kv_heads} key-value heads"
        problems.append(f"tp = {plan.tp} does not divide {heads}")
    if plan.pp * plan.virtual_stages > len(costs.layers):
        problems.append(f"pp = {plan.pp} x {plan.virtual_stages} pieces are more than {len(costs.layers)} layers")
    if plan.ep > 1 and (costs.num_experts == 0 or costs.num_experts % plan.ep):
        problems.append(f"ep = {plan.ep} does not divide {costs.num_experts} experts")
    if costs.context % (plan.cp * plan.tp):
        problems.append(f"cp x tp = {plan.cp * plan.tp} does not divide the context of {costs.context} tokens")
    if plan.virtual_stages > 1 and plan.num_micro_batches % plan.pp:
        problems.append(
            f"interleaving needs num_micro_batches = {plan.num_micro_batches} to be a multiple of pp = {plan.pp}"
        )
    return problems


def _refuses_heads(plan: ParallelPlan, costs: ModelCosts) -> list[str]:
    problem = heads_problem(
        costs.num_heads, costs.num_kv_heads, tp=plan.tp, cp=plan.cp, selects_blocks=costs.selects_blocks
    )
    return [] if problem is None else [problem]


def native_refusals(plan: ParallelPlan) -> list[str]:
    """What the native engine does not run, whatever the model."""
    if plan.num_micro_batches >= plan.pp:
        return []
    return [
        f"num_micro_batches = {plan.num_micro_batches} is less than pp = {plan.pp}: its pipeline needs at least one "
        "micro-batch per stage"
    ]


def deepspeed_refusals(plan: ParallelPlan) -> list[str]:
    """What the DeepSpeed engine does not run, whatever the model."""
    reasons = []
    if plan.pp > 1 and plan.zero_stage > 1:
        reasons.append(
            f"zero_stage = {plan.zero_stage} with pp = {plan.pp}: ZeRO-2 and ZeRO-3 are incompatible with pipeline "
            "parallelism; use zero_stage 1, or the engine native"
        )
    if plan.virtual_stages > 1:
        reasons.append(
            f"virtual_stages = {plan.virtual_stages}: its pipeline has no interleaved schedule; use 1, or the engine native"
        )
    if plan.zero_stage == 3 and plan.recomputation == "selective":
        reasons.append(
            "selective recomputation with ZeRO-3: torch takes the gathering of weights for a part of the layer; use full, "
            "zero_stage 1 or 2, or the engine native"
        )
    return reasons
