"""What a plan needs and how long its step takes: memory, communication, pipeline bubble, MFU, tokens per second, days.

Closed forms, all of them in docs/planning.md and checked against published runs (published.py,
tests/unit/train/test_planner.py). Memory is of the fullest GPU, time and traffic of the slowest stage. T is the tokens
of one micro-batch on one GPU: micro_batch x context / cp, split by tp again between matmuls (sequence parallelism).
Sources: activation and pipeline memory (arXiv:2205.05198, arXiv:2104.04473), ZeRO (arXiv:1910.02054).
"""

from dataclasses import dataclass
from typing import Literal

from train.model.costs import BF16, FP32, INDEX, LayerCosts, ModelCosts, Stage, distinct_stages, split_stages
from train.model.plan import Assumptions, Gpu, ParallelPlan, Precision
from train.model.ranks import key_head_copies

Traffic = Literal["tensor", "expert", "context", "pipeline", "data"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the most loaded GPU."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    """Of one layer: gathered parameters, what is computed again; the loss's buffers."""
    reserve: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.working + self.reserve


@dataclass(frozen=True, slots=True)
class Estimate:
    """One plan on one kind of GPU."""

    plan: ParallelPlan
    memory: Memory
    traffic_bytes: dict[Traffic, float]
    """Sent in one step by a GPU of the slowest stage."""
    bubble: float
    """Share of the step in which pipeline stages wait."""
    exposed: float
    """Share of the step that waits for communication, or for the optimizer."""
    step_s: float
    tokens_per_step: int
    mfu: float
    """Model FLOPs without recomputation over the bf16 peak, with causal attention counted once."""

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs together."""
        return self.tokens_per_step / self.step_s

    def days(self, tokens: float) -> float:
        """Days without interruption for that many tokens."""
        return tokens / self.tokens_per_s / 86_400

    def gpu_hours(self, tokens: float) -> float:
        """Hours of all GPUs added up."""
        return self.days(tokens) * 24 * self.plan.world_size


def estimate(
    costs: ModelCosts,
    plan: ParallelPlan,
    *,
    gpu: Gpu,
    assumptions: Assumptions,
    precision: Precision = "bf16",
) -> Estimate:
    """Memory and speed of `plan`. Raises ValueError for fp8 on a GPU without it."""
    step = StepFormulas(costs, plan, gpu, assumptions, precision)
    stages = split_stages(costs, plan.pp)
    candidates = distinct_stages(costs, plan.pp)
    memory = max((step.memory(stages[stage], stage) for stage in candidates), key=lambda found: found.total)
    times = {stage: step.micro_batch_time(stages[stage], stage) for stage in candidates}
    slowest = max(times, key=lambda stage: sum(times[stage]))
    compute, exposed = times[slowest]
    once, traffic = step.once_per_step(stages[slowest], slowest, hide_s=compute)
    for kind, sent in step.micro_batch_traffic(stages[slowest], slowest).items():
        traffic[kind] = traffic.get(kind, 0.0) + sent * plan.num_micro_batches
    waiting = (plan.pp - 1) / plan.virtual_stages
    step_s = (compute + exposed) * (plan.num_micro_batches + waiting) + once
    tokens = plan.sequences * costs.context
    flops = costs.flops_per_token * tokens
    return Estimate(
        plan, memory, traffic,
        bubble=(compute + exposed) * waiting / step_s,
        exposed=(exposed * plan.num_micro_batches + once) / step_s,
        step_s=step_s, tokens_per_step=tokens, mfu=flops / step_s / (plan.world_size * gpu.peak_bf16),
    )  # fmt: skip


class StepFormulas:
    """The formulas, for one plan."""

    def __init__(
        self, costs: ModelCosts, plan: ParallelPlan, gpu: Gpu, assumptions: Assumptions, precision: Precision
    ) -> None:
        if precision == "fp8" and gpu.peak_fp8 is None:
            raise ValueError("precision = 'fp8': this GPU has no fp8; use 'bf16' or another --gpu")
        self.costs, self.plan, self.gpu, self.assumptions = costs, plan, gpu, assumptions
        self.tokens = plan.micro_batch * costs.context / plan.cp
        """Of a micro-batch, before sequence parallelism."""
        self.expert_replicas = plan.dp * plan.cp * plan.tp // plan.ep
        self.shared_replicas = plan.dp * plan.cp
        self.matmul_flops = assumptions.matmul_efficiency * gpu.peak_bf16
        if precision == "fp8" and gpu.peak_fp8 is not None:
            self.matmul_flops = assumptions.fp8_efficiency * gpu.peak_fp8
        self.scatters_each_micro_batch = plan.zero_stage > 1 and plan.pp == 1
        """A pipeline adds up whole gradients and scatters them once, at its end."""
        self.key_head_copies = 1
        if plan.cp > 1 and assumptions.context_exchange == "heads":
            self.key_head_copies = key_head_copies(costs.num_kv_heads, tp=plan.tp, cp=plan.cp)
        self.memory_speed = gpu.memory_bandwidth * assumptions.bandwidth_efficiency

    def local_params(self, layers: Stage, stage: int) -> tuple[float, float]:
        """Parameters of this stage on one GPU before ZeRO: those that tp splits, and experts."""
        costs, plan = self.costs, self.plan
        shared = experts = 0.0
        for layer, count in layers.items():
            whole, split = layer.norm_params + layer.router_params, layer.attention_params + layer.feed_forward_params
            shared += count * (whole + split / plan.tp)
            experts += count * layer.expert_params / plan.ep
        if stage == 0 or (stage == plan.pp - 1 and not costs.head_params):
            shared += costs.embedding_params / plan.tp
        if stage == plan.pp - 1:
            shared += costs.head_params / plan.tp + costs.norm_params
        return shared, experts

    def memory(self, layers: Stage, stage: int) -> Memory:
        """Bytes on a GPU of stage `stage`."""
        plan, assumptions = self.plan, self.assumptions
        shared, experts = self.local_params(layers, stage)
        sharded = shared / self.shared_replicas + experts / self.expert_replicas
        whole = shared + experts
        tokens = self.tokens / plan.tp
        kept = sum(self.kept_bytes(layer) * count for layer, count in layers.items())
        working = 0.0
        if plan.recomputation != "none":  # one layer at a time is whole again
            working = max(self.whole_bytes(layer) - self.kept_bytes(layer) for layer in layers)
        if plan.zero_stage == 3:  # the layer in use and the one that is fetched ahead
            biggest = max(layers, key=lambda layer: layer.params)
            working += 2 * BF16 * (biggest.shared_params / plan.tp + biggest.expert_params / plan.ep)
        if self.scatters_each_micro_batch:  # one layer's gradients before they are scattered
            biggest = max(layers, key=lambda layer: layer.params)
            working += FP32 * (biggest.shared_params / plan.tp + biggest.expert_params / plan.ep)
        if stage == plan.pp - 1:
            working += self.loss_bytes(tokens)
        return Memory(
            parameters=BF16 * (sharded if plan.zero_stage == 3 else whole),
            gradients=assumptions.gradient_bytes * (sharded if self.scatters_each_micro_batch else whole),
            optimizer=assumptions.optimizer_bytes * sharded,
            activations=kept * self.in_flight(stage) * assumptions.fragmentation,
            working=working * assumptions.fragmentation,
            reserve=assumptions.reserve_bytes,
        )

    def loss_bytes(self, tokens: float) -> float:
        """Of the head: hidden states and their gradient, and one chunk of logits or, not chunked, all of them."""
        hidden = 2 * BF16 * self.costs.hidden_size * tokens
        if self.assumptions.is_loss_chunked:
            return hidden + self.costs.loss_bytes / self.plan.tp
        return hidden + (BF16 + 2 * FP32) * self.costs.vocab_size * tokens

    def in_flight(self, stage: int) -> float:
        """Micro-batches whose activations stage `stage` holds at its peak, counted in whole stages."""
        plan = self.plan
        if plan.virtual_stages == 1:
            return min(plan.num_micro_batches, plan.pp - stage)
        pieces = 2 * (plan.pp - 1 - stage) + (plan.virtual_stages - 1) * plan.pp + 1
        return min(plan.num_micro_batches * plan.virtual_stages, pieces) / plan.virtual_stages

    def kept_bytes(self, layer: LayerCosts) -> float:
        """Bytes of a micro-batch that a layer keeps on one GPU under the plan's recomputation."""
        if self.plan.recomputation == "full":
            return layer.input_bytes * self.tokens / self.plan.tp
        if self.plan.recomputation == "selective":
            dropped = layer.projection_bytes + self._repeated_bytes(layer)
            return self.whole_bytes(layer) - dropped * self.tokens / self.plan.tp
        return self.whole_bytes(layer)

    def whole_bytes(self, layer: LayerCosts) -> float:
        """Bytes of a micro-batch that the backward pass of a layer needs on one GPU.

        Sequence parallelism splits all but the gathered inputs of the attention and feed-forward matmuls.
        """
        gathered = BF16 * self.costs.hidden_size * (1 + (layer.feed_forward_params > 0))
        divided = layer.kept_bytes + self._repeated_bytes(layer) - gathered
        return (divided / self.plan.tp + gathered) * self.tokens

    def _repeated_bytes(self, layer: LayerCosts) -> int:
        """Per token, of key-value heads that context parallel ranks hold besides the first of each."""
        return BF16 * layer.kv_width * (self.key_head_copies - 1)

    def micro_batch_time(self, layers: Stage, stage: int) -> tuple[float, float]:
        """(compute, exposed communication) of one micro-batch, forward and backward, seconds."""
        plan, assumptions, gpu = self.plan, self.assumptions, self.gpu
        tokens = self.tokens / plan.tp  # sequence parallel; under tp each GPU does 1/tp of every token's matmuls
        again = {"none": 0.0, "selective": 0.0, "full": 1.0}[plan.recomputation]
        compute = 0.0
        for layer, count in layers.items():
            linear = layer.linear_flops * (3 + again) * tokens
            if plan.recomputation == "selective":
                linear += 2 * layer.attention_params * tokens
            experts = layer.expert_flops * (3 + again) * tokens
            local = layer.expert_params / plan.ep
            reads = local * (BF16 * (2 + again) + 2 * FP32)  # weights forward and backward, gradients read and written
            core = layer.core_flops * (3.5 + again) * tokens  # FlashAttention computes the scores again: 2.5 backward
            moved = layer.kept_bytes * assumptions.traffic_per_kept_byte * (1 + again / 3) * tokens
            seconds = linear / self.matmul_flops + max(experts / self.matmul_flops, reads / self.memory_speed)
            seconds += core / (assumptions.attention_efficiency * gpu.peak_bf16) + moved / self.memory_speed
            compute += count * seconds
        if stage == plan.pp - 1:
            head = 3 * self.costs.head_flops * tokens / (assumptions.matmul_efficiency * gpu.peak_bf16)
            compute += head + 3 * (BF16 + FP32) * self.costs.vocab_size * tokens / self.memory_speed
        return compute, self._exposed(layers, stage, compute)

    def _exposed(self, layers: Stage, stage: int, compute: float) -> float:
        sent = self.micro_batch_traffic(layers, stage)
        plan, assumptions = self.plan, self.assumptions
        waits = self._ring_seconds(sent["tensor"], plan.tp) * (1 - assumptions.tp_overlap)
        waits += self._scatter_seconds(sent["expert"], plan.ep) * (1 - assumptions.ep_overlap)
        core = sum(count * layer.core_flops * 3.5 * self.tokens / plan.tp for layer, count in layers.items())
        behind = core / (assumptions.attention_efficiency * self.gpu.peak_bf16)
        waits += max(0.0, self._ring_seconds(sent["context"], plan.tp * plan.cp) - behind)
        waits += self._ring_seconds(sent["pipeline"], plan.world_size)
        return waits + max(0.0, self._data_seconds(sent["data"]) - compute)

    def micro_batch_traffic(self, layers: Stage, stage: int) -> dict[Traffic, float]:
        """Bytes that one GPU sends for one micro-batch, forward and backward."""
        plan, costs = self.plan, self.costs
        full = plan.recomputation == "full"
        hidden = BF16 * costs.hidden_size * self.tokens
        sent: dict[Traffic, float] = dict.fromkeys(("tensor", "expert", "context", "pipeline", "data"), 0.0)
        for layer, count in layers.items():
            # all-gather and reduce-scatter forward, both again backward; forward again of what is recomputed, but for the
            # layer's last one, whose output nothing needs
            blocks = (4 if plan.recomputation == "none" else 6) + (layer.feed_forward_params > 0) * (5 if full else 4)
            sent["tensor"] += count * blocks * hidden * (plan.tp - 1) / plan.tp
            if layer.expert_params:
                row = layer.top_k * costs.hidden_size * self.tokens / plan.tp * (plan.ep - 1) / plan.ep
                there, back = self.assumptions.dispatch_bytes, BF16  # to the experts, and their results
                sent["expert"] += count * row * ((there + back) * (3 if full else 2))
                rows_of_experts = INDEX * layer.num_experts * (plan.ep - 1) / plan.ep
                sent["expert"] += count * rows_of_experts * (2 if full else 1)
            sent["context"] += count * self._context_bytes(layer)
        between = (plan.tp - 1) / plan.tp
        is_last = stage == plan.pp - 1
        sent["tensor"] += ((stage == 0) + is_last) * 2 * hidden * between  # rows of the embedding; the head's input
        if is_last:  # three numbers of the softmax per token, added up
            sent["tensor"] += 2 * 3 * FP32 * self.tokens * between
        if plan.pp > 1:
            sent["pipeline"] = 2 * hidden / plan.tp * plan.virtual_stages
        each = self.assumptions.gradient_bytes if self.scatters_each_micro_batch else 0
        each += 2 * BF16 if plan.zero_stage == 3 else 0  # gathered forward and backward
        sent["data"] = each * self._between_replicas(*self.local_params(layers, stage))
        return sent

    def _context_bytes(self, layer: LayerCosts) -> float:
        """Of one layer and micro-batch: heads for positions and back (queries, keys, values, outputs), or around a ring."""
        plan = self.plan
        if plan.cp == 1:
            return 0.0
        if self.assumptions.context_exchange == "heads":
            width = (layer.score_width + layer.kv_width * self.key_head_copies) / plan.tp
            times = 2 if plan.recomputation == "none" else 3
            return times * BF16 * width * self.tokens * (plan.cp - 1) / plan.cp
        others = min(self.tokens * (plan.cp - 1), plan.micro_batch * layer.reach)
        return BF16 * layer.kv_width * others / plan.tp * (4 if plan.recomputation == "full" else 3)

    def once_per_step(self, layers: Stage, stage: int, *, hide_s: float) -> tuple[float, dict[Traffic, float]]:
        """(seconds, bytes) of what happens once: gradients and parameters under ZeRO-1 or 2, gradients of what several ranks
        hold for other reasons, and the optimizer."""
        plan, assumptions = self.plan, self.assumptions
        shared, experts = self.local_params(layers, stage)
        each = 0 if self.scatters_each_micro_batch else assumptions.gradient_bytes
        each += 0 if plan.zero_stage == 3 else BF16
        sent = each * self._between_replicas(shared, experts)
        sharded = shared / self.shared_replicas + experts / self.expert_replicas
        update = sharded * 2 * (assumptions.optimizer_bytes + assumptions.gradient_bytes) / self.memory_speed
        shared_by_tp, tied = self._gradients_held_twice(layers, stage)
        seconds = max(0.0, self._data_seconds(sent) - hide_s) + update
        seconds += self._ring_seconds(shared_by_tp, plan.tp) + self._ring_seconds(tied, plan.world_size)
        return seconds, {"data": sent, "tensor": shared_by_tp, "pipeline": tied}

    def _gradients_held_twice(self, layers: Stage, stage: int) -> tuple[float, float]:
        """Bytes for those of norms and routers, of which tensor parallel ranks have other positions each, and for those of an
        embedding that is the head of another stage."""
        plan, costs = self.plan, self.costs
        each = self.assumptions.gradient_bytes / self.shared_replicas
        is_last = stage == plan.pp - 1
        whole = sum(count * (layer.norm_params + layer.router_params) for layer, count in layers.items())
        whole += costs.norm_params if is_last else 0
        is_tied = plan.pp > 1 and not costs.head_params and (stage == 0 or is_last)
        return 2 * each * whole * (plan.tp - 1) / plan.tp, is_tied * each * costs.embedding_params / plan.tp

    def _between_replicas(self, shared: float, experts: float) -> float:
        """Parameters that one GPU sends in a reduce-scatter or an all-gather among replicas."""
        return (
            shared * (self.shared_replicas - 1) / self.shared_replicas
            + experts * (self.expert_replicas - 1) / self.expert_replicas
        )

    def _data_seconds(self, sent: float) -> float:
        """Replicas lie in other nodes as soon as tp x cp x dp leaves one; then the network is what limits."""
        return self._ring_seconds(sent, self.plan.tp * self.shared_replicas)

    def _ring_seconds(self, sent: float, span: int) -> float:
        """A collective over `span` consecutive GPUs: its slowest link limits it."""
        slowest = self.gpu.node_bandwidth if span <= self.gpu.per_node else self.gpu.network_bandwidth
        return sent / (slowest * self.assumptions.bandwidth_efficiency)

    def _scatter_seconds(self, sent: float, group: int) -> float:
        """An all-to-all over `group` consecutive GPUs: the share to other nodes goes over the network."""
        inside = min(1.0, self.gpu.per_node / group)
        each = inside / self.gpu.node_bandwidth + (1 - inside) / self.gpu.network_bandwidth
        return sent * each / self.assumptions.bandwidth_efficiency
