"""The planner: from a model, a number of GPUs and a context to ranked parallel plans. `autonomous plan` prints them.

Every split that divides is tried: tp x pp x cp x dp = GPUs, experts over ep ranks, ZeRO stage, recomputation, size of a
micro-batch, interleaving. What no engine of this package runs is left out (plan.refusals), what does not fit the memory
is left out, and the rest is ranked by tokens per second. Formulas: estimate.py and docs/planning.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from pydantic import BaseModel, ConfigDict, Field

from train.model.costs import ModelCosts
from train.model.estimate import Estimate, estimate
from train.model.plan import ENGINES, Assumptions, Engine, Gpu, ParallelPlan, Precision, gpu, refusals, shape_problems
from train.model.transformer import Recomputation

RECOMPUTATIONS: tuple[Recomputation, ...] = ("none", "selective", "full")
MIN_TOKENS_PER_RANK = 1024
"""Tokens of a sequence that a context and tensor parallel rank has at least: below, matmuls are too small."""
FASTER = 1.01
"""A plan that splits the context more, or recomputes more, replaces a simpler one only if it is this much faster."""
USABLE_MEMORY = 0.95
"""Share of a GPU's memory that a plan may need by the estimate."""


class PlanRequest(BaseModel):
    """What to plan for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int = Field(gt=0)
    """All GPUs of the cluster."""
    gpu: str = "h100-80gb"
    """A name of plan.GPUS."""
    tokens: float = Field(15e12, gt=0)
    """Tokens of the whole training."""
    batch_tokens: int = Field(2**24, gt=0)
    """Tokens of an optimizer step: 4,096 sequences of 4,096, the specification's global batch."""
    precision: Precision = "bf16"
    """Of matmuls."""
    price_usd_per_hour: float | None = Field(None, gt=0)
    """Of one GPU; None takes plan.GPUS."""
    engine: Engine | None = None
    """Only plans that this one runs; None: that any runs."""
    assumptions: Assumptions = Assumptions()
    """Efficiencies."""


@dataclass(frozen=True, slots=True)
class RankedPlan:
    """A plan that fits, with what it means for the whole training."""

    estimate: Estimate
    engines: tuple[Engine, ...]
    """Engines that can run it."""
    days: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Planning:
    """The result: plans from fastest to slowest, the best one of each (tp, pp, ep)."""

    costs: ModelCosts
    request: PlanRequest
    plans: tuple[RankedPlan, ...]
    num_considered: int
    """Splits that divide and that some engine runs."""
    smallest: Estimate | None
    """Where nothing fits: the plan that needs the least memory."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reasons of engines -> splits that they refused."""

    @property
    def tokens_per_step(self) -> int:
        """Whole sequences of the request's batch."""
        return self.request.batch_tokens // self.costs.context * self.costs.context

    @property
    def best(self) -> RankedPlan:
        """The fastest plan. Raises ValueError with what is missing if none fits."""
        if self.plans:
            return self.plans[0]
        raise ValueError(explain_no_plan(self))


def make_plans(costs: ModelCosts, request: PlanRequest) -> Planning:
    """Rank every plan. Raises ValueError for an unknown GPU and for a batch that is smaller than one sequence."""
    device = gpu(request.gpu)
    sequences = request.batch_tokens // costs.context
    if sequences == 0:
        raise ValueError(
            f"batch_tokens = {request.batch_tokens:,} is less than one sequence of context = {costs.context:,} tokens; "
            f"raise it to a multiple of {costs.context:,}"
        )
    price = request.price_usd_per_hour or device.price_usd_per_hour
    best: dict[tuple[int, ...], RankedPlan] = {}
    refused: dict[str, int] = {}
    smallest: Estimate | None = None
    considered = 0
    wanted = ENGINES if request.engine is None else (request.engine,)
    for plan in _candidates(costs, request.gpus, sequences=sequences, device=device):
        refusal = refusals(plan, costs)
        engines = tuple(engine for engine in wanted if engine not in refusal)
        if not engines:
            for reason in (f"{engine}: {refusal[engine]}" for engine in wanted):
                refused[reason] = refused.get(reason, 0) + 1
            continue
        considered += 1
        found = estimate(costs, plan, gpu=device, assumptions=request.assumptions, precision=request.precision)
        if smallest is None or found.memory.total < smallest.memory.total:
            smallest = found
        if found.memory.total > USABLE_MEMORY * device.memory_bytes:
            continue
        before = best.get(plan.model_shape)
        if before is None or found.tokens_per_s > FASTER * before.estimate.tokens_per_s:
            cost = found.gpu_hours(request.tokens) * price
            best[plan.model_shape] = RankedPlan(found, engines, found.days(request.tokens), cost)
    plans = tuple(sorted(best.values(), key=lambda one: -one.estimate.tokens_per_s))
    return Planning(costs, request, plans, considered, None if plans else smallest, refused)


def explain_no_plan(planning: Planning) -> str:
    """Why nothing fits, and what would."""
    request, costs, smallest = planning.request, planning.costs, planning.smallest
    if smallest is None:
        reasons = "; ".join(planning.refused) or "nothing divides"
        return (
            f"gpus = {request.gpus} with context = {costs.context:,} and batch_tokens = {request.batch_tokens:,}: no split of "
            f"{costs.name} is possible ({reasons}); use a power of two, or change batch_tokens"
        )
    have = gpu(request.gpu).memory_bytes * USABLE_MEMORY
    return (
        f"gpus = {request.gpus} x {request.gpu} cannot hold {costs.name} at context = {costs.context:,}: the smallest of "
        f"{planning.num_considered:,} plans ({smallest.plan.describe()}) needs {smallest.memory.total / 1e9:.0f} GB per GPU "
        f"of {have / 1e9:.0f} GB; use more GPUs, larger ones, or a shorter --context"
    )


def _candidates(costs: ModelCosts, gpus: int, *, sequences: int, device: Gpu) -> Iterator[ParallelPlan]:
    """Every plan that divides: of micro-batches that are possible, the sizes 1, 2, 4 and 8."""
    degrees = _divisors(gpus)
    for cp, tp, pp in product(degrees, degrees, degrees):
        if tp > device.per_node or pp > len(costs.layers) or gpus % (tp * pp * cp):
            continue
        if cp > 1 and costs.context < MIN_TOKENS_PER_RANK * cp * tp:
            continue
        dp = gpus // (tp * pp * cp)
        if sequences % dp:
            continue
        for micro_batch, virtual in product((1, 2, 4, 8), (1, 2, 4)):
            if (sequences // dp) % micro_batch or (virtual > 1 and pp == 1):
                continue
            for ep in _expert_degrees(costs, dp * cp * tp):
                plan = ParallelPlan(
                    dp=dp, tp=tp, pp=pp, ep=ep, cp=cp, micro_batch=micro_batch, virtual_stages=virtual,
                    num_micro_batches=sequences // dp // micro_batch,
                )  # fmt: skip
                if shape_problems(plan, costs, per_node=device.per_node):
                    continue
                for stage, recomputation in product((1, 2, 3), RECOMPUTATIONS):
                    yield plan.model_copy(update={"zero_stage": stage, "recomputation": recomputation})


def _expert_degrees(costs: ModelCosts, ranks: int) -> list[int]:
    if not costs.num_experts:
        return [1]
    return [ep for ep in _divisors(costs.num_experts) if ranks % ep == 0]


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
