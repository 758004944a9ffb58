"""`autonomous plan`: what a model needs and the ways to train it on a cluster, before a GPU is paid for."""

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import Failure, JsonOption, examples, output, print_json, table

if TYPE_CHECKING:
    from train.model.planner import Planning, RankedPlan

PANEL = "Training"
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
RECOMPUTED = {"none": "none", "selective": "some", "full": "all"}
COLUMNS = (
    "", "dp", "tp", "pp", "ep", "cp", "ZeRO", "recomp", "batch", "engine", "GB", "sent", "bubble", "MFU", "K tok/s",
    "days", "M USD",
)  # fmt: skip


class Precision(StrEnum):
    """Precision of matmuls."""

    BF16 = "bf16"
    FP8 = "fp8"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous plan --model 1t --gpus 1024 --context 131072",
            "autonomous plan --model mixtral-8x7b --gpus 64 --gpu h200-141gb --tokens 2T",
            "autonomous plan --model path/to/model-folder --gpus 8 --json",
        ),
    )(plan)


def plan(  # noqa: PLR0917 - the command's options
    model: Annotated[str, typer.Option(help="A preset (tiny, small, mixtral-8x7b, 500b, 1t, ...) or a model folder.")],
    gpus: Annotated[int, typer.Option(help="GPUs of the cluster.", min=1)],
    gpu: Annotated[
        str, typer.Option(help="Kind of GPU, such as a100-80gb, h100-80gb, h200-141gb, b200-192gb.")
    ] = "h100-80gb",
    context: Annotated[
        int | None, typer.Option(help="Tokens of a sequence. Default: the model's longest.", show_default=False, min=1)
    ] = None,
    tokens: Annotated[str, typer.Option(help="Tokens to train on; K, M, B, T are understood.")] = "15T",
    batch_tokens: Annotated[str, typer.Option(help="Tokens of an optimizer step.")] = "16777216",
    precision: Annotated[Precision, typer.Option(help="Of the matmuls.")] = Precision.BF16,
    price: Annotated[
        float | None, typer.Option(help="USD per GPU and hour. Default: a round figure.", show_default=False, min=0.01)
    ] = None,
    top: Annotated[int, typer.Option(help="Plans to print.", min=1)] = 8,
    as_json: JsonOption = False,
) -> None:
    """Parameters, FLOPs, and ranked parallel plans with memory, traffic, speed and cost.

    No GPU is needed: the model is built without memory. The formulas and how far they can be trusted: docs/planning.md.
    """
    from train.model.costs import count_costs
    from train.model.planner import PlanRequest, explain_no_plan, make_plans
    from train.model.presets import config_of

    request = PlanRequest.model_validate(
        {
            "gpus": gpus, "gpu": gpu, "tokens": parse_count(tokens, option="--tokens"), "precision": precision.value,
            "batch_tokens": math.ceil(parse_count(batch_tokens, option="--batch-tokens")), "price_usd_per_hour": price,
        }
    )  # fmt: skip
    planning = make_plans(count_costs(config_of(model), name=model, context=context), request)
    if not as_json:
        _print(planning, top=top)
    if not planning.plans:
        raise Failure(explain_no_plan(planning))
    if as_json:
        print_json(_to_json(planning, top=top))


def parse_count(text: str, *, option: str) -> float:
    """A number such as 15T, 2.5B or 16777216. Raises ValueError naming the option."""
    number, unit = (text[:-1], UNITS[text[-1].upper()]) if text[-1:].upper() in UNITS else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{option} = {text!r} is no positive number; write it like 15T, 2.5B or 16777216")
    return value


