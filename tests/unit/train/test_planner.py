"""Costs and plans: parameters against published models, bytes against autograd, plans against measured runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from train.model import attention_kernels, experts
from train.model.config import AttentionConfig, MoEConfig
from train.model.costs import ModelCosts, count_costs, split_stages, visible_keys
from train.model.estimate import estimate
from train.model.plan import GPUS, Assumptions, ParallelPlan, gpu, refusals, shape_problems
from train.model.planner import PlanRequest, explain_no_plan, make_plans
from train.model.presets import PRESETS, preset
from train.model.published import PUBLISHED, deepseek_v3_costs
from train.model.transformer import MoETransformer, Recomputation

H100 = GPUS["h100-80gb"]


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mixtral-8x7b", 46_702_792_704, 12.9e9),
        ("qwen3-30b-a3b", 30_532_122_624, 3.3e9),
        ("llama-3-8b", 8_030_261_248, 8.0e9),
        ("llama-3.1-405b", 405_853_388_800, 405.9e9),
    ],
)
def test_parameters_of_published_models_are_exact(name: str, total: int, active: float):
    costs = count_costs(preset(name), name=name, context=4096)
    assert costs.total_params == total
    assert costs.active_params == pytest.approx(active, rel=0.02)


def test_parameters_of_deepseek_v3_equal_transformers_model():
    with torch.device("meta"):
        theirs = DeepseekV3ForCausalLM(DeepseekV3Config())
    costs = deepseek_v3_costs()
    assert costs.total_params == sum(parameter.numel() for parameter in theirs.parameters())
    assert costs.active_params == pytest.approx(37e9, rel=0.02)  # as published


def test_our_large_presets_have_the_size_in_their_name():
    for name, least, most in (("500b", 0.5e12, 0.53e12), ("1t", 1e12, 1.02e12), ("1t-sparse", 1e12, 1.02e12)):
        costs = count_costs(PRESETS[name], name=name)
        assert least <= costs.total_params <= most
        assert (PRESETS[name].num_experts, PRESETS[name].num_experts_per_token) == (128, 2)


def test_an_unknown_preset_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"model = '2t' is no preset and no folder; there are tiny, small"):
        preset("2t")


CPU_NORM_BYTES = 6
"""Per normed element: the CPU keeps it twice in float32, where a GPU's fused kernel keeps its bf16 input."""


@contextmanager
def _kept_for_backward() -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps, by address; alive tensors cannot share one."""
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


SHAPE = {
    "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 256, "moe_intermediate_size": 96, "num_experts": 8, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qk_norm": "head"},
        {"num_experts": 0, "num_experts_per_token": 0},
        {"num_shared_experts": 2, "num_experts_per_token": 3},
    ],
    ids=["experts", "qk-norm", "dense", "shared experts"],
)
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_kept_bytes_of_a_layer_are_what_autograd_keeps(
    fields: dict[str, object], recomputation: Recomputation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(experts, "ROW_MULTIPLE", 1)  # a CPU fills up rows, a GPU does not
    monkeypatch.setattr(attention_kernels, "prefers_blocks", lambda _: False)  # nor does it keep probabilities
    config = MoEConfig.model_validate(SHAPE | fields)
    costs = count_costs(config, name="test", context=512)
    model = MoETransformer(config, dtype=torch.bfloat16).set_recomputation(recomputation)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tokens = 512
    rotary = model.rope(torch.arange(tokens).unsqueeze(0), dtype=torch.bfloat16)
    weights |= {part.untyped_storage().data_ptr() for part in rotary}  # one for all layers
    x = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with _kept_for_backward() as kept:
        model.layers[0](x, rotary)
    measured = sum(size for address, size in kept.items() if address not in weights) / tokens
    (layer,) = costs.layers
    expected = layer.input_bytes
    if recomputation == "none":
        heads, keys = 4 * 32, 2 * 32
        normed = 2 * config.hidden_size + (heads + keys) * (config.qk_norm == "head")
        expected = layer.kept_bytes + CPU_NORM_BYTES * normed
    assert expected == pytest.approx(measured, rel=0.02)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 60),
    window=st.integers(1, 40),
    sinks=st.integers(0, 8),
    kind=st.sampled_from(["full", "sliding"]),
)
def test_visible_keys_are_the_mean_of_a_counted_mask(length: int, window: int, sinks: int, kind: str):
    config = AttentionConfig(pattern=(kind,), window=window, num_sinks=sinks)
    i, j = torch.arange(length).unsqueeze(1), torch.arange(length)
    seen = j <= i
    if kind == "sliding":
        seen &= (j > i - window) | (j < sinks)
    counted = seen.sum().item() / length
    assert visible_keys(kind, length, config) == pytest.approx(counted, abs=sinks + 1e-6)


def test_flops_are_six_per_active_weight_and_twelve_per_score():
    config = preset("mixtral-8x7b")
    costs = count_costs(config, name="mixtral", context=4096)
    weights = costs.active_params - costs.embedding_params - sum(layer.norm_params for layer in costs.layers) - 4096
    scores = 12 * 32 * 4096 * (4096 + 1) / 2
    assert costs.flops_per_token == pytest.approx(6 * weights + scores, rel=1e-9)


@pytest.mark.parametrize("stages", [1, 2, 4, 7, 16])
def test_stages_hold_every_layer_once_and_the_ends_hold_no_more_than_the_middle(stages: int):
    costs = count_costs(preset("llama-3.1-405b"), name="405b", context=8192)
    sizes = [sum(stage.values()) for stage in split_stages(costs, stages)]
    assert sum(sizes) == 126
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes[0], sizes[-1]) <= min(sizes) + (len(set(sizes)) > 1) * (stages <= 2)


SPEED_ERRORS = {"Llama 3.1 8B, 128K, 8 GPUs": 0.55}
"""Stated in docs/planning.md: that run's ring of context parallel ranks hid none of its traffic."""


