"""Published training runs that the planner is checked against: what was run, and what its authors measured.

`PUBLISHED` is read by tests/unit/train/test_planner.py, which holds the stated errors, and by benchmarks/plan_published.py,
which prints them. A run brings only settings that its source names; all else is the one set of Assumptions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from train.model.costs import BF16, FP32, LayerCosts, ModelCosts, count_costs
from train.model.estimate import Estimate, estimate
from train.model.plan import Assumptions, ParallelPlan, Precision, gpu
from train.model.presets import preset

_AS_PUBLISHED = Assumptions(context_exchange="ring", is_loss_chunked=False)


@dataclass(frozen=True)
class PublishedRun:
    """One measured run. `tokens_per_s_per_gpu` or `tflops_per_gpu` (None: not published); memory in bytes."""

    name: str
    source: str
    costs: Callable[[], ModelCosts]
    plan: ParallelPlan
    gpu: str
    tflops_per_gpu: float | None = None
    tokens_per_s_per_gpu: float | None = None
    memory_bytes: float | None = None
    precision: Precision = "bf16"
    assumptions: Assumptions = _AS_PUBLISHED

    def predict(self) -> Estimate:
        """What the planner says."""
        return estimate(
            self.costs(), self.plan, gpu=gpu(self.gpu), assumptions=self.assumptions, precision=self.precision
        )

    def measured_tokens_per_s(self) -> float:
        """Tokens per second and GPU as published, or from the published FLOPs."""
        if self.tokens_per_s_per_gpu is not None:
            return self.tokens_per_s_per_gpu
        assert self.tflops_per_gpu is not None
        return self.tflops_per_gpu * 1e12 / self.costs().flops_per_token

    def speed_error(self) -> float:
        """Predicted over measured tokens per second, minus 1."""
        return self.predict().tokens_per_s / self.plan.world_size / self.measured_tokens_per_s() - 1

    def memory_error(self) -> float | None:
        """Predicted over measured memory, minus 1; None where none was published."""
        return None if self.memory_bytes is None else self.predict().memory.total / self.memory_bytes - 1


@lru_cache(maxsize=2)
def deepseek_v3_costs(context: int = 4096) -> ModelCosts:
    """DeepSeek-V3 (arXiv:2412.19437, section 4.2): multi-head latent attention, which MoETransformer does not have.

    61 layers, the first 3 dense; 256 routed experts of 2048, top-8, 1 shared; without multi-token prediction.
    """
    width, heads, q_rank, kv_rank, nope, rope, v_dim = 7168, 128, 1536, 512, 128, 64, 128
    attention = (
        width * q_rank + q_rank + q_rank * heads * (nope + rope)  # down, norm, up of queries
        + width * (kv_rank + rope) + kv_rank + kv_rank * heads * (nope + v_dim)  # of keys and values
        + heads * v_dim * width
    )  # fmt: skip
    dense_width, expert_width, experts, top_k = 18_432, 2048, 256, 8

    def layer(index: int) -> LayerCosts:
        is_dense = index < 3
        shared = dense_width if is_dense else expert_width
        return LayerCosts(
            attention_params=attention,
            norm_params=2 * width,
            feed_forward_params=3 * width * shared,
            router_params=0 if is_dense else experts * width,
            expert_params=0 if is_dense else 3 * width * expert_width * experts,
            num_experts=0 if is_dense else experts,
            top_k=0 if is_dense else top_k,
            score_width=heads * (nope + rope + v_dim),
            kv_width=kv_rank + rope,
            visible_keys=(context + 1) / 2,
            reach=context,
            input_bytes=BF16 * width,
            projection_bytes=BF16 * (2 * width + q_rank + kv_rank + rope + heads * (2 * (nope + rope) + v_dim)),
            core_bytes=BF16 * heads * v_dim + FP32 * heads,
            feed_forward_bytes=BF16 * width + 4 * BF16 * shared + (0 if is_dense else FP32 * (width + 3 * experts)),
            expert_bytes=0 if is_dense else top_k * BF16 * 2 * (width + expert_width),
        )

    return ModelCosts(
        "deepseek-v3", context, width, 129_280, embedding_params=129_280 * width, head_params=129_280 * width,
        norm_params=width, layers=tuple(map(layer, range(61))), num_heads=heads, num_kv_heads=heads,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _preset_costs(name: str, context: int) -> ModelCosts:
    return count_costs(preset(name), name=name, context=context)


@lru_cache(maxsize=8)
def _llama_costs(context: int, *, width: int, layers: int, feed_forward: int) -> ModelCosts:
    config = preset("llama-3.1-405b").replace(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 128, intermediate_size=feed_forward
    )
    return count_costs(config, name=f"llama, {layers} layers", context=context)


_LLAMA = "Llama 3 (arXiv:2407.21783), table 4 and section 3.3.2"
_TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
_GIB = 2**30

_DUAL_PIPE = Assumptions(
    context_exchange="ring", is_loss_chunked=False, ep_overlap=1.0, dispatch_bytes=1, optimizer_bytes=8
)
_8B = {"width": 4096, "layers": 32, "feed_forward": 14_336}

PUBLISHED: tuple[PublishedRun, ...] = (
    PublishedRun(
        "Llama 3.1 405B, 8K, 8,192 GPUs", _LLAMA, partial(_preset_costs, "llama-3.1-405b", 8192),
        ParallelPlan(dp=64, tp=8, pp=16, zero_stage=2, num_micro_batches=32, virtual_stages=8),
        "h100-80gb", tflops_per_gpu=430,
    ),
    PublishedRun(
        "Llama 3.1 405B, 8K, 16,384 GPUs", _LLAMA, partial(_preset_costs, "llama-3.1-405b", 8192),
        ParallelPlan(dp=128, tp=8, pp=16, zero_stage=2, num_micro_batches=16, virtual_stages=8),
        "h100-80gb", tflops_per_gpu=400,
    ),
    PublishedRun(
        "Llama 3.1 405B, 128K, 16,384 GPUs", _LLAMA, partial(_preset_costs, "llama-3.1-405b", 131_072),
        ParallelPlan(dp=8, tp=8, pp=16, cp=16, zero_stage=2, num_micro_batches=16, virtual_stages=8),
        "h100-80gb", tflops_per_gpu=380,
    ),
    PublishedRun(
        "DeepSeek-V3, 4K, 2,048 GPUs", "DeepSeek-V3 (arXiv:2412.19437), table 1 and section 3.2", deepseek_v3_costs,
        ParallelPlan(dp=128, pp=16, ep=64, recomputation="selective", num_micro_batches=120, virtual_stages=2),
        "h800-80gb", tokens_per_s_per_gpu=1e12 / (180_000 * 3600), precision="fp8", assumptions=_DUAL_PIPE,
    ),
    PublishedRun(
        "Mixtral 8x7B, 4K, 64 GPUs", "Megatron Core 0.9, megatron/core/transformer/moe/README.md",
        partial(_preset_costs, "mixtral-8x7b", 4096), ParallelPlan(dp=16, pp=4, ep=8, num_micro_batches=16, virtual_stages=8),
        "h100-80gb", tflops_per_gpu=468,
    ),
    PublishedRun(
        "Llama 3.1 8B, 32K, 8 GPUs", f"{_TITAN}, table 2", partial(_llama_costs, 32_768, **_8B),
        ParallelPlan(dp=8, zero_stage=3, recomputation="full"),
        "h100-96gb", tokens_per_s_per_gpu=3890, memory_bytes=83.9 * _GIB, precision="fp8",
    ),
    PublishedRun(
        "Llama 3.1 8B, 128K, 8 GPUs", f"{_TITAN}, table 2", partial(_llama_costs, 131_072, **_8B),
        ParallelPlan(dp=2, cp=4, zero_stage=3, recomputation="full"),
        "h100-96gb", tokens_per_s_per_gpu=1071, memory_bytes=84.0 * _GIB, precision="fp8",
    ),
    PublishedRun(
        "Llama 3.1 70B, 8K, 256 GPUs", f"{_TITAN}, table 4",
        partial(_llama_costs, 8192, width=8192, layers=80, feed_forward=28_672),
        ParallelPlan(dp=32, tp=8, zero_stage=3, recomputation="full", micro_batch=16),
        "h100-96gb", tokens_per_s_per_gpu=829, memory_bytes=71.9 * _GIB, precision="fp8",
    ),
    PublishedRun(
        "Llama 3.1 405B, 8K, 512 GPUs, 1F1B", f"{_TITAN}, table 5", partial(_preset_costs, "llama-3.1-405b", 8192),
        ParallelPlan(dp=8, tp=8, pp=8, zero_stage=2, recomputation="full", micro_batch=4, num_micro_batches=8),
        "h100-96gb", tokens_per_s_per_gpu=100, memory_bytes=82.5 * _GIB, precision="fp8",
    ),
)  # fmt: skip