def _print(planning: "Planning", *, top: int) -> None:
    from train.model.failures import estimate_failures

    costs, request, console = planning.costs, planning.request, output()
    experts = f"; {costs.num_experts} experts" if costs.num_experts else ""
    console.print(
        f"{costs.name}: {_count_text(costs.total_params)} parameters, {_count_text(costs.active_params)} active per token "
        f"({len(costs.layers)} layers{experts})\n"
        f"{_count_text(costs.flops_per_token)} FLOPs per token, forward and backward, at a context of {costs.context:,}\n"
        f"{request.gpus:,} x {request.gpu}, {request.precision}, {planning.tokens_per_step:,} tokens per step, "
        f"{request.tokens:,.0f} tokens in all",
        markup=False,
    )
    if not planning.plans:
        return
    rows = [(place, *_cells(one)) for place, one in enumerate(planning.plans[:top], start=1)]
    title = f"The fastest of {planning.num_considered:,} plans, one for each (tp, pp, ep)"
    console.print(table(title, COLUMNS, rows, right=[name for name in COLUMNS if name not in ("recomp", "engine")]))
    memory, sent = planning.best.estimate.memory, planning.best.estimate.traffic_bytes
    parts = (
        ("parameters", memory.parameters), ("gradients", memory.gradients), ("optimizer", memory.optimizer),
        ("activations", memory.activations), ("working", memory.working), ("reserve", memory.reserve),
    )  # fmt: skip
    console.print("Plan 1, GB per GPU: " + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts), markup=False)
    traffic = ", ".join(f"{kind} {size / 1e9:,.0f}" for kind, size in sent.items() if size)
    console.print(f"Plan 1, GB sent by a GPU per step: {traffic or 'none'}", markup=False)
    failures = estimate_failures(request.gpus, state_bytes=memory.optimizer)
    console.print(
        f"Plan 1, failures: one in {failures.hours_between_failures:,.0f} hours; a checkpoint every "
        f"{failures.interval_s / 60:.0f} minutes ({failures.write_s:.0f} s to write, {failures.stall_s:.1f} s stall); "
        f"{failures.goodput:.1%} of the time trains",
        markup=False,
    )
    console.print(
        "GB: memory of a GPU. sent: GB that a GPU sends per step. batch: sequences of a micro-batch x micro-batches (x\n"
        "pieces of a stage). Estimates; formulas, limits and errors against published runs: docs/planning.md",
        markup=False,
    )


def _count_text(count: float) -> str:
    """In millions below a billion."""
    return f"{count / 1e9:,.1f}B" if count >= 1e9 else f"{count / 1e6:,.1f}M"


def _cells(one: "RankedPlan") -> tuple[Any, ...]:
    found, plan_ = one.estimate, one.estimate.plan
    pieces = f"x{plan_.virtual_stages}" if plan_.virtual_stages > 1 else ""
    return (
        plan_.dp, plan_.tp, plan_.pp, plan_.ep, plan_.cp, plan_.zero_stage, RECOMPUTED[plan_.recomputation],
        f"{plan_.micro_batch}x{plan_.num_micro_batches}{pieces}", one.engines[0] if len(one.engines) == 1 else "either",
        f"{found.memory.total / 1e9:.0f}", f"{sum(found.traffic_bytes.values()) / 1e9:,.0f}", f"{found.bubble:.0%}",
        f"{found.mfu:.0%}", f"{found.tokens_per_s / 1e3:,.0f}", f"{one.days:,.0f}", f"{one.cost_usd / 1e6:,.1f}",
    )  # fmt: skip


def _to_json(planning: "Planning", *, top: int) -> dict[str, Any]:
    from dataclasses import asdict

    from train.model.failures import estimate_failures

    costs = planning.costs
    plans = [
        {
            "plan": one.estimate.plan.model_dump(), "engines": list(one.engines),
            "memory_bytes": asdict(one.estimate.memory) | {"total": one.estimate.memory.total},
            "traffic_bytes": one.estimate.traffic_bytes, "bubble": one.estimate.bubble, "exposed": one.estimate.exposed,
            "mfu": one.estimate.mfu, "step_s": one.estimate.step_s, "tokens_per_s": one.estimate.tokens_per_s,
            "days": one.days, "cost_usd": one.cost_usd,
            "failures": asdict(estimate_failures(planning.request.gpus, state_bytes=one.estimate.memory.optimizer)),
        }
        for one in planning.plans[:top]
    ]  # fmt: skip
    return {
        "model": costs.name, "total_params": costs.total_params, "active_params": costs.active_params,
        "flops_per_token": costs.flops_per_token, "context": costs.context,
        "request": planning.request.model_dump(), "num_considered": planning.num_considered, "plans": plans,
    }  # fmt: skip