@pytest.mark.slow
@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: run.name)
def test_speed_and_memory_of_published_runs_are_predicted_within_the_stated_error(run):
    assert abs(run.speed_error()) <= SPEED_ERRORS.get(run.name, 0.20)
    if run.memory_bytes is not None:
        assert abs(run.memory_error()) <= 0.20


def _costs(name: str = "mixtral-8x7b", context: int = 4096) -> ModelCosts:
    return count_costs(preset(name), name=name, context=context)


def test_state_bytes_are_the_arithmetic_of_zero():
    """2 bytes of weights, 4 of gradients, 12 of optimizer: whole, or shared by the replicas of each part."""
    costs = _costs()
    whole = {1: (2, 4, 12 / 8), 2: (2, 4 / 8, 12 / 8), 3: (2 / 8, 4 / 8, 12 / 8)}
    for stage, expected in whole.items():
        memory = estimate(costs, ParallelPlan(dp=8, zero_stage=stage), gpu=H100, assumptions=Assumptions()).memory
        found = (memory.parameters, memory.gradients, memory.optimizer)
        assert found == pytest.approx([bytes_each * costs.total_params for bytes_each in expected])


def test_experts_spread_over_all_ranks_leave_no_replica_to_share_their_optimizer():
    """The rule of a 1T plan: ep = dp splits the experts, but then nothing is left for ZeRO to split."""
    costs = _costs()
    experts = sum(layer.expert_params for layer in costs.layers)
    rest = costs.total_params - experts
    memory = estimate(costs, ParallelPlan(dp=8, ep=8), gpu=H100, assumptions=Assumptions()).memory
    assert memory.optimizer == pytest.approx(12 * (rest / 8 + experts / 8))
    assert memory.gradients == pytest.approx(4 * (rest + experts / 8))
    folded = estimate(costs, ParallelPlan(dp=4, tp=2, ep=8), gpu=H100, assumptions=Assumptions()).memory
    norms_and_routers = sum(layer.norm_params + layer.router_params for layer in costs.layers) + costs.norm_params
    split = rest - norms_and_routers
    assert folded.gradients == pytest.approx(4 * (norms_and_routers + split / 2 + experts / 8))


def test_traffic_of_experts_and_tensor_ranks_is_tokens_times_width():
    """As measured on a simulated process group: an all-to-all sends tokens x k x D, an all-reduce twice tokens x D."""
    costs = _costs()
    tokens, width, layers = 4096, 4096, 32
    alone = estimate(costs, ParallelPlan(dp=8, ep=8), gpu=H100, assumptions=Assumptions()).traffic_bytes
    assert alone["expert"] == pytest.approx(4 * layers * tokens * 2 * width * 2 * 7 / 8)
    assert alone["tensor"] == alone["context"] == alone["pipeline"] == 0
    split = estimate(costs, ParallelPlan(tp=8), gpu=H100, assumptions=Assumptions()).traffic_bytes
    blocks = layers + 1  # the embedding and the head together exchange as much as attention
    replicated = sum(layer.norm_params + layer.router_params for layer in costs.layers) + costs.norm_params
    expected = (4 * blocks * tokens * width * 2 + 2 * 3 * 4 * tokens + 2 * 4 * replicated) * 7 / 8
    assert split["tensor"] == pytest.approx(expected)
    staged = estimate(costs, ParallelPlan(pp=4, num_micro_batches=3), gpu=H100, assumptions=Assumptions()).traffic_bytes
    assert staged["pipeline"] == pytest.approx(3 * 2 * tokens * width * 2)


def test_a_windowed_layer_needs_no_keys_from_beyond_its_window():
    config = preset("mixtral-8x7b")
    windowed = config.replace(attention=AttentionConfig(pattern=("sliding",), window=1024, num_sinks=64))
    plan = ParallelPlan(cp=8)
    full, near = (
        estimate(
            count_costs(one, name="x", context=32_768), plan, gpu=H100, assumptions=Assumptions(context_exchange="ring")
        )
        for one in (config, windowed)
    )
    each = 3 * 32 * 2 * 2 * 1024  # forward once, backward twice; 32 layers; bytes; keys and values of 8 heads of 128
    assert full.traffic_bytes["context"] == pytest.approx(each * 7 * 4096)
    assert near.traffic_bytes["context"] == pytest.approx(each * (1024 + 64))


def test_traffic_and_time_are_of_the_stage_with_the_most_layers():
    """126 layers on 16 stages: 7 at the ends, 8 between them."""
    costs = count_costs(preset("llama-3.1-405b"), name="405b", context=8192)
    plan = ParallelPlan(tp=8, pp=16, num_micro_batches=16)
    found = estimate(costs, plan, gpu=H100, assumptions=Assumptions())
    gradients_of_norms = 2 * 4 * 8 * 2 * 16_384
    assert found.traffic_bytes["tensor"] == pytest.approx(
        (16 * 8 * 2 * 4 * 2 * 8192 * 16_384 + gradients_of_norms) * 7 / 8
    )


def test_a_pipeline_within_a_node_sends_over_its_links_and_a_longer_one_over_the_network():
    alike = H100.model_copy(update={"network_bandwidth": H100.node_bandwidth})
    times = [
        [estimate(_costs(), plan, gpu=one, assumptions=Assumptions()).step_s for one in (H100, alike)]
        for plan in (ParallelPlan(pp=8, num_micro_batches=8), ParallelPlan(pp=16, num_micro_batches=16))
    ]
    assert times[0][0] == times[0][1]
    assert times[1][0] > times[1][1]


@pytest.mark.parametrize(("stages", "micro_batches", "virtual"), [(4, 64, 1), (4, 64, 2), (8, 64, 1)])
def test_the_bubble_is_that_of_one_forward_one_backward(stages: int, micro_batches: int, virtual: int):
    plan = ParallelPlan(pp=stages, num_micro_batches=micro_batches, virtual_stages=virtual)
    found = estimate(_costs(), plan, gpu=H100, assumptions=Assumptions())
    waiting = (stages - 1) / virtual
    assert found.bubble == pytest.approx(waiting / (micro_batches + waiting), rel=0.05)  # the optimizer's step beside


def test_recomputation_trades_memory_for_time():
    found = [
        estimate(
            _costs(), ParallelPlan(dp=8, recomputation=kind, num_micro_batches=8), gpu=H100, assumptions=Assumptions()
        )
        for kind in ("none", "selective", "full")
    ]
    assert found[0].memory.activations > found[1].memory.activations > found[2].memory.activations
    assert found[0].tokens_per_s > found[1].tokens_per_s > found[2].tokens_per_s


@pytest.mark.slow
def test_a_trillion_parameters_on_1024_gpus_at_128k_have_a_plan_that_fits():
    planning = make_plans(_costs("1t", 131_072), PlanRequest(gpus=1024))
    best = planning.best
    assert best.estimate.plan.world_size == 1024
    assert best.estimate.memory.total < H100.memory_bytes
    assert 0.1 < best.estimate.mfu < 0.6
    assert best.cost_usd == pytest.approx(best.days * 24 * 1024 * H100.price_usd_per_hour)
    speeds = [one.estimate.tokens_per_s for one in planning.plans]
    assert speeds == sorted(speeds, reverse=True)
    for one in planning.plans:
        assert not shape_problems(one.estimate.plan, planning.costs)
        assert one.engines == tuple(
            e for e in ("deepspeed", "native") if e not in refusals(one.estimate.plan, planning.costs)
        )
        assert one.estimate.tokens_per_step == 2**24


@pytest.mark.slow
def test_plans_of_one_engine_are_its_own_best():
    costs = _costs("1t", 131_072)
    found = make_plans(costs, PlanRequest(gpus=1024, engine="deepspeed"))
    assert found.plans
    for one in found.plans:
        assert one.engines == ("deepspeed",)
        assert "deepspeed" not in refusals(one.estimate.plan, costs)
    of_any = {one.estimate.plan.model_shape for one in make_plans(costs, PlanRequest(gpus=1024)).plans}
    assert {one.estimate.plan.model_shape for one in found.plans} <= of_any


def test_what_does_not_fit_is_said_with_the_smallest_need():
    planning = make_plans(_costs("500b", 8192), PlanRequest(gpus=8))
    assert not planning.plans
    with pytest.raises(ValueError, match=r"gpus = 8 x h100-80gb cannot hold 500b .* needs \d+ GB per GPU of 76 GB"):
        _ = planning.best


def test_a_number_of_gpus_that_divides_nothing_is_said():
    planning = make_plans(_costs(), PlanRequest(gpus=7))
    assert "gpus = 7" in explain_no_plan(planning)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpus": 8, "gpu": "tpu"}, "gpu = 'tpu' is unknown; there are a100-80gb"),
        ({"gpus": 8, "batch_tokens": 100}, "batch_tokens = 100 is less than one sequence of context = 4,096"),
        ({"gpus": 8, "gpu": "a100-80gb", "precision": "fp8"}, "precision = 'fp8': this GPU has no fp8"),
    ],
)
def test_bad_requests_are_named(fields: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make_plans(_costs(), PlanRequest.model_validate(fields))


def test_bad_plans_are_named():
    with pytest.raises(ValidationError, match="ep = 3 does not divide dp x cp x tp = 8"):
        ParallelPlan(dp=8, ep=3)
    with pytest.raises(ValidationError, match="virtual_stages = 2 needs pp > 1"):
        ParallelPlan(virtual_stages=2)
    with pytest.raises(ValueError, match="context = 65536 is beyond max_position_embeddings = 32768 of mixtral-8x7b"):
        _costs(context=65_536)
    with pytest.raises(ValueError, match="gpu = 'x' is unknown"):
        gpu("x")
    problems = shape_problems(ParallelPlan(dp=2, tp=16, ep=32, cp=1, pp=2, virtual_stages=20), _costs())
    assert [problem.split(" ")[0] for problem in problems] == ["tp", "tp", "pp", "ep", "interleaving"]


@pytest.mark.parametrize(
    ("plan", "engine", "words"),
    [
        (ParallelPlan(pp=2, dp=2, zero_stage=2), "deepspeed", "ZeRO-2 and ZeRO-3 are incompatible with pipeline"),
        (ParallelPlan(pp=2, virtual_stages=2, num_micro_batches=2), "deepspeed", "no interleaved schedule"),
        (
            ParallelPlan(dp=2, zero_stage=3, recomputation="selective"),
            "deepspeed",
            "selective recomputation with ZeRO-3",
        ),
        (ParallelPlan(dp=2, tp=2, cp=24), "deepspeed", "tp x cp = 2 x 24 ranks: tp x cp does not divide the heads"),
        (ParallelPlan(pp=4, num_micro_batches=3), "native", "at least one micro-batch per stage"),
        (ParallelPlan(dp=2, cp=64), "native", "tp x cp = 1 x 64 ranks: tp x cp does not divide the heads"),
    ],
)
def test_an_engine_refuses_what_it_cannot_run_with_the_reason(plan: ParallelPlan, engine: str, words: str):
    assert words in refusals(plan, _costs())[engine]
